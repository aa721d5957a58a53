"""Commands about bundles: `export`, `verify`, `predict`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from studies.cli.app import MODELS_PANEL, app
from studies.cli.options import Directory, FormatOption, RunCode, TrialNumber, named_place
from studies.output import Format, note, print_rows, print_value
from studies.terminal import one_line
from trainers.files import as_word


class Quantisation(str, Enum):
    """Numbers of fewer bits."""

    int8 = "int8"


class RuntimeOption(str, Enum):
    """What runs a network."""

    torch = "torch"
    onnx = "onnx"


Out = Annotated[
    Path | None,
    typer.Option(
        metavar="BUNDLE",
        parser=named_place,
        help="The bundle's folder; else DIR/exports/TRIAL.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|best|mean-of-N",
        help="Which of the retrained: seed N (1 unless given), the best by validation "
        "images (after retrain --keep-validation), or the mean of N seeds' probabilities.",
        show_default=False,
    ),
]
Quantize = Annotated[
    Quantisation | None,
    typer.Option(
        help="Add the network in 8-bit integers, with its cost in scores.", show_default=False
    ),
]
Sign = Annotated[
    Path | None,
    typer.Option(
        parser=named_place,
        metavar="KEY",
        help="Sign with this private Ed25519 key (needs the extra `sign`).",
        show_default=False,
    ),
]


@app.command(rich_help_panel=MODELS_PANEL)
def export(
    directory: Directory,
    trial: TrialNumber,
    out: Out = None,
    retrained: Annotated[
        bool,
        typer.Option("--retrained", help="What `retrain` trained and tested, not the search."),
    ] = False,
    seed: SeedOption = None,
    quantize: Quantize = None,
    sign: Sign = None,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code", help="Execute the function of a model from outside, to export it."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another bundle in that folder.")
    ] = False,
) -> None:
    """Exports a trained trial: plain torch, torch.export and ONNX files, compared before they are
    written, with a model card.
    """
    from studies.results.export_trial import export_trial
    from trainers.bundles.manifest import MANIFEST

    if seed is not None and not retrained:
        raise typer.BadParameter(
            f"{seed} is a seed of retrained networks; add --retrained", param_hint="--seed"
        )
    chosen = (seed or "1") if retrained else None
    bundle = export_trial(
        directory,
        trial,
        out,
        force=force,
        note=note,
        retrained=chosen,
        quantize=quantize is not None,
        key=sign,
        run_code=run_code,
    )
    print(bundle)
    if not (bundle / MANIFEST).is_file():  # a model from outside
        return
    note(
        f"compared and written; read {bundle}/README.md, check it any time with `equisearch "
        f"verify {as_word(bundle)}`"
    )


@app.command(rich_help_panel=MODELS_PANEL)
def verify(
    bundle: Annotated[
        Path,
        typer.Argument(
            parser=named_place, metavar="BUNDLE", help="An exported folder.", show_default=False
        ),
    ],
    trusted: Annotated[
        Path | None,
        typer.Option(
            parser=named_place,
            metavar="KEY",
            help="The public Ed25519 key that must have signed it (needs the extra `sign`).",
            show_default=False,
        ),
    ] = None,
    run_code: RunCode = False,
    format: FormatOption = Format.table,
) -> None:
    """Checks that a bundle is whole, its formats agree, and its symmetry is as its model card says;
    who made it only with --trusted. Executes its code only with --run-code.
    """
    from studies.results.export_trial import verify_bundle

    report = verify_bundle(bundle, run_code=run_code, trusted=trusted)
    print_value(report.as_dict(), format, report.text())
    if not report.good:
        raise typer.Exit(1)


@app.command(rich_help_panel=MODELS_PANEL)
def predict(
    bundle: Annotated[
        Path,
        typer.Argument(
            parser=named_place, metavar="BUNDLE", help="An exported folder.", show_default=False
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders of them, or patterns such as 'images/*.png'.",
            show_default=False,
        ),
    ],
    orbit: Annotated[
        bool,
        typer.Option(
            "--orbit", help="Average over the declared quarter turns and flips of each image."
        ),
    ] = False,
    runtime: Annotated[
        RuntimeOption, typer.Option(help="Which library runs the network.")
    ] = RuntimeOption.torch,
    format: FormatOption = Format.table,
) -> None:
    """Predicts the classes of image files of any size and mode; executes no code of the bundle.
    Files that cannot be read are named, and the exit status is then 1.
    """
    from studies.results.predictions import predict_images

    predictions = predict_images(bundle, images, runtime=runtime.value, orbit=orbit)
    print_rows(list(predictions.rows), format, *predictions.table())
    for skipped in predictions.skipped:
        note(one_line(f"skipped: {skipped}"))
    if predictions.skipped:
        raise typer.Exit(1)
