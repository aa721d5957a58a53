"""Where windows lie: output sizes and remainders of every layer, by integer arithmetic alone.

A window of `kernel` pixels moves in steps of `stride` over an axis of n pixels with p pixels of
padding before it. It lies symmetrically, so that mirroring the axis maps windows to windows, iff

    remainder = n + 2 p_before - dilation (kernel - 1) - 1 - stride (output - 1)  =  0,

which for equal padding and sizes rounded down is (n + 2p - dilation (kernel - 1) - 1) mod stride
("Using and Abusing Equivariance", arXiv:2308.11316, generalised to unequal padding and rounding
up). What remainders of several layers do together is decided in `searchspace.mirroring`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Size = tuple[int, int]  # (height, width), pixels
# the positions that an output reads, -1 a zero, and their weights
Weights = tuple[tuple[int, ...], tuple[float, ...]]
# of an axis of a map: positions are looked at one by one where remainders do not decide
MOST_PIXELS = 16384
MOST_WINDOW = 1024  # pixels of a kernel, stride, dilation or padding


class Rule(NamedTuple):
    """How a layer reads an axis, whatever the axis's size; both axes are read alike."""

    kind: str  # conv, or the kind of a subsampling
    kernel: int = 1
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    ceil: bool = False
    output: int | None = None  # pixels; None: by stride
    mode: str = "zeros"  # padding mode of a convolution, interpolation of a resize


def output_size(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    ceil: bool = False,
) -> int:
    """The number of windows on an axis of `size` pixels; 0 or less if none fits."""
    room = size + padding[0] + padding[1] - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    windows = -(-room // stride) + 1
    # none may start behind the image
    return windows - 1 if (windows - 1) * stride >= size + padding[0] else windows


def remainder(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    ceil: bool = False,
) -> int:
    """By how many pixels the last window ends before (or, negative, behind) its mirror image; 0 is
    exact.
    """
    windows = output_size(size, kernel, stride, padding, dilation, ceil)
    return size + 2 * padding[0] - dilation * (kernel - 1) - 1 - stride * (windows - 1)


def nearest_sources(size: int, output: int) -> list[int]:
    """The pixel that each of `output` samples of a nearest-neighbour resize of `size` pixels reads,
    as torch has it in float32.

    The ratio is rounded to float32: from 82 px on, even a whole multiple may miss a pixel (2 px to
    82 px does).
    """
    ratio = _float32(size / output)
    return [min(int(_float32(i * ratio)), size - 1) for i in range(output)]


def nearest_remainder(size: int, output: int) -> int:
    """How many of `output` samples of a nearest-neighbour resize miss the mirror image of their
    partner; 0 is exact.
    """
    source = nearest_sources(size, output)
    return sum(source[output - 1 - i] != size - 1 - source[i] for i in range(output))


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def whole_number(value: int | None, least: int, what: str, most: int | None = None) -> None:
    """Raises ValueError, naming `what`, unless the value is a whole number from `least` to
    `most`.
    """
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{what} is {value}; it must be a whole number of at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{what} is {value}; it must be at most {most}")


def size_text(size: Size) -> str:
    """`28` for a square image, `28x32` for height and width that differ."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`, `3 classes`, `2 entries`: how messages say how many there are."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x", "sh")):
        return f"{number:,} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}s"


def pixels_text(before_after: tuple[int, int]) -> str:
    """`1` for equal paddings, `0:1` for pixels before and after."""
    before, after = before_after
    return str(before) if before == after else f"{before}:{after}"


@dataclass(frozen=True)
class Sliding:
    """Where windows lie that slide over an axis, and what they read there."""

    mean: bool = False  # whether what a window reads is divided by its pixels
    around: int = 0  # pixels that each value has read on either side before

    def place(self, rule: Rule, size: int) -> tuple[int, int]:
        """(output pixels, remainder) on an axis of `size` pixels."""
        window = (rule.kernel, rule.stride, rule.padding, rule.dilation, rule.ceil)
        windows, left = output_size(size, *window), remainder(size, *window)
        if rule.ceil and self.mean and not left:
            # what lies behind the padding is not counted, its mirror image in the padding is
            last = (windows - 1) * rule.stride - rule.padding[0] + rule.kernel
            left = min(size + rule.padding[1] - last, 0)
        return windows, left

    def reads(self, rule: Rule, size: int) -> Iterator[Weights]:
        """What each output reads on an axis of `size` pixels."""
        for index in range(self.place(rule, size)[0]):
            start = index * rule.stride - rule.padding[0]
            inside = tuple(p for p in range(start, start + rule.kernel) if 0 <= p < size)
            yield inside, self._weights(rule, start, inside, size)

    def _weights(
        self, rule: Rule, start: int, inside: tuple[int, ...], size: int
    ) -> tuple[float, ...]:
        # zeros are counted, but not what lies beyond the padding when sizes are rounded up
        counted = min(start + rule.kernel, size + rule.padding[1]) - start
        return (1 / counted if self.mean else 1.0,) * len(inside)

    def range_of(self, rule: Rule, size: int, begin: int, end: int) -> tuple[int, int] | None:
        """(the first pixel that output `begin` reads, the last that output `end` reads), not cut
        off at the border; None: not known.
        """
        around = self.around
        begin = begin * rule.stride - rule.padding[0] - around
        reach = rule.dilation * (rule.kernel - 1)
        return begin, end * rule.stride - rule.padding[0] + reach + around

    def tells_apart(self, rule: Rule, size: int) -> bool:
        """True if every position of the output depends on pixels, and no two on the same ones in
        the same way.
        """
        return rule.dilation == 1 and max(rule.padding) < rule.kernel < size


class Convolved(Sliding):
    """Windows of a convolution, whose padding may be other than zeros."""

    def tells_apart(self, rule: Rule, size: int) -> bool:
        """True if every position of the output depends on pixels, and no two on the same ones in
        the same way.
        """
        if rule.mode == "zeros":
            return rule.dilation == 1 and max(rule.padding) < rule.kernel
        if rule.mode == "circular" and (self.place(rule, size)[0] - 1) * rule.stride >= size:
            return False  # once around: the last window is the first one again
        return super().tells_apart(rule, size)


@dataclass(frozen=True)
class Bell(Sliding):
    """Windows with Gaussian weights."""

    sigma: float = 0.66  # pixels, as in escnn's anti-aliased pooling layers

    def _weights(
        self, rule: Rule, start: int, inside: tuple[int, ...], size: int
    ) -> tuple[float, ...]:
        centre = start + rule.kernel // 2
        return tuple(math.exp(-((p - centre) ** 2) / (2 * self.sigma**2)) for p in inside)


class Adapted(Sliding):
    """Windows of nearly equal size that cover the axis."""

    def place(self, rule: Rule, size: int) -> tuple[int, int]:
        """(output pixels, 0): its windows are mirror-symmetric."""
        return rule.output or -(-size // rule.stride), 0

    def reads(self, rule: Rule, size: int) -> Iterator[Weights]:
        """What each output reads on an axis of `size` pixels."""
        out = self.place(rule, size)[0]
        for i in range(out):
            window = tuple(range(i * size // out, -(-(i + 1) * size // out)))
            yield window, (1 / len(window),) * len(window)

    def range_of(self, rule: Rule, size: int, begin: int, end: int) -> tuple[int, int] | None:
        """(the first pixel that output `begin` reads, the last that output `end` reads)."""
        out = self.place(rule, size)[0]
        return begin * size // out, -(-(end + 1) * size // out) - 1

    def tells_apart(self, rule: Rule, size: int) -> bool:
        """True: no two windows begin and end alike."""
        return True


class Cropped(Sliding):
    """Single pixels, from the centre of the axis."""

    def place(self, rule: Rule, size: int) -> tuple[int, int]:
        """(output pixels, remainder) on an axis of `size` pixels."""
        out = rule.output or size
        return out, (size - out) % 2

    def reads(self, rule: Rule, size: int) -> Iterator[Weights]:
        """The pixel that each output is."""
        out = rule.output or size
        first = -((out - size) // 2)
        for position in range(first, first + out):
            yield (position if 0 <= position < size else -1,), (1.0,)

    def range_of(self, rule: Rule, size: int, begin: int, end: int) -> tuple[int, int] | None:
        """None: it is not followed."""
        return None

    def tells_apart(self, rule: Rule, size: int) -> bool:
        """False: padding is the same everywhere."""
        return False


class Interpolated(Cropped):
    """What an interpolation reads; anti-aliased where it shrinks."""

    def place(self, rule: Rule, size: int) -> tuple[int, int]:
        """(output pixels, remainder): smooth ones are mirror-symmetric."""
        out = rule.output or size
        return out, nearest_remainder(size, out) if rule.mode == "nearest" else 0

    def reads(self, rule: Rule, size: int) -> Iterator[Weights]:
        """What each output reads on an axis of `size` pixels, weighted as torch does: which weights
        are equal and which vanish matters.
        """
        out = rule.output or size
        if rule.mode == "nearest":
            yield from (((p,), (1.0,)) for p in nearest_sources(size, out))
            return
        stretch = max(size / out, 1.0)
        for index in range(out):
            centre = (index + 0.5) * (size / out) - 0.5
            low, high = math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch)
            near = range(max(0, low), min(size, high + 1))
            weights = [(p, _interpolation(rule.mode, (p - centre) / stretch)) for p in near]
            total = sum(weight for _, weight in weights)
            rest = [(p, weight / total) for p, weight in weights if abs(weight) > 1e-12]
            yield tuple(p for p, _ in rest), tuple(weight for _, weight in rest)


def _interpolation(mode: str, x: float) -> float:
    x = abs(x)
    if mode == "bilinear":
        return max(0.0, 1.0 - x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0
