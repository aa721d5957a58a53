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

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from operator import itemgetter

from searchspace.geometry import Rule, Weights
from searchspace.groups import IDENTITY, Element
from searchspace.layers import Layer, Read
from searchspace.subsampling import KINDS, reads

ZERO = 0  # the term of padding
SymbolicMap = tuple[tuple[int, ...], ...]
# weights are compared in steps of 1 / FINE, sums of many in steps of 1 / COARSE; decimal digits
# would round
FINE = 2.0**30
# weights such as 1.1025390625 up from one side and down from the other
COARSE = 2.0**24


# the main branch of the entry (empty if there is none), then of each stage
Program = tuple[tuple[Read, ...], ...]


def program(layers: Iterable[Layer]) -> Program:
    """How a network of these layers reads an image."""
    reads: list[list[Read]] = [[]]
    for layer in layers:
        if layer.read is not None:
            while len(reads) <= layer.stage:
                reads.append([])
            reads[layer.stage].append(layer.read)
    return tuple(map(tuple, reads))


def transformed_maps(maps: SymbolicMap, element: Element) -> SymbolicMap:
    """`maps` moved by `element`, as `trainers.actions.act` moves images."""
    if element.mirror:
        maps = tuple(row[::-1] for row in maps)
    for _ in range(element.quarter_turns):
        maps = tuple(zip(*maps))[::-1]
    return maps


def image(height: int, width: int) -> SymbolicMap:
    """The terms of an image, every pixel its own."""
    return tuple(tuple(range(1 + i * width, 1 + (i + 1) * width)) for i in range(height))


class SymbolicMaps:
    """The terms of networks that read images of so many pixels, numbered as they appear."""

    def __init__(self, pixels: int) -> None:
        self.numbers: dict[tuple, int] = {}
        self.sums: dict[int, dict[int, float]] = {}
        # of each term: whether it depends on a pixel of the image
        self.depends_on = [False] + [True] * pixels
        self.constants = False  # whether some window saw padding alone

    def follow(
        self,
        reads: Iterable[Read],
        maps: SymbolicMap,
        turn: Element = IDENTITY,
        number: int = 0,
        flat: bool = False,
    ) -> SymbolicMap:
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

    def read(
        self, rule: Rule, number: int, maps: SymbolicMap, turn: Element, flat: bool
    ) -> SymbolicMap:
        """The map after layer `number`, a unique one unless its kernels have the same weights."""
        kind = KINDS[rule.kind]
        if kind.reduction == "trained":
            arranged = _arranged(rule.kernel, turn, flat)
            return tuple(
                tuple(self._term((number, key), key) for key in map(arranged, windows))
                for windows in _windows(rule, maps, flat)
            )
        if kind.first is not None:
            maps = self.read(kind.first, number, maps, turn, flat)
        reduce = {"maximum": self._maximum, "sum": self._weighted, "power": self._root}
        return self._slide(maps, rule, reduce[kind.reduction], flat)

    def _slide(self, maps: SymbolicMap, rule: Rule, reduce: Callable, flat: bool) -> SymbolicMap:
        rows = _ONE_ROW if flat else reads(rule, len(maps))
        columns = reads(rule, len(maps[0]))
        return tuple(tuple(reduce(maps, row, column) for column in columns) for row in rows)

    def _term(self, key: tuple, parts: Iterable[int]) -> int:
        term = self.numbers.get(key)
        if term is None:
            term = self.numbers[key] = len(self.depends_on)
            self.depends_on.append(any(map(self.depends_on.__getitem__, parts)))
            self.constants |= not self.depends_on[-1]
        return term

    def _maximum(self, maps: SymbolicMap, row: Weights, column: Weights) -> int:
        distinct = frozenset(maps[i][j] for i in row[0] for j in column[0])
        return (
            next(iter(distinct)) if len(distinct) == 1 else self._term(("max", distinct), distinct)
        )

    def _weighted(self, maps: SymbolicMap, row: Weights, column: Weights) -> int:
        weights, steps = self._weights(maps, row, column)
        term = self._combined("sum", steps)
        if term != ZERO and steps != ((term, round(FINE)),):
            self.sums[term] = weights
        return term

    def _root(self, maps: SymbolicMap, row: Weights, column: Weights) -> int:
        """The root of a weighted sum of squares, of values that are not negative."""
        return self._combined("root", self._weights(maps, row, column)[1])

    def _weights(
        self, maps: SymbolicMap, row: Weights, column: Weights
    ) -> tuple[dict[int, float], tuple[tuple[int, int], ...]]:
        """The weight of each term that a window reads, as it is and in steps of 1 / FINE."""
        total: dict[int, float] = {}
        for i, down in zip(*row):
            for j, across in zip(*column):
                term = maps[i][j] if i >= 0 and j >= 0 else ZERO
                if term != ZERO:
                    total[term] = total.get(term, 0.0) + down * across
        rounded = ((term, round(weight * FINE)) for term, weight in total.items())
        return total, tuple(sorted((term, steps) for term, steps in rounded if steps))

    def _combined(self, how: str, steps: tuple[tuple[int, int], ...]) -> int:
        if not steps:
            return ZERO
        if len(steps) == 1 and steps[0][1] == FINE:
            return steps[0][0]
        return self._term((how, steps), [term for term, _ in steps])

    def pooled(self, number: int, channels: list[SymbolicMap]) -> SymbolicMap:
        """The maximum over all channels of a field, behind layer `number`.

        A maximum of maxima is that of all their terms, and it can be taken before a root or a
        weight that all share.
        """
        keys = {term: key for key, term in self.numbers.items()}

        def maximum(terms: frozenset[int]) -> int:
            of_terms = [keys.get(term, ("pixel",)) for term in terms]
            shared = {(key[0], key[1][0][1]) for key in of_terms if _scales(key)}
            if len(shared) == 1 and all(map(_scales, of_terms)):
                how, steps = shared.pop()
                inner = maximum(frozenset(key[1][0][0] for key in of_terms))
                scaled = self._combined(how, ((inner, steps),))
                if how == "sum":
                    self.sums[scaled] = {inner: steps / FINE}
                return scaled
            flat = frozenset(
                chain.from_iterable(
                    key[1] if key[0] == "max" else (term,) for term, key in zip(terms, of_terms)
                )
            )
            return self._term(("pool", number, flat), flat)

        return tuple(
            tuple(maximum(frozenset(terms)) for terms in zip(*rows)) for rows in zip(*channels)
        )

    def total(self, maps: SymbolicMap) -> dict[int, int]:
        """How often each term counts in the sum of all, in steps of 1 / COARSE, with sums written
        out: what the spatial mean sees.
        """
        total: dict[int, float] = {}
        for term in chain.from_iterable(maps):
            for part, weight in self.sums.get(term, {term: 1.0}).items():
                total[part] = total.get(part, 0.0) + weight
        return {part: round(weight * COARSE) for part, weight in total.items() if part != ZERO}

    def depends_on_pixels(self, maps: SymbolicMap) -> bool:
        """True if any term of `maps` depends on a pixel."""
        return any(self.depends_on[term] for term in chain.from_iterable(maps))


def _scales(key: tuple) -> bool:
    """True for the key of a weighted sum or root of one term, which rises with it."""
    return key[0] in ("sum", "root") and len(key[1]) == 1 and key[1][0][1] > 0


@lru_cache(maxsize=1024)
def _arranged(
    kernel: int, turn: Element, flat: bool
) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """The function that brings what a window shows, row by row, into the order of the weights of a
    kernel moved by `turn`.
    """
    size = (1, kernel) if flat else (kernel, kernel)
    weights = list(chain.from_iterable(transformed_maps(image(*size), turn)))
    order = sorted(range(len(weights)), key=weights.__getitem__)
    return itemgetter(*order) if len(order) > 1 else tuple


def _windows(rule: Rule, maps: SymbolicMap, flat: bool) -> Iterator[Iterator[tuple[int, ...]]]:
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


_ONE_ROW: tuple[Weights, ...] = (((0,), (1.0,)),)
