"""Commands on a study: `start`, `resume`, `repair`, and those that show it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studies.cli.app import LOOK_PANEL, SEARCH, app
from studies.cli.options import (
    AcceptData,
    Address,
    Best,
    Directory,
    Enqueue,
    FormatOption,
    FrontFigure,
    Knee,
    Overrides,
    PageFile,
    Quiet,
    StudyName,
    Timeout,
    TrialNumber,
    Trials,
    Trust,
    WarmStart,
    Where,
    Workers,
    group_named,
    pairs,
    resources,
    selected,
)
from studies.output import Format, note, print_lines, print_rows, print_table, print_value
from studies.terminal import one_line
from trainers.files import as_word

if TYPE_CHECKING:
    from studies.search.driver import SearchDriver


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only measures two candidates and says how long the study would take."
    ),
]
NoProbe = Annotated[
    bool, typer.Option("--no-probe", help="Does not check the declared symmetry against the data.")
]


@app.command(rich_help_panel=SEARCH)
def start(
    study: StudyName,
    directory: Directory,
    trials: Trials = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of a full training.", show_default=False)
    ] = None,
    workers: Workers = None,
    timeout: Timeout = None,
    ray_address: Address = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the search.", show_default=False)
    ] = None,
    settings: Overrides = None,
    enqueue: Enqueue = None,
    warm_start: WarmStart = None,
    no_probe: NoProbe = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    format: FormatOption = Format.table,
) -> None:
    """Starts the search of STUDY in the new directory DIR, and prints its front."""
    from studies import config
    from studies.search.warm_start import read_architectures, require_alike
    from studies.workers.forecast import forecast
    from studies.workers.launch import new_driver, prepare

    overrides = {
        "search.trials": trials,
        "training.epochs": epochs,
        "search.seed": seed,
        **resources(workers, timeout, ray_address),
        **pairs(settings),
    }
    chosen = config.load_study(study, overrides)
    first = read_architectures(enqueue) if enqueue else ()
    options: dict[str, Any] = {"enqueue": first, "probe": not no_probe, "note": note}
    if dry_run:
        require_alike(chosen, warm_start)
        ready = prepare(chosen, directory, warm_start=warm_start, **options)
        estimate = forecast(ready)
        return print_value(estimate.as_dict(), format, estimate.text())
    _drive(
        lambda: new_driver(chosen, directory, warm_start=warm_start, **options), directory, quiet
    )


@app.command(rich_help_panel=SEARCH)
def resume(
    directory: Directory,
    trials: Trials = None,
    workers: Workers = None,
    timeout: Timeout = None,
    ray_address: Address = None,
    settings: Overrides = None,
    trust: Trust = False,
    accept_data: AcceptData = False,
    partners: Annotated[
        int,
        typer.Option(
            "--pairs",
            metavar="N",
            min=0,
            help="Trains N partners that differ from a trial in one thing, for `compare --pairs`.",
        ),
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Continues the study in DIR; trials, timeout and resources may be changed."""
    from studies import config
    from studies.journal.directory import read_study
    from studies.journal.trust import require
    from studies.workers.launch import open_driver

    overrides = {
        "search.trials": trials,
        **resources(workers, timeout, ray_address),
        **pairs(settings),
    }
    stored = read_study(directory)
    revised = config.parse(config.dump(stored), name="the stored study", overrides=overrides)
    if not trust:
        # with what `revised` was made from, not with what lies there by then
        require(directory, stored, revised)
    _drive(
        lambda: open_driver(
            directory, revised, trusted=True, accept_data=accept_data, partners=partners
        ),
        directory,
        quiet,
    )


@app.command(rich_help_panel=SEARCH)
def relax(
    directory: Directory,
    trial: TrialNumber,
    stage: Annotated[
        int,
        typer.Option(min=1, help="The first stage that is relaxed; 1 is the first of all."),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="GROUP", parser=group_named, help="The smaller group, such as C2 or C1."
        ),
    ],
    pathway: Annotated[
        bool,
        typer.Option(
            "--pathway", help="Keep the group, and add a residual pathway to the smaller one."
        ),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**6,
            help="Epochs to train; else the last third of the schedule.",
            show_default=False,
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Adds a trial to the study in DIR that begins with the weights and the function of TRIAL, its
    stages from one on held to a smaller group, or given a pathway to it; `resume` trains it.
    """
    from studies.results.after.relaxing import relax_lines, relax_trial

    made = relax_trial(directory, trial, stage, to, pathway=pathway, epochs=epochs)
    print_value(made, format, "\n".join(relax_lines(directory, made)))


@app.command(rich_help_panel=LOOK_PANEL)
def status(directory: Directory, format: FormatOption = Format.table) -> None:
    """Prints the state of the study in DIR: trials, front, and which process drives it."""
    from studies.results import tables

    state = tables.status(directory)
    print_value(state, format, "\n".join(map(one_line, tables.status_lines(state))))


@app.command(rich_help_panel=LOOK_PANEL)
def trials(
    directory: Directory,
    where: Where = None,
    knee: Knee = False,
    best: Best = None,
    format: FormatOption = Format.table,
) -> None:
    """Lists every trial of the study in DIR."""
    from studies.evidence import selection
    from studies.evidence.intervals import Evidence
    from studies.results import tables

    study, records = tables.open_records(directory, parameters=True, reading=True)
    chosen = selected(records, where)
    rows, columns, cells = tables.rows_of(study, chosen, Evidence.of(directory))
    number = selection.number_of(study, chosen, knee, best) if rows else None
    rows, cells = selection.picked(rows, cells, number)
    print_rows(rows, format, columns, cells, _none(directory, where, "trials yet"))


def _none(directory: Path, where: str | None, what: str) -> str:
    """Why nothing is shown."""
    return f"{directory} has no {what}" if where is None else f"no trial meets: {where}"


@app.command(rich_help_panel=LOOK_PANEL)
def front(
    directory: Directory,
    figure: FrontFigure = None,
    where: Where = None,
    knee: Knee = False,
    best: Best = None,
    format: FormatOption = Format.table,
) -> None:
    """Prints the Pareto front of the study in DIR and draws it among all trials; * marks the best
    compromise. With --where, the front among the trials that meet a condition.
    """
    from studies.evidence import selection
    from studies.evidence.intervals import Evidence
    from studies.journal.definition import definition_note
    from studies.results import front_plot, tables
    from studies.tasks import in_words, task_score
    from trainers.figures import require_figure

    if figure is not None:
        require_figure(figure)
    study, every = tables.open_records(directory, reading=True)
    records = selected(every, where)
    rows, columns, cells = tables.front_rows(study, records, Evidence.of(directory))
    number = selection.number_of(study, records, knee, best) if rows else None
    rows, cells = selection.picked(rows, cells, number)
    empty = _none(directory, where, "front yet: no trial is complete")
    print_rows(rows, format, columns, cells, empty)
    for text in filter(None, (tables.left_out(every), definition_note(study))):
        note(text)
    if number is not None and figure is None:
        return
    plotted = front_plot.plotted_trials(study, records) if format is Format.table or figure else []
    if format is Format.table and (drawn := front_plot.draw_text(plotted, study.objectives)):
        print(f"\n{in_words(drawn, task_score(study.data.task))}")
    if figure is not None:
        front_plot.save_front_figure(plotted, study.objectives, figure, task_score(study.data.task))


@app.command(rich_help_panel=LOOK_PANEL)
def report(
    directory: Directory,
    out: PageFile = None,
) -> None:
    """Writes one page about the study in DIR: front, figures, scores by degree of equivariance,
    test scores, failures.
    """
    from studies.results.report import write_report

    print(write_report(directory, out))


@app.command(rich_help_panel=LOOK_PANEL)
def show(directory: Directory, trial: TrialNumber, format: FormatOption = Format.table) -> None:
    """Prints everything about one trial: its scores at every rung, its exactness, its files."""
    from studies.evidence.intervals import Evidence, over_seeds
    from studies.journal.definition import definition_note
    from studies.results import tables

    study, records = tables.open_records(directory, parameters=True, reading=True)
    record = tables.find_trial(records, trial, directory)
    row = {
        **tables.trial_row(study, record, Evidence.of(directory)),
        "parameters": record.parameters,
        "rungs": record.rungs,
        "scored": study.symmetry.scored,
        "note": definition_note(study),
        "seeds": over_seeds(records).get(record.key or "", {}),
    }
    if format is not Format.table:
        return print_value(row, format, "")
    print_lines(tables.show_lines(directory, row, record.rungs))
    if record.architecture:
        from studies.journal.reader import study_attributes
        from studies.results.check import check

        known = study_attributes(directory)
        images = {name: known.get(name) for name in ("channels", "classes")}
        try:
            print(check(record.architecture, study.symmetry.group, **images).text())
        except ValueError as error:  # as a newer version may write it
            note(one_line(f"its exactness cannot be shown: {error}"))


@app.command(rich_help_panel=LOOK_PANEL)
def dashboard(
    directory: Directory,
    host: Annotated[
        str, typer.Option(help="The address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
) -> None:
    """Opens optuna-dashboard on the study in DIR, which may be running; Ctrl-C ends it."""
    from studies.journal.origin import require_begun
    from studies.journal.reader import JOURNAL
    from studies.journal.stored import read_stored

    read_stored(directory)
    require_begun(directory)
    import optuna
    import optuna_dashboard
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
    if not _loopback(host):
        note(
            f"warning: whoever reaches {host}:{port} can read and change this study without a "
            "password; on a remote machine, leave --host out and "
            f"forward the port: ssh -L {port}:127.0.0.1:{port} HOST"
        )
    note(f"http://{host}:{port} shows {directory}; Ctrl-C ends it")
    optuna_dashboard.run_server(storage, host=host, port=port)


def _loopback(host: str) -> bool:
    """Whether a server on `host` is reached from this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@app.command(rich_help_panel=SEARCH)
def repair(directory: Directory) -> None:
    """Restores a damaged study directory to a state that `resume` accepts; keeps a copy of what it
    cuts.
    """
    from studies.journal.repair import repair as repair_directory
    from studies.search.proposals import describe_text
    from studies.workers.launch import read_dimensions

    done = repair_directory(directory, describe_text, read_dimensions)
    print_lines(done or [f"nothing was wrong with {directory}"])


def _drive(opened: Callable[[], SearchDriver], directory: Path, quiet: bool) -> None:
    """Runs a study to its end or interruption, then prints its front and what to type next."""
    from studies.cli.live import LiveView
    from studies.evidence.intervals import Evidence
    from studies.results import compare as comparing
    from studies.results import tables
    from studies.workers.executors import run_study

    with opened() as driver:
        for warning in driver.warnings:
            note(f"warning: {warning}")
        with LiveView(driver, quiet=quiet) as view:
            ending = run_study(driver, listener=view)
    note(f"ended: {ending.text}" + (f": {driver.explanation}" if driver.explanation else ""))
    quoted = as_word(directory)
    opened_study = (*tables.open_records(directory), Evidence.of(directory))
    rows, columns, cells = tables.front_rows(*opened_study)
    print_lines(tables.status_lines(tables.status(directory)))
    if rows:
        print_table(columns, cells)
        said, columns, cells = comparing.control_rows(*opened_study)
        if said["controls"]:
            print_table(columns, cells)
            note(comparing.control_text(said))
        best = next((row["trial"] for row in rows if row["knee"]), rows[0]["trial"])
        note("next, one line each:")
        if any(record.kind == "pair" for record in opened_study[1]):
            note(f"  equisearch compare {quoted} --pairs")
        note(f"  equisearch report {quoted}")
        note(f"  equisearch retrain {quoted} --trial {best}")
        note(f"  equisearch export {quoted} {best} --retrained")
    if ending.exit_status:
        note(f"interrupted; continue with: equisearch resume {quoted}")
        raise typer.Exit(ending.exit_status)
