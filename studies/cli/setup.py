"""Commands about the installation: `presets`, `doctor`."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from studies.cli.app import SET_UP, app
from studies.cli.options import FormatOption
from studies.output import Format, note, print_json, print_rows, print_table


@app.command(rich_help_panel=SET_UP)
def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Prints this preset's file.", show_default=False),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Prints the JSON Schema of study files, for editors.")
    ] = False,
    format: FormatOption = Format.table,
) -> None:
    """Lists the built-in studies; with a NAME prints that study file, to copy and change."""
    from studies import config
    from studies.errors import StudyError
    from studies.output import Column

    if schema:
        return print_json(config.schema())
    files = config.presets()
    if name is not None:
        if name not in files:
            raise StudyError(f"there is no preset '{name}'; presets are {', '.join(files)}")
        print(files[name].read_text(encoding="utf-8"), end="")
        return None
    first = {
        key: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for key, path in files.items()
    }
    print_rows(
        [{"name": key, "about": about} for key, about in first.items()],
        format,
        [Column("preset"), Column("about")],
        list(map(list, first.items())),
    )


@app.command(rich_help_panel=SET_UP)
def doctor(format: FormatOption = Format.table) -> None:
    """Examines this installation: versions, pairs that break each other, GPU, a Ray task; where Ray
    listens; each finding with its remedy.
    """
    from studies.cli import doctor as examination
    from studies.output import Column, reading_width

    findings, width = [], reading_width()
    for finding in examination.examine():
        findings.append(finding)
        if format is Format.table:
            note(
                textwrap.fill(
                    f"{finding.level:>4}  {finding.what}: {finding.found}",
                    width,
                    subsequent_indent=" " * 6,
                )
            )
    if format is Format.json:
        print_json(examination.findings_as_dict(findings))
    else:
        remedies = [[f.level, f.what, f.found, f.remedy] for f in findings if f.remedy]
        if remedies:
            print_table(
                [Column("level"), Column("what"), Column("found"), Column("remedy")],
                remedies,
                width,
            )
        print(
            "healthy"
            if examination.findings_as_dict(findings)["healthy"]
            else "not healthy: see the remedies marked bad"
        )
    if not examination.findings_as_dict(findings)["healthy"]:
        raise typer.Exit(1)
