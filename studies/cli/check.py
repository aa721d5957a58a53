"""The command `check`: of an architecture in its text form, or of anybody's network."""

from __future__ import annotations

from typing import Annotated

import typer

from studies.cli.app import MODELS, app
from studies.cli.options import FormatOption
from studies.output import Format, print_rows, print_value


@app.command(rich_help_panel=MODELS)
def check(
    architecture: Annotated[
        str,
        typer.Argument(
            metavar="ARCHITECTURE|MODULE:FUNCTION",
            help="Its text form or the name of a published network; or a model: "
            "module:function or file.py:function that returns a torch module.",
            show_default=False,
        ),
    ],
    group: Annotated[
        str | None,
        typer.Option(
            help="The group under which it will be used; else its own, of a model D4.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Another input size, pixels; of a model its input size.", show_default=False
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Channels of the images; else 1, or those of the published network; of a model 3.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Classes; else 10, or those of the published network.", show_default=False
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Shows before any training which symmetries an architecture, or the sampling grid of any
    torch model, keeps exactly, where it loses the others, and what repairs it.
    """
    from studies.results.check import check as check_architecture
    from trainers.instruments.audit.opening import names_model

    if names_model(architecture):
        return _audit(architecture.strip(), size, group or "D4", channels or 3, format)
    checked = check_architecture(architecture, group, channels=channels, classes=classes, size=size)
    print_value(checked.as_dict(), format, checked.text())


def _audit(source: str, size: int | None, group: str, channels: int, format: Format) -> None:
    """Prints what the sampling grid of a model keeps."""
    from trainers.instruments.audit.audit import audit
    from trainers.instruments.loading import load_model

    if size is None:
        raise typer.BadParameter(
            f"{source} has no input size of its own; write --size 224 or the like"
        )
    audited = audit(load_model(source), size, group, channels, name=source)
    if format is Format.csv:
        return print_rows(audited.rows(), format, [], [])
    print_value(audited.as_dict(), format, audited.text())
