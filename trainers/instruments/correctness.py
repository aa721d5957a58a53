"""Which validation images a network classified correctly under each declared element, packed into
bits, so that two networks can be compared image by image. Nothing here imports torch.

10,000 images under the 8 elements of D4 take 10 kB.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.files import parse_json, read_whole, write_whole

if TYPE_CHECKING:
    from torch import Tensor

CORRECT = "correct.bits"  # in the folder of a training: a line of JSON, then the bits
CORRECTNESS_FORMAT = 1


@dataclass(frozen=True)
class Correctness:
    """For each element one whole number: bit i is set where image i was classified correctly."""

    epoch: int  # epochs trained
    images: int
    labels: str  # a digest of the labels in their order: equal for the same images
    elements: tuple[str, ...]
    scored: tuple[str, ...]  # those that the symmetry accuracy is a mean over
    bits: tuple[int, ...]  # in the order of `elements`

    def of(self, element: str) -> int:
        """The bits under one element. Raises ValueError for an element that is not there."""
        return self.bits[self.elements.index(element)]

    @property
    def worst(self) -> str:
        """The scored element with the fewest correct images."""
        return min(self.scored, key=lambda element: self.of(element).bit_count())

    def columns(self, score: str) -> tuple[int, ...] | None:
        """The bits whose mean is the score of that name; None for a score that is not such a mean.

        An accuracy is the identity's, a symmetry accuracy the mean over the scored elements.
        """
        if score == "accuracy":
            return (self.of("e"),)
        if score == "symmetry_accuracy":
            return tuple(self.of(element) for element in self.scored)
        return (self.of(self.worst),) if score in WORST_NAMES else None

    def comparable(self, other: Correctness) -> bool:
        """Whether both are about the same images. (Those that a symmetry accuracy is a mean over
        may differ in studies of 0.1.0, where they depend on what training has seen.)
        """
        return (self.images, self.labels) == (other.images, other.labels)


WORST_NAMES = (
    "worst_symmetry_accuracy",
    "symmetry_accuracy_worst",
)  # an objective's name, a score's


def packed(
    epoch: int, correct: Tensor, labels: Tensor, elements: Sequence[Any], scored: Sequence[Any]
) -> Correctness:
    """The correctness of a bool tensor [element, image] for images with `labels`."""
    import hashlib

    import numpy

    rows = numpy.packbits(correct.cpu().numpy(), axis=1, bitorder="little")
    digest = hashlib.sha256(labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]
    return Correctness(
        epoch,
        int(correct.shape[1]),
        digest,
        tuple(map(str, elements)),
        tuple(map(str, scored)),
        tuple(int.from_bytes(row.tobytes(), "little") for row in rows),
    )


def write_correctness(correctness: Correctness, folder: Path) -> None:
    """Writes it into a folder, in place of what an earlier epoch left there. Raises OSError."""
    head = {
        "format": CORRECTNESS_FORMAT,
        "epoch": correctness.epoch,
        "images": correctness.images,
        "labels": correctness.labels,
        "elements": correctness.elements,
        "scored": correctness.scored,
    }
    width = -(-correctness.images // 8)
    rows = b"".join(row.to_bytes(width, "little") for row in correctness.bits)
    write_whole(folder / CORRECT, json.dumps(head).encode() + b"\n" + rows)


def read_correctness(folder: Path, epoch: int | None = None) -> Correctness | None:
    """What `write_correctness` wrote; None where there is none, it is damaged, or it is of another
    `epoch`.
    """
    try:
        line, _, rows = read_whole(folder / CORRECT).partition(b"\n")
        head = parse_json(line)
        elements, scored = tuple(head["elements"]), tuple(head["scored"])
        images = int(head["images"])
        width = -(-images // 8)
        if head["format"] != CORRECTNESS_FORMAT or len(rows) != width * len(elements) or not scored:
            return None
        if not {"e", *scored} <= set(elements) or (epoch is not None and head["epoch"] != epoch):
            return None
        bits = tuple(
            int.from_bytes(rows[start : start + width], "little")
            for start in range(0, len(rows), width)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Correctness(int(head["epoch"]), images, str(head["labels"]), elements, scored, bits)
