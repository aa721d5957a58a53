"""The scores of a network on resamples of the validation images, kept with its training, so that
two networks can be compared on equal resamples. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from trainers.files import read_whole, write_whole

REPLICATES = "resamples.json"  # in the folder of a training
_FORMAT = 1


@dataclass(frozen=True)
class Replicates:
    """Scores by name, each on the same resamples of `images` images with `labels` (a digest)."""

    epoch: int
    images: int
    labels: str
    scores: Mapping[str, tuple[float, ...]]

    def comparable(self, other: Replicates) -> bool:
        """Whether both are about the same resamples of the same images."""
        return (self.images, self.labels) == (other.images, other.labels)


def error_of(values: Sequence[float]) -> float:
    """The standard error of a score: the standard deviation over resamples."""
    return stdev(values)


def write_replicates(replicates: Replicates, folder: Path) -> None:
    """Writes them into a folder, in place of an earlier epoch's. Raises OSError."""
    content = {
        "format": _FORMAT,
        "epoch": replicates.epoch,
        "images": replicates.images,
        "labels": replicates.labels,
        "scores": {name: [round(v, 7) for v in s] for name, s in replicates.scores.items()},
    }
    write_whole(folder / REPLICATES, json.dumps(content, allow_nan=False) + "\n")


def read_replicates(folder: Path, epoch: int | None = None) -> Replicates | None:
    """What `write_replicates` wrote; None where there is none, it is damaged, or of another
    `epoch`.
    """
    try:
        content: Any = json.loads(read_whole(folder / REPLICATES))
        scores = {str(n): tuple(map(float, v)) for n, v in content["scores"].items()}
        found = Replicates(
            int(content["epoch"]), int(content["images"]), str(content["labels"]), scores
        )
        whole = content["format"] == _FORMAT and len({len(v) for v in scores.values()}) == 1
        finite = all(math.isfinite(v) for values in scores.values() for v in values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if whole and finite and epoch in (None, found.epoch) else None


def joined_replicates(parts: Sequence[Replicates]) -> Replicates | None:
    """Those of the mean scores over folds, whose images are resampled each on its own; None where
    they differ in their epoch or scores, or there are none.
    """
    if len({(part.epoch, tuple(part.scores)) for part in parts}) != 1:
        return None
    images = sum(part.images for part in parts)
    shares = [part.images / images for part in parts]
    scores = {
        name: tuple(
            sum(share * value for share, value in zip(shares, values))
            for values in zip(*(part.scores[name] for part in parts))
        )
        for name in parts[0].scores
    }
    labels = "+".join(part.labels for part in parts)
    return Replicates(parts[0].epoch, images, labels, scores)
