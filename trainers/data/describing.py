"""What a user should know of a data set before training, in lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from searchspace.geometry import counted
from trainers.data.decoding import FULL_16_BIT
from trainers.data.pools import ArrayPool, FilePool, Pool, Source
from trainers.data.splitting import split_warnings
from trainers.settings import Data

if TYPE_CHECKING:
    from trainers.data.datasets import Splits

# what outputs of a task are called, and what is said of each
DESCRIBED = {
    "classification": ("classes", "classes, training + validation images"),
    "multilabel": ("labels", "labels, training + validation images with each"),
    "regression": ("targets", "targets, mean ± standard deviation of the training images"),
}

FEW_LEVELS = 85  # a third of 256
COUNTED_SHARE = 0.999  # of all pixels: those whose grey levels are counted


def describe(splits: Splits) -> list[str]:
    """What a user should know of the images before training: what was left out, how many there are,
    and how many of each class.
    """
    counts = [
        f"{name} {train} + {validation}" for name, (train, validation) in splits.counts.items()
    ] or [f"{n} {m:.5g} ± {s:.5g}" for n, m, s in zip(splits.classes, splits.shift, splits.scale)]
    what, said = DESCRIBED[splits.task]
    lines = [
        *(f"skipped: {skipped}" for skipped in splits.skipped[:5]),
        *(f"data: {said}" for said in splits.notes),
        *_folds(splits.data),
        f"data: {len(splits.train)} training and {len(splits.validation)} validation images, "
        f"{counted(splits.channels, 'channel')}, {len(splits.classes)} {what}{_held_out(splits)}",
        f"{said}: {', '.join(counts)}",
    ]
    return [_printable(line) for line in lines]


def _held_out(splits: Splits) -> str:
    if splits.has_test:
        return "; test images are set aside, which `retrain` alone reads"
    return "; there are no test images, so `retrain` has nothing to test on"


def _folds(data: Data) -> list[str]:
    if data.folds is None:
        return []
    return [
        f"data: cross-validation: a trial trains {data.folds} networks, and its scores are "
        f"means over them; below are the images of fold {data.fold}"
    ]


def _printable(text: str) -> str:
    """The text with its control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def image_warnings(
    source: Source, data: Data, drawn: Sequence[np.ndarray], top: int, pixels: np.ndarray
) -> list[str]:
    """What a user should know of the training and validation images `drawn`, which became `pixels`
    uint8 [N, C, H, W] with the grey value `top` as 255.
    """
    return [
        *split_warnings(source, data, *map(len, drawn)),
        *file_warnings(source, data),
        *depth_warnings(source.train, top, pixels),
    ]


def file_warnings(source: Source, data: Data) -> list[str]:
    """What a user should know of image files beside their values: files of several images, and
    colour that gives the class away.
    """
    pool, said = source.train, []
    if not isinstance(pool, FilePool):
        return []
    if found := pool.sequences:
        said.append(
            f"{len(found)} of the files looked at hold several images, such as {found[0]}: the "
            "first of each is used; save the others as files of their own if they are needed"
        )
    if source.task != "classification":
        return said
    said += _sizes_by_class(pool, source.classes, data)
    if data.color is not None:
        return said
    held = pool.color_by_class
    told = [sorted(label for label in held if held[label] == {c}) for c in (True, False)]
    colored, grey = ([source.classes[label] for label in labels] for labels in told)
    pure = colored and grey and len(colored) + len(grey) == len(held)
    if pure and all(pool.shows_color(label) for label in told[0]):
        said.append(
            f"all images of {_some(colored)} hold colour and all of {_some(grey)} are grey: a "
            "network may tell them apart by that alone; `data: {color: false}` makes all grey"
        )
    return said


def _sizes_by_class(pool: FilePool, classes: Sequence[str], data: Data) -> list[str]:
    """A warning where the size of an image tells its class: each class has one size of its own."""
    held = pool.sizes_by_class
    sizes = {label: next(iter(found)) for label, found in held.items() if len(found) == 1}
    if len(sizes) < len(held) or len(set(sizes.values())) < max(2, len(held)):
        return []
    examples = ", ".join(
        f"'{classes[label]}' {height}x{width}" for label, (height, width) in list(sizes.items())[:3]
    )
    more = ", ..." * (len(sizes) > 3)
    traces = "a border" if data.fit == "pad" else "how sharp they are"
    return [
        f"all images of a class have one size of its own ({examples}{more}): brought to one size, "
        f"{traces} may tell the classes apart; take all from images of one size"
    ]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + ", ..." * (len(names) > 3)


def depth_warnings(pool: Pool, top: int, pixels: np.ndarray) -> list[str]:
    """What a user should know of images of more than 8 bits, which became `pixels` uint8
    [N, C, H, W].
    """
    white = pool.white if isinstance(pool, ArrayPool) or not pool.deep else top
    said = [] if white is None or not len(pixels) else _few_levels(white, pixels)
    if not isinstance(pool, FilePool):
        return said
    if top != FULL_16_BIT:
        said.append(
            f"grey values of more than 8 bits are scaled from 0..{top} to 0..255, because none in "
            f"these files is above {top}; scale them so where the model is used"
        )
    if pool.cut and pixels.max() < 128:
        said.append(
            f"images with 16 bits per channel are read with the upper 8, and no value of them is "
            f"above {pixels.max()} of 255; save them with 8 bits, scaled to the whole range"
        )
    return said


def _few_levels(white: float, pixels: np.ndarray) -> list[str]:
    """A warning where rounding `white` to 255 left nearly all pixels few of 256 grey levels: a hot
    pixel, or values in a small part of their range.
    """
    counts = np.zeros(256, dtype=np.int64)
    for image in pixels:  # one at a time, since bincount takes 8 bytes a pixel
        counts += np.bincount(image.ravel(), minlength=256)
    total = int(counts.sum())
    below, most = np.cumsum(counts), (1 - COUNTED_SHARE) / 2 * total
    low, high = (int(np.searchsorted(below, share, "right")) for share in (most, total - most - 1))
    if high - low + 1 >= FEW_LEVELS:
        return []
    outside = total - int(counts[low : high + 1].sum())
    outliers = f", and {outside:,} of {total:,} pixels lie outside" if outside else ""
    least, largest = (f"{level * white / 255:.4g}" for level in (low, high))
    return [
        f"rounding to 8 bits leaves {100 * COUNTED_SHARE:g} % of the pixels {high - low + 1} of "
        f"256 grey levels: they have values from {least} to {largest} where {white:.6g} is white"
        f"{outliers}; cut outliers off and stretch the values to their whole range, in these files "
        "and where the model is used"
    ]
