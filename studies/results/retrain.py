"""Architectures again at full length, with several seeds, tested once: the only place that reads
the test split.

Each training has its folder and leaves `result.json` there as its commit point, so that calling
again trains only what is missing, from its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from statistics import mean, stdev
from typing import Any

from studies.config import Study
from studies.errors import StudyError
from studies.journal.lock import StudyLock
from trainers.cores import available_cores
from trainers.files import write_whole

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One training of one architecture."""

    name: str  # of what is compared, such as "trial 17" or "P4 28 px"
    study: Study
    architecture: str
    seed: int
    learning_rate: float | None  # None: the study's
    directory: str


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


def run_job(job: Job) -> dict[str, Any]:
    """The result of one training on the test split: scores, accuracy per declared element and by
    angle. Reads it if it is there. Raises LockedError while another process trains in its folder.
    """
    from studies.workers.processes import prepare_process

    prepare_process(job.study)
    directory = Path(job.directory)
    path = directory / RESULT
    if path.exists():
        return read_result(path)
    directory.mkdir(parents=True, exist_ok=True)
    with closing(StudyLock(directory)):
        result = _train_and_test(job, directory)
        write_whole(path, json.dumps(result, indent=1) + "\n")
    return result


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file. Raises StudyError for a file that holds none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        summarised([result])
        if not isinstance(result["epochs"], int):
            raise ValueError(f"epochs is {result['epochs']!r} and must be a whole number")
        return result if "seed" in result else {**result, "seed": None}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise StudyError(
            f"{path} holds no result of a training ({type(error).__name__}: {error}); "
            "delete it, and the same command, or `equisearch retrain`, trains it again"
        ) from None


def _train_and_test(job: Job, directory: Path) -> dict[str, Any]:
    from functools import partial

    from searchspace.groups import Group
    from searchspace.recipe import Candidate
    from trainers.data.datasets import load, normalise
    from trainers.instruments.accuracy import accuracy_by_angle, summarise
    from trainers.instruments.predictions import predict
    from trainers.networks.fold import scoring
    from trainers.training.evaluate import evaluate
    from trainers.training.train import start, train

    candidate = Candidate.parse(job.architecture).with_learning_rate(job.learning_rate)
    architecture, study = candidate.architecture, job.study
    splits = load(study.data, architecture.size)
    test = splits.test()
    if test is None:
        raise ValueError(
            f"{study.data.name or study.data.folder} has no test split; give the folder a test/ "
            "with the same classes, or one "
            "folder of classes without train/, of which a fifth is kept for testing"
        )
    config = study.training_config(job.seed, candidate.recipe)
    validation = train(architecture, config, directory, study.training.epochs, splits=splits)
    network = start(architecture, config, directory, splits).network
    tested = evaluate(network, splits, config, epoch=study.training.epochs, images=test)
    scored, normal = scoring(network), partial(normalise, mean=splits.mean, std=splits.std)
    quarters = summarise(
        predict(scored, test.pixels, Group.parse("C4").elements, normalise=normal),
        test.labels,
        Group.parse("C4"),
    )
    curve = accuracy_by_angle(
        scored, test.pixels, test.labels, step=study.symmetry.angles, normalise=normal
    )
    return {
        "name": job.name,
        "architecture": job.architecture,
        "seed": job.seed,
        "epochs": study.training.epochs,
        "num_test": len(test.labels),
        "validation": validation.as_dict(),
        "test": tested.as_dict(),
        "quarter_turns": {
            f"{e.degrees:g}": a.value for e, a in zip(quarters.elements, quarters.accuracies)
        },
        "accuracy_by_angle": {f"{d:g}": a.value for d, a in zip(curve.degrees, curve.accuracies)},
    }


def tested_results(directory: Path) -> list[dict[str, Any]]:
    """The results of everything that was retrained in a study's directory. Raises StudyError for a
    file that holds none.
    """
    return [read_result(path) for path in sorted(directory.glob(f"retrained/*/*/{RESULT}"))]


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    on_result: Callable[[int, dict[str, Any]], None] = lambda done, result: None,
) -> list[dict[str, Any]]:
    """The results of all jobs, in their order, `workers` at a time, each in a process of its own
    (`studies.workers.processes.run_each`).

    `on_result(done, result)` is told of each. Finished results stay in their folders, whatever ends
    this.
    """
    from studies.workers.processes import run_each

    told = 0

    def tell(index: int, result: dict[str, Any]) -> None:
        nonlocal told
        told += 1
        on_result(told, result)

    return run_each(run_job, jobs, workers, tell)


def summarised(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per name, in order: mean, standard deviation and n over seeds of every test score, of
    quarter turns and of angles.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    rows = []
    for name, members in groups.items():

        def over(
            pick: Callable[[dict[str, Any]], float], members: list[dict[str, Any]] = members
        ) -> MeanStd:
            return MeanStd.of([pick(member) for member in members])

        angles = list(members[0]["accuracy_by_angle"])
        rows.append(
            {
                "name": name,
                "architecture": members[0]["architecture"],
                "n": len(members),
                "epochs": members[0]["epochs"],
                "num_test": members[0]["num_test"],
                "accuracy": over(lambda m: m["test"]["accuracy"]),
                "symmetry_accuracy": over(lambda m: m["test"]["symmetry_accuracy"]),
                "symmetry_accuracy_worst": over(lambda m: m["test"]["symmetry_accuracy_worst"]),
                "equivariance_error": over(lambda m: m["test"]["equivariance_error"]),
                **{
                    f"turn_{turn}": over(lambda m, t=turn: m["quarter_turns"][t])
                    for turn in ("0", "90", "180", "270")
                },
                "quarter_turn_mean": over(lambda m: mean(m["quarter_turns"].values())),
                "angle_mean": over(lambda m: mean(m["accuracy_by_angle"].values())),
                "angle_worst": over(lambda m: min(m["accuracy_by_angle"].values())),
                "by_angle": {
                    angle: over(lambda m, a=angle: m["accuracy_by_angle"][a]) for angle in angles
                },
                "params": members[0]["test"]["params"],
                "macs": members[0]["test"]["macs"],
            }
        )
    return rows


def as_dict(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `summarised` for JSON."""

    def value(item: Any) -> Any:
        if isinstance(item, MeanStd):
            return {"mean": item.mean, "std": item.std, "n": item.n}
        return (
            {key: value(inner) for key, inner in item.items()} if isinstance(item, dict) else item
        )

    return {key: value(item) for key, item in row.items()}


def front_jobs(
    directory: Path,
    *,
    seeds: int = 3,
    epochs: int | None = None,
    trials: Sequence[int] | None = None,
) -> list[Job]:
    """The trainings that `equisearch retrain` does: each member of the front (or of `trials`),
    `seeds` times.

    Raises StudyError if there is no front yet, or no such trial.
    """
    from studies.results import tables as views

    study, records = views.open_study(directory)
    chosen = (
        [views.find_trial(records, number, directory) for number in trials]
        if trials
        else views.members(study, records)
    )
    chosen = [record for record in chosen if record.architecture]
    if not chosen:
        raise StudyError(
            f"{directory} has no front yet: no trial is complete; `equisearch resume "
            f"{quote(str(directory))}` goes on"
        )
    if epochs is not None:
        study = study.model_copy(
            update={"training": study.training.model_copy(update={"epochs": epochs})}
        )
    length = study.training.epochs
    return [
        Job(
            f"trial {record.number}",
            study,
            record.attributes["architecture"],
            seed,
            record.attributes.get("learning_rate"),
            str(
                directory.absolute()
                / "retrained"
                / f"{record.number:05d}"
                / f"epochs{length}-seed{seed}"
            ),
        )
        for record in chosen
        for seed in range(1, seeds + 1)
    ]


def default_workers(study: Study) -> int:
    """Trainings at the same time: one for every `cpus_per_trial` cores; on GPUs, at most
    TRIALS_PER_GPU on each.
    """
    count = max(1, int(available_cores() // max(1, study.resources.cpus_per_trial)))
    if study.trial_training.device == "cpu":
        return count
    import torch

    from studies.workers.cluster import TRIALS_PER_GPU

    return min(count, TRIALS_PER_GPU * torch.cuda.device_count() or count)
