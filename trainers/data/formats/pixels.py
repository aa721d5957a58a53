"""Arrays of images in any usual layout and type, as uint8 [N, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from searchspace.geometry import counted
from trainers.data.decoding import CUT_OFF, FULL_16_BIT

Axes = Literal["grey", "last", "first"]  # [N, H, W], [N, H, W, C], [N, C, H, W]


def axes_of(shape: tuple[int, ...], where: str, channels_first: bool = False) -> Axes:
    """Where the channels of images of that shape are; `channels_first` decides where both ends
    could be. Raises ValueError for a shape that images cannot have.
    """
    if len(shape) == 3 and min(shape[1:]) > 0:
        return "grey"
    if len(shape) == 4 and min(shape[1:]) > 0:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first or last:
            return "first" if first and (channels_first or not last) else "last"
        raise ValueError(
            f"the images {where} have the shape {shape}, and neither {shape[3]} nor {shape[1]} is "
            "a number of channels; give grey images (1 channel) or colour (3), without "
            "transparency"
        )
    raise ValueError(
        f"the images {where} have the shape {shape}; they must be [images, height, width], "
        "[images, height, width, channels] or [images, channels, height, width]"
    )


def channels_second(images: np.ndarray, axes: Axes) -> np.ndarray:
    """The images as a view [N, C, H, W]."""
    if axes == "grey":
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if axes == "last" else images


def require_one_scale(train: np.dtype, other: np.dtype, where: str) -> None:
    """Raises ValueError where numbers in 0..1, or truth values, stand beside training images of
    integers, or integers beside truth values: one scale would make some of them black.
    """
    kinds = {"b": "b", "f": "f", "i": "i", "u": "i"}
    pair = kinds[train.kind], kinds[other.kind]
    if pair in (("i", "f"), ("i", "b"), ("b", "i")):
        raise ValueError(
            f"the images {where} are of type {other}, and the training images of type {train}, "
            "which have another scale; write all with one type, best uint8"
        )


@dataclass(frozen=True)
class Scale:
    """How values become 0..255: multiplied by `factor`. `note` says so where a user should know;
    `rounded` is set where values of more than 8 bits lose the others.
    """

    factor: float = 1.0
    note: str = ""
    rounded: bool = False

    @property
    def white(self) -> float | None:
        """The value that becomes 255; None where no value loses anything."""
        return 255 / self.factor if self.rounded else None


def find_scale(blocks: Iterable[np.ndarray], dtype: np.dtype, where: str) -> Scale:
    """How the values of images become 0..255, by a look at all of them.

    Integers up to 255 and whole floating point numbers up to 255 stay; floating point numbers in
    0..1 are multiplied by 255; integers above 255 are scaled from the largest value of the fewest
    bits that hold them. Raises ValueError for other values, and for NaN.
    """
    if dtype == np.uint8:
        return Scale()
    if dtype.kind == "b":
        return Scale(255.0)
    if dtype.kind not in "iuf":
        raise ValueError(f"the images {where} are of type {dtype}; give numbers, best uint8")
    lowest, highest, whole, start = np.inf, -np.inf, True, 0
    for block in blocks:
        if dtype.kind == "f":
            _require_finite(block, start, where)
            whole = whole and bool((block == np.rint(block)).all())
        lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
        start += len(block)
    if lowest < 0 or (dtype.kind == "f" and highest > 1 and not (whole and highest <= 255)):
        raise ValueError(
            f"the images {where} have values from {lowest:g} to {highest:g}; give integers from 0 "
            "to 255, or floating point numbers from 0 to 1 (those from 0 to 255 divided by 255), "
            "not normalised (that happens here)"
        )
    if dtype.kind == "f":
        return Scale(255.0, rounded=True) if highest <= 1 else Scale()
    if highest <= 255:
        return Scale()
    top = (1 << int(highest).bit_length()) - 1
    note = (
        f"values of more than 8 bits are scaled from 0..{top} to 0..255, because none {where} is "
        f"above {top}; scale them so where the model is used"
    )
    return Scale(255 / top, "" if top == FULL_16_BIT else note, rounded=True)


def scaled(
    blocks: Iterable[np.ndarray],
    scale: Scale,
    where: str,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[np.ndarray]:
    """The blocks as uint8. Single values that the scale takes out of 0..255, as a hot pixel has
    them, become the nearest of these, and `say` is told in a sentence without a full stop. Raises
    ValueError for more of them than `CUT_OFF`, and for NaN.
    """
    start = outside = total = 0
    lowest, highest = 0.0, 0.0
    for block in blocks:
        total += block.size
        if block.dtype == np.uint8:
            yield block
            continue
        _require_finite(block, start, where)
        values = np.rint(block.astype(np.float32) * np.float32(scale.factor))
        if len(values) and not (values.min() >= 0 and values.max() <= 255):
            outside += int(((values < 0) | (values > 255)).sum())
            lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
            np.clip(values, 0, 255, out=values)
        yield values.astype(np.uint8)
        start += len(block)
    most = f"{255 / scale.factor:g}"
    if outside > CUT_OFF * total:
        raise ValueError(
            f"the images {where} have values from {lowest:g} to {highest:g}, and the training "
            f"images at most {most}; give all the same scale"
        )
    if outside:
        say(
            f"{counted(outside, 'value')} of {total:,} {where} {'are' if outside > 1 else 'is'} "
            f"outside 0..{most}, as the training images have them (from {lowest:g} to "
            f"{highest:g}), and cut off there"
        )


def _require_finite(block: np.ndarray, start: int, where: str) -> None:
    if block.dtype.kind != "f":
        return
    bad = ~np.isfinite(block.reshape(len(block), -1)).all(1)
    if bad.any():
        raise ValueError(
            f"image {start + int(np.argmax(bad))} {where} holds NaN or infinite values; correct or "
            "remove it"
        )
