"""Architectures again at full length, on training and validation images, with several seeds,
tested once.

What one training does is in `studies.results.retrain_job`. Each has its folder and leaves
`result.json` there as its commit point, so that calling again trains only what is missing, from
its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from studies.config import Study, differences, dump, parse
from studies.errors import StudyError
from studies.journal.directory import read_study, require_writable_place
from studies.journal.trial import TrialRecord
from studies.journal.trust import require
from studies.results.retrain_job import RESULT, TRAIN, Job, run_assigned
from studies.search.assignments import Assignment
from studies.workers.jobs import JobDriver, run_assignments
from trainers.files import as_word, read_whole

RETRAINED = "retrained"  # in a study's directory
RETRAIN_SCORES = ("accuracy", "symmetry_accuracy", "symmetry_accuracy_worst")


@dataclass(frozen=True)
class MeanStd:
    """A mean over seeds with its standard deviation."""

    mean: float
    std: float  # sample standard deviation; 0 for a single value
    n: int  # seeds

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        """The mean and standard deviation of at least one value."""
        return cls(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    def percent(self) -> str:
        """`97.69 ± 0.17` for shares in 0..1."""
        return (
            f"{100 * self.mean:.2f} ± {100 * self.std:.2f}"
            if self.n > 1
            else f"{100 * self.mean:.2f}"
        )


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file. Raises StudyError for a file that holds none."""
    try:
        result = json.loads(read_whole(path))
        summarise_seeds([{key: value for key, value in result.items() if key != "members"}])
        if not isinstance(result["epochs"], int):
            raise ValueError(f"epochs is {result['epochs']!r} and must be a whole number")
        return result if "seed" in result else {**result, "seed": None}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StudyError(
            f"{path} holds no result of a training ({type(error).__name__}: {error}); "
            "delete it, and the same command, or `equisearch retrain`, trains it again"
        ) from None


def tested_results(directory: Path) -> list[dict[str, Any]]:
    """The results of everything that was retrained in a study's directory. Raises StudyError for a
    file that holds none.
    """
    return [read_result(path) for path in sorted(directory.glob(f"{RETRAINED}/*/*/{RESULT}"))]


def run_jobs(
    jobs: Sequence[Job],
    study: Study,
    directory: Path,
    on_result: Callable[[int, dict[str, Any]], None] = lambda done, result: None,
) -> list[dict[str, Any]]:
    """The results of all jobs, in their order, by the workers of a search: as many at a time as
    the study's `resources` say, in this process, on Ray or on a cluster.

    `directory` is that of the study, which workers must see. `on_result(done, result)` is called
    with each. Finished results stay in their folders, whatever ends this; a training that was
    killed continues from its checkpoint.
    """
    results = {
        number: read_result(path)
        for number, job in enumerate(jobs)
        if (path := Path(job.directory) / RESULT).exists()
    }
    for done, result in enumerate(results.values(), start=1):
        on_result(done, result)

    def keep(number: int) -> None:
        results[number] = read_result(Path(jobs[number].directory) / RESULT)
        on_result(len(results), results[number])

    driver = JobDriver(
        _resourced(study, len(jobs) - len(results)),
        directory,
        [_assignment(number, job, study) for number, job in enumerate(jobs)],
        done=results,
        after=_order(jobs),
        on_done=keep,
    )
    run_assignments(driver, partial(run_assigned, tuple(jobs)), lambda n: jobs[n].label)
    return [results[number] for number in range(len(jobs))]


def _resourced(study: Study, left: int) -> Study:
    """The study with one worker where one job is left, so that no Ray is started for it."""
    resources = study.resources
    if left > 1 or resources.executor == "ray" or resources.address is not None:
        return study
    return study.model_copy(update={"resources": resources.model_copy(update={"workers": 1})})


def _assignment(number: int, job: Job, study: Study) -> Assignment:
    epochs = study.training.epochs
    return Assignment(number, job.architecture, job.learning_rate, job.seed, epochs, job.directory)


def _order(jobs: Sequence[Job]) -> dict[int, set[int]]:
    """The jobs that the mean of several waits for, by its place."""
    places = {job.directory: number for number, job in enumerate(jobs)}
    return {
        number: {places[member] for member in job.members if member in places}
        for number, job in enumerate(jobs)
    }


def summarise_seeds(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per name and what was trained on, in order: mean and std over seeds of every test
    score, of quarter turns and of angles; and the scores of the mean of the seeds' probabilities.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    means: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        key = result["name"], result.get("trained_on", TRAIN)
        if "members" not in result:
            groups.setdefault(key, []).append(result)
        elif key not in means or means[key]["members"] < result["members"]:
            means[key] = result
    rows = []
    for (name, trained_on), members in groups.items():

        def over(
            pick: Callable[[dict[str, Any]], float], members: list[dict[str, Any]] = members
        ) -> MeanStd:
            return MeanStd.of([pick(member) for member in members])

        rows.append(
            {
                "name": name,
                "architecture": members[0]["architecture"],
                "n": len(members),
                "epochs": members[0]["epochs"],
                "num_test": members[0]["num_test"],
                "num_validation": members[0].get("num_validation"),
                "trained_on": trained_on,
                "mean_of_seeds": _mean_of_seeds(means.get((name, trained_on))),
                **{name: over(lambda m, n=name: m["test"][n]) for name in RETRAIN_SCORES},
                "equivariance_error": over(lambda m: m["test"]["equivariance_error"]),
                **{
                    f"turn_{turn}": over(lambda m, t=turn: m["quarter_turns"][t])
                    for turn in ("0", "90", "180", "270")
                },
                "quarter_turn_mean": over(lambda m: mean(m["quarter_turns"].values())),
                "angle_mean": over(lambda m: mean(m["accuracy_by_angle"].values())),
                "angle_worst": over(lambda m: min(m["accuracy_by_angle"].values())),
                "by_angle": {
                    angle: over(lambda m, a=angle: m["accuracy_by_angle"][a])
                    for angle in members[0]["accuracy_by_angle"]
                },
                **_of_task(members),
                "params": members[0]["test"]["params"],
                "macs": members[0]["test"]["macs"],
            }
        )
    return rows


def _of_task(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the main score is called where it is no accuracy, its standard errors over images (means
    over seeds, since all are tested on the same images), and what stands beside it; else empty.
    """
    tests = [member["test"] for member in members]
    if not tests[0].get("score"):
        return {}
    rows = [test.get("beside") or {} for test in tests]
    return {
        "score": tests[0]["score"],
        "errors": {name: mean(test[f"{name}_error"] for test in tests) for name in RETRAIN_SCORES},
        "beside": {name: mean(row[name] for row in rows) for name in rows[0]},
    }


def _mean_of_seeds(result: dict[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    names = (*RETRAIN_SCORES, "equivariance_error")
    return {"members": result["members"], **{name: result["test"][name] for name in names}}


def row_as_dict(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `summarise_seeds` for JSON."""

    def value(item: Any) -> Any:
        if isinstance(item, MeanStd):
            return {"mean": item.mean, "std": item.std, "n": item.n}
        return (
            {key: value(inner) for key, inner in item.items()} if isinstance(item, dict) else item
        )

    return {key: value(item) for key, item in row.items()}


def retraining_study(
    directory: Path, overrides: Mapping[str, Any] | None = None, *, trust: bool = False
) -> Study:
    """The study in `directory`, to be retrained with other epochs and resources (dotted keys).

    Raises UntrustedError where what in it runs programs was written by someone else, unless
    `trust`; StudyError for an override that would make the test scores those of another study, and
    where this account cannot write.
    """
    stored = read_study(directory)
    revised = parse(dump(stored), name="the stored study", overrides=overrides)
    foreign = [
        line
        for line in differences(stored, revised)
        if not line.startswith(("resources.", "training.epochs", "training.device", "search."))
    ]
    if foreign:
        raise StudyError(
            f"retrain repeats the trainings of the study, and --set changes {foreign[0]}; leave "
            "that out (resources, training.device and --epochs may differ)"
        )
    if not trust:
        require(directory, stored, revised)
    require_writable_place(
        directory / RETRAINED, "use an account that may write there, or a copy of the study"
    )
    return revised


def front_jobs(
    study: Study,
    directory: Path,
    *,
    seeds: int = 3,
    trials: Sequence[int] | None = None,
    keep_validation: bool = False,
) -> list[Job]:
    """What `equisearch retrain` does: each member of the front (or of `trials`) trained with
    `seeds` seeds, and the mean of these tested.

    They train on the validation images too, unless `keep_validation`. Raises StudyError if there is
    no front yet, or no such trial.
    """
    from studies.results import tables as views

    opened, records = views.open_records(directory)
    chosen = (
        [views.find_trial(records, number, directory) for number in trials]
        if trials
        else views.front_members(opened, records)
    )
    models = [record for record in chosen if record.kind == "model"]
    if models and (trials or len(models) == len(chosen)):
        raise StudyError(
            f"trial {models[0].number} is a model from outside ({models[0].name}), which a study "
            "cannot train; choose a trial with an architecture"
        )
    chosen = [record for record in chosen if record.architecture]
    if not chosen:
        raise StudyError(
            f"{directory} has no front yet: no trial is complete; `equisearch resume "
            f"{as_word(directory)}` goes on"
        )
    return [
        job
        for record in chosen
        for job in _jobs_of(record, study, directory, seeds, not keep_validation)
    ]


def softened_as(record: TrialRecord) -> str:
    """What a trained network becomes in the trial; empty: it stays."""
    return str(record.attributes["role"]) if record.kind == "softened" else ""


def _jobs_of(
    record: TrialRecord, study: Study, directory: Path, seeds: int, merge: bool
) -> list[Job]:
    folder = folder_of(directory, record.number)
    base = Job(
        f"trial {record.number}",
        str(record.trained),
        0,
        record.attributes.get("learning_rate"),
        "",
        merge,
        softened=softened_as(record),
    )

    def place(what: str) -> str:
        return str(folder / f"epochs{study.training.epochs}{'-merged' if merge else ''}-{what}")

    jobs = [
        replace(base, seed=seed, directory=place(f"seed{seed}")) for seed in range(1, seeds + 1)
    ]
    if seeds == 1:
        return jobs
    members = tuple(job.directory for job in jobs)
    return [*jobs, replace(base, directory=place(f"mean{seeds}"), members=members)]


def folder_of(directory: Path, trial: int) -> Path:
    """Where the retrainings of a trial lie, absolute."""
    return directory.absolute() / RETRAINED / f"{trial:05d}"
