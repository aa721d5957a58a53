"""The command `soften`: trained networks at another softness, and averaged over an orbit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from studies.cli.app import MODELS_PANEL, app
from studies.cli.options import (
    FormatOption,
    OtherGroup,
    Overrides,
    named_place,
    number_of_trial,
    pairs,
    softness_named,
    trial_named,
)
from studies.output import Format, note, print_rows

PlaceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DIR|BUNDLE|MODULE:FUNCTION",
        help="The study's directory, or a bundle's; or a function that returns a torch model.",
        show_default=False,
        parser=named_place,
    ),
]
MaybeTrial = Annotated[
    int | None,
    typer.Argument(
        metavar="TRIAL",
        help="The trial's number, knee, or an objective; none for a bundle.",
        show_default=False,
        parser=trial_named,
        callback=number_of_trial,
    ),
]
Softness = Annotated[
    list[float] | None,
    typer.Option(
        metavar="SOFTNESS",
        parser=softness_named,
        help="A softness from 0 (strict) to 1 (as trained); may be repeated; else 0, 0.25, 0.5, "
        "0.75 and 1.",
        show_default=False,
    ),
]


@app.command(rich_help_panel=MODELS_PANEL)
def soften(
    place: PlaceArgument,
    trial: MaybeTrial = None,
    group: OtherGroup = None,
    softness: Softness = None,
    front: Annotated[
        bool,
        typer.Option(
            "--front",
            help="Add the points that no other beats to the study as candidates; of a model, to "
            "the study of --data, which must be a directory.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Of a bundle or a model: the study with the validation images.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Validation images, at most.")] = 500,
    settings: Overrides = None,
    format: FormatOption = Format.table,
) -> None:
    """Evaluates a trained trial, a bundle or any torch model with its weights softened towards
    equivariance, and averaged over the group, without training it again; --front makes candidates
    of a study of the best points.
    """
    from studies.results.after.softening import soften_notes, soften_table
    from studies.search.softened import AS_IT_IS

    chosen: dict[str, Any] = {"group": group, "images": images}
    if softness:
        chosen["softness"] = [*dict.fromkeys(softness)]
    result = _softened(place, trial, front, data, pairs(settings), chosen)
    columns, cells = soften_table(result)
    about = {name: value for name, value in result.items() if name not in ("points", "front")}
    made = {one["how"]: one["trial"] for one in result["front"] or ()}
    rows = [{**about, **p, "front_trial": made.get(p["how"] or AS_IT_IS)} for p in result["points"]]
    print_rows(rows, format, columns, cells)
    for line in soften_notes(result):
        note(line)


def _softened(
    place: Path,
    trial: int | None,
    front: bool,
    data: str | None,
    settings: dict[str, Any],
    chosen: dict[str, Any],
) -> dict[str, Any]:
    from studies import config
    from studies.results.after.softening import soften_bundle, soften_trial
    from trainers.instruments.audit.opening import names_model

    if names_model(str(place)) and not place.exists():
        return _of_module(str(place), trial, front, data, settings, chosen)
    if not (place / "bundle.json").is_file():
        if trial is None:
            raise _without_trial(place)
        if data is not None or settings:
            raise typer.BadParameter(
                "a trial has its own study; leave --data and --set out", param_hint="--data"
            )
        return soften_trial(place, trial, front=front, **chosen)
    if trial is not None or front:
        raise typer.BadParameter(
            "a bundle has no trials and no front; leave TRIAL and --front out", param_hint="TRIAL"
        )
    if data is None:
        raise typer.BadParameter(
            "a bundle does not hold its images; name the study whose data they are",
            param_hint="--data",
        )
    return soften_bundle(place, config.load_study(data, settings), **chosen)


def _without_trial(place: Path) -> typer.BadParameter:
    """What is wrong where no trial is named and `place` is no bundle."""
    from studies.journal.directory import STUDY

    if (place / STUDY).is_file():
        return typer.BadParameter("name a trial of the study, such as 3", param_hint="TRIAL")
    return typer.BadParameter(
        f"'{place}' is neither a study's directory nor a bundle's (no {STUDY} and no bundle.json "
        "in it); give one of them, or MODULE:FUNCTION for a model of your own",
        param_hint="DIR|BUNDLE|MODULE:FUNCTION",
    )


def _of_module(
    source: str,
    trial: int | None,
    front: bool,
    data: str | None,
    settings: dict[str, Any],
    chosen: dict[str, Any],
) -> dict[str, Any]:
    from studies.results.after.any_module import soften_module

    if trial is not None:
        raise typer.BadParameter("a model has no trials; leave TRIAL out", param_hint="TRIAL")
    if data is None:
        raise typer.BadParameter(
            "a model does not hold its images; name the study whose data they are",
            param_hint="--data",
        )
    return soften_module(source, data, settings, front=front, **chosen)
