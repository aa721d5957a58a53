"""The command line: `equisearch COMMAND`. Results go to stdout, progress to stderr, errors are one line and an exit status.

Exit status: 0 fine, 1 our error, 2 usage, 3 locked or exists, 4 too many failures, 130 and 143 signals. What a command needs is
imported inside it, so that commands that only read answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

from studies.output import Format, note, print_json, print_rows, print_table

app = typer.Typer(name="equisearch", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Search for the right amount of equivariance. --debug with any command shows tracebacks.")

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The study's directory.", show_default=False)]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a preset.", show_default=False)]
Trial = Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.", show_default=False)]
FormatOption = Annotated[Format, typer.Option("--format", help="How the result is printed.")]
Trials = Annotated[Optional[int], typer.Option(min=1, help="Trials in all.", show_default=False)]
Workers = Annotated[Optional[str], typer.Option(metavar="N|auto", help="Trials at the same time.", show_default=False)]
Timeout = Annotated[Optional[str], typer.Option(metavar="TIME", help="Stop after that long, such as 90m; `resume` goes on.", show_default=False)]
Address = Annotated[Optional[str], typer.Option(metavar="HOST:PORT", help="A Ray cluster; else Ray on this machine.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Settings = Annotated[Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="Any key of the study, such as search.sampler=random.",
                                                       show_default=False)]


@app.command()
def start(study: StudyName, directory: Directory, trials: Trials = None,
          epochs: Annotated[Optional[int], typer.Option(min=1, help="Epochs of a full training.", show_default=False)] = None,
          workers: Workers = None, timeout: Timeout = None, ray_address: Address = None,
          seed: Annotated[Optional[int], typer.Option(min=0, help="Of the search.", show_default=False)] = None,
          settings: Settings = None,
          enqueue: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Architectures to try first, one a line.", show_default=False)] = None,
          warm_start: Annotated[Optional[Path], typer.Option(metavar="DIR", help="An earlier study to learn from.", show_default=False)] = None,
          quiet: Quiet = False) -> None:
    """Starts the search of STUDY in the new directory DIR, and prints its front."""
    from studies import config
    from studies.files import STUDY
    from studies.errors import ExistsError
    from studies.starts import read_architectures

    overrides = {"search.trials": trials, "training.epochs": epochs, "search.seed": seed, **_resources(workers, timeout, ray_address), **_pairs(settings)}
    chosen = config.load(study, overrides)
    if (directory / STUDY).exists():
        raise ExistsError(f"{directory} already holds a study; go on with `equisearch resume {directory}`, or choose another directory")
    first = read_architectures(enqueue) if enqueue else ()
    channels, classes = _look_at_data(chosen)
    from studies.driver import SearchDriver

    _drive(lambda: SearchDriver.create(directory, chosen, channels=channels, classes=classes, enqueue=first, warm_start=warm_start), directory, quiet)


@app.command()
def resume(directory: Directory, trials: Trials = None, workers: Workers = None, timeout: Timeout = None, ray_address: Address = None,
           settings: Settings = None, quiet: Quiet = False) -> None:
    """Goes on with the study in DIR; more trials, another timeout or other resources may be given."""
    from studies import config
    from studies.driver import SearchDriver
    from studies.files import read_study

    overrides = {"search.trials": trials, **_resources(workers, timeout, ray_address), **_pairs(settings)}
    revised = config.parse(config.dump(read_study(directory)), name="the stored study", overrides=overrides)
    _drive(lambda: SearchDriver.open(directory, revised), directory, quiet)


@app.command()
def status(directory: Directory, format: FormatOption = Format.table) -> None:
    """Prints how the study in DIR stands."""
    from studies import views

    found = views.status(directory)
    if format is Format.json:
        return print_json(found)
    print("\n".join(views.status_lines(found)))


@app.command()
def trials(directory: Directory, format: FormatOption = Format.table) -> None:
    """Lists every trial of the study in DIR."""
    from studies import views

    rows, columns, cells = views.trial_rows(directory)
    print_rows(rows, format, columns, cells, f"{directory} has no trials yet")


@app.command()
def front(directory: Directory, format: FormatOption = Format.table) -> None:
    """Prints the Pareto front of the study in DIR; * marks the best compromise."""
    from studies import views

    rows, columns, cells = views.front_rows(directory)
    print_rows(rows, format, columns, cells, f"{directory} has no front yet: no trial is complete")


@app.command()
def show(directory: Directory, trial: Trial, format: FormatOption = Format.table) -> None:
    """Prints everything about one trial: its scores at every rung, its exactness, its files."""
    from studies import views

    study, records = views.open_study(directory, parameters=True)
    record = views.find_trial(records, trial, directory)
    row = {**views.trial_row(study, record), "parameters": record.parameters, "rungs": record.rungs}
    if format is Format.json:
        return print_json(row)
    print("\n".join(views.show_lines(directory, row, record.rungs)))
    if record.architecture:
        from studies.checking import check as examine

        print(examine(record.architecture, study.symmetry.group).text())


@app.command()
def export(directory: Directory, trial: Trial,
           out: Annotated[Optional[Path], typer.Option(metavar="BUNDLE", help="The bundle's folder; else DIR/exports/TRIAL.", show_default=False)] = None,
           force: Annotated[bool, typer.Option("--force", help="Replace another bundle that lies there.")] = False) -> None:
    """Exports a trained trial: plain torch, torch.export and ONNX files, compared before they are written, with a card."""
    from studies.exporting import export_trial

    bundle = export_trial(directory, trial, out, force=force)
    print(bundle)
    note(f"compared and written; read {bundle}/README.md, check it any time with `equisearch verify {bundle}`")


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="An exported folder.", show_default=False)],
           format: FormatOption = Format.table) -> None:
    """Checks a bundle: files whole, formats agree, symmetry as the card says."""
    from studies.exporting import verify_bundle

    report = verify_bundle(bundle)
    print_json(report.as_dict()) if format is Format.json else print(report.text())
    if not report.good:
        raise typer.Exit(1)


@app.command()
def check(architecture: Annotated[str, typer.Argument(metavar="ARCHITECTURE", help="Its text form, or the name of a published network.",
                                                      show_default=False)],
          group: Annotated[Optional[str], typer.Option(help="The group it will be used under; else its own.", show_default=False)] = None,
          size: Annotated[Optional[int], typer.Option(min=1, help="Another input size, pixels.", show_default=False)] = None,
          channels: Annotated[int, typer.Option(min=1, help="Of the images.")] = 1,
          classes: Annotated[int, typer.Option(min=1)] = 10, format: FormatOption = Format.table) -> None:
    """Says before any training which symmetries an architecture keeps exactly, where it loses the others, and what repairs it."""
    from studies.checking import check as examine

    found = examine(architecture, group, channels=channels, classes=classes, size=size)
    print_json(found.as_dict()) if format is Format.json else print(found.text())


@app.command()
def train(study: StudyName, architecture: Annotated[str, typer.Argument(metavar="ARCHITECTURE", help="Its text form, or the name of a published network.",
                                                                         show_default=False)],
          epochs: Annotated[Optional[int], typer.Option(min=1, help="Epochs.", show_default=False)] = None,
          seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
          out: Annotated[Optional[Path], typer.Option(metavar="DIR", help="Keeps the checkpoint there, and goes on from it.", show_default=False)] = None,
          settings: Settings = None, quiet: Quiet = False, format: FormatOption = Format.table) -> None:
    """Trains one architecture under a study's data and training, and prints its scores and its accuracy by angle."""
    from studies import config
    from studies.checking import named
    from studies.single import train_lines, train_one

    chosen = config.load(study, {"training.epochs": epochs, **_pairs(settings)})
    total = chosen.training.epochs

    def show(epoch: int, row: dict) -> None:
        if not quiet:
            note(f"epoch {epoch} of {total}: training loss {row['train_loss']:.4f}, {row['seconds']:.1f} s")

    result = train_one(chosen, named(architecture), seed=seed, out=out, on_epoch=show)
    print_json(result) if format is Format.json else print("\n".join(train_lines(result)))


@app.command()
def retrain(directory: Directory, seeds: Annotated[int, typer.Option(min=1, help="Trainings of each architecture.")] = 3,
            epochs: Annotated[Optional[int], typer.Option(min=1, help="Epochs; else the study's.", show_default=False)] = None,
            trial: Annotated[Optional[list[int]], typer.Option(help="These trials instead of the front; may be repeated.", show_default=False)] = None,
            workers: Workers = None, format: FormatOption = Format.table) -> None:
    """Trains the front again with several seeds and tests it: the only command that reads the test split."""
    from studies import retrain as retraining
    from studies.output import Column, short

    jobs = retraining.front_jobs(directory, seeds=seeds, epochs=epochs, trials=trial)
    rows = _retrained(jobs, workers)
    columns = [Column("trial"), Column("n", True), Column("test accuracy %", True), Column("symmetry %", True), Column("worst %", True),
               Column("params", True), Column("MACs", True), Column("architecture")]
    cells = [[row["name"].split()[1], str(row["n"]), row["accuracy"].percent(), row["symmetry_accuracy"].percent(), row["symmetry_accuracy_worst"].percent(),
              short(row["params"]), short(row["macs"]), row["architecture"]] for row in rows]
    print_rows([retraining.plain(row) for row in rows], format, columns, cells)


@app.command()
def reproduce(directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the trainings go; calling again goes on.", show_default=False)],
              shift: Annotated[str, typer.Option(help="What training sees: upright, normal20, normal40 or uniform.")] = "upright",
              root: Annotated[str, typer.Option(help="The folder that holds MNIST/raw.")] = "../shared/data",
              epochs: Annotated[int, typer.Option(min=1, help="The paper has 50.")] = 50,
              seeds: Annotated[int, typer.Option(min=1, help="Runs of each model; the paper has 100.")] = 10,
              test: Annotated[Optional[int], typer.Option(min=100, help="Test images; else all 60,000.", show_default=False)] = None,
              workers: Workers = None, format: FormatOption = Format.table) -> None:
    """Repeats "Using and Abusing Equivariance" on MNIST and prints its table beside the published figures."""
    from studies import reproduce as published
    from studies import retrain as retraining

    rows = _retrained(published.jobs(shift, directory, root=root, epochs=epochs, seeds=seeds, test=test), workers)
    claims = published.claims(shift, rows)
    if format is Format.json:
        return print_json({"shift": shift, "rows": [retraining.plain(row) for row in rows],
                           "claims": [{"statement": c.statement, "measured": c.measured, "holds": c.holds} for c in claims]})
    print_table(*published.compared(shift, rows))
    for claim in claims:
        print(f"{'holds' if claim.holds else 'DOES NOT HOLD':>13}  {claim.statement}: {claim.measured}")


@app.command()
def presets(name: Annotated[Optional[str], typer.Argument(metavar="[NAME]", help="Prints this preset's file.", show_default=False)] = None,
            schema: Annotated[bool, typer.Option("--schema", help="Prints the JSON Schema of study files, for editors.")] = False,
            format: FormatOption = Format.table) -> None:
    """Lists the built-in studies; with a NAME prints that study file, to copy and change."""
    from studies import config
    from studies.errors import StudyError
    from studies.output import Column

    if schema:
        return print_json(config.schema())
    known = config.presets()
    if name is not None:
        if name not in known:
            raise StudyError(f"there is no preset '{name}'; presets are {', '.join(known)}")
        print(known[name].read_text(encoding="utf-8"), end="")
        return
    first = {key: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for key, path in known.items()}
    print_rows([{"name": key, "about": about} for key, about in first.items()], format, [Column("preset"), Column("about")], list(map(list, first.items())))


@app.command()
def doctor(format: FormatOption = Format.table) -> None:
    """Examines this installation: versions, pairs that break each other, GPU, a Ray task; each finding with its remedy."""
    from studies import doctor as clinic
    from studies.output import Column

    findings = []
    for finding in clinic.examine():
        findings.append(finding)
        if format is Format.table:
            note(f"{finding.level:>4}  {finding.what}: {finding.found}")
    if format is Format.json:
        print_json(clinic.as_dict(findings))
    else:
        remedies = [[f.level, f.what, f.found, f.remedy] for f in findings if f.remedy]
        if remedies:
            print_table([Column("level"), Column("what"), Column("found"), Column("remedy")], remedies)
        print("healthy" if clinic.as_dict(findings)["healthy"] else "not healthy: see the remedies marked bad")
    if not clinic.as_dict(findings)["healthy"]:
        raise typer.Exit(1)


def _pairs(settings: "list[str] | None") -> dict[str, object]:
    """The --set options: dotted keys and values in YAML."""
    import yaml

    found = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"'{text}' sets nothing; write KEY=VALUE, such as search.sampler=random", param_hint="--set")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"the value in '{text}' is no YAML", param_hint="--set") from None
    return found


def _resources(workers: "str | None", timeout: "str | None", address: "str | None") -> dict[str, object]:
    if workers is not None and workers != "auto" and not (workers.isdigit() and int(workers) > 0):
        raise typer.BadParameter(f"{workers} is neither auto nor a whole number above 0", param_hint="--workers")
    count = int(workers) if workers and workers.isdigit() else workers
    return {"resources.workers": count, "search.timeout": timeout, "resources.address": address}


def _retrained(jobs, workers: "str | None") -> list[dict]:
    """The summarised results of retraining jobs, with progress on stderr."""
    from studies import retrain as retraining

    asked = _resources(workers, None, None)["resources.workers"]
    count = asked if isinstance(asked, int) else retraining.default_workers(jobs[0].study)

    def tell(done: int, result: dict) -> None:
        note(f"{done} of {len(jobs)}: {result['name']}, seed {result['seed']}: test accuracy {100 * result['test']['accuracy']:.2f} %, "
             f"symmetry accuracy {100 * result['test']['symmetry_accuracy']:.2f} %")

    return retraining.summarised(retraining.run_jobs(jobs, min(count, len(jobs)), tell))


def _look_at_data(study) -> tuple[int, int]:
    """(channels, classes) of the study's images: bad data is told before anything is created."""
    from trainers.datasets import load

    size = study.space.pixels[0]
    splits = load(study.data, (size, size))
    for skipped in splits.skipped[:5]:
        note(f"skipped: {skipped}")
    note(f"data: {len(splits.train.labels)} training and {len(splits.validation.labels)} validation images, "
         f"{splits.channels} channels, {len(splits.classes)} classes")
    return splits.channels, len(splits.classes)


def _drive(opened, directory: Path, quiet: bool) -> None:
    """Runs a study to its end or interruption, then prints its front and what to type next."""
    from studies import views
    from studies.executors import run
    from studies.live import Progress

    with opened() as driver:
        for warning in driver.warnings:
            note(f"warning: {warning}")
        with Progress(driver, quiet=quiet) as progress:
            ending = run(driver, listener=progress)
    note(f"ended: {ending.reason}")
    rows, columns, cells = views.front_rows(directory)
    print("\n".join(views.status_lines(views.status(directory))))
    if rows:
        print_table(columns, cells)
        best = next((row["trial"] for row in rows if row["knee"]), rows[0]["trial"])
        note(f"next: equisearch show {directory} {best}  |  equisearch export {directory} {best}  |  equisearch resume {directory} --trials N")
    if ending.exit_status:
        note(f"interrupted; go on with: equisearch resume {directory}")
        raise typer.Exit(ending.exit_status)


def main() -> None:
    """Runs the command line; the console script `equisearch`."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # one thread a process: more lose 3 to 5 times where processes run side by side
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        from studies.errors import StudyError

        known = isinstance(error, (StudyError, ValueError, OSError))
        text = str(error) if known and str(error) else f"{type(error).__name__}: {error} (this is a fault of the program; --debug shows where)"
        print(f"error: {text}", file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, StudyError) else 1)


if __name__ == "__main__":
    main()
