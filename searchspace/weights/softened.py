"""What becomes of a trained architecture without training: its weights softened towards
equivariance, its logits averaged over an orbit, its mixed layers held to one group of their chain
(`trainers.networks.soft.expressing`).

    >>> a = Architecture.parse("28px: 8k3, 8k3 max2/2 head=none")
    >>> print(Softened.parse("softness 0 of C4").architecture(a))
    28px: 2k3@C4, 2k3 max2/2 head=group_mean
    >>> print(Softened.parse("orbit average of C4").architecture(a))
    28px: 8k3, 8k3 max2/2 head=none orbit=C4
    >>> mixed = Architecture.parse("28px: 4k3@D4|C4|C1, 4k3 max2/2 head=group_mean")
    >>> print(Softened.parse("held to D4, C4").architecture(mixed))
    28px: 4k3@D4, 8k3@C4 max2/2 head=group_mean
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from searchspace.architecture import Architecture
from searchspace.function.heads import BLOCK_MAX, block_group
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage

SoftenedKind = Literal["softness", "orbit", "held"]
SOFTENED_FORM = (
    "write 'softness 0.25 of C4', 'orbit average of C4' or 'held to C4, C1' (a group a stage)"
)


@dataclass(frozen=True)
class Softened:
    """One way in which a trained network becomes another; its text parses back."""

    kind: SoftenedKind
    # of the softness or of the orbit; of mixed layers that are held, one for each stage
    groups: tuple[Group, ...]
    softness: float = 0.0  # 0 (strict) to 1 (as trained)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.softness) and 0 <= self.softness <= 1):
            raise ValueError(
                f"softness is {self.softness:g}; it must be from 0 (the constraint) to 1 (the "
                "network as it was trained)"
            )

    @classmethod
    def parse(cls, text: str) -> Softened:
        """What a text such as `softness 0.25 of C4` means. Raises ValueError."""
        if match := re.fullmatch(r"softness (\S+) of (\S+)", text):
            return cls("softness", (Group.parse(match[2]),), float(match[1]))
        if match := re.fullmatch(r"orbit average of (\S+)", text):
            return cls("orbit", (Group.parse(match[1]),))
        if match := re.fullmatch(r"held to (.+)", text):
            return cls("held", tuple(map(Group.parse, match[1].split(", "))))
        raise ValueError(
            f"'{text}' does not say how a trained network was softened; {SOFTENED_FORM}"
        )

    def __str__(self) -> str:
        names = ", ".join(map(str, self.groups))
        if self.kind == "softness":
            return f"softness {self.softness:g} of {names}"
        return f"orbit average of {names}" if self.kind == "orbit" else f"held to {names}"

    def architecture(self, trained: Architecture) -> Architecture:
        """The architecture of what a network of `trained` becomes. Raises ValueError where there
        is none.
        """
        if self.kind == "orbit":
            if trained.orbit != TRIVIAL:
                raise ValueError(f"'{trained}' averages over an orbit already")
            return replace(trained, orbit=self.groups[0])
        if self.kind == "held":
            return held(trained, self.groups)
        if self.softness == 1:
            return trained
        strict = _strict(trained, self.groups[0]) if self.softness == 0 else None
        return _free(trained) if strict is None else strict


def held(trained: Architecture, groups: tuple[Group, ...]) -> Architecture:
    """The architecture whose mixed layers are held to one group of their chain each, with the
    channels of before. Raises ValueError where that is none of the chain, or no head can pool it.
    """
    if len(groups) != len(trained.stages):
        raise ValueError(
            f"{len(groups)} groups do not name one for each of {len(trained.stages)} stages"
        )
    if len(trained.lasts) > 1:
        raise ValueError("mixed layers of streams are not held; soften a network without streams")
    stages = []
    for number, (stage, group) in enumerate(zip(trained.stages, groups), start=1):
        if stage.relaxation is not None and stage.relaxation.kind != "mixed":
            raise ValueError(
                f"stage {number} ({stage.annotation}) is not a mixed layer, and what relaxes it "
                "would be lost; hold networks whose only relaxations are mixed layers"
            )
        if not group <= stage.group:
            raise ValueError(
                f"stage {number} ({stage.annotation}) cannot be held to {group}; choose one of "
                f"{', '.join(map(str, stage.group.subgroups()))}"
            )
        fields = stage.channels // group.order
        stages.append(replace(stage, group=group, fields=fields, relaxation=None))
    head, last = trained.head, trained.stages[-1].group
    if head == "group_max" and groups[-1] != last:
        if groups[-1] != TRIVIAL:
            raise ValueError(
                f"the head takes the maximum over the fields of {last}, which a head over "
                f"{groups[-1]} cannot; take head=group_mean for a network whose last layer is "
                "to be held to another group"
            )
        head = f"{BLOCK_MAX}{last}"
    return replace(trained, stages=tuple(stages), head=head)


def meet(groups: list[Group]) -> tuple[Group, ...]:
    """Groups of stages as a network can have them: what is broken once is not built again."""
    common: list[Group] = []
    for group in groups:
        common.append(group & common[-1] if common else group)
    return tuple(common)


def _strict(trained: Architecture, group: Group) -> Architecture | None:
    """The architecture of weights that are equivariant under `group`; None where fields of a larger
    group, or of another head's blocks, are in the way.
    """
    fields = {*(s.group for s in trained.stages), block_group(trained.head) or TRIVIAL}
    if fields - {group, TRIVIAL} or len(trained.lasts) > 1:
        return None
    if all(s.group == group and s.relaxation is None for s in trained.stages):
        return trained
    stages = tuple(
        replace(s, relaxation=None, group=group, fields=s.channels // group.order)
        for s in trained.stages
    )
    unpooled = trained.head == "none" or (
        trained.stages[-1].group == TRIVIAL and block_group(trained.head) is None
    )
    pooled = "group_max" if block_group(trained.head) else trained.head
    return replace(
        trained, stages=stages, head="group_mean" if unpooled else pooled, filters="free"
    )


def _free(trained: Architecture) -> Architecture:
    """The architecture of the same channels without groups. Raises ValueError where channels are
    pooled in a way that it lacks.
    """
    if any(stage.invariant_fields for stage in trained.stages) or len(trained.lasts) > 1:
        raise ValueError(
            "a softened network has no architecture of its own where fields are pooled in stages, "
            "or streams are joined"
        )
    last, head = trained.stages[-1].group, trained.head
    if last != TRIVIAL and head == "group_max":
        head = f"{BLOCK_MAX}{last}"
    stages = tuple(_without_group(stage) for stage in trained.stages)
    return replace(trained, stages=stages, head=head, filters="free")


def _without_group(stage: Stage) -> Stage:
    return replace(stage, group=TRIVIAL, fields=stage.channels, relaxation=None)
