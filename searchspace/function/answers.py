"""What `check` says, line by line, of what stands around and beside the stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from searchspace.architecture import Architecture
from searchspace.exactness import Verdict, verdict
from searchspace.geometry import Size, size_text
from searchspace.grammar import parse_stages
from searchspace.groups import IDENTITY, TRIVIAL, Element


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


def idle_parts(text: str, architecture: Architecture) -> tuple[str, ...]:
    """What the text of an architecture says without effect, such as `i0.5 in stage 1` of a stage
    that has no group.
    """
    simplest = architecture.canonical(keep_repeats=True, keep_order=True)
    stages, options = parse_stages(text.partition(":")[2])
    parts = [
        f"{part} in stage {number}"
        for number, (said, does) in enumerate(zip(stages, simplest.stages), start=1)
        for part, idle in (
            (f"d{said.dilation}", said.dilation != does.dilation),
            (said.padding_mode, said.padding_mode != does.padding_mode),
            (f"i{said.invariant:g}", said.invariant and not does.invariant),
            (str(said.subsampling), said.subsampling and not does.subsampling),
        )
        if idle
    ]
    if architecture.entry and not simplest.entry:
        parts.insert(0, str(architecture.entry))
    if simplest.head == "none" != options.get("head", "none"):
        parts.append(f"head={options['head']}")
    return tuple(parts)


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


def near_lines(ruling: Verdict) -> list[str]:
    """A line on the elements that relaxed stages keep in part, where there are any; an orbit
    average needs none of them.
    """
    if not ruling.near or ruling.architecture.orbit != TRIVIAL:
        return []
    return [
        f"Near under {_named(ruling.near)}: exact were nothing relaxed; the distance of the "
        "weights is recorded after training."
    ]


def invariant_lines(ruling: Verdict) -> list[str]:
    """A line on the elements that leave the logits unchanged, where those are not the surviving
    ones; never of an orbit average.
    """
    if set(ruling.invariant) == set(ruling.surviving):
        return []
    alone = ruling.invariant == (IDENTITY,)
    unpooled = ruling.architecture.head == "none"
    return [
        "The logits are invariant under "
        + ("only the identity" if alone else _named(ruling.invariant))
        + (": the head does not pool over the group." if unpooled else ".")
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


def relaxed_away(architecture: Architecture) -> bool:
    """Whether elements of the network's group are near at best, at any size: relaxed stages keep
    them in part.
    """
    return architecture.group != architecture.certain_group


def sizes_lines(architecture: Architecture, sizes: Sequence[Size]) -> list[str]:
    """A line on the input sizes nearby that shift no window, which are exact unless stages are
    relaxed; none for an orbit average, which needs none.
    """
    if not sizes or architecture.orbit != TRIVIAL:
        return []
    relaxed = relaxed_away(architecture)
    what = "Input sizes that shift no window" if relaxed else "Exact input sizes"
    return [f"{what} nearby: {', '.join(map(size_text, sizes))} px."]


def repairs_heading(architecture: Architecture) -> str:
    """What stands above the proposals that shift no window."""
    if relaxed_away(architecture):
        return "To shift no window, which makes no relaxed stage exact:"
    return "To make it exact:"
