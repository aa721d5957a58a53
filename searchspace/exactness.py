"""Which elements of a group a network respects exactly, known before it is trained.

An element maps feature maps to feature maps exactly iff every stage's group contains it, it maps the pixel grid onto itself, and
no window is shifted on an axis that it reads backwards ("Using and Abusing Equivariance", arXiv:2308.11316; tested against
float64 measurements element by element in `tests/test_exactness_proof.py`). Shifts that undo each other, or that no
feature sees, break nothing (`searchspace.mirroring`). Whatever is not exact is measured, never claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, Optional, Sequence

from searchspace.architecture import Architecture, Stage, Subsampling
from searchspace.geometry import Layer, layers_of
from searchspace.groups import IDENTITY, Element, Group, isomorphic_name, largest_subgroup
from searchspace.mirroring import Mirroring, Program, kept, mirrorings, program, same_in_all_channels, sees_no_pixel

Reason = Literal["grid", "group", "shift"]
AXES = ("height", "width")


@dataclass(frozen=True)
class Break:
    """One place where an element stops being exact."""

    reason: Reason              # grid: no pixel permutation; group: not built in from this stage on; shift: a window is shifted
    stage: int                  # counted from 1; 0 is the entry
    layer: str                  # such as conv1 or max2/2; empty unless shifted
    axis: str                   # height or width; empty unless shifted
    remainder: int              # pixels; 0 unless shifted

    def __str__(self) -> str:
        if self.reason == "grid":
            return "off the pixel grid: measure it"
        if self.reason == "group":
            return f"not built in from stage {self.stage} on"
        place = f"stage {self.stage}" if self.stage else "entry"
        return f"{place} {self.layer}: {self.axis} shifted by {self.remainder} px"


@dataclass(frozen=True)
class Verdict:
    """Which elements of `group` survive in an architecture, and where each of the others is lost."""

    architecture: Architecture
    group: Group                                                # the group asked about
    losses: tuple[tuple[Element, tuple[Break, ...]], ...]       # every element of the group; no breaks: it survives

    @property
    def surviving(self) -> tuple[Element, ...]:
        """The elements under which the features are exactly equivariant, in the group's order; always with the identity."""
        return tuple(element for element, breaks in self.losses if not breaks)

    @property
    def surviving_group(self) -> str:
        """The name of the largest group of surviving elements, up to the direction of a mirror axis."""
        return isomorphic_name(largest_subgroup(self.surviving))

    @property
    def exact(self) -> bool:
        """True if the features are exactly equivariant under every element of the group."""
        return not any(breaks for _, breaks in self.losses)

    @property
    def grid_exact(self) -> bool:
        """True if every element of the group that maps the pixel grid onto itself survives: the best a C8 can reach."""
        return not any(breaks for element, breaks in self.losses if element.on_grid)

    @cached_property
    def invariant(self) -> tuple[Element, ...]:
        """The elements that leave the logits exactly unchanged, in the group's order.

        They are the surviving ones, and those that only move features whose spatial mean stays (a grid shifted around a circle).
        Without pooling over the group's channels, only the identity, unless kernels of one pixel make these channels equal.
        """
        if self._shifted and sees_no_pixel(self._mirrorings):
            return self.group.elements          # a constant
        if self.architecture.head == "none" and not same_in_all_channels(self._reads, self._mirrorings):
            return (IDENTITY,)
        if not self._shifted:
            return self.surviving
        height, width = self._mirrorings
        return tuple(element for element, breaks in self.losses
                     if not breaks or breaks[0].reason == "shift" and _kept(element, height.means, width.means))

    @cached_property
    def after_stages(self) -> tuple[tuple[Element, ...], ...]:
        """The elements that survive in the maps of the entry (of the image, if there is none), then of each stage."""
        height, width = self._mirrorings
        groups = (self.architecture.stages[0].group, *(stage.group for stage in self.architecture.stages))
        return tuple(tuple(e for e, _ in self.losses if e in built and e.on_grid and _kept(e, *axes))
                     for built, *axes in zip(groups, height.stages, width.stages))

    @property
    def _shifted(self) -> bool:
        return any(layer.remainder != (0, 0) for layer in self.architecture.layers)

    @property
    def _mirrorings(self) -> tuple[Mirroring, Mirroring]:
        return mirrorings(self.architecture.size, self._reads)

    @property
    def _reads(self) -> Program:
        return program(self.architecture.entry, self.architecture.stages)

    def breaks(self, element: Element) -> tuple[Break, ...]:
        """Where `element` is lost, first place first; empty if it survives. Raises KeyError outside the group."""
        return dict(self.losses)[element]


def verdict(architecture: Architecture, group: Optional[Group] = None) -> Verdict:
    """The verdict on `architecture` for every element of `group`; None: the group it is built with."""
    stages = architecture.stages
    built = stages[-1].group
    group = built if group is None else group
    shifts = _shifts(architecture.layers)
    if shifts is not None:
        axes_kept = _kept_axes(architecture.size, architecture.entry, stages, architecture.layers)
        shifts = tuple(() if keeps else breaks for keeps, breaks in zip(axes_kept, shifts))
    losses = []
    for element, on_grid, built_in, axes in _facts(group, built):
        if not built_in:
            missing = next(n for n, stage in enumerate(stages, start=1) if element not in stage.group)
            breaks: tuple[Break, ...] = (Break("group", missing, "", "", 0),)
        elif not on_grid:
            breaks = _OFF_GRID
        elif shifts is None:
            breaks = ()
        elif axes == (True, True):
            breaks = tuple(sorted(shifts[0] + shifts[1], key=lambda b: b.stage))
        else:
            breaks = shifts[0] if axes[0] else shifts[1] if axes[1] else ()
        losses.append((element, breaks))
    return Verdict(architecture, group, tuple(losses))


_NO_SHIFT = (0, 0)
_OFF_GRID = (Break("grid", 1, "", "", 0),)


def _shifts(layers: Sequence[Layer]) -> Optional[tuple[tuple[Break, ...], tuple[Break, ...]]]:
    """Every shifted window, of the height and of the width; None if there is none."""
    shifted = [layer for layer in layers if layer.remainder != (0, 0)]
    if not shifted:
        return None
    return tuple(tuple(Break("shift", layer.stage, layer.name, AXES[axis], layer.remainder[axis])       # type: ignore[return-value]
                       for layer in shifted if layer.remainder[axis]) for axis in (0, 1))


def kept_axes(size: tuple[int, int], stages: tuple[Stage, ...], entry: Optional[Subsampling] = None) -> tuple[bool, bool]:
    """Whether mirroring the (height, width) is exact in the features of the network of these parts: the core of a verdict.

    For enumerations: no architecture is made, and groups are not checked. Raises ValueError where a layer does not fit.
    """
    return _kept_axes(size, entry, stages, layers_of(size, entry, stages))


def _kept_axes(size: tuple[int, int], entry: Optional[Subsampling], stages: tuple[Stage, ...],
               layers: Sequence[Layer]) -> tuple[bool, bool]:
    if all(layer.remainder == _NO_SHIFT for layer in layers):
        return True, True
    reads = program(entry, stages)
    height = kept(reads, size[0])
    quick = height, height if size[0] == size[1] else kept(reads, size[1])
    if None in quick:
        return tuple(axis.exact for axis in mirrorings(size, reads))        # type: ignore[return-value]
    return quick        # type: ignore[return-value]


def _kept(element: Element, height: bool, width: bool) -> bool:
    """True if `element` reads no axis backwards that is not mirrored exactly."""
    axes = element.reversed_axes
    return (height or not axes[0]) and (width or not axes[1])


@lru_cache(maxsize=None)
def _facts(group: Group, built: Group) -> tuple[tuple[Element, bool, bool, tuple[bool, bool]], ...]:
    """Of every element of `group`: whether it is on the grid, whether it is built in, and which axes it reads backwards."""
    return tuple((e, e.on_grid, e in built, e.reversed_axes if e.on_grid else (False, False)) for e in group.elements)


def exact_sizes(architecture: Architecture, *, within: int = 64, most: int = 4) -> tuple[tuple[int, int], ...]:
    """Input sizes (height, width) nearby at which every grid element of the network's group survives, nearest first.

    Sizes at which no window is shifted, and the present one if it is exact at all. At most `most` smaller and `most` larger ones, no further than `within`
    pixels. Square inputs stay square; of others, each axis moves on its own.
    """
    height, width = architecture.size
    if height == width:
        found = [(n, n) for n in _around(height, within) if _is_exact(architecture, (n, n))]
        below = [s for s in found if s[0] < height][:most]
        above = [s for s in found if s[0] > height][:most]
        return tuple(sorted(below + [s for s in found if s[0] == height] + above, key=lambda s: (abs(s[0] - height), s[0])))
    near = min(within, 8)
    pairs = ((h, w) for h in _around(height, near) for w in _around(width, near))
    found = [pair for pair in pairs if _is_exact(architecture, pair)]
    return tuple(sorted(found, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), s))[:2 * most])


def _around(size: int, within: int) -> list[int]:
    return sorted(range(max(1, size - within), size + within + 1), key=lambda n: (abs(n - size), n))


def _is_exact(architecture: Architecture, size: tuple[int, int]) -> bool:
    try:
        layers = layers_of(size, architecture.entry, architecture.stages)
    except ValueError:          # too small for its layout
        return False
    if size == architecture.size:
        return verdict(architecture).grid_exact
    straight = (all(layer.remainder[axis] == 0 for layer in layers) for axis in (0, 1))
    return _all_kept(architecture.group, *straight)


def _all_kept(group: Group, height: bool, width: bool) -> bool:
    return all(_kept(e, height, width) for e in group.grid.elements)
