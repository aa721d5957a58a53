"""Variants of a candidate that differ from it in one thing, and in how many things two candidates
differ. Options are changed in the text form, so that every option of the grammar can be.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace

from searchspace.architecture import Architecture
from searchspace.cost import Match, cost, widened
from searchspace.geometry import counted, size_text
from searchspace.grammar import format_stage
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage
from searchspace.recipe import Candidate
from searchspace.subsampling import Subsampling

OPTION = re.compile(r"\s([a-z_]+)=(\S+)")
# differ of necessity where one of the networks has no group
OF_GROUPS = ("head", "filters")


def options_of(candidate: Candidate) -> dict[str, str]:
    """The options in a candidate's text form, such as `{"loss": "latent:1"}`."""
    return dict(OPTION.findall(str(candidate)))


def with_options(candidate: Candidate, **options: str | None) -> Candidate:
    """The candidate with other options; None takes one away. Raises ValueError for an option or a
    value that the grammar does not have.
    """
    changed = {**options_of(candidate), **options}
    bare = OPTION.sub("", str(candidate))
    words = [f"{name}={value}" for name, value in changed.items() if value is not None]
    return Candidate.parse(" ".join([bare, *words]))


def with_architecture(candidate: Candidate, architecture: Architecture) -> Candidate:
    """The candidate with another architecture under the same recipe."""
    return replace(candidate, architecture=architecture)


def matched(
    architecture: Architecture, match: Match, to: int, channels: int, classes: int
) -> Architecture:
    """`architecture` with its fields scaled until its cost is closest to `to`. Raises ValueError
    where it misses by more than a tenth: the comparison would not be fair.
    """
    wide = widened(architecture, match, to, channels, classes)
    if match != "fields":
        share = getattr(cost(wide, channels, classes), match) / to
        if not 0.9 <= share <= 1 / 0.9:
            raise ValueError(f"no width comes closer to {to:,} {match} than {share:.2f} times")
    return wide


def with_group(architecture: Architecture, group: Group) -> Architecture:
    """`architecture` with all stages under one group, a head and filters that suit it."""
    stages = tuple(replace(stage, group=group, relaxation=None) for stage in architecture.stages)
    head = "group_max" if TRIVIAL in (group, architecture.group) else architecture.head
    filters = architecture.filters if group.on_grid else "basis"
    if group == TRIVIAL:
        filters = "free"
    return replace(architecture, stages=stages, head=head, filters=filters)


def with_layout(architecture: Architecture, layout: str) -> Architecture:
    """`architecture` with the steps of a layout in place of its own. Raises ValueError where their
    number does not fit.
    """
    steps = [Subsampling.parse(step.strip()) for step in layout.split("|")]
    places = [n for n, stage in enumerate(architecture.stages) if stage.subsampling is not None]
    if len(steps) not in (1, len(places)):
        raise ValueError(
            f"layout {layout} has {counted(len(steps), 'step')} for {counted(len(places), 'place')}"
        )
    stages = list(architecture.stages)
    for number, place in enumerate(places):
        stages[place] = replace(stages[place], subsampling=steps[min(number, len(steps) - 1)])
    return replace(architecture, stages=tuple(stages))


def wrong_group(group: Group) -> Group | None:
    """Another group of the same order: rotations for a group with mirrors (C4 for D2), mirrors for
    one without (D2 for C4, D1 for C2); None for groups of odd order.
    """
    if group.mirror:
        return Group(2 * group.rotations)
    return Group(group.rotations // 2, True) if group.rotations % 2 == 0 else None


def with_wrong_groups(architecture: Architecture) -> Architecture:
    """`architecture` under another group of the same order, stages with a smaller group under a
    subgroup of the same order as theirs. Raises ValueError where there is none.
    """
    first = wrong_group(architecture.stages[0].group)
    if first is None:
        raise ValueError(f"{architecture.stages[0].group} has no other group of its order")
    previous, stages = first, list[Stage]()
    for stage in architecture.stages:
        same = [g for g in previous.subgroups() if g.order == stage.group.order]
        other = [g for g in same if g != stage.group]
        if not same:
            raise ValueError(f"{previous} has no subgroup of order {stage.group.order}")
        previous = (other or same)[0]
        stages.append(replace(stage, group=previous))
    filters = architecture.filters if first.on_grid else "basis"
    return replace(architecture, stages=tuple(stages), filters=filters)


def factors(candidate: Candidate, *, widths: bool) -> dict[str, str]:
    """What a candidate is made of, by name, as text: two candidates compare in one thing if one of
    these differs. `widths`: fields count; where a study matches them they follow from the rest.
    """
    architecture = candidate.architecture.canonical(keep_repeats=True)
    stages = architecture.stages
    plain = [
        replace(
            stage,
            group=TRIVIAL,
            relaxation=None,
            subsampling=None,
            **({} if widths else {"fields": 1}),
        )
        for stage in stages
    ]
    values = {
        "group": groups_text(architecture),
        "input size": f"{size_text(architecture.size)} px",
        "layout": ", ".join(str(s.subsampling) for s in stages if s.subsampling) or "none",
        "stages": ", ".join(format_stage(stage) for stage in plain),
        "places": " ".join(str(n) for n, s in enumerate(stages, 1) if s.subsampling),
    }
    if architecture.entry is not None:
        values["entry"] = str(architecture.entry)
    options = options_of(with_architecture(candidate, architecture))
    return {**values, **{name.replace("_", " "): value for name, value in options.items()}}


def groups_text(architecture: Architecture) -> str:
    """The groups of the stages and how they are relaxed: `D4`, `D4, C1 from stage 4`, `C4+C1`."""
    parts, previous = [], None
    for number, stage in enumerate(architecture.stages, start=1):
        if stage.annotation != previous:
            parts.append(stage.annotation + (f" from stage {number}" if previous else ""))
            previous = stage.annotation
    return ", ".join(parts)


def differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """The names of the factors in which two candidates differ, without those that follow from a
    group that one of them lacks.
    """
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    with contextlib.suppress(KeyError):
        ends = [factor["group"].rsplit(", ", 1)[-1].split(" ")[0] for factor in (a, b)]
        if "group" in names and "C1" in ends:
            names = [name for name in names if name not in OF_GROUPS]
    return names
