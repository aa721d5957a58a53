"""The command `check`: of an architecture in its text form, or of any network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studies.cli.app import MODELS_PANEL, app
from studies.cli.options import FormatOption, RunCode, group_named, named_place
from studies.output import Format, print_rows, print_value

if TYPE_CHECKING:
    from trainers.instruments.audit.repair import Repaired
    from trainers.instruments.audit.verdict import Audit

Repair = Annotated[
    Path | None,
    typer.Option(
        parser=named_place,
        metavar="OUT",
        help="Of a model: writes one that keeps the group, to a .pt2 or .onnx file.",
        show_default=False,
    ),
]


SubjectArgument = Annotated[
    str,
    typer.Argument(
        metavar="ARCHITECTURE|MODULE:FUNCTION|FILE",
        help="Its text form or the name of a published network; or a model: module:function or "
        "file.py:function that returns a torch module, a .pt2 or .onnx file.",
        show_default=False,
    ),
]
Grouped = Annotated[
    str | None,
    typer.Option(
        metavar="GROUP",
        parser=group_named,
        help="The group under which it will be used; else its own, of a model D4.",
        show_default=False,
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Another input size, pixels; of a model its input size.", show_default=False
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Channels of the images; else 1, or those of the published network; of a model 3.",
        show_default=False,
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Classes; else 10, or those of the published network.", show_default=False
    ),
]


@app.command(rich_help_panel=MODELS_PANEL)
def check(
    architecture: SubjectArgument,
    group: Grouped = None,
    size: SizeOption = None,
    channels: Channels = None,
    classes: Classes = None,
    repair: Repair = None,
    run_code: RunCode = False,
    format: FormatOption = Format.table,
) -> None:
    """Shows before any training which symmetries an architecture, or the sampling grid of any
    torch model, keeps exactly, where it loses the others, and what repairs it.
    """
    from studies.results.check import check as check_architecture
    from trainers.instruments.audit.opening import names_model

    if names_model(architecture):
        if size is None or classes is not None:
            raise typer.BadParameter(
                f"{architecture} is a model, which has classes and no input size of its own; write "
                "--size 224 or the like, and no --classes"
            )
        audited = _audited(
            architecture.strip(), size, group or "D4", channels or 3, repair, run_code
        )
        if format is Format.csv:
            return print_rows(audited.rows(), format, [], [])
        return print_value(audited.as_dict(), format, audited.text())
    if repair is not None or run_code:
        raise typer.BadParameter(
            "--repair and --run-code are for models; write module:function, or the name of a .pt2 "
            "or .onnx file"
        )
    checked = check_architecture(architecture, group, channels=channels, classes=classes, size=size)
    print_value(checked.as_dict(), format, checked.text())


def _audited(
    source: str, size: int, group: str, channels: int, out: Path | None, run_code: bool
) -> Audit | Repaired:
    """What the sampling grid of a model keeps; with `out`, repaired."""
    from trainers.instruments.audit.audit import audit
    from trainers.instruments.audit.opening import open_model

    model = open_model(source, run_code=run_code)
    found = audit(model, size, group, channels, name=source)
    if out is None:
        return found
    from trainers.instruments.audit.repair import repair_model

    return repair_model(model, found, out)
