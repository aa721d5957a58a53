"""Scores of a network under each declared element, kept with its training, for what no count of
correct images says: scores over classes, and the main scores of labels and of targets. Nothing here
imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.files import read_whole, write_whole

ELEMENT_SCORES = "elements.json"  # in the folder of a training
_FORMAT = 1


@dataclass(frozen=True)
class ElementScores:
    """Score -> element -> its value on the moved images, by the names of `trainers.scores.Scores`;
    a score that some element lacks is left out.
    """

    epoch: int
    images: int
    scores: Mapping[str, Mapping[str, float]]


def write_element_scores(found: ElementScores, folder: Path) -> None:
    """Writes them into a folder, in place of an earlier epoch's. Raises OSError."""
    scores = {
        name: {element: round(value, 7) for element, value in row.items()}
        for name, row in found.scores.items()
    }
    content = {
        "format": _FORMAT,
        "epoch": found.epoch,
        "images": found.images,
        "scores": scores,
    }
    write_whole(folder / ELEMENT_SCORES, json.dumps(content, allow_nan=False) + "\n")


def read_element_scores(folder: Path, epoch: int | None = None) -> ElementScores | None:
    """What `write_element_scores` wrote; None where there is none, it is damaged, or of another
    `epoch`.
    """
    try:
        content: Any = json.loads(read_whole(folder / ELEMENT_SCORES))
        scores = {
            str(name): {str(element): float(value) for element, value in row.items()}
            for name, row in content["scores"].items()
        }
        found = ElementScores(int(content["epoch"]), int(content["images"]), scores)
        good = content["format"] == _FORMAT and all(
            math.isfinite(value) for row in scores.values() for value in row.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if good and epoch in (None, found.epoch) else None


def joined_element_scores(parts: Sequence[ElementScores]) -> ElementScores | None:
    """The means over folds, weighted by their images; None where there are none, or they differ in
    their epoch. A score or element that a fold lacks is left out.
    """
    if len({part.epoch for part in parts}) != 1:
        return None
    images = sum(part.images for part in parts)
    first, *others = parts
    scores = {
        name: {
            element: sum(part.images * part.scores[name][element] for part in parts) / images
            for element in row
            if all(element in part.scores[name] for part in others)
        }
        for name, row in first.scores.items()
        if all(name in part.scores for part in others)
    }
    return ElementScores(first.epoch, images, scores)
