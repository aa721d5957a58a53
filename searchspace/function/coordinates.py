"""Coordinate channels: what the first convolution sees beside the image, and under which elements
they stay the same.

They are functions of the pixel grid, not of the image, so that an element which does not map them
to themselves is lost from the first stage on; under the others a network is what it would be with
as many more channels of the image. `x` is the column, `y` the row, from -1 at the first to 1 at the
last, 0 at the centre; `radius` is the distance from the centre, 1 in the corners.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction
from typing import Literal, get_args

from searchspace.geometry import Size
from searchspace.groups import GRID_GROUP, Element
from searchspace.mirroring import positions_seen
from searchspace.symbolic import Program

Coordinates = Literal["none", "x", "y", "xy", "radius"]
COORDINATES: tuple[Coordinates, ...] = get_args(Coordinates)


def check_coordinates(coordinates: str) -> None:
    """Raises ValueError for anything but one of COORDINATES."""
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates is '{coordinates}'; choose one of {', '.join(COORDINATES)}")


def extra_channels(coordinates: Coordinates) -> int:
    """The channels that they add to those of the image."""
    return 0 if coordinates == "none" else 2 if coordinates == "xy" else 1


def kept_elements(
    coordinates: Coordinates, size: Size, seen: Callable[[int], Collection[int]] = range
) -> frozenset[Element]:
    """The quarter turns and flips that leave the coordinates as they are, on maps of `size`,
    wherever a network sees them.

    `seen` gives the positions that it sees of an axis of so many pixels: coordinates that nothing
    reads may change.
    """
    if coordinates in ("none", "radius"):
        return frozenset(GRID_GROUP.elements)
    axes = [axis for axis, name in enumerate("yx") if name in coordinates]
    return frozenset(
        e for e in GRID_GROUP.elements if all(_stays(axis, e, size, seen) for axis in axes)
    )


def kept_after_stages(
    coordinates: Coordinates, size: Size, stages: Program
) -> tuple[frozenset[Element], ...]:
    """The elements that leave the coordinates as they are, as far as the maps of each stage show
    them, for stages that read maps of `size`.
    """
    if coordinates in ("none", "radius"):
        return (kept_elements(coordinates, size),) * len(stages)

    def kept(number: int) -> frozenset[Element]:
        return kept_elements(
            coordinates, size, lambda pixels: positions_seen(stages, pixels)[number]
        )

    return tuple(map(kept, range(len(stages))))


def _stays(axis: int, element: Element, size: Size, seen: Callable[[int], Collection[int]]) -> bool:
    """Whether the coordinate along an axis (0: height) is, at all positions seen of a moved image,
    that of the positions which they come from.
    """
    moved = size[::-1] if element.swaps_axes else size
    values = [_values(seen(pixels), pixels) for pixels in moved]
    if not all(values):  # nothing is seen
        return True
    along = 1 - axis if element.swaps_axes else axis
    sign = -1 if element.reversed_axes[axis] else 1
    if along == axis:
        return sign == 1 or values[axis] == {0}
    return len(values[axis].union(sign * value for value in values[along])) == 1


def _values(positions: Collection[int], pixels: int) -> set[Fraction]:
    """The coordinates of the positions on an axis of so many pixels."""
    return {Fraction(2 * n - (pixels - 1), max(1, pixels - 1)) for n in positions}
