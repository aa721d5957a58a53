"""Coordinate channels: what the first convolution sees beside the image, and under which elements
they stay the same.

They are functions of the pixel grid, not of the image, so that an element which does not map them
to themselves is lost from the first stage on; under the others a network is what it would be with
as many more channels of the image. `x` is the column, `y` the row, from -1 at the first to 1 at the
last, 0 at the centre; `radius` is the distance from the centre, 1 in the corners.
"""

from __future__ import annotations

from typing import Literal, get_args

from searchspace.geometry import Size
from searchspace.groups import GRID_GROUP, Element

Coordinates = Literal["none", "x", "y", "xy", "radius"]
COORDINATES: tuple[Coordinates, ...] = get_args(Coordinates)


def check_coordinates(coordinates: str) -> None:
    """Raises ValueError for anything but one of COORDINATES."""
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates is '{coordinates}'; choose one of {', '.join(COORDINATES)}")


def extra_channels(coordinates: Coordinates) -> int:
    """The channels that they add to those of the image."""
    return 0 if coordinates == "none" else 2 if coordinates == "xy" else 1


def kept_elements(coordinates: Coordinates, size: Size) -> frozenset[Element]:
    """The quarter turns and flips that leave the coordinates as they are, on maps of `size`."""
    if coordinates in ("none", "radius"):
        return frozenset(GRID_GROUP.elements)
    height, width = size
    if height == width == 1:  # both are 0
        return frozenset(GRID_GROUP.elements)
    axes = "y" in coordinates and height > 1, "x" in coordinates and width > 1
    return frozenset(
        e
        for e in GRID_GROUP.elements
        if not e.swaps_axes
        and not any(tells and turns for tells, turns in zip(axes, e.reversed_axes))
    )
