"""What a study would cost, before it starts: `equisearch start --dry-run`. Two candidates train for
an epoch or two; nothing is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from searchspace.geometry import counted
from searchspace.recipe import Candidate
from studies.config import Study
from studies.durations import duration_text
from studies.samplers.enumeration import count_candidates
from studies.workers.gpu_share import TRIALS_PER_GPU
from studies.workers.launch import Prepared
from trainers.cores import available_cores

MOST_COMBINATIONS = 2000  # combinations of choices that are counted
MEASURED = 2  # candidates that train
MOST_CONTROLS = 6  # of `studies.evidence.controls`


@dataclass(frozen=True)
class Forecast:
    """The size of a space, and the time of a study on this machine's workers."""

    combinations: int | None  # of choices; None: more than 2,000
    ranges: tuple[str, ...]  # dimensions that are ranges of real numbers, beside those
    seconds_per_epoch: Mapping[str, float]  # of the candidates that were measured
    epochs: int  # of a full training
    epochs_per_trial: float  # as rungs let on, if about 1/eta go on at each
    trials: int
    workers: int
    seconds: float  # of the search
    seconds_at_most: float  # of the search, if no trial stops at a rung
    controls: int  # trainings at most, in full length
    seconds_controls: float
    folds: int = 1  # networks of a trial; `seconds_per_epoch` are of one of them

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self) -> str:
        """The forecast for people."""
        size = (
            f"more than {MOST_COMBINATIONS:,} combinations"
            if self.combinations is None
            else counted(self.combinations, "combination")
        )
        ranges = f", beside the ranges of {', '.join(self.ranges)}" if self.ranges else ""
        measured = [
            f"  {seconds:.2f} s per epoch: {text}"
            for text, seconds in self.seconds_per_epoch.items()
        ]
        folds = f" in each of {counted(self.folds, 'fold')}" if self.folds > 1 else ""
        workers = f"{counted(self.workers, 'worker')}"
        lines = [
            f"space: {size} of choices{ranges}",
            "measured, one training at a time" + (", of one fold:" if folds else ":"),
            *measured,
            f"search: {counted(self.trials, 'trial')} of {self.epochs_per_trial:.3g} epochs "
            "on average "
            f"({self.epochs} in full){folds} on {workers}: about "
            f"{duration_text(self.seconds)}"
            + (
                f", {duration_text(self.seconds_at_most)} if no trial stops at a rung"
                if self.seconds_at_most > 1.1 * self.seconds
                else ""
            ),
        ]
        if self.controls:
            lines.append(
                f"controls: at most {counted(self.controls, 'training')} of "
                f"{counted(self.epochs, 'epoch')}{folds}: "
                f"about {duration_text(self.seconds_controls)}"
            )
        return "\n".join([*lines, "nothing was written"])


def forecast(ready: Prepared) -> Forecast:
    """What a prepared study would cost on this machine, from an epoch of two of its candidates
    (those of `search.first`, else of the space). Raises ValueError where neither can be built.
    """
    study = ready.study
    counted = count_candidates(study, ready.channels, ready.classes, most=MOST_COMBINATIONS)
    texts = list(study.search.first[:MEASURED]) or list(map(str, counted.some[:MEASURED]))
    seconds = {text: _epoch_seconds(study, Candidate.parse(text)) for text in texts}
    if not seconds:
        raise ValueError("no candidate of the space can be built, so that nothing can be measured")
    # of cross-validation, a network for each fold
    each = sum(seconds.values()) / len(seconds) * (study.data.folds or 1)
    given = study.resources.workers
    workers = given if isinstance(given, int) else default_workers(study)
    average = _epochs_per_trial(study)
    controls = MOST_CONTROLS if study.controls == "auto" else 0
    return Forecast(
        combinations=counted.combinations,
        ranges=counted.ranges,
        seconds_per_epoch=seconds,
        epochs=study.training.epochs,
        epochs_per_trial=average,
        trials=study.search.trials,
        workers=workers,
        seconds=study.search.trials * average * each / workers,
        seconds_at_most=study.search.trials * study.training.epochs * each / workers,
        controls=controls,
        seconds_controls=controls * study.training.epochs * each / min(workers, controls or 1),
        folds=study.data.folds or 1,
    )


def default_workers(study: Study) -> int:
    """Trainings at the same time on this machine: one for every `cpus_per_trial` cores; on GPUs, at
    most TRIALS_PER_GPU on each.
    """
    count = max(1, int(available_cores() // max(1, study.resources.cpus_per_trial)))
    if study.trial_training.device == "cpu":
        return count
    import torch

    return min(count, TRIALS_PER_GPU * torch.cuda.device_count() or count)


def _epochs_per_trial(study: Study) -> float:
    """Expected epochs of a trial, if a share of 1/eta goes on at each rung."""
    total, share, before = 0.0, 1.0, 0
    for rung in study.rungs:
        total += share * (rung - before)
        share, before = share / study.search.eta, rung
    return total


def _epoch_seconds(study: Study, candidate: Candidate) -> float:
    """Seconds of the second epoch of a training (of the first, if it has one alone): the first
    also warms up.
    """
    from trainers.training.train import advance

    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        advance(
            candidate.architecture,
            study.training_config(0, candidate.recipe),
            Path(folder),
            min(2, study.training.epochs),
            on_epoch=lambda epoch, row: rows.append(row),
        )
    seconds = [row["seconds"] for row in rows]  # since the training began
    return seconds[-1] - sum(seconds[-2:-1])
