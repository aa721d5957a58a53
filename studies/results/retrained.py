"""Which of the networks that `retrain` left behind is exported, and what its card says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.config import Study
from studies.errors import StudyError
from studies.journal.trial import TrialRecord
from studies.pareto import knee
from studies.results.retrain import MeanStd, folder_of, read_result, softened_as
from studies.results.retrain_job import MERGED, RESULT, TRAIN, Job, network_of
from studies.results.selection import mean_over_seeds
from trainers.files import as_word

if TYPE_CHECKING:
    from trainers.bundles.export import TrainedNetwork

TESTED = ("accuracy", "symmetry_accuracy", "symmetry_accuracy_worst")
CHOICE = re.compile(r"\d+|best|mean-of-\d+")


@dataclass(frozen=True)
class Retraining:
    """One folder that `retrain` has finished."""

    folder: Path
    result: Mapping[str, Any]

    @property
    def seed(self) -> int | None:
        """The seed of a training; None for the mean of several, and for results before 0.2."""
        return self.result["seed"]

    @property
    def members(self) -> int:
        """How many networks it is the mean of; 1 for a training."""
        return self.result.get("members", 1)

    @property
    def variety(self) -> tuple[str, int]:
        """What it was trained on, and for how many epochs."""
        return self.result.get("trained_on", TRAIN), self.result["epochs"]


@dataclass(frozen=True)
class RetrainedChoice:
    """The trainings to export as one network, their own result, and all seeds beside them."""

    trainings: tuple[Retraining, ...]
    result: Mapping[str, Any]
    seeds: tuple[Retraining, ...]
    how: str  # how it was chosen, a phrase


def choose_retrained(directory: Path, trial: int, which: str) -> RetrainedChoice:
    """The retrained networks of a trial that `which` names: a seed, `best` or `mean-of-N`.

    Of several lengths, and of trainings with and without validation images, those on training and
    validation images with most epochs are taken. `best` is by the study's validation scores, so it
    needs trainings that have not seen these: the test scores choose nothing. Raises StudyError.
    """
    if not CHOICE.fullmatch(which):
        raise StudyError(f"'{which}' names no retrained network; give a seed, best, or mean-of-N")
    retrainings = [
        Retraining(path.parent, read_result(path))
        for path in sorted(folder_of(directory, trial).glob(f"*/{RESULT}"))
    ]
    again = f"`equisearch retrain {as_word(directory)} --trial {trial}"
    if not retrainings:
        raise StudyError(f"trial {trial} was not retrained; {again}` does it")
    if which == "best":
        return _best(retrainings, trial, again)
    # merged before train alone, in the order of their names
    order = sorted(
        {r.variety for r in retrainings}, key=lambda v: (v[0] == MERGED, v[1]), reverse=True
    )
    for variety in order:
        alike = [r for r in retrainings if r.variety == variety]
        seeds = tuple(r for r in alike if r.members == 1)
        if which.isdigit():
            for one in seeds:
                if one.seed == int(which):
                    return RetrainedChoice(
                        (one,), one.result, seeds, f"seed {which}, before any score"
                    )
        else:
            count = int(which.removeprefix("mean-of-"))
            parts = tuple(r for r in seeds if r.seed is not None and 1 <= r.seed <= count)
            for mean in alike:
                if mean.members == count > 1 and len(parts) == count:
                    return RetrainedChoice(parts, mean.result, seeds, f"mean of {count} seeds")
    there = ", ".join(sorted({str(r.seed) for r in retrainings if r.members == 1}))
    wanted = which.rpartition("-")[2]
    raise StudyError(
        f"trial {trial} was retrained with seeds {there}, which {which} is not among; "
        f"{again} --seeds {wanted}` trains and tests what is missing"
    )


def _best(retrainings: Sequence[Retraining], trial: int, again: str) -> RetrainedChoice:
    candidates = [r for r in retrainings if r.members == 1 and r.result.get("validation")]
    if not candidates:
        raise StudyError(
            f"trial {trial} was retrained on its validation images too, so nothing but the test "
            "split could say which seed is best, and what the test split chooses it no longer "
            f"tests: give a seed or mean-of-N, or choose by validation images after {again} "
            "--keep-validation`"
        )
    epochs = max(r.result["epochs"] for r in candidates)
    seeds = tuple(r for r in candidates if r.result["epochs"] == epochs)
    names = ("accuracy", "symmetry_accuracy")
    values = [[r.result["validation"][name] for name in names] for r in seeds]
    best = seeds[knee(values, names) or 0]
    how = f"seed {best.seed}, the best of {len(seeds)} by validation images"
    return RetrainedChoice((best,), best.result, seeds, how)


def test_summary(choice: RetrainedChoice) -> dict[str, Any]:
    """What a card says of the architecture's test scores: each with mean, standard deviation, n
    and 95 % interval over seeds and images.
    """
    first = choice.seeds[0].result
    scores = {}
    for name in TESTED:
        score = MeanStd.of([r.result["test"][name] for r in choice.seeds])
        errors = [r.result["test"].get(f"{name}_error") for r in choice.seeds]
        known = [error for error in errors if error is not None]
        error = sum(known) / len(known) if known else None
        ranged = mean_over_seeds(score, first["num_test"], error)
        scores[name] = {
            "mean": score.mean,
            "std": score.std,
            "n": score.n,
            "low": ranged.low,
            "high": ranged.high,
        }
    return {
        "images": first["num_test"],
        "seeds": len(choice.seeds),
        "trained_on": choice.trainings[0].variety[0],
        "chosen": choice.how,
        "scores": scores,
    }


def trained_network(
    study: Study, record: TrialRecord, choice: RetrainedChoice, origin: Mapping[str, Any]
) -> TrainedNetwork:
    """The chosen networks with their data and test scores, to be exported. Raises StudyError where
    a checkpoint or the data are missing, or do not belong together.
    """
    from trainers.bundles.export import TrainedNetwork
    from trainers.data.datasets import load_data

    trained_on, epochs = choice.trainings[0].variety
    training = study.training.model_copy(update={"epochs": epochs})
    study = study.model_copy(update={"training": training})
    job = Job(
        f"trial {record.number}",
        str(record.trained),
        choice.trainings[0].seed or 0,
        record.attributes.get("learning_rate"),
        str(choice.trainings[0].folder),
        trained_on == MERGED,
        softened=softened_as(record),
    )
    try:
        splits = load_data(study.data, job.candidate().architecture.size)
    except (ValueError, OSError) as error:
        raise StudyError(f"trial {record.number} cannot be loaded: {error}") from error
    networks = [
        network_of(training.folder, job, study, splits, device="cpu")
        for training in choice.trainings
    ]
    return TrainedNetwork(
        networks[0],
        splits,
        job.config(study),
        choice.result["test"],
        origin,
        tuple(networks[1:]),
        tuple(_recognised(training.result) for training in choice.trainings),
        test_summary(choice),
    )


def _recognised(result: Mapping[str, Any]) -> float:
    """The accuracy on the validation images by which a network is recognised."""
    return (result.get("validation") or result["fitted"])["accuracy"]
