"""Which elements of a group a network respects exactly, decided before it is trained.

An element maps feature maps to feature maps exactly iff every stage's group contains it, it maps
the pixel grid onto itself, and no window is shifted on an axis that it reads backwards ("Using and
Abusing Equivariance", arXiv:2308.11316; tested against float64 measurements element by element in
`tests/test_exactness_proof.py`). Shifts that undo each other, or that no feature sees, break
nothing (`searchspace.mirroring`). Of a relaxed stage only what holds for all of its parameters
counts (`Relaxation.certain`); the rest of its group is near. Whatever is not exact is measured,
never claimed.

Of an orbit average the logits are all that there is: `surviving` are the elements that leave them
unchanged (`searchspace.function.orbit`), and what its stages keep is that of the network inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

from searchspace.architecture import Architecture
from searchspace.function.coordinates import kept_after_stages, kept_elements
from searchspace.function.equal_values import (
    all_pooled,
    any_pooled,
    built_in,
    exact_anywhere,
    unchanged_anywhere,
)
from searchspace.function.orbit import averaged_elements
from searchspace.geometry import Size
from searchspace.groups import (
    GRID_GROUP,
    IDENTITY,
    TRIVIAL,
    Element,
    Group,
    isomorphic_name,
    largest_subgroup,
)
from searchspace.layers import layers_of
from searchspace.mirroring import BY_AXES, depends_on_pixels, unshifted_elements
from searchspace.symbolic import Program, program

Reason = Literal["grid", "group", "coordinates", "near", "shift", "orbit"]
AXES = ("height", "width")
UNSHIFTED = (0, 0)


@dataclass(frozen=True)
class Break:
    """One place where an element stops being exact."""

    # grid: no pixel permutation; group: not built in from this stage on; near: relaxed in this
    # stage; shift: a window is shifted; coordinates: they do not move with the image; orbit: the
    # orbit average lacks it, and the logits inside change
    reason: Reason
    stage: int  # counted from 1; 0 is the entry
    # such as conv1 or max2/2; of a relaxed stage its annotation, such as C4+C1; the kind of
    # coordinates
    layer: str = ""
    axis: str = ""  # height or width; empty unless shifted
    remainder: int = 0  # pixels, or samples of a nearest-neighbour resize; 0 unless shifted
    decided_by: str = ""  # of a relaxed stage: what decides how near it is

    def __str__(self) -> str:
        if self.reason == "grid":
            return "off the pixel grid: never exact, measure it"
        if self.reason == "group":
            return f"not built in from stage {self.stage} on: never guaranteed, measure it"
        if self.reason == "coordinates":
            return f"the {self.layer} coordinates stay where they are: never guaranteed, measure it"
        if self.reason == "orbit":
            return "not of the orbit, and the logits inside change: never guaranteed, measure it"
        if self.reason == "near":
            return (
                f"relaxed in stage {self.stage} ({self.layer}): near, not exact for certain; "
                f"{self.decided_by} decides, measure it"
            )
        place = f"stage {self.stage}" if self.stage else "entry"
        return f"{place} {self.layer}: {shift_text(self.layer, (self.axis,), self.remainder)}"


def shift_text(layer: str, axes: tuple[str, ...], remainder: int) -> str:
    """A shifted window in words: `height and width shifted by 1 px`. A nearest-neighbour resize
    counts samples, not pixels.
    """
    if layer.endswith("nearest"):
        return f"{remainder} samples not mirrored in {' and '.join(axes)}"
    return f"{' and '.join(axes)} shifted by {remainder} px"


def places(breaks: Iterable[Break]) -> tuple[str, ...]:
    """`breaks` in words, those of layers that shift alike in one: `stage 3 skip1, conv1: width
    shifted by 1 px`.
    """
    axes: dict[tuple[int, str, int], list[str]] = {}
    others: list[str] = []
    for b in breaks:
        if b.reason != "shift":
            others.append(str(b))
            continue
        axes.setdefault((b.stage, b.layer, b.remainder), []).append(b.axis)
    layers: dict[tuple[int, str], list[str]] = {}
    for (stage, layer, remainder), of_layer in axes.items():
        layers.setdefault((stage, shift_text(layer, tuple(of_layer), remainder)), []).append(layer)
    return (
        *others,
        *(
            f"{f'stage {stage}' if stage else 'entry'} {', '.join(names)}: {what}"
            for (stage, what), names in layers.items()
        ),
    )


@dataclass(frozen=True)
class Verdict:
    """Which elements of `group` survive in an architecture, and where each other one is lost."""

    architecture: Architecture
    group: Group  # whose elements are judged
    # the quarter turns and flips that the windows leave exact, built in or not
    unshifted_elements: frozenset[Element]

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, a drawing, and where elements are lost."""
        from searchspace.drawing import verdict_html

        return verdict_html(self)

    @cached_property
    def streams(self) -> tuple[Verdict, ...]:
        """The verdict on each stream alone; where there is one, this."""
        return (self,)

    @property
    def surviving(self) -> tuple[Element, ...]:
        """The elements under which the features are exactly equivariant, in the group's order;
        always with the identity. Of an orbit average those that leave the logits unchanged.
        """
        if self.architecture.orbit != TRIVIAL:
            return self.invariant
        return tuple(e for e in self.group.elements if e in self._features)

    @cached_property
    def near(self) -> tuple[Element, ...]:
        """The elements that relaxed stages keep in part: exact were nothing relaxed, not for
        certain as it is.
        """
        exact = verdict(self.architecture.constrained, self.group).surviving
        return tuple(e for e in exact if e not in self.surviving)

    @property
    def surviving_group(self) -> str:
        """The name of the largest group of surviving elements, up to the direction of a mirror
        axis.
        """
        return isomorphic_name(largest_subgroup(self.surviving))

    @property
    def exact(self) -> bool:
        """True if the features are exactly equivariant under every element of the group."""
        return len(self.surviving) == self.group.order

    @property
    def grid_exact(self) -> bool:
        """True if every element of the group that maps the pixel grid onto itself survives: the
        best a C8 can reach.
        """
        return len(self.surviving) == self.group.grid.order

    @property
    def unshifted(self) -> bool:
        """True if no element that is built in and on the grid is lost: no shifted window is left to
        repair, or the orbit average does not need it.
        """
        return self.grid_exact or all(
            e in self.unshifted_elements | self._features or e not in self._kept
            for e in self.group.elements
            if e.on_grid and e in self.architecture.group
        )

    @cached_property
    def losses(self) -> tuple[tuple[Element, tuple[Break, ...]], ...]:
        """Every element of the group with the places where it is lost, first place first; no
        places: it survives.

        A shifted window behind which the element is exact again, or still, is not such a place.
        """
        if self.architecture.orbit == TRIVIAL:
            return tuple((element, self._places(element)) for element in self.group.elements)
        return tuple(
            (e, () if e in self.surviving else self._places(e) or (Break("orbit", 0),))
            for e in self.group.elements
        )

    def breaks(self, element: Element) -> tuple[Break, ...]:
        """Where `element` is lost, first place first; empty if it survives. Raises KeyError outside
        the group.
        """
        return dict(self.losses)[element]

    def _places(self, element: Element) -> tuple[Break, ...]:
        stages = self.architecture.stages
        if element in self._features:
            return ()
        if element not in stages[-1].group:
            first = next(n for n, s in enumerate(stages, start=1) if element not in s.group)
            return (Break("group", first),)
        if not element.on_grid:
            return (Break("grid", 1),)
        if element not in self._kept:
            return (Break("coordinates", 1, self.architecture.coordinates),)
        return self._relaxed_places(element) + self._shifted_places(element)

    def _relaxed_places(self, element: Element) -> tuple[Break, ...]:
        return tuple(
            Break("near", number, stage.annotation, decided_by=relaxation.decided_by(stage.group))
            for number, stage in enumerate(self.architecture.stages, start=1)
            if (relaxation := stage.relaxation) is not None and element not in stage.certain_group
        )[:1]

    def _shifted_places(self, element: Element) -> tuple[Break, ...]:
        if element in self.unshifted_elements:
            return ()
        exact = exact_anywhere(self.architecture, self._reads, element)
        since = max(
            (n for n, flag in enumerate(exact) if flag and (n or self.architecture.entry)),
            default=-1,
        )
        return tuple(
            Break("shift", layer.stage, layer.name, AXES[axis], layer.remainder[axis])
            for layer in self.architecture.layers
            for axis in (0, 1)
            if layer.stage > since and layer.remainder[axis] and element.reversed_axes[axis]
        )

    @cached_property
    def invariant(self) -> tuple[Element, ...]:
        """The elements that leave the logits exactly unchanged, in the group's order.

        They are the surviving ones, if the head pools over the group; those that only move features
        whose spatial mean stays (a grid shifted around a circle); and all that are on the grid,
        built in or not, where kernels might as well have one pixel. A network that sees no pixel is
        invariant under everything.
        """
        if self.architecture.orbit != TRIVIAL:
            return self._averaged
        return tuple(element for element in self.group.elements if self._unchanged(element))

    @property
    def _averaged(self) -> tuple[Element, ...]:
        inner = replace(self.architecture, orbit=TRIVIAL)

        def inside(size: Size) -> tuple[Element, ...]:
            return verdict(inner.with_size(*size), GRID_GROUP).invariant

        unmoved = averaged_elements(self.architecture.orbit, self.architecture.size, inside)
        constant = verdict(inner, self.group).invariant  # off the grid: where no pixel is seen
        return tuple(e for e in self.group.elements if e in (unmoved if e.on_grid else constant))

    def _unchanged(self, element: Element) -> bool:
        architecture = self.architecture
        size = architecture.size
        if element == IDENTITY or (
            (architecture.head != "none" or all_pooled(architecture)) and element in self._features
        ):
            return True
        if not depends_on_pixels(size, self._reads) and (
            size[0] == size[1] or not element.on_grid or not element.swaps_axes
        ):
            return True
        return (
            element.on_grid
            and element in self._kept
            and unchanged_anywhere(architecture, self._reads, self._built[-1], element)
        )

    @cached_property
    def after_stages(self) -> tuple[tuple[Element, ...], ...]:
        """The elements that survive in the maps of the entry (of the image, if there is none), then
        of each stage.
        """
        groups = self.architecture.stages[0].group, *self._built
        exact = {
            e: exact_anywhere(self.architecture, self._reads, e)
            for e in self.group.elements
            if e.on_grid and e in groups[0]
        }
        return tuple(
            tuple(
                e
                for e, flags in exact.items()
                if e in built and flags[n] and (not n or e in self._kept_after[n - 1])
            )
            for n, built in enumerate(groups)
        )

    @cached_property
    def _built(self) -> tuple[Group, ...]:
        return built_in(self.architecture, self._reads)

    @cached_property
    def _features(self) -> frozenset[Element]:
        """The elements that are exact in the last maps, whatever becomes of the logits."""
        built, exact = self._built[-1], self.unshifted_elements
        if any_pooled(self.architecture):
            on_grid = (e for e in self.group.elements if e.on_grid and e in built)
            exact |= {e for e in on_grid if exact_anywhere(self.architecture, self._reads, e)[-1]}
        return frozenset(_surviving(self.group, built, self._kept & exact))

    @property
    def _kept(self) -> frozenset[Element]:
        """The quarter turns and flips that the coordinates allow."""
        return self._kept_after[-1]

    @cached_property
    def _kept_after(self) -> tuple[frozenset[Element], ...]:
        made = self.architecture
        return kept_after_stages(made.coordinates, made.size_entered, self._reads[1:])

    @property
    def _reads(self) -> Program:
        return program(self.architecture.layers)


def verdict(architecture: Architecture, group: Group | None = None) -> Verdict:
    """The verdict on `architecture` for every element of `group`; None: the group it is built
    with, or averaged over.
    """
    from searchspace.function.streams import JoinedVerdict

    group = architecture.symmetry if group is None else group
    if len(architecture.lasts) == 1:
        return Verdict(architecture, group, _unshifted(architecture))
    unshifted = frozenset.intersection(*map(_unshifted, architecture.streams))
    return JoinedVerdict(architecture, group, unshifted)


def _unshifted(architecture: Architecture) -> frozenset[Element]:
    if all(layer.remainder == UNSHIFTED for layer in architecture.layers):
        return BY_AXES[True, True]
    return unshifted_elements(architecture.size, architecture.layers)


@cache
def _surviving(group: Group, built: Group, unshifted: frozenset[Element]) -> tuple[Element, ...]:
    return tuple(e for e in group.elements if e in built and e in unshifted)


def exact_sizes(
    architecture: Architecture, *, within: int = 64, most: int = 4
) -> tuple[tuple[int, int], ...]:
    """Input sizes (height, width) nearby at which every grid element of the network's group
    survives, nearest first.

    Sizes at which no window is shifted, and the present one if it is exact at all. At most `most`
    smaller ones, of a third at least, and `most` larger ones, no further than `within` pixels.
    Square inputs stay square; of others, each axis moves on its own.
    """
    height, width = architecture.size
    if height == width:
        sizes = [(n, n) for n in _around(height, within) if _is_exact(architecture, (n, n))]
        below = [s for s in sizes if height <= 3 * s[0] < 3 * height][:most]
        above = [s for s in sizes if s[0] > height][:most]
        return tuple(
            sorted(
                below + [s for s in sizes if s[0] == height] + above,
                key=lambda s: (abs(s[0] - height), s[0]),
            )
        )
    near = min(within, 8)
    pairs = ((h, w) for h in _around(height, near) for w in _around(width, near))
    sizes = [pair for pair in pairs if _is_exact(architecture, pair)]
    return tuple(
        sorted(sizes, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), s))[: 2 * most]
    )


def _around(size: int, within: int) -> list[int]:
    return sorted(range(max(1, size - within), size + within + 1), key=lambda n: (abs(n - size), n))


def _is_exact(architecture: Architecture, size: tuple[int, int]) -> bool:
    if size == architecture.size:
        return verdict(architecture.constrained).grid_exact
    try:
        layers = layers_of(size, architecture.entry, architecture.stages)
        entered = layers[0].size_out if architecture.entry else size
        if not kept_elements(architecture.coordinates, entered) >= {
            *architecture.group.grid.elements
        }:
            return False
    except ValueError:  # too small for its layout
        return False
    height, width = (all(layer.remainder[axis] == 0 for layer in layers) for axis in (0, 1))
    unshifted = BY_AXES[height, width]
    return all(e in unshifted for e in architecture.group.grid.elements)
