"""Commands about networks and data: `train`, `probe`, `measure`, `retrain`, and `reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from studies.cli.app import BENCHMARKS, MODELS_PANEL, app
from studies.cli.options import (
    Address,
    Directory,
    FormatOption,
    GroupOfUse,
    OtherGroup,
    Overrides,
    Quiet,
    RunCode,
    StudyName,
    Trust,
    Workers,
    figure_named,
    named_place,
    pairs,
    resources,
)
from studies.output import (
    Format,
    note,
    percent,
    print_json,
    print_lines,
    print_rows,
    print_table,
    print_value,
)
from studies.tasks import beside_text, score_name
from trainers.files import as_word

if TYPE_CHECKING:
    from studies.config import Study
    from studies.results.retrain_job import Job


MOST_SEED = 2**63 - 1  # of torch's generators
AngleFigure = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=figure_named,
        help="Draws accuracy by angle: png, svg or pdf.",
        show_default=False,
    ),
]
PaperBatch = Annotated[
    int,
    typer.Option(
        min=8, help="The paper has 256; a short run needs smaller ones to make as many steps."
    ),
]
PaperDropout = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Its rate after convolutions 1, 3, 4 and 5, as the paper has it."
    ),
]
Shift = Literal["upright", "normal20", "normal40", "uniform"]
ControlOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR:TRIAL",
        help="Another training of the same architecture, for the merge barrier; else one of the "
        "study.",
        show_default=False,
    ),
]


@app.command(rich_help_panel=MODELS_PANEL)
def train(
    study: StudyName,
    architecture: Annotated[
        str,
        typer.Argument(
            metavar="ARCHITECTURE",
            help="Its text form, or the name of a published network.",
            show_default=False,
        ),
    ],
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs.", show_default=False)] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of weights, order and augmentation.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=named_place,
            help="Keeps the checkpoint there, and continues from it.",
            show_default=False,
        ),
    ] = None,
    settings: Overrides = None,
    quiet: Quiet = False,
    format: FormatOption = Format.table,
) -> None:
    """Trains one architecture under a study's data and training, and prints its scores and its
    accuracy by angle.
    """
    from studies import config
    from studies.results.check import named_candidate
    from studies.results.train_one import train_lines, train_one

    chosen = config.load_study(study, {"training.epochs": epochs, **pairs(settings)})
    total = chosen.training.epochs

    def on_epoch(epoch: int, row: dict[str, float]) -> None:
        if not quiet:
            note(
                f"epoch {epoch} of {total}: training loss {row['train_loss']:.4f}, "
                f"{row['seconds']:.1f} s"
            )

    result = train_one(
        chosen, named_candidate(architecture), seed=seed, out=out, on_epoch=on_epoch, note=note
    )
    print_value(result, format, "\n".join(train_lines(result)))


@app.command(rich_help_panel=MODELS_PANEL)
def probe(
    study: StudyName,
    images: Annotated[int, typer.Option(min=40, help="Images to examine.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the classifiers.")] = 0,
    group: OtherGroup = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Adds a table of every class.")
    ] = False,
    settings: Overrides = None,
    format: FormatOption = Format.table,
) -> None:
    """Estimates how symmetric the data is: which elements keep inputs and labels, and which group
    to declare, before any search.
    """
    from searchspace.groups import Group
    from studies import config
    from studies.tasks import with_task
    from trainers.instruments.probe import probe as probe_data
    from trainers.process import tune_process

    chosen = with_task(config.load_study(study, pairs(settings)))
    tune_process()
    probed = probe_data(
        chosen.data, Group.parse(group or chosen.symmetry.group), images=images, seed=seed
    )
    print_value(probed.as_dict(), format, probed.text(per_class=per_class))


@app.command(rich_help_panel=MODELS_PANEL)
def measure(
    model: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|DIR:TRIAL|MODULE:FUNCTION",
            help="What to measure; a function returns the model.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="The study with the validation images; default: the trial's own.",
            show_default=False,
        ),
    ] = None,
    group: GroupOfUse = None,
    images: Annotated[int, typer.Option(min=2, help="Validation images, at most.")] = 2000,
    figure: AngleFigure = None,
    control: ControlOption = None,
    run_code: RunCode = False,
    settings: Overrides = None,
    format: FormatOption = Format.table,
) -> None:
    """Measures a model's symmetry with every instrument: accuracy by element and angle,
    equivariance error, Lie derivatives, matching.
    """
    from studies import config
    from studies.results.measure_trial import measure_subject

    if settings and not data:
        raise typer.BadParameter("it changes the study of --data; give --data", param_hint="--set")
    study = config.load_study(data, pairs(settings)) if data else None
    measured = measure_subject(
        model,
        data=study,
        group=group,
        images=images,
        figure=figure,
        run_code=run_code,
        control=control,
    )
    print_value(measured.as_dict(), format, measured.text())


@app.command(rich_help_panel=MODELS_PANEL)
def retrain(
    directory: Directory,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Trainings of each architecture.")
    ] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs; else the study's.", show_default=False)
    ] = None,
    trial: Annotated[
        list[int] | None,
        typer.Option(
            help="These trials instead of the front; may be repeated.", show_default=False
        ),
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Only the front's best compromise.")] = False,
    keep_validation: Annotated[
        bool,
        typer.Option(
            "--keep-validation",
            help="Train on the training images alone, as the search did; validation images can "
            "then choose a seed (export --seed best).",
        ),
    ] = False,
    workers: Workers = None,
    ray_address: Address = None,
    settings: Overrides = None,
    trust: Trust = False,
    format: FormatOption = Format.table,
) -> None:
    """Trains the front again on training and validation images, with several seeds, and tests it:
    the only command that reads the test split.
    """
    from studies.results import retrain as retraining
    from studies.results.selection import with_selection

    overrides = {
        "training.epochs": epochs,
        **resources(workers, None, ray_address),
        **pairs(settings),
    }
    study = retraining.retraining_study(directory, overrides, trust=trust)
    chosen: dict[str, Any] = {"trials": _chosen(directory, trial, knee), "seeds": seeds}
    jobs = retraining.front_jobs(study, directory, keep_validation=keep_validation, **chosen)
    rows = with_selection(directory, _retrained(jobs, study, directory))
    _print_tested(rows, format)
    if format is Format.table:
        _print_selection(rows, directory)


def _print_selection(rows: list[dict[str, Any]], directory: Path) -> None:
    """Test scores beside search scores, and what to type next."""
    from studies.results.selection import selection_lines, selection_table

    print()
    print_table(*selection_table(rows))
    print_lines(selection_lines(rows))
    best = _best_of(rows, directory)
    note(f"next: equisearch export {as_word(directory)} {best} --retrained")


def _chosen(directory: Path, trials: list[int] | None, knee: bool) -> list[int] | None:
    """The trials that are retrained; None: the front."""
    if knee and trials:
        raise typer.BadParameter(
            "--knee and --trial each name what is retrained; give one of them", param_hint="--knee"
        )
    number = _knee_of(directory) if knee else None
    return trials if number is None else [number]


def _knee_of(directory: Path) -> int | None:
    """The front's best compromise; None where there is no front."""
    from studies.evidence.front import best_compromise, front_members
    from studies.results.tables import open_records

    study, records = open_records(directory, reading=True)
    best = best_compromise(study, front_members(study, records))
    return None if best is None else best.number


def _best_of(rows: list[dict[str, Any]], directory: Path) -> str:
    """The trial to export first: the front's best compromise, where it was retrained."""
    best, names = f"trial {_knee_of(directory)}", [row["name"] for row in rows]
    return (best if best in names else names[0]).removeprefix("trial ")


def _print_tested(rows: list[dict[str, Any]], format: Format) -> None:
    from studies.output import Column, short
    from studies.results import retrain as retraining

    columns = [
        Column("trial"),
        Column("n", True),
        Column(f"test {score_name(rows[0]) if rows else 'accuracy'} %", True),
        Column("symmetry %", True),
        Column("worst %", True),
        Column("mean of seeds %", True),
        Column("params", True),
        Column("MACs", True),
        Column("architecture"),
    ]
    cells = [
        [
            row["name"].removeprefix("trial "),
            str(row["n"]),
            row["accuracy"].percent(),
            row["symmetry_accuracy"].percent(),
            row["symmetry_accuracy_worst"].percent(),
            percent((row["mean_of_seeds"] or {}).get("accuracy")),
            short(row["params"]),
            short(row["macs"]),
            row["architecture"],
        ]
        for row in rows
    ]
    print_rows([retraining.row_as_dict(row) for row in rows], format, columns, cells)


@app.command(rich_help_panel=BENCHMARKS)
def reproduce(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="The folder of the trainings; a second call continues them.",
            show_default=False,
            parser=named_place,
        ),
    ],
    shift: Annotated[Shift, typer.Option(help="What training sees.")] = "upright",
    root: Annotated[str, typer.Option(help="The folder that holds MNIST/raw.")] = "../shared/data",
    epochs: Annotated[int, typer.Option(min=1, help="The paper has 50.")] = 50,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Runs of each model; the paper has 100."),
    ] = 10,
    batch: PaperBatch = 256,
    test: Annotated[
        int | None,
        typer.Option(min=100, help="Test images; else all 60,000.", show_default=False),
    ] = None,
    dropout: PaperDropout = 0.0,
    workers: Workers = None,
    ray_address: Address = None,
    format: FormatOption = Format.table,
) -> None:
    """Repeats "Using and Abusing Equivariance" on MNIST and prints its table beside the published
    figures.
    """
    from studies.results import reproduce as published
    from studies.results import retrain as retraining

    given = resources(workers, None, ray_address)
    study = published.study_of(
        shift, root=root, epochs=epochs, test=test, batch=batch, resources=given
    )
    jobs = published.jobs(shift, directory, study, seeds=seeds, dropout=dropout)
    place = published.shift_folder(shift, directory, study)
    rows = _retrained(jobs, study, place)
    claims, values = published.claims(shift, rows), [retraining.row_as_dict(row) for row in rows]
    if format is Format.json:
        return print_json({"shift": shift, "rows": values, "claims": list(map(asdict, claims))})
    print_rows(values, format, *published.beside_published(shift, rows))
    if format is Format.table:
        print_lines([str(claim) for claim in claims])


def _retrained(jobs: list[Job], study: Study, directory: Path) -> list[dict[str, Any]]:
    """One row of mean scores per architecture; progress goes to stderr."""
    from studies.results import retrain as retraining
    from studies.workers.executors import require_cluster

    require_cluster(study.resources)

    def on_result(done: int, result: dict[str, Any]) -> None:
        what = f"mean of {result['members']}" if "members" in result else f"seed {result['seed']}"
        note(
            f"{done} of {len(jobs)}: {result['name']}, {what}: test {score_name(result['test'])} "
            f"{100 * result['test']['accuracy']:.2f} %, symmetry {score_name(result['test'])} "
            f"{100 * result['test']['symmetry_accuracy']:.2f} %"
            + (f" ({beside_text(result['test'])})" if result["test"].get("beside") else "")
        )

    return retraining.summarise_seeds(retraining.run_jobs(jobs, study, directory, on_result))
