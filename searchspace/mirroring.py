"""Which elements the windows of a network leave exact, decided position by position where
remainders alone do not decide.

A remainder of 0 in every layer is enough, but not needed: a window that covers the whole axis is
symmetric wherever it starts, and a crop and a pool that each shift the grid may undo each other.
The image and the moved image are both followed through the network as symbolic feature maps
(`searchspace.symbolic`), with every kernel moved for the latter; features are exact iff both give
the same symbols in moved positions. Axes are followed one by one, or together where windows lie in
the padding alone: what these show is no pixel's on one axis and perhaps on neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import or_
from typing import NamedTuple

from searchspace.geometry import Rule, Size
from searchspace.groups import IDENTITY, Element, Group
from searchspace.layers import Layer, Read
from searchspace.subsampling import CACHED, KINDS, place
from searchspace.symbolic import Program, SymbolicMaps, image, program, transformed_maps

GRID_ELEMENTS = Group(4, True).elements
# of an image both of whose axes are followed at once, and what the windows of all its layers read
MOST_POSITIONS = 5000
MOST_READS = 20_000_000  # some seconds
FLIP = Element.parse("m")  # reads the width backwards
# What is left if mirroring the (height, width) is exact.
BY_AXES = {
    (height, width): frozenset(
        e
        for e in GRID_ELEMENTS
        if (height or not e.reversed_axes[0]) and (width or not e.reversed_axes[1])
    )
    for height in (False, True)
    for width in (False, True)
}


def unshifted_elements(size: Size, layers: Sequence[Layer]) -> frozenset[Element]:
    """The elements (quarter turns and flips) that the windows of a network leave exact in its last
    maps, if all are built in.
    """
    main = [layer for layer in layers if layer.read is not None]
    height = _unshifted_axis(main, 0)
    width = height if size[0] == size[1] else _unshifted_axis(main, 1)
    if height is not None and width is not None:
        return BY_AXES[height, width]
    reads = program(main)
    return frozenset(e for e in GRID_ELEMENTS if exact_after(size, reads, e)[-1])


def exact_after(size: Size, reads: Program, element: Element) -> tuple[bool, ...]:
    """Whether the windows leave `element` exact in the maps of the entry (or the image), then in
    those of each stage.
    """
    axes = _alone(reads, size[0]), _alone(reads, size[1])
    if _must_look_together(size, reads, axes):
        return _together(size, reads, element)
    reversed_axes = [axis.stages for axis, reverses in zip(axes, element.reversed_axes) if reverses]
    return tuple(map(all, zip(*reversed_axes))) if reversed_axes else (True,) * len(reads)


def unchanged(size: Size, reads: Program, group: Group, head: str, element: Element) -> bool:
    """Whether moving the image by `element`, which need not be in `group`, leaves the logits
    exactly unchanged.

    They are if some element of the group exchanges the channels of each field as the move does, up
    to what no mean shows: an axis of the image that is mirrored alone, one of the kernels, or an
    exchange of height and width.
    """
    axes = _alone(reads, size[0]), _alone(reads, size[1])
    if _must_look_together(size, reads, axes):
        return _unchanged_together(size, reads, group.grid, head, element)

    def shows(exchange: Element) -> bool:
        for axis, mirrors, exchanges in zip(axes, element.reversed_axes, exchange.reversed_axes):
            if (mirrors or exchanges) and not (
                axis.means if mirrors and exchanges else axis.stays if mirrors else axis.blind
            ):
                return True
        return element.swaps_axes != exchange.swaps_axes and not _transposable(size, reads)

    return not all(map(shows, group.grid.elements if head != "none" else (IDENTITY,)))


@lru_cache(maxsize=4096)
def positions_seen(reads: Program, size: int) -> tuple[frozenset[int], ...]:
    """The positions of an axis of so many pixels that reach the maps after each part of `reads`,
    followed alone: windows in the padding of the other axis may show less.
    """
    symbols = _SeenMaps(size)
    maps, found, number = image(1, size), [], 0
    for stage in reads:
        maps = symbols.follow(stage, maps, number=number, flat=True)
        number += len(stage)
        bits = reduce(or_, (symbols.seen[term] for term in maps[0]))
        found.append(frozenset(n for n in range(size) if bits >> n & 1))
    return tuple(found)


class _SeenMaps(SymbolicMaps):
    """Symbolic maps that know of each term which pixels it depends on."""

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.seen = [0, *(1 << n for n in range(pixels))]  # one bit for each

    def _term(self, key: tuple, parts: Iterable[int]) -> int:
        parts = tuple(parts)
        term = super()._term(key, parts)
        if term == len(self.seen):
            self.seen.append(reduce(or_, (self.seen[part] for part in parts), 0))
        return term


def depends_on_pixels(size: Size, reads: Program) -> bool:
    """Whether any pixel reaches the last maps; otherwise the network is a constant."""
    return all(_alone(reads, pixels).pixels for pixels in size)


class _Axis(NamedTuple):
    """What mirroring one axis of the image does, looked at alone."""

    # after the entry and after each stage: True if it mirrors the maps, with every kernel mirrored
    stages: tuple[bool, ...]
    means: bool  # True if that leaves the mean over the last maps as it is
    stays: bool  # True if mirroring the image alone does
    blind: bool  # True if mirroring the kernels alone does
    pixels: bool  # True if any pixel reaches the last maps
    # True if windows lie in the padding alone: then axes cannot be looked at alone
    constants: bool


def _must_look_together(size: Size, reads: Program, axes: tuple[_Axis, _Axis]) -> bool:
    """Whether windows lie in the padding alone, on maps small enough: of larger ones what each axis
    says is true, if not everything.
    """
    return any(axis.constants for axis in axes) and few_reads(size, reads)


def sees_padding_alone(size: Size, reads: Program) -> bool:
    """Whether windows lie in the padding alone, on maps small enough to be followed."""
    return _must_look_together(size, reads, (_alone(reads, size[0]), _alone(reads, size[1])))


def few_reads(size: Size, reads: Program) -> bool:
    """Whether both axes can be followed at once within seconds: a limit of work, by which more or
    less is proven, never something else.
    """
    flat = [read for stage in reads for read in stage]
    after = zip(*(_sizes(flat, pixels)[1:] for pixels in size))
    total = sum(h * w * read.rule.kernel**2 for read, (h, w) in zip(flat, after))
    return size[0] * size[1] <= MOST_POSITIONS and total <= MOST_READS


@lru_cache(maxsize=4096)
def _alone(reads: Program, size: int) -> _Axis:
    symbols = SymbolicMaps(size)
    upright = image(1, size)
    mirrored = same = transformed_maps(upright, FLIP)
    flags, number = [], 0
    for stage in reads:
        upright = symbols.follow(stage, upright, IDENTITY, number, flat=True)
        mirrored = symbols.follow(stage, mirrored, FLIP, number, flat=True)
        same = symbols.follow(stage, same, IDENTITY, number, flat=True)
        number += len(stage)
        flags.append(mirrored == transformed_maps(upright, FLIP))
    total, of_mirrored, of_same = map(symbols.total, (upright, mirrored, same))
    return _Axis(
        tuple(flags),
        total == of_mirrored,
        total == of_same,
        of_mirrored == of_same,
        symbols.depends_on_pixels(upright),
        symbols.constants,
    )


@lru_cache(maxsize=4096)
def _together(size: Size, reads: Program, element: Element) -> tuple[bool, ...]:
    symbols = SymbolicMaps(size[0] * size[1])
    upright = image(*size)
    turned = transformed_maps(upright, element)
    flags, number = [], 0
    for stage in reads:
        upright, turned = (
            symbols.follow(stage, upright, IDENTITY, number),
            symbols.follow(stage, turned, element, number),
        )
        number += len(stage)
        flags.append(turned == transformed_maps(upright, element))
    return tuple(flags)


@lru_cache(maxsize=4096)
def _unchanged_together(
    size: Size, reads: Program, group: Group, head: str, element: Element
) -> bool:
    flat = [read for stage in reads for read in stage]
    symbols = SymbolicMaps(size[0] * size[1])

    def means(move: Element) -> list[dict[int, int]]:
        taken = transformed_maps(image(*size), move)
        return [symbols.total(symbols.follow(flat, taken, channel)) for channel in group.elements]

    return totals_agree(head, means(IDENTITY), means(element))


def totals_agree(head: str, before: list[dict[int, int]], after: list[dict[int, int]]) -> bool:
    """Whether a head gives the same features of channels with the totals `before` and `after`."""
    if head == "none":
        return before == after
    if head == "group_max":
        return sorted(map(_listed, before)) == sorted(map(_listed, after))
    return _summed(before) == _summed(after)


def _listed(total: dict[int, int]) -> list[tuple[int, int]]:
    return sorted(total.items())


def _summed(totals: list[dict[int, int]]) -> dict[int, int]:
    summed: dict[int, int] = {}
    for total in totals:
        for term, weight in total.items():
            summed[term] = summed.get(term, 0) + weight
    return summed


def _transposable(size: Size, reads: Program) -> bool:
    """Whether transposing the image leaves the mean of every channel as it is."""
    flat = tuple(read for stage in reads for read in stage)
    sizes = [(down, across) for down, across in zip(_sizes(flat, size[0]), _sizes(flat, size[1]))]
    apart = True  # whether different positions have different symbols
    for read, around in zip(flat, sizes):
        rule = read.rule
        if _trained(rule) and rule.kernel > 1:
            if (
                apart
                and min(around) > rule.kernel
                and max(rule.padding) <= rule.kernel - 2
                and rule.dilation == 1
            ):
                # every window shows two pixels on both axes: a transposed kernel makes a difference
                return False
            return few_reads(size, reads) and _transposable_together(size, flat)
        smooth = rule.mode in ("bilinear", "bicubic") and (rule.output or 0) <= 2 * min(around)
        apart &= smooth or all(_tells_apart(rule, pixels) for pixels in around)
    return True


@lru_cache(maxsize=4096)
def _transposable_together(size: Size, flat: tuple[Read, ...]) -> bool:
    symbols = SymbolicMaps(size[0] * size[1])
    transposed = tuple(zip(*image(*size)))
    return symbols.total(symbols.follow(flat, image(*size))) == symbols.total(
        symbols.follow(flat, transposed)
    )


def _unshifted_axis(main: Sequence[Layer], axis: int) -> bool | None:
    """Whether the windows mirror an axis exactly, from the layers between the first and the last
    shifted one; None: undecided.

    Before them every position is its own and mirrors; behind them convolutions without gaps show
    every position that does not. A skip connection is shifted with the first convolution of its
    block.
    """
    shifted = [n for n, layer in enumerate(main) if layer.remainder[axis]]
    if not shifted:
        return (
            True
            if all(_tells_apart(layer.reading.rule, layer.size_in[axis]) for layer in main)
            else None
        )
    first, last = shifted[0], shifted[-1]
    first -= main[first].reading.closing
    last += main[last].reading.opening
    if not all(_tells_apart(layer.reading.rule, layer.size_in[axis]) for layer in main[:first]):
        return None
    if not all(_shows_all(layer.reading.rule) for layer in main[last + 1 :]):
        last = len(main) - 1
    between = main[first : last + 1]
    if _begins_elsewhere(between, axis):
        return False
    return _unshifted_between(tuple(layer.reading for layer in between), between[0].size_in[axis])


def _tells_apart(rule: Rule, size: int) -> bool:
    return KINDS[rule.kind].windows.tells_apart(rule, size)


def _trained(rule: Rule) -> bool:
    return KINDS[rule.kind].reduction == "trained"


def _shows_all(rule: Rule) -> bool:
    """True if every position of the input is some tap of an unshifted convolution."""
    return _trained(rule) and rule.dilation == 1 and rule.stride <= rule.kernel


def _begins_elsewhere(main: Sequence[Layer], axis: int) -> bool:
    """True if what the last position depends on does not begin where its mirror image does; False
    says nothing.

    Followed back window by window from the begin of the last one and from the end of the first one,
    as long as none is cut off.
    """
    begin, end = main[-1].size_out[axis] - 1, 0
    for layer in reversed(main):
        rule, size = layer.reading.rule, layer.size_in[axis]
        read = KINDS[rule.kind].windows.range_of(rule, size, begin, end)
        if read is None:
            return False
        begin, end = read
        if not (0 <= begin < size and 0 <= end < size):
            return False
    return begin != main[0].size_in[axis] - 1 - end


@lru_cache(maxsize=CACHED)
def _unshifted_between(flat: tuple[Read, ...], size: int) -> bool | None:
    symbols = SymbolicMaps(size)
    upright = image(1, size)
    mirrored = symbols.follow(flat, transformed_maps(upright, FLIP), FLIP, flat=True)
    upright = symbols.follow(flat, upright, flat=True)
    return None if symbols.constants else mirrored == transformed_maps(upright, FLIP)


def _sizes(flat: Sequence[Read], size: int) -> list[int]:
    """The pixels of an axis before each layer, and after the last."""
    sizes = [size]
    for read in flat:
        sizes.append(place(read.rule, sizes[-1])[0])
    return sizes
