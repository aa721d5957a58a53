"""Whether mirroring the image mirrors the features, decided position by position where remainders alone do not decide.

A remainder of 0 in every layer is enough, but not needed: a window that covers the whole axis is symmetric wherever it
starts, and a crop and a pool that each shift the grid may undo each other. So every position of a feature map along one axis
is written as a term: which layer reads which terms of the layer before. The image and its mirror image are both followed
through the network, with every kernel mirrored for the latter; the features mirror iff both give the same terms in
opposite order. Weights are taken as general: different terms stand for different values.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Iterable, Iterator, NamedTuple, Optional, Sequence

from searchspace.geometry import CACHED, Rule, Size, conv_rule, nearest_sources, place, skip_rule, step_rule

if TYPE_CHECKING:
    from searchspace.architecture import Stage, Subsampling

ZERO = 0                        # the term of padding
PIXEL = 1                       # bit of a term that depends on a pixel of the image; higher bits: on the constants of a layer
SLIDING = ("conv", "max", "avg", "blur", "blurmax")
BLUR_BELL = {"blur": 0.66, "blurmax": 0.6}      # sigma, pixels


class Read(NamedTuple):
    """One step along an axis: a layer, or with `closing` the second layer of a residual block whose input is read by `skip`."""

    rule: Rule
    opening: bool = False               # the input of this layer is that of a residual block
    closing: bool = False
    skip: Optional[Rule] = None         # None: the identity


Program = tuple[tuple[Read, ...], ...]      # of the entry (empty if there is none), then of each stage


class Mirroring(NamedTuple):
    """What mirroring one axis of the image does to the features."""

    stages: tuple[bool, ...]    # after the entry and after each stage: True if it mirrors the maps exactly
    means: bool                 # True if the spatial mean of the last maps is unchanged
    levels: int                 # bit 0: pixels reach the last maps; bit n: the constant that layer n makes of padding alone does

    @property
    def exact(self) -> bool:
        """True if it mirrors the last maps exactly."""
        return self.stages[-1]


def program(entry: "Optional[Subsampling]", stages: "Sequence[Stage]") -> Program:
    """How the network of these parts reads either axis."""
    found = [() if entry is None else (Read(step_rule(entry)),)]
    previous = None
    for stage in stages:
        changes = previous is None or previous.fields != stage.fields or previous.group != stage.group
        found.append(_stage_program(stage, changes))
        previous = stage
    return tuple(found)


@lru_cache(maxsize=4096)
def _stage_program(stage: "Stage", changes: bool) -> tuple[Read, ...]:
    found = []
    for block in range(stage.repeats):
        stride = stage.stride if block == 0 else 1
        if stage.residual:
            skip = skip_rule(stride) if stride != 1 or changes and block == 0 else None
            found += [Read(conv_rule(stage, stride), opening=True), Read(conv_rule(stage, 1), closing=True, skip=skip)]
        else:
            found.append(Read(conv_rule(stage, stride)))
    if stage.subsampling is not None:
        found.append(Read(step_rule(stage.subsampling)))
    return tuple(found)


def mirrorings(size: Size, reads: Program) -> tuple[Mirroring, Mirroring]:
    """What mirroring the height, and the width, of an image of `size` does to the features of every stage."""
    height, width = _trace(reads, size[0]), _trace(reads, size[1])
    return _mirroring(height, reads, size[0], width.levels), _mirroring(width, reads, size[1], height.levels)


def _mirroring(traced: Mirroring, reads: Program, size: int, across: int) -> Mirroring:
    """`traced` itself, unless no pixel reaches the features `across`: then its maps are those of the constants that do."""
    if across & PIXEL:
        return traced
    traces = [_trace(reads, size, bit) for bit in range(1, across.bit_length()) if across >> bit & 1]
    return Mirroring(traced.stages[:-1] + (all(t.stages[-1] for t in traces),), all(t.means for t in traces), traced.levels)


def sees_no_pixel(axes: tuple[Mirroring, Mirroring]) -> bool:
    """True if the last maps depend on padding alone: the network is a constant."""
    return not axes[0].levels & axes[1].levels & PIXEL


def same_in_all_channels(reads: Program, axes: tuple[Mirroring, Mirroring]) -> bool:
    """True if the channels of each field are equal: kernels have one pixel, counted from where the last maps depend on."""
    since = max((axis.levels & -axis.levels).bit_length() - 1 for axis in axes)
    flat = [read for stage in reads for read in stage]
    return all(read.rule.kernel == 1 for read in flat[since:] if read.rule.kind == "conv")


def kept(reads: Program, size: int) -> Optional[bool]:
    """Whether mirroring the axis mirrors the features, from the layers between the first and the last shifted one; None: undecided.

    Before them every position is its own and mirrors; behind them convolutions without gaps show every position that does not.
    """
    flat = [read for stage in reads for read in stage]
    sizes, shifted = [], []
    for number, read in enumerate(flat):
        sizes.append(size)
        out, left = place(read.rule, size)
        if left or read.skip is not None and place(read.skip, sizes[number - 1])[1]:
            shifted.append(number)
        size = out
    if not shifted:
        return True
    first, last = shifted[0], shifted[-1]
    first -= flat[first].closing
    last += flat[last].opening
    if not all(_without_gaps(read.rule, n) for read, n in zip(flat[:first], sizes)):
        return None
    if not all(read.rule.kind == "conv" and _without_gaps(read.rule, n) for read, n in zip(flat[last + 1:], sizes[last + 1:])):
        last = len(flat) - 1
    return _kept_between(tuple(flat[first:last + 1]), sizes[first])


def _without_gaps(rule: Rule, size: int) -> bool:
    """True if every position of the input is read, no window lies in the padding and all windows differ."""
    return rule.kind in SLIDING and rule.dilation == 1 and max(rule.padding) < rule.kernel and rule.stride <= rule.kernel < size


@lru_cache(maxsize=CACHED)
def _kept_between(flat: tuple[Read, ...], size: int) -> Optional[bool]:
    terms = _Terms(size)
    now, mirrored = terms.follow(flat, *_distinct(size))
    return mirrored == now[::-1] if terms.seen(now) & PIXEL else None


def _distinct(size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    maps = tuple(range(1, size + 1))
    return maps, maps[::-1]


@lru_cache(maxsize=4096)
def _trace(reads: Program, size: int, start: int = 0) -> Mirroring:
    """The terms followed through `reads`; with `start`, as if the layer of that number gave the same value everywhere."""
    terms = _Terms(size)
    now, mirrored = _distinct(size)
    flags, number = [], 0
    for stage in reads:
        now, mirrored = terms.follow(stage, now, mirrored, number, start)
        number += len(stage)
        flags.append(mirrored == now[::-1])
    return Mirroring(tuple(flags), terms.total(now) == terms.total(mirrored), terms.seen(now))


class _Terms:
    """The terms of one axis, numbered as they appear: equal numbers are equal values."""

    def __init__(self, size: int) -> None:
        self.numbers: dict[tuple, int] = {}
        self.sums: dict[int, tuple[tuple[int, float], ...]] = {}
        self.levels = [0] + [PIXEL] * size

    def _term(self, key: tuple, parts: Sequence[int], own: int = 0) -> int:
        found = self.numbers.get(key)
        if found is None:
            found = self.numbers[key] = len(self.levels)
            self.levels.append(self.seen(parts) or own)
        return found

    def seen(self, ids: Iterable[int]) -> int:
        """The bits of everything that the terms depend on."""
        found = 0
        for term in ids:
            found |= self.levels[term]
        return found

    def follow(self, reads: Sequence[Read], now: tuple[int, ...], mirrored: tuple[int, ...], number: int = 0,
               start: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The terms after `reads`, the first of which is layer `number` + 1, of the image and of its mirror image."""
        opened = now, mirrored
        for number, read in enumerate(reads, start=number + 1):
            if read.opening:
                opened = now, mirrored
            now, mirrored = self.read(read.rule, number, now, False), self.read(read.rule, number, mirrored, True)
            if read.closing:
                if read.skip is not None:
                    opened = self.read(read.skip, -number, opened[0], False), self.read(read.skip, -number, opened[1], True)
                now, mirrored = self.add(number, now, opened[0]), self.add(number, mirrored, opened[1])
            if number == start:
                now = mirrored = (1,) * len(now)
        return now, mirrored

    def read(self, rule: Rule, number: int, ids: tuple[int, ...], back: bool) -> tuple[int, ...]:
        """The terms after layer `number`; `back`: on the mirror image, whose kernels are mirrored."""
        if rule.kind == "conv":
            step = -1 if back else 1
            own = 1 << abs(number)
            windows = (window[::step] for window in _windows(rule, ids))
            return tuple(self._term((number, window), window, own) for window in windows)
        if rule.kind == "blurmax":
            ids = tuple(self._maximum(ids[max(i - 1, 0):i + 2]) for i in range(len(ids)))
        if rule.kind in ("max", "adaptivemax"):
            return tuple(self._maximum([ids[p] for p in positions]) for positions, _ in _rows(rule, len(ids)))
        return tuple(self._weighted(ids, positions, weights) for positions, weights in _rows(rule, len(ids)))

    def add(self, number: int, main: Sequence[int], skip: Sequence[int]) -> tuple[int, ...]:
        """The terms of a sum of two branches."""
        return tuple(self._term(("add", number, *pair), pair) for pair in zip(main, skip))

    def _maximum(self, window: Sequence[int]) -> int:
        distinct = frozenset(window)
        return next(iter(distinct)) if len(distinct) == 1 else self._term(("max", distinct), tuple(distinct))

    def _weighted(self, ids: Sequence[int], positions: Sequence[int], weights: Sequence[float]) -> int:
        total: dict[int, float] = {}
        for position, weight in zip(positions, weights):
            term = ids[position] if position >= 0 else ZERO
            if term != ZERO:
                total[term] = total.get(term, 0.0) + weight
        found = tuple(sorted((term, round(weight, 9)) for term, weight in total.items() if round(weight, 9)))
        if not found:
            return ZERO
        if len(found) == 1 and found[0][1] == 1:
            return found[0][0]
        term = self._term(("sum", found), [term for term, _ in found])
        self.sums[term] = found
        return term

    def total(self, ids: Sequence[int]) -> dict[int, float]:
        """The sum of the terms, with sums written out: what the spatial mean sees."""
        total: dict[int, float] = {}
        for term in ids:
            for part, weight in self.sums.get(term, ((term, 1.0),)):
                total[part] = total.get(part, 0.0) + weight
        return {part: round(weight, 7) for part, weight in total.items() if part != ZERO}


def _windows(rule: Rule, ids: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The terms in each window of a convolution, its padding included."""
    before, after = rule.padding
    if rule.mode == "reflect":
        padded = ids[before:0:-1] + ids + ids[-2:-after - 2:-1]
    elif rule.mode == "circular":
        padded = ids[len(ids) - before:] + ids + ids[:after]
    elif rule.mode == "replicate":
        padded = ids[:1] * before + ids + ids[-1:] * after
    else:
        padded = (ZERO,) * before + ids + (ZERO,) * after
    reach = rule.dilation * (rule.kernel - 1) + 1
    for start in range(0, len(padded) - reach + 1, rule.stride):
        yield padded[start:start + reach:rule.dilation]


@lru_cache(maxsize=4096)
def _rows(rule: Rule, size: int) -> tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]:
    """(positions, weights) that each output of a layer without trained weights reads; -1: a zero."""
    out = place(rule, size)[0]
    if rule.kind in ("max", "avg", "blur", "blurmax"):
        return tuple(_sliding_row(rule, i * rule.stride - rule.padding[0], size) for i in range(out))
    if rule.kind in ("adaptive", "adaptivemax"):
        bins = [tuple(range(i * size // out, -(-(i + 1) * size // out))) for i in range(out)]
        return tuple((positions, (1 / len(positions),) * len(positions)) for positions in bins)
    if rule.kind == "crop":
        first = -((out - size) // 2)
        return tuple(((p if 0 <= p < size else -1,), (1.0,)) for p in range(first, first + out))
    if rule.mode == "nearest":
        return tuple(((p,), (1.0,)) for p in nearest_sources(size, out))
    return tuple(_interpolated_row(rule.mode, i, size, out) for i in range(out))


def _sliding_row(rule: Rule, start: int, size: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    inside = tuple(p for p in range(start, start + rule.kernel) if 0 <= p < size)
    if rule.kind == "max":
        return inside, ()
    if rule.kind == "avg":      # zeros are counted, but not what lies beyond the padding when sizes are rounded up
        divisor = min(start + rule.kernel, size + rule.padding[1]) - start
        return inside, (1 / divisor,) * len(inside)
    centre = start + rule.kernel // 2
    return inside, tuple(math.exp(-(p - centre) ** 2 / (2 * BLUR_BELL[rule.kind] ** 2)) for p in inside)


def _interpolated_row(mode: str, index: int, size: int, out: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Weights of a smooth resize, as torch has them when it shrinks with antialias: which are equal and which vanish matters."""
    scale = size / out
    stretch = max(scale, 1.0)
    centre = (index + 0.5) * scale - 0.5
    weights = [(p, _kernel(mode, (p - centre) / stretch)) for p in range(size)]
    total = sum(weight for _, weight in weights)
    kept = [(p, weight / total) for p, weight in weights if abs(weight) > 1e-12]
    return tuple(p for p, _ in kept), tuple(weight for _, weight in kept)


def _kernel(mode: str, x: float) -> float:
    x = abs(x)
    if mode == "bilinear":
        return max(0.0, 1.0 - x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0
