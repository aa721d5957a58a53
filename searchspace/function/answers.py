"""What `check` says, line by line, of what stands around and beside the stages."""

from __future__ import annotations

from collections.abc import Iterable

from searchspace.architecture import Architecture
from searchspace.exactness import Verdict, verdict
from searchspace.groups import Element


def own_verdicts(architecture: Architecture) -> list[Verdict]:
    """The verdict on each stream for its own group; none where there is one stream."""
    streams = architecture.streams
    return [verdict(stream) for stream in streams] if len(streams) > 1 else []


def streams_lines(architecture: Architecture) -> list[str]:
    """A line on each stream, where there are several: it keeps what its own group keeps."""
    lines, first = [], 1
    for number, own in enumerate(own_verdicts(architecture), start=1):
        last = first + len(own.architecture.stages) - 1
        keeps = (
            f"exact under its own {own.group}"
            if own.exact
            else f"of its own {own.group} keeps {_named(own.surviving)}"
        )
        lines.append(
            f"Stream {number} (stages {first} to {last}): {keeps}; its features are "
            f"invariant under {_named(own.invariant)}."
        )
        first = last + 1
    return lines


def pooled_lines(architecture: Architecture) -> list[str]:
    """A line on the invariant fields, where there are any."""
    pooled = [
        f"{stage.invariant_fields} of {stage.fields} in stage {number}"
        for number, stage in enumerate(architecture.stages, start=1)
        if stage.invariant_fields
    ]
    if not pooled:
        return []
    return [
        f"Invariant fields, pooled over their group: {', '.join(pooled)}; the others stay "
        "equivariant."
    ]


def averaged_line(ruling: Verdict) -> str:
    """What is exact of an orbit average, of which the logits are all that is, and its price."""
    orbit, group = ruling.architecture.orbit, ruling.group
    price = f"each image runs {orbit.order} times"
    if ruling.exact:
        return (
            f"Exact under {group}: the mean over the orbit {orbit} leaves the logits "
            f"unchanged; {price}."
        )
    return (
        f"Not exact under {group}: of {group.order} elements, {len(ruling.surviving)} leave the "
        f"logits of the orbit average over {orbit} unchanged ({_named(ruling.surviving)}); {price}."
    )


def _named(elements: Iterable[Element]) -> str:
    return " ".join(map(str, elements))
