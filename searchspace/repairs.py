"""What to change so that an architecture becomes exact, or on purpose ceases to be: nearby sizes
and layouts with their price.

Every proposal is judged by `verdict` before it is returned. Only shifts can be repaired: an element
that is off the pixel grid or not built into the group stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import Verdict, exact_sizes, verdict
from searchspace.geometry import size_text
from searchspace.grammar import format_stage
from searchspace.groups import Element, Group, isomorphic_name, largest_subgroup
from searchspace.layers import Stage
from searchspace.subsampling import Subsampling, pools

ProposalKind = Literal["size", "entry", "layout"]
BEAM = 10  # partly repaired layouts kept after each stage
MOST_CHANGES = 12  # stages changed in one proposal


@dataclass(frozen=True)
class Proposal:
    """One neighbour of an architecture, with what it changes, keeps and costs."""

    # size: other images; entry: the images resized or cropped first; layout: at the same size
    kind: ProposalKind
    architecture: Architecture
    changes: tuple[str, ...]  # such as "stage 2: max2/2 -> max3/2"
    surviving: tuple[Element, ...]  # of the group whose elements count
    gained: tuple[Element, ...]  # exact here, not before
    freed: tuple[Element, ...]  # exact before, not here
    macs: int  # of one image
    macs_change: float  # relative: 0.1 is a tenth more
    # of relaxed stages: kept in part, exact were nothing relaxed
    near: tuple[Element, ...] = ()

    @property
    def surviving_group(self) -> str:
        """The name of the largest group of surviving elements, up to the direction of a mirror
        axis.
        """
        return isomorphic_name(largest_subgroup(self.surviving))

    def __str__(self) -> str:
        work = f"MACs {self.macs_change:+.0%}" if abs(self.macs_change) >= 0.005 else "same MACs"
        near = largest_subgroup((*self.surviving, *self.near))
        gain = f"keeps {self.surviving_group}"
        gain += f", near under {isomorphic_name(near)}" if self.near else ""
        return f"{'; '.join(self.changes)}  ({work}, {gain})"


def repair_sizes(
    architecture: Architecture,
    group: Group | None = None,
    *,
    channels: int = 1,
    classes: int = 10,
    most: int = 2,
) -> tuple[Proposal, ...]:
    """Exact sizes next to the present one, at most `most` on each side, nearest first: as other
    images, then as resized or cropped ones.

    Empty if nothing is shifted. `group`: whose elements count; None: all that are built in.
    """
    original = _Original.of(architecture, group, channels, classes)
    if original.verdict.unshifted:
        return ()
    sizes = exact_sizes(architecture, most=most)
    proposals = [original.resized(architecture.with_size(*size)) for size in sizes]
    inner = _without_entry(architecture)
    for height, width in exact_sizes(inner, most=most):
        if height != width:
            continue
        for kind in ("resize", "crop"):
            entry = Subsampling(kind, output=height)
            changed = _try(architecture, entry=entry)
            if changed is not None and entry != architecture.entry:
                proposals.append(original.changed("entry", changed))
    return tuple(p for p in proposals if verdict(p.architecture, group).unshifted)


def repair_layouts(
    architecture: Architecture,
    group: Group | None = None,
    *,
    channels: int = 1,
    classes: int = 10,
    most: int = 5,
) -> tuple[Proposal, ...]:
    """Exact layouts at the same size, those of nearly the same MACs first, then those of few
    changes; at most `most`.

    The first shifted stage is replaced by each of its alternatives, then the next, keeping the
    cheapest few at each step. Empty if nothing is shifted, or if no layout nearby is exact.
    """
    original = _Original.of(architecture, group, channels, classes)
    if original.verdict.unshifted:
        return ()
    partial, exact, seen = [architecture], [], {architecture}
    for _ in range(MOST_CHANGES):
        grown = []
        for current in partial:
            stage = _first_shift(current, group)
            if stage is None:
                continue
            for candidate in _alternatives(current, stage):
                if candidate in seen:
                    continue
                seen.add(candidate)
                next_stage = _first_shift(candidate, group)
                if next_stage is None:
                    exact.append(candidate)
                elif next_stage > stage:
                    grown.append(candidate)
        if len(exact) >= most or not grown:
            break
        partial = sorted(grown, key=original.price)[:BEAM]
    cheapest = sorted(exact, key=original.price)[:most]
    proposals = (original.changed("layout", candidate) for candidate in cheapest)
    return tuple(p for p in proposals if verdict(p.architecture, group).unshifted)


def breakings(
    architecture: Architecture,
    group: Group | None = None,
    *,
    channels: int = 1,
    classes: int = 10,
    most: int = 6,
) -> tuple[Proposal, ...]:
    """Sizes and layouts nearby that break an exact network on purpose, each with the elements that
    it frees; at most `most`.

    The sizes of one pixel more and less come first, then layouts, those that leave a larger group
    and cost nearly the same first. Images that are no longer square are offered where the elements
    that stay are a group, such as one mirror of two. Empty if nothing survives but the identity.
    """
    original = _Original.of(architecture, group, channels, classes)
    layouts = [
        original.changed("layout", changed)
        for number, stage in enumerate(architecture.stages, start=1)
        if stage.subsampling is not None or stage.stride > 1
        for changed in _alternatives(architecture, number)
    ]
    layouts = sorted(
        (p for p in layouts if p.freed),
        key=lambda p: (-len(p.surviving), len(p.changes), abs(p.macs_change)),
    )
    return (*_breaking_sizes(original)[: most - 2], *layouts)[:most]


@dataclass(frozen=True)
class _Original:
    """The architecture that is to change, with what its neighbours are compared to."""

    verdict: Verdict
    channels: int
    classes: int
    macs: int

    @classmethod
    def of(
        cls, architecture: Architecture, group: Group | None, channels: int, classes: int
    ) -> _Original:
        """The architecture judged under `group`, on images of `channels` and `classes`."""
        macs = cost(architecture, channels, classes).macs
        return cls(verdict(architecture, group), channels, classes, macs)

    @property
    def architecture(self) -> Architecture:
        """The architecture itself."""
        return self.verdict.architecture

    def resized(self, changed: Architecture) -> Proposal:
        """The proposal of other images."""
        sizes = (size_text(a.size) for a in (self.architecture, changed))
        return self._proposal("size", changed, (" px -> ".join(sizes) + " px",))

    def changed(self, kind: ProposalKind, changed: Architecture) -> Proposal:
        """The proposal of another entry or layout."""
        return self._proposal(kind, changed, _changes(self.architecture, changed))

    def _proposal(
        self, kind: ProposalKind, changed: Architecture, changes: tuple[str, ...]
    ) -> Proposal:
        before = self.verdict.surviving
        ruling = verdict(changed, self.verdict.group)
        after = ruling.surviving
        macs = cost(changed, self.channels, self.classes).macs
        gained = tuple(e for e in after if e not in before)
        freed = tuple(e for e in before if e not in after)
        change = macs / self.macs - 1
        return Proposal(kind, changed, changes, after, gained, freed, macs, change, ruling.near)

    def price(self, candidate: Architecture) -> tuple[int, int, int, float]:
        """What sorts layouts: nearly the same work first, in steps of a quarter; then few stages
        changed, few kinds of steps, and the work itself.
        """
        work = abs(cost(candidate, self.channels, self.classes).macs / self.macs - 1)
        steps = {str(stage.subsampling) for stage in candidate.stages}
        return round(4 * work), len(_changes(self.architecture, candidate)), len(steps), work


def _breaking_sizes(original: _Original) -> list[Proposal]:
    """One pixel more or less on both axes, or more on one axis where the rest is a group."""
    height, width = original.architecture.size
    proposals = []
    for taller, wider in ((1, 1), (-1, -1), (0, 1), (1, 0)):
        changed = _try(original.architecture, size=(height + taller, width + wider))
        if changed is None:
            continue
        proposal = original.resized(changed)
        rest = len(proposal.surviving)
        if proposal.freed and (
            taller == wider or 1 < rest == len(largest_subgroup(proposal.surviving))
        ):
            proposals.append(proposal)
    return proposals


def _first_shift(architecture: Architecture, group: Group | None) -> int | None:
    """The stage (0: the entry) whose window is the first to lie shifted on an axis that an element
    of `group` reads backwards; or None.
    """
    elements = [
        e for e in (group or architecture.group).elements if e.on_grid and e in architecture.group
    ]
    axes = [axis for axis in (0, 1) if any(e.reversed_axes[axis] for e in elements)]
    return next(
        (
            layer.stage
            for layer in architecture.layers
            if any(layer.remainder[axis] for axis in axes)
        ),
        None,
    )


def _try(architecture: Architecture, **changes: object) -> Architecture | None:
    try:
        # the keyword arguments of one caller each
        return replace(architecture, **changes)  # pyright: ignore[reportArgumentType]
    except ValueError:  # does not fit, or cannot be built
        return None


def _without_entry(architecture: Architecture) -> Architecture:
    """The part behind the entry, as it lies in `architecture`."""
    if architecture.entry is None:
        return architecture
    return replace(architecture, size=architecture.layers[0].size_out, entry=None)


def _alternatives(architecture: Architecture, number: int) -> Iterator[Architecture]:
    """Everything that stage `number`, or the entry (0), could be instead, with nearly the same
    sizes.
    """
    if number == 0:
        assert architecture.entry is not None
        yield from filter(
            None, (_try(architecture, entry=entry) for entry in architecture.entry.neighbours())
        )
        return
    stages = architecture.stages
    for before, stage in _other_stages(stages, number):
        changed = _try(
            architecture, stages=stages[: max(number - 2, 0)] + before + (stage,) + stages[number:]
        )
        if changed is not None and all(
            abs(a - b) <= 1
            for a, b in zip(changed.sizes[number - 1], architecture.sizes[number - 1])
        ):
            yield changed


def _changes(old: Architecture, new: Architecture) -> tuple[str, ...]:
    """What differs, as `stage 2: 10k3 max2/2 -> 10k3 max3/2`."""
    entry = (
        (f"entry: {old.entry or 'none'} -> {new.entry or 'none'}",)
        if old.entry != new.entry
        else ()
    )
    return entry + tuple(
        f"stage {n}: {format_stage(a, a)} -> {format_stage(b, b)}"
        for n, (a, b) in enumerate(zip(old.stages, new.stages), start=1)
        if a != b
    )


def _other_stages(
    stages: tuple[Stage, ...], number: int
) -> Iterator[tuple[tuple[Stage, ...], Stage]]:
    """(the stage before, or nothing; the stage) in every other form."""
    stage, step = stages[number - 1], stages[number - 1].subsampling
    before = stages[max(number - 2, 0) : number - 1]
    if step is not None:
        for other in step.neighbours():
            yield before, replace(stage, subsampling=other)
    if stage.padding[0] != stage.padding[1]:
        for pad in stage.padding:
            yield before, replace(stage, padding=(pad, pad))
    if stage.stride == 1:
        return
    if not stage.residual:
        for kernel in (stage.kernel - 1, stage.kernel + 1):
            for pad in {(kernel - 1) // 2, kernel // 2} if kernel >= stage.stride else ():
                yield before, replace(stage, kernel=kernel, padding=(stage.dilation * pad,) * 2)
        for pad in (stage.padding[0] - 1, stage.padding[0] + 1):
            if 0 <= pad <= stage.reach:
                yield before, replace(stage, padding=(pad, pad))
    # the stride moves into a pool behind the stage
    if step is None:
        for other in pools(stage.stride):
            yield before, replace(stage, stride=1, subsampling=other)
    # or into one in front of it, which costs no more than the stride
    if before and before[0].subsampling is None:
        for other in pools(stage.stride):
            yield (replace(before[0], subsampling=other),), replace(stage, stride=1)
