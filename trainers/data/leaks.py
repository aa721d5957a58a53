"""Identical images: in two splits, since what is trained on must not be scored on; in two classes;
and all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from searchspace.geometry import counted


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Images uint8 [N, C, H, W], what messages call each, and which of them count (None: all)."""

    pixels: np.ndarray
    called: Callable[[int], str]
    kept: np.ndarray | None = None

    @cached_property
    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that count, ascending, and 64 bits of a hash of each."""
        rows = np.arange(len(self.pixels)) if self.kept is None else self.kept
        digests = [hashlib.blake2b(self.pixels[row].tobytes(), digest_size=8) for row in rows]
        values = b"".join(digest.digest() for digest in digests)
        return rows, np.frombuffer(values, dtype=np.uint64)


def leakage(one: NamedImages, other: NamedImages, names: tuple[str, str]) -> list[str]:
    """What a user should know of images of `other` that `one` holds as well, pixel by pixel: how
    many there are and the first pair, a sentence without a full stop. [] where there is none.
    """
    (rows, digests), (others, theirs) = one.digests, other.digests
    again = np.flatnonzero(np.isin(theirs, digests))
    if not len(again):
        return []
    second = int(others[again[0]])
    first = int(rows[np.flatnonzero(digests == theirs[again[0]])[0]])
    count = len(again)
    return [
        f"warning: {count} of the {names[1]} images {'is' if count == 1 else 'are'} also among the "
        f"{names[0]} images, with the same pixels ({other.called(second)} and "
        f"{one.called(first)}): scores on them say nothing of new images; remove one of each, or "
        "keep them in one split by group_by"
    ]


def identical(images: NamedImages, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """What a user should know of training images that are equal pixel by pixel, each a sentence
    without a full stop: images in two classes, and a class of which all are equal. `labels` [N] are
    those of the images that count; of other tasks than classification `classes` is empty.
    """
    rows, digests = images.digests
    kinds, kind_of, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    if len(kinds) == 1 and len(rows) > 1:
        return [f"warning: {_all_equal(images.pixels[rows[0]], len(rows))}"]
    if not classes:
        return []
    said, order = [], np.lexsort((labels, kind_of))
    kind, label = kind_of[order], labels[order]
    pairs = np.flatnonzero((kind[1:] == kind[:-1]) & (label[1:] != label[:-1]))
    if len(pairs):
        count = int(sizes[np.unique(kind[pairs])].sum())
        one, other = (int(order[pairs[0] + i]) for i in range(2))
        called = (f"{images.called(int(rows[i]))} of '{classes[labels[i]]}'" for i in (one, other))
        said.append(
            f"warning: {count} of the training images have the same pixels as one of another class "
            f"({' and '.join(called)}): their labels contradict each other; correct or remove them"
        )
    for number, name in enumerate(classes):
        own = kind_of[labels == number]
        if len(own) > 2 and (own == own[0]).all():
            said.append(
                f"warning: all {len(own)} training images of the class '{name}' have the same "
                "pixels; look whether they were read as they should be"
            )
    return said


def require_varied(pixels: np.ndarray) -> None:
    """Raises ValueError where all training images uint8 [N, C, H, W] are equal."""
    if all(np.array_equal(pixels[0], image) for image in pixels[1:]):
        raise ValueError(_all_equal(pixels[0], len(pixels)))


def _all_equal(image: np.ndarray, count: int) -> str:
    level = int(image.max())
    looks = f", each of them {level} everywhere" if level == image.min() else ""
    remedy = (
        "; transparent pixels become black: save what is drawn in black on another ground, without "
        "transparency"
        if level == 0
        else "; look whether they are the images that are meant"
    )
    height, width = image.shape[1:]
    return (
        f"all {counted(count, 'training image')} have the same pixels at {height}x{width}{looks}, "
        f"so nothing can be learned from them{remedy}"
    )
