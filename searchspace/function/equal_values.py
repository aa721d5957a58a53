"""Equal values behind different windows, which windows alone do not show: fields pooled over their
group, and maps that no pixel reaches.

A pooled field holds the maximum over the channels of a field, so that windows which show the same
values to different channels give the same pooled one. A convolution that sees padding alone gives
the same value in all channels, whatever a relaxation has made of its weights. Both matter on small
maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache, reduce
from itertools import chain
from operator import and_
from typing import TYPE_CHECKING, NamedTuple

from searchspace.geometry import Size
from searchspace.groups import IDENTITY, Element, Group
from searchspace.mirroring import (
    exact_after,
    few_reads,
    sees_padding_alone,
    totals_agree,
    unchanged,
)
from searchspace.symbolic import Program, SymbolicMap, SymbolicMaps, image, transformed_maps

if TYPE_CHECKING:
    from searchspace.architecture import Architecture


class PooledReading(NamedTuple):
    """How one list of stages reads an image, and what of it is pooled."""

    size: Size
    reads: Program
    # of the entry, then of each stage: what is built in, and whether every field is pooled
    groups: tuple[Group, ...]
    pooled: tuple[bool, ...]


def all_pooled(architecture: Architecture) -> bool:
    """Whether every field of the last stage is invariant, whatever the head: pooled there, or
    before kernels of one pixel, which nothing turns.
    """
    for stage in reversed(architecture.stages):
        if stage.invariant_fields == stage.fields:
            return True
        step = stage.subsampling
        if stage.kernel > 1 or (step is not None and step.trained and step.kernel > 1):
            return False
    return False


def exact_anywhere(
    architecture: Architecture, reads: Program, element: Element
) -> tuple[bool, ...]:
    """Whether windows and pooled fields leave `element` exact in the maps of the entry (or the
    image), then in those of each stage.
    """
    exact = exact_after(architecture.size, reads, element)
    pooling = None if all(exact) else _pooling_of(architecture, reads)
    return exact if pooling is None else tuple(map(max, exact, _exact_in(pooling, element)))


def unchanged_anywhere(
    architecture: Architecture, reads: Program, built: Group, element: Element
) -> bool:
    """Whether moving the image by `element`, built in or not, leaves the logits exactly unchanged,
    as windows and pooled fields show it; `built` is what is built in from end to end.
    """
    if unchanged(architecture.size, reads, built, architecture.head, element):
        return True
    pooling = _pooling_of(architecture, reads)
    return pooling is not None and _unchanged_in(pooling, architecture.head, element)


def any_pooled(architecture: Architecture) -> bool:
    """Whether some stage pools all of its fields."""
    return any(stage.invariant_fields == stage.fields for stage in architecture.stages)


def _pooling_of(architecture: Architecture, reads: Program) -> PooledReading | None:
    """None where no stage pools all of its fields, or where there is too much to follow."""
    if not any_pooled(architecture) or not few_reads(architecture.size, reads):
        return None
    pooled = (False, *(stage.invariant_fields == stage.fields for stage in architecture.stages))
    groups = architecture.stages[0].group, *architecture.certain_groups
    return PooledReading(architecture.size, reads, tuple(group.grid for group in groups), pooled)


@lru_cache(maxsize=4096)
def _exact_in(pooling: PooledReading, element: Element) -> tuple[bool, ...]:
    symbols = SymbolicMaps(pooling.size[0] * pooling.size[1])
    upright = _channels(symbols, pooling, IDENTITY)
    after = _channels(symbols, pooling, element)
    return tuple(
        element in maps and maps[element] == transformed_maps(before[IDENTITY], element)
        for before, maps in zip(upright, after)
    )


@lru_cache(maxsize=4096)
def _unchanged_in(pooling: PooledReading, head: str, element: Element) -> bool:
    symbols = SymbolicMaps(pooling.size[0] * pooling.size[1])
    before, after = (
        [symbols.total(maps) for maps in list(_channels(symbols, pooling, move))[-1].values()]
        for move in (IDENTITY, element)
    )
    return totals_agree(head, before, after)


def _channels(
    symbols: SymbolicMaps, pooling: PooledReading, move: Element
) -> Iterator[dict[Element, SymbolicMap]]:
    """After the entry, then after each stage: the map of each channel of a field, by the element
    that turns its kernels, of the image moved by `move`.
    """
    maps = dict.fromkeys(pooling.groups[0].elements, transformed_maps(image(*pooling.size), move))
    number = 0
    for stage, group, pools in zip(pooling.reads, pooling.groups, pooling.pooled):
        maps = {g: symbols.follow(stage, maps[g], g, number) for g in group.elements}
        number += len(stage)
        if pools:
            maps = dict.fromkeys(maps, symbols.pooled(number, list(maps.values())))
        yield maps


def built_in(architecture: Architecture, reads: Program) -> tuple[Group, ...]:
    """For each stage, the group under which its maps are exact by construction, windows apart:
    what the relaxations whose weights they depend on leave of its group.
    """
    if not architecture.softened or not sees_padding_alone(architecture.size, reads):
        return architecture.certain_groups
    of_stages = tuple((stage.group, stage.certain_group) for stage in architecture.stages)
    return _built_in(architecture.size, reads, of_stages)


@lru_cache(maxsize=4096)
def _built_in(
    size: Size, reads: Program, of_stages: tuple[tuple[Group, Group], ...]
) -> tuple[Group, ...]:
    largest = of_stages[0][0]
    kept = [largest] * (1 + len(reads[0]))
    for stage, (_, own) in zip(reads[1:], of_stages):
        kept += [own] * len(stage)
    symbols = _CertainMaps(size[0] * size[1], kept)
    maps, number, groups = symbols.follow(reads[0], image(*size)), len(reads[0]), []
    for stage, (group, _) in zip(reads[1:], of_stages):
        maps = symbols.follow(stage, maps, number=number)
        number += len(stage)
        terms = set(chain.from_iterable(maps))
        groups.append(reduce(and_, (symbols.certain[term] for term in terms), group))
    return tuple(groups)


class _CertainMaps(SymbolicMaps):
    """Symbolic maps that know of each term under which group it is exact whatever the weights of
    relaxed layers are.
    """

    def __init__(self, pixels: int, kept: list[Group]) -> None:
        super().__init__(pixels)
        self.kept = kept  # by layer, counted from 1
        self.certain = [kept[0]] * (1 + pixels)

    def _term(self, key: tuple, parts: Iterable[int]) -> int:
        parts = tuple(parts)
        term = super()._term(key, parts)
        if term == len(self.certain):
            # a layer that sees padding alone gives 0 whatever its weights are
            trained = isinstance(key[0], int) and any(parts)
            own = self.kept[abs(key[0])] if trained else self.kept[0]
            self.certain.append(reduce(and_, (self.certain[part] for part in parts), own))
        return term
