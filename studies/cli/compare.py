"""The command `compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from studies.cli.app import LOOK_PANEL, app
from studies.cli.options import Directory, FormatOption
from studies.output import Format, note, print_json, print_lines, print_rows, print_table


@app.command(rich_help_panel=LOOK_PANEL)
def compare(
    directory: Directory,
    first: Annotated[
        int | None, typer.Argument(metavar="A", help="A trial's number.", show_default=False)
    ] = None,
    second: Annotated[
        int | None, typer.Argument(metavar="B", help="Another trial's.", show_default=False)
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="All pairs of trials that differ in one thing, summarised."),
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="The front's best against its controls.")
    ] = False,
    format: FormatOption = Format.table,
) -> None:
    """Compares two trials of the study in DIR: choices, scores with the difference's interval, what
    is exact, costs; or pairs that differ in one thing; or the winner and its controls.
    """
    if pairs + controls + (first is not None) != 1 or (first is None) != (second is None):
        raise typer.BadParameter("name two trials, or give either --pairs or --controls")
    if first is not None and first == second:
        raise typer.BadParameter(f"A and B are both {first}; name two different trials")
    if first is not None and second is not None:
        return _two(directory, first, second, format)
    from studies.evidence.intervals import Evidence
    from studies.results import compare as comparing
    from studies.results import tables

    opened = (*tables.open_records(directory, reading=True), Evidence.of(directory))
    if pairs:
        rows, columns, cells = comparing.pair_rows(*opened)
        empty = (
            "no two trials differ in one thing alone; `equisearch resume DIR --pairs N` trains "
            "partners"
        )
        return print_rows(rows, format, columns, cells, empty)
    said, columns, cells = comparing.control_rows(*opened)
    if format is Format.json:
        return print_json(said)
    empty = "no controls yet: `equisearch resume DIR --set controls=auto` trains them"
    print_rows(said["controls"], format, columns, cells, empty)
    if text := comparing.control_text(said):
        note(text)
    return None


def _two(directory: Directory, first: int, second: int, format: Format) -> None:
    from studies.results import compare as comparing

    value = comparing.compare(directory, first, second)
    if format is Format.json:
        return print_json(value)
    columns, cells = comparing.compare_cells(value)
    if format is Format.csv:
        rows = [dict(zip([c.title or "what" for c in columns], row)) for row in cells]
        return print_rows(rows, format, columns, cells)
    print_lines(comparing.compare_lines(value))
    print_table(columns, cells)
    return None
