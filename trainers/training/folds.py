"""Cross-validation: one candidate trained once for each fold, and scored by the means."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from searchspace.architecture import Architecture
from trainers.instruments import correctness
from trainers.instruments.correctness import Correctness
from trainers.instruments.tasks.elements import (
    joined_element_scores,
    read_element_scores,
    write_element_scores,
)
from trainers.instruments.tasks.replicates import (
    joined_replicates,
    read_replicates,
    write_replicates,
)
from trainers.scores import Scores
from trainers.training.config import TrainingConfig
from trainers.training.train import train

SPREAD = ("accuracy", "symmetry_accuracy", "balanced_accuracy")
FIRST = ("epoch", "params", "macs", "score")  # the same in all folds
NAMED = ("learned", "beside", "symmetry_beside")  # values by name
SUMS = ("seconds", "num_images")


def train_folds(
    architecture: Architecture,
    config: TrainingConfig,
    directory: Path,
    until_epoch: int,
    *,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> Scores:
    """The scores of `architecture` as `trainers.training.train.train` gives them; where the data
    has folds, the means over trainings that are each validated on another fold.

    The training of `config.data.fold` lies in `directory` itself, so that what reads a trial finds
    a whole one there, and the others in `directory/fold1` and so on; each goes on from its own
    checkpoint. `correct.bits` holds all images, each classified by the network that has not seen
    it. Raises as `train`.
    """
    folds, first = config.data.folds, config.data.fold
    if folds is None:
        return train(architecture, config, directory, until_epoch, on_epoch=on_epoch)
    scores: list[Scores] = []
    correct: list[Correctness | None] = []
    for number, folder in enumerate(_folders(directory, folds)):
        data = config.data.model_copy(update={"fold": (first + number) % folds})
        own = replace(config, data=data)
        scores.append(train(architecture, own, folder, until_epoch, on_epoch=on_epoch))
        correct.append(correctness.read_correctness(folder, until_epoch))
    merged = joined_correctness([part for part in correct if part is not None])
    mean = mean_scores(scores)
    resampled = [read_replicates(f, until_epoch) for f in _folders(directory, folds)]
    together = joined_replicates([part for part in resampled if part is not None])
    if together is not None and None not in resampled:
        write_replicates(together, directory)
    parts = [read_element_scores(f, until_epoch) for f in _folders(directory, folds)]
    moved = joined_element_scores([part for part in parts if part is not None])
    if moved is not None and None not in parts:
        write_element_scores(moved, directory)
    if merged is None or len(merged.elements) == 0 or None in correct:
        return mean
    correctness.write_correctness(merged, directory)
    worst = merged.of(merged.worst).bit_count() / merged.images
    return replace(mean, symmetry_accuracy_worst=worst)


def _folders(directory: Path, folds: int) -> list[Path]:
    """Where the training of each fold lies."""
    return [directory / f"fold{number}" if number else directory for number in range(folds)]


def joined_correctness(parts: Sequence[Correctness]) -> Correctness | None:
    """The correctness of all images of the parts, in their order; None where they differ in their
    elements, or there is none.
    """
    if len({(part.epoch, part.elements, part.scored) for part in parts}) != 1:
        return None
    bits = [0] * len(parts[0].elements)
    images = 0
    for part in parts:
        bits = [all_ | (own << images) for all_, own in zip(bits, part.bits)]
        images += part.images
    labels = hashlib.sha256(" ".join(part.labels for part in parts).encode()).hexdigest()[:16]
    return replace(parts[0], images=images, labels=labels, bits=tuple(bits))


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The scores of all folds as one: means over all images, sums of seconds, standard errors of
    means, and the spread over folds. A score that a fold lacks is None.
    """
    counts = [score.num_images or 1 for score in scores]
    shares = [count / sum(counts) for count in counts]
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Scores)):
        each = [getattr(score, name) for score in scores]
        if any(value is None for value in each):
            values[name] = None
        elif name in FIRST:
            values[name] = each[0]
        elif name in SUMS:
            values[name] = sum(each)
        elif name in NAMED:
            values[name] = {
                key: sum(share * value[key] for share, value in zip(shares, each))
                for key in each[0]
            }
        elif name.endswith("_error") and not name.startswith("equivariance"):
            values[name] = math.hypot(*(share * value for share, value in zip(shares, each)))
        else:
            values[name] = sum(share * value for share, value in zip(shares, each))
    spread = {
        name: stdev(each)
        for name in SPREAD
        if None not in (each := [getattr(score, name) for score in scores])
    }
    return Scores(**{**values, "fold_spread": spread})
