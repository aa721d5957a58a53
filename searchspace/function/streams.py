"""Streams: stage lists side by side that read the same image, each with its own groups, joined
before the linear layer.

The features of all streams stand in a row, so that an element survives in the network, or leaves
its logits as they are, iff it does in every stream; each stream alone keeps what it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, reduce
from math import lcm
from operator import and_
from typing import TYPE_CHECKING

from searchspace.exactness import Break, Verdict, verdict
from searchspace.groups import MAX_ROTATIONS, TRIVIAL, Element, Group

if TYPE_CHECKING:
    from searchspace.layers import Stage


MOST_STREAMS = 16  # of a study file's space


class JoinedVerdict(Verdict):
    """The verdict on an architecture with streams: what all of them keep."""

    @cached_property
    def streams(self) -> tuple[Verdict, ...]:
        """The verdict on each stream alone, without the orbit average."""
        return tuple(verdict(stream, self.group) for stream in self.architecture.streams)

    @property
    def surviving(self) -> tuple[Element, ...]:
        """The elements that survive in every stream; of an orbit average those that leave the
        logits unchanged.
        """
        if self.architecture.orbit != TRIVIAL:
            return self.invariant
        return self._in_all([stream.surviving for stream in self.streams])

    @cached_property
    def invariant(self) -> tuple[Element, ...]:
        """The elements that leave the features of every stream, so the logits, unchanged."""
        if self.architecture.orbit != TRIVIAL:
            return self._averaged
        return self._in_all([stream.invariant for stream in self.streams])

    @property
    def _averaged(self) -> tuple[Element, ...]:
        # The linear layer adds up what it reads of each stream, so that the average of the logits
        # is the sum of the streams' averages, each invariant under elements of its own.
        orbit = self.architecture.orbit
        alone = [replace(stream, orbit=orbit) for stream in self.architecture.streams]
        return self._in_all([verdict(stream, self.group).invariant for stream in alone])

    @property
    def unshifted(self) -> bool:
        """True if no shifted window is left to repair in any stream."""
        if self.architecture.orbit != TRIVIAL and self.grid_exact:
            return True
        return all(stream.unshifted for stream in self.streams)

    @cached_property
    def after_stages(self) -> tuple[tuple[Element, ...], ...]:
        """The elements that survive in the maps of the entry, for any stream, then of each stage of
        each stream.
        """
        left = [stream.after_stages for stream in self.streams]
        entered = {element for stages in left for element in stages[0]}
        stages = [elements for stages in left for elements in stages[1:]]
        return tuple(e for e in self.group.elements if e in entered), *stages

    def _places(self, element: Element) -> tuple[Break, ...]:
        places: list[Break] = []
        before = 0
        for stream in self.streams:
            places += (
                replace(b, stage=b.stage + before) if b.stage else b for b in stream.breaks(element)
            )
            before += len(stream.architecture.stages)
        return tuple(dict.fromkeys(places))

    def _in_all(self, survivors: list[tuple[Element, ...]]) -> tuple[Element, ...]:
        return tuple(e for e in self.group.elements if all(e in elements for elements in survivors))


def joined_group(groups: list[Group]) -> Group:
    """The smallest group that holds all of `groups`; what they share, where that has too many
    rotations.
    """
    rotations = reduce(lcm, (group.rotations for group in groups))
    if rotations > MAX_ROTATIONS:
        return reduce(and_, groups)
    return Group(rotations, any(group.mirror for group in groups))


def parse_streams(text: str) -> tuple[Group, ...]:
    """The groups of streams as a study file names them: `C4 & D1`; none for `none`. Raises
    ValueError for fewer than two.
    """
    if text == "none":
        return ()
    names = [name.strip() for name in text.split("&")]
    if len(names) < 2 or not all(names):
        raise ValueError(
            f"streams is '{text}', which joins nothing; write two groups or more, such as "
            "'C4 & D1', or none"
        )
    if len(names) > MOST_STREAMS:
        raise ValueError(
            f"streams has {len(names)} groups; it must have at most {MOST_STREAMS}, among which "
            "the fields are shared out: leave some out"
        )
    return tuple(Group.parse(name) for name in names)


def beside_streams(stages: tuple[Stage, ...], groups: tuple[Group, ...]) -> tuple[Stage, ...]:
    """A stream of these stages for each of `groups`, their fields shared out evenly."""
    return tuple(
        replace(
            stage,
            fields=max(1, round(stage.fields / len(groups))),
            group=group,
            stream=place == 0 and number > 0,
        )
        for number, group in enumerate(groups)
        for place, stage in enumerate(stages)
    )


def in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with their streams in the order of their texts: streams stand side by side, so
    that any order of them is the same network.
    """
    from searchspace.grammar import format_stage

    streams: list[list[Stage]] = []
    for number, stage in enumerate(stages):
        if stage.stream or not number:
            streams.append([])
        streams[-1].append(replace(stage, stream=False))
    if len(streams) == 1:
        return tuple(stages)
    streams.sort(key=lambda stream: [format_stage(stage) for stage in stream])
    return tuple(
        replace(stage, stream=place == 0 and number > 0)
        for number, stream in enumerate(streams)
        for place, stage in enumerate(stream)
    )
