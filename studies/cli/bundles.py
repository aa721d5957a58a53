"""Commands about bundles: `export`, `verify`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from studies.cli.app import MODELS, app
from studies.cli.options import Directory, FormatOption, RunCode, Trial
from studies.output import Format, note, print_value


@app.command(rich_help_panel=MODELS)
def export(
    directory: Directory,
    trial: Trial,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="The bundle's folder; else DIR/exports/TRIAL.",
            show_default=False,
        ),
    ] = None,
    retrained: Annotated[
        bool,
        typer.Option("--retrained", help="What `retrain` trained and tested, not the search."),
    ] = False,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="N|best|mean-of-N",
            help="Which of the retrained: seed N (1 unless given), the best by validation "
            "images (after retrain --keep-validation), or the mean of N seeds' probabilities.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another bundle in that folder.")
    ] = False,
) -> None:
    """Exports a trained trial: plain torch, torch.export and ONNX files, compared before they are
    written, with a model card.
    """
    from studies.results.export_trial import export_trial

    if seed is not None and not retrained:
        raise typer.BadParameter(
            f"{seed} is a seed of retrained networks; add --retrained", param_hint="--seed"
        )
    chosen = (seed or "1") if retrained else None
    bundle = export_trial(directory, trial, out, force=force, note=note, retrained=chosen)
    print(bundle)
    note(
        f"compared and written; read {bundle}/README.md, check it any time with `equisearch "
        f"verify {quote(str(bundle))}`"
    )


@app.command(rich_help_panel=MODELS)
def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="An exported folder.", show_default=False)
    ],
    run_code: RunCode = False,
    format: FormatOption = Format.table,
) -> None:
    """Checks that a bundle is whole, its formats agree, and its symmetry is as its model card says;
    not who wrote it. Executes its code only with --run-code.
    """
    from studies.results.export_trial import verify_bundle

    report = verify_bundle(bundle, run_code=run_code)
    print_value(report.as_dict(), format, report.text())
    if not report.good:
        raise typer.Exit(1)
