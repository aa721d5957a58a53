"""Feature maps of symbols: which layer reads which values of the layer before, without any weights.

Every position of a map holds a term, a whole number that stands for a value; equal terms are equal
values whatever the weights and the image, and weights are taken as general: different terms stand
for different values. The maps of a moved image, or of a network whose kernels are moved, are
followed in the same numbering, so that comparing maps is comparing numbers. Channels of a field
differ only in how their kernels are moved, so that one channel is followed at a time.

A map is a tuple of rows. With `flat`, only the width is followed, of a map that is one row: what
one axis does alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from operator import itemgetter

from searchspace.geometry import Layer, Read, Rule, nearest_sources, place
from searchspace.groups import IDENTITY, Element

ZERO = 0  # the term of padding
Map = tuple[tuple[int, ...], ...]
BLUR_BELL = {"blur": 0.66, "blurmax": 0.6}  # sigma, pixels
# weights are compared in steps of 1 / FINE, sums of many in steps of 1 / COARSE; decimal digits
# would round
FINE = 2.0**30
# weights such as 1.1025390625 up from one side and down from the other
COARSE = 2.0**24


# the main branch of the entry (empty if there is none), then of each stage
Program = tuple[tuple[Read, ...], ...]


def program(layers: Iterable[Layer]) -> Program:
    """How a network of these layers reads an image."""
    found: list[list[Read]] = [[]]
    for layer in layers:
        if layer.read is not None:
            while len(found) <= layer.stage:
                found.append([])
            found[layer.stage].append(layer.read)
    return tuple(map(tuple, found))


def moved(maps: Map, element: Element) -> Map:
    """`maps` moved by `element`, as `trainers.actions.act` moves images."""
    if element.mirror:
        maps = tuple(row[::-1] for row in maps)
    for _ in range(element.quarter_turns):
        maps = tuple(zip(*maps))[::-1]
    return maps


def image(height: int, width: int) -> Map:
    """The terms of an image, every pixel its own."""
    return tuple(tuple(range(1 + i * width, 1 + (i + 1) * width)) for i in range(height))


class Terms:
    """The terms of networks that read images of so many pixels, numbered as they appear."""

    def __init__(self, pixels: int) -> None:
        self.numbers: dict[tuple, int] = {}
        self.sums: dict[int, dict[int, float]] = {}
        # of each term: whether it depends on a pixel of the image
        self.sees = [False] + [True] * pixels
        self.constants = False  # whether some window saw padding alone

    def follow(
        self,
        reads: Iterable[Read],
        maps: Map,
        turn: Element = IDENTITY,
        number: int = 0,
        flat: bool = False,
    ) -> Map:
        """The map after `reads`, the first of which is layer `number` + 1, with kernels moved by
        `turn`.
        """
        opened = maps
        for step, read in enumerate(reads, start=number + 1):
            if read.opening:
                opened = maps
            maps = self.read(read.rule, step, maps, turn, flat)
            if read.closing:
                if read.skip is not None:
                    opened = self.read(read.skip, -step, opened, turn, flat)
                maps = tuple(
                    tuple(self._term(("add", step, *pair), pair) for pair in zip(*rows))
                    for rows in zip(maps, opened)
                )
        return maps

    def read(self, rule: Rule, number: int, maps: Map, turn: Element, flat: bool) -> Map:
        """The map after layer `number`, a unique one unless its kernels have the same weights."""
        if rule.kind == "conv":
            arranged = _arranged(rule.kernel, turn, flat)
            return tuple(
                tuple(self._term((number, key), key) for key in map(arranged, windows))
                for windows in _windows(rule, maps, flat)
            )
        if rule.kind == "blurmax":
            maps = self._slide(maps, _WIDEST, self._maximum, flat)
        return self._slide(
            maps,
            rule,
            self._maximum if rule.kind in ("max", "adaptivemax") else self._weighted,
            flat,
        )

    def _slide(self, maps: Map, rule: Rule, reduce: Callable, flat: bool) -> Map:
        rows = _ONE_ROW if flat else _rows(rule, len(maps))
        columns = _rows(rule, len(maps[0]))
        return tuple(tuple(reduce(maps, row, column) for column in columns) for row in rows)

    def _term(self, key: tuple, parts: Iterable[int]) -> int:
        found = self.numbers.get(key)
        if found is None:
            found = self.numbers[key] = len(self.sees)
            self.sees.append(any(map(self.sees.__getitem__, parts)))
            self.constants |= not self.sees[-1]
        return found

    def _maximum(self, maps: Map, row: Weights, column: Weights) -> int:
        distinct = frozenset(maps[i][j] for i in row[0] for j in column[0])
        return (
            next(iter(distinct)) if len(distinct) == 1 else self._term(("max", distinct), distinct)
        )

    def _weighted(self, maps: Map, row: Weights, column: Weights) -> int:
        total: dict[int, float] = {}
        for i, down in zip(*row):
            for j, across in zip(*column):
                term = maps[i][j] if i >= 0 and j >= 0 else ZERO
                if term != ZERO:
                    total[term] = total.get(term, 0.0) + down * across
        found = tuple(
            sorted(
                (term, steps) for term, weight in total.items() if (steps := round(weight * FINE))
            )
        )
        if not found:
            return ZERO
        if len(found) == 1 and found[0][1] == FINE:
            return found[0][0]
        term = self._term(("sum", found), [term for term, _ in found])
        self.sums[term] = total
        return term

    def total(self, maps: Map) -> dict[int, int]:
        """How often each term counts in the sum of all, in steps of 1 / COARSE, with sums written
        out: what the spatial mean sees.
        """
        total: dict[int, float] = {}
        for term in chain.from_iterable(maps):
            for part, weight in self.sums.get(term, {term: 1.0}).items():
                total[part] = total.get(part, 0.0) + weight
        return {part: round(weight * COARSE) for part, weight in total.items() if part != ZERO}

    def sees_pixels(self, maps: Map) -> bool:
        """True if any term of `maps` depends on a pixel."""
        return any(self.sees[term] for term in chain.from_iterable(maps))


@lru_cache(maxsize=1024)
def _arranged(
    kernel: int, turn: Element, flat: bool
) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """The function that brings what a window shows, row by row, into the order of the weights of a
    kernel moved by `turn`.
    """
    size = (1, kernel) if flat else (kernel, kernel)
    weights = list(chain.from_iterable(moved(image(*size), turn)))
    order = sorted(range(len(weights)), key=weights.__getitem__)
    return itemgetter(*order) if len(order) > 1 else tuple


def _windows(rule: Rule, maps: Map, flat: bool) -> Iterator[Iterator[tuple[int, ...]]]:
    """Row by row, what each window of a convolution shows, its padding included."""
    rows = [_padded(rule, row, ZERO) for row in maps]
    if not flat:
        rows = _padded(rule, tuple(rows), (ZERO,) * len(rows[0]))
    reach, stride, dilation = rule.dilation * (rule.kernel - 1) + 1, rule.stride, rule.dilation
    starts = range(0, len(rows[0]) - reach + 1, stride)
    for top in (0,) if flat else range(0, len(rows) - reach + 1, stride):
        taken = rows if flat else rows[top : top + reach : dilation]
        yield (
            tuple(chain.from_iterable(row[left : left + reach : dilation] for row in taken))
            for left in starts
        )


def _padded(rule: Rule, line: tuple, zero: object) -> tuple:
    before, after = rule.padding
    if rule.mode == "reflect":
        return line[before:0:-1] + line + line[-2 : -after - 2 : -1]
    if rule.mode == "circular":
        return line[len(line) - before :] + line + line[:after]
    if rule.mode == "replicate":
        return line[:1] * before + line + line[-1:] * after
    return (zero,) * before + line + (zero,) * after


# the positions that are read, -1 a zero, and their weights
Weights = tuple[tuple[int, ...], tuple[float, ...]]
_ONE_ROW: tuple[Weights, ...] = (((0,), (1.0,)),)
_WIDEST = Rule("max", 3, 1, (1, 1))  # the maximum in blurmax


@lru_cache(maxsize=4096)
def _rows(rule: Rule, size: int) -> tuple[Weights, ...]:
    """What each output of a layer without trained weights reads."""
    out = place(rule, size)[0]
    if rule.kind in ("max", "avg", "blur", "blurmax"):
        return tuple(
            _sliding_row(rule, i * rule.stride - rule.padding[0], size) for i in range(out)
        )
    if rule.kind in ("adaptive", "adaptivemax"):
        bins = [tuple(range(i * size // out, -(-(i + 1) * size // out))) for i in range(out)]
        return tuple((positions, (1 / len(positions),) * len(positions)) for positions in bins)
    if rule.kind == "crop":
        first = -((out - size) // 2)
        return tuple(((p if 0 <= p < size else -1,), (1.0,)) for p in range(first, first + out))
    if rule.mode == "nearest":
        return tuple(((p,), (1.0,)) for p in nearest_sources(size, out))
    return tuple(_interpolated_row(rule.mode, i, size, out) for i in range(out))


def _sliding_row(rule: Rule, start: int, size: int) -> Weights:
    inside = tuple(p for p in range(start, start + rule.kernel) if 0 <= p < size)
    if rule.kind == "max":
        return inside, (1.0,) * len(inside)
    # zeros are counted, but not what lies beyond the padding when sizes are rounded up
    if rule.kind == "avg":
        divisor = min(start + rule.kernel, size + rule.padding[1]) - start
        return inside, (1 / divisor,) * len(inside)
    centre = start + rule.kernel // 2
    return inside, tuple(
        math.exp(-((p - centre) ** 2) / (2 * BLUR_BELL[rule.kind] ** 2)) for p in inside
    )


def _interpolated_row(mode: str, index: int, size: int, out: int) -> Weights:
    """Weights of a smooth resize, as torch has them when it shrinks with antialias: which are equal
    and which vanish matters.
    """
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
