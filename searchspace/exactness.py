"""Which elements of a group a network respects exactly, known before it is trained.

An element maps feature maps to feature maps exactly iff every stage's group contains it, it maps the pixel grid onto itself, and
no window is shifted on an axis that it reads backwards ("Using and Abusing Equivariance", arXiv:2308.11316; tested against
float64 measurements element by element in `tests/test_exactness_proof.py`). Whatever is not exact is measured, never claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Optional

from searchspace.architecture import Architecture
from searchspace.groups import IDENTITY, Element, Group, isomorphic_name, largest_subgroup

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

    @property
    def invariant(self) -> tuple[Element, ...]:
        """The elements that leave the logits exactly unchanged: the surviving ones, if the head pools over the group."""
        pools = self.architecture.head != "none"
        return tuple(element for element in self.surviving if pools or element == IDENTITY)

    def breaks(self, element: Element) -> tuple[Break, ...]:
        """Where `element` is lost, first place first; empty if it survives. Raises KeyError outside the group."""
        return dict(self.losses)[element]


def verdict(architecture: Architecture, group: Optional[Group] = None) -> Verdict:
    """The verdict on `architecture` for every element of `group`; None: the group it is built with."""
    group = architecture.group if group is None else group
    shifts: tuple[list[Break], list[Break]] = ([], [])
    for layer in architecture.layers:
        for axis, remainder in enumerate(layer.remainder):
            if remainder:
                shifts[axis].append(Break("shift", layer.stage, layer.name, AXES[axis], remainder))
    built = architecture.group
    losses = []
    for element, on_grid, (height, width) in _facts(group):
        if element not in built:
            missing = next(n for n, stage in enumerate(architecture.stages, start=1) if element not in stage.group)
            breaks: tuple[Break, ...] = (Break("group", missing, "", "", 0),)
        elif not on_grid:
            breaks = (Break("grid", 1, "", "", 0),)
        elif height and width:
            breaks = tuple(sorted(shifts[0] + shifts[1], key=lambda b: b.stage))
        else:
            breaks = tuple(shifts[0] if height else shifts[1] if width else ())
        losses.append((element, breaks))
    return Verdict(architecture, group, tuple(losses))


@lru_cache(maxsize=None)
def _facts(group: Group) -> tuple[tuple[Element, bool, tuple[bool, bool]], ...]:
    return tuple((e, e.on_grid, e.reversed_axes if e.on_grid else (False, False)) for e in group.elements)


def exact_sizes(architecture: Architecture, *, within: int = 64, most: int = 4) -> tuple[tuple[int, int], ...]:
    """Input sizes (height, width) nearby at which every grid element of the network's group survives, nearest first.

    At most `most` smaller and `most` larger ones, no further than `within` pixels, and the present one if it is exact. Square
    inputs stay square; of others, each axis moves on its own.
    """
    height, width = architecture.size
    if height == width:
        found = [(n, n) for n in _around(height, within) if _is_exact(architecture, (n, n))]
        below = [s for s in found if s[0] < height][:most]
        above = [s for s in found if s[0] > height][:most]
        return tuple(sorted(below + [s for s in found if s[0] == height] + above, key=lambda s: (abs(s[0] - height), s[0])))
    pairs = ((h, w) for h in _around(height, within) for w in _around(width, within)
             if max(abs(h - height), abs(w - width)) <= 8)
    found = [pair for pair in pairs if _is_exact(architecture, pair)]
    return tuple(sorted(found, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), s))[:2 * most])


def _around(size: int, within: int) -> list[int]:
    return sorted(range(max(1, size - within), size + within + 1), key=lambda n: (abs(n - size), n))


def _is_exact(architecture: Architecture, size: tuple[int, int]) -> bool:
    try:
        return verdict(architecture.with_size(*size)).grid_exact
    except ValueError:          # too small for its layout
        return False
