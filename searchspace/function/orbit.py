"""Orbit averages: the mean of a network's logits over a group of quarter turns and flips, and under
which elements it is invariant.

The average f_G(x) = mean over g in G of f(g x) is invariant under G whatever f is. Under another
element e it holds iff x -> f(g e x), g in G, are the same functions as x -> f(g x): f(y x) and
f(y' x) are taken as the same where f is invariant under y' y^-1 by the verdict, as different
functions otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

from searchspace.geometry import Size, size_text
from searchspace.groups import GRID_GROUP, TRIVIAL, Element, Group


def check_orbit(orbit: Group, size: Size) -> None:
    """Raises ValueError where an average over `orbit` of images of `size` is not exact."""
    if not orbit.on_grid:
        raise ValueError(
            f"orbit is {orbit}, whose elements off the pixel grid interpolate, so that an average "
            "over them is not exact; choose one of C1, C2, C4, D1, D2, D4"
        )
    if size[0] != size[1] and any(e.swaps_axes for e in orbit.elements):
        raise ValueError(
            f"orbit is {orbit}, whose quarter turns do not keep the shape of images of "
            f"{size_text(size)} px; choose one of C1, C2, D1, D2, or a square input"
        )


def averaged_elements(
    orbit: Group, size: Size, invariant: Callable[[Size], Iterable[Element]]
) -> tuple[Element, ...]:
    """The quarter turns and flips under which the average over `orbit` is invariant, for images of
    `size`.

    `invariant` gives those under which the network inside is, for images of a size: that of an
    image which is not square changes as it is turned.
    """
    if orbit == TRIVIAL:
        return tuple(invariant(size))
    upright = frozenset(invariant(size))
    turned = upright if size[0] == size[1] else frozenset(invariant((size[1], size[0])))
    return _averaged_elements(orbit, upright, turned)


@lru_cache(maxsize=1024)  # a search asks for thousands of networks that are invariant alike
def _averaged_elements(
    orbit: Group, upright: frozenset[Element], turned: frozenset[Element]
) -> tuple[Element, ...]:
    """`averaged_elements` of a network that is invariant under `upright`, and under `turned` for
    images of the other shape.
    """

    def function_of(element: Element) -> Element:
        """The first element whose image the network cannot tell from that of `element`."""
        return next(
            other
            for other in GRID_GROUP.elements
            if element @ other.inverse in (turned if other.swaps_axes else upright)
        )

    before = Counter(function_of(g) for g in orbit.elements)
    return tuple(
        e
        for e in GRID_GROUP.elements
        if Counter(function_of(g @ e) for g in orbit.elements) == before
    )
