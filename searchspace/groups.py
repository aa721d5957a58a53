"""Finite symmetry groups of the plane as data: C_N (rotations) and D_N (rotations and mirrored
rotations).

Conventions, the same in every module and the same as escnn's: an element first mirrors (left to
right), then rotates counter-clockwise; the elements of a group are its rotations by 0, 1/N, 2/N ...
of a turn, then the mirrored ones in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import gcd

MAX_ROTATIONS = 64
_GROUP = re.compile(r"([CD])_?(\d+)", re.IGNORECASE)
_ELEMENT = re.compile(r"(m?)(?:r(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Element:
    """One symmetry of the plane: mirror left to right if `mirror`, then rotate counter-clockwise by
    `turn`.
    """

    turn: Fraction  # of a full turn, in [0, 1)
    mirror: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "turn", Fraction(self.turn) % 1)

    @classmethod
    def parse(cls, name: str) -> Element:
        """The element called `name`: `e`, `m` (mirror), `r90`, `mr90` (mirror, then rotate by 90
        degrees).
        """
        match = _ELEMENT.fullmatch(name.strip())
        if name.strip() == "e":
            return IDENTITY
        if not match or not name.strip():
            raise ValueError(
                f"'{name}' names no element; write e, m, r90 or mr90 (r: degrees "
                "counter-clockwise, m: mirror first)"
            )
        turn = Fraction(match[2] or 0) / 360
        return cls(turn.limit_denominator(4 * MAX_ROTATIONS), bool(match[1]))

    @property
    def degrees(self) -> float:
        """The rotation angle, counter-clockwise, in [0, 360)."""
        return float(self.turn * 360)

    @property
    def on_grid(self) -> bool:
        """True if the element maps the pixel grid onto itself: a quarter turn, mirrored or not."""
        return (self.turn * 4).denominator == 1

    @property
    def quarter_turns(self) -> int:
        """The number of quarter turns, 0 to 3. Raises ValueError off the grid."""
        if not self.on_grid:
            raise ValueError(f"{self} is not a multiple of a quarter turn")
        return int(self.turn * 4)

    @property
    def reversed_axes(self) -> tuple[bool, bool]:
        """Whether the (height, width) axis of the input is read backwards. Raises ValueError off
        the grid.

        A quarter turn reads one axis of its input backwards and exchanges the two; a transposition
        reads none backwards. Only a reversed axis can tell where subsampling windows start.
        """
        height, width = ((False, False), (False, True), (True, True), (True, False))[
            self.quarter_turns
        ]
        return height, width != self.mirror

    @property
    def swaps_axes(self) -> bool:
        """True if height and width are exchanged. Raises ValueError off the grid."""
        return self.quarter_turns % 2 == 1

    @property
    def inverse(self) -> Element:
        """The element that undoes this one."""
        return self if self.mirror else Element(-self.turn, False)

    @property
    def name(self) -> str:
        """`e`, `m`, `r90`, `mr90`: m for the mirror, r for the rotation in degrees; parses back."""
        rotation = f"r{self.degrees:.6f}".rstrip("0").rstrip(".") if self.turn else ""
        return ("m" if self.mirror else "") + rotation or "e"

    def __matmul__(self, first: Element) -> Element:
        """The element that applies `first`, then this one."""
        turn = self.turn - first.turn if self.mirror else self.turn + first.turn
        return Element(turn, self.mirror != first.mirror)

    def __str__(self) -> str:
        return self.name


IDENTITY = Element(Fraction(0), False)


@dataclass(frozen=True)
class Group:
    """A cyclic group C_N (`rotations` = N) or, with `mirror`, a dihedral group D_N. `<=` means "is
    a subgroup of".
    """

    rotations: int
    mirror: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.rotations <= MAX_ROTATIONS:
            raise ValueError(
                f"group {self} has {self.rotations} rotations; it must have 1 to {MAX_ROTATIONS}"
            )

    @classmethod
    def parse(cls, name: str) -> Group:
        """The group called `name`, such as `C4` or `D8`. Raises ValueError for any other text."""
        match = _GROUP.fullmatch(str(name).strip())
        if not match:
            raise ValueError(
                f"there is no group '{name}'; write C or D and a number of rotations, "
                "such as C1 (none), C4 (quarter turns), D1 (mirror), D4 (quarter turns and flips)"
            )
        return cls(int(match[2]), match[1] in "dD")

    @property
    def order(self) -> int:
        """The number of elements."""
        return self.rotations * (2 if self.mirror else 1)

    @property
    def elements(self) -> tuple[Element, ...]:
        """All elements, rotations first; the index of an element is its number of rotations, plus N
        if it mirrors.
        """
        return _elements(self)

    def index(self, element: Element) -> int:
        """The position of `element` in `elements`. Raises ValueError if it is not in the group."""
        steps = element.turn * self.rotations
        if steps.denominator != 1 or (element.mirror and not self.mirror):
            raise ValueError(
                f"{element} is not an element of {self}, whose elements are "
                f"{', '.join(map(str, self.elements))}"
            )
        return int(steps) + (self.rotations if element.mirror else 0)

    def __contains__(self, element: Element) -> bool:
        return (element.turn * self.rotations).denominator == 1 and (
            self.mirror or not element.mirror
        )

    def __le__(self, other: Group) -> bool:
        return other.rotations % self.rotations == 0 and (other.mirror or not self.mirror)

    def __lt__(self, other: Group) -> bool:
        return self != other and self <= other

    def __and__(self, other: Group) -> Group:
        """The largest group that is a subgroup of both."""
        return Group(gcd(self.rotations, other.rotations), self.mirror and other.mirror)

    def subgroups(self) -> tuple[Group, ...]:
        """Every subgroup of this form, the trivial one first, this one last."""
        divisors = [n for n in range(1, self.rotations + 1) if self.rotations % n == 0]
        subgroups = [
            Group(n, mirror)
            for n in divisors
            for mirror in ((False, True) if self.mirror else (False,))
        ]
        return tuple(sorted(subgroups, key=lambda g: (g.order, g.mirror)))

    @property
    def grid(self) -> Group:
        """The largest subgroup that maps the pixel grid onto itself: C8 has C4, D6 has D2, C3 has
        C1.
        """
        return next(Group(n, self.mirror) for n in (4, 2, 1) if self.rotations % n == 0)

    @property
    def on_grid(self) -> bool:
        """True if every element maps the pixel grid onto itself: C1, C2, C4, D1, D2, D4."""
        return self.rotations in (1, 2, 4)

    def __str__(self) -> str:
        return f"{'D' if self.mirror else 'C'}{self.rotations}"


TRIVIAL = Group(1)
GRID_GROUP = Group(4, True)  # whose elements map the pixel grid to itself


@cache
def _elements(group: Group) -> tuple[Element, ...]:
    mirrors = (False, True) if group.mirror else (False,)
    return tuple(
        Element(Fraction(k, group.rotations), m) for m in mirrors for k in range(group.rotations)
    )


def largest_subgroup(elements: Iterable[Element]) -> tuple[Element, ...]:
    """The largest group made only of `elements`, in their order; of two equally large, the one with
    more rotations.

    A set of surviving elements need not be a group on a non-square grid, where a quarter turn and
    its inverse read different axes backwards. The group may have a slanted mirror axis, such as {e,
    mr90}, the transposition.
    """
    pool = tuple(dict.fromkeys(elements))
    members, best = set(pool), (IDENTITY,)
    turns = sorted({e.turn for e in pool if not e.mirror})
    for size in range(len(turns), 0, -1):
        rotations = [Element(Fraction(k, size)) for k in range(size)]
        if not members.issuperset(rotations):
            continue
        candidates = [rotations] + [
            rotations + [r @ m for r in rotations] for m in pool if m.mirror
        ]
        for candidate in candidates:
            if members.issuperset(candidate) and len(candidate) > len(best):
                chosen = set(candidate)
                best = tuple(e for e in pool if e in chosen)
    return best


def isomorphic_name(elements: tuple[Element, ...]) -> str:
    """The name of the group that `elements` form, up to the direction of its mirror axis: {e, mr90}
    is a D1.
    """
    mirror = any(e.mirror for e in elements)
    return str(Group(len(elements) // (2 if mirror else 1), mirror))
