"""The command `soften`: trained trials at another softness, and averaged over an orbit."""

from __future__ import annotations

from typing import Annotated

import typer

from studies.cli.app import MODELS, app
from studies.cli.options import Directory, FormatOption, Trial
from studies.output import Format, note, print_rows


@app.command(rich_help_panel=MODELS)
def soften(
    directory: Directory,
    trial: Trial,
    group: Annotated[
        str | None,
        typer.Option(help="The group, instead of the study's.", show_default=False),
    ] = None,
    softness: Annotated[
        list[float] | None,
        typer.Option(
            help="A softness from 0 (strict) to 1 (as trained); may be repeated; else 0, 0.25, "
            "0.5, 0.75 and 1.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Validation images, at most.")] = 500,
    format: FormatOption = Format.table,
) -> None:
    """Evaluates a trained trial with its weights softened towards equivariance, and averaged over
    the group, without training it again.
    """
    from studies.results.after_training import SOFTNESS, soften_note, soften_table, soften_trial

    result = soften_trial(
        directory, trial, group=group, softness=softness or SOFTNESS, images=images
    )
    columns, cells = soften_table(result)
    about = {name: value for name, value in result.items() if name != "points"}
    print_rows([{**about, **point} for point in result["points"]], format, columns, cells)
    note(soften_note(result))
