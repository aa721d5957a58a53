"""How a group element acts on images and on feature maps: the one definition that training,
measuring and testing share.

The convention is that of `searchspace.groups`: mirror left to right first, then rotate
counter-clockwise.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.settings import Corners

# the padding modes of grid_sample. Behind `circle` the normalisation makes black what lies outside;
# the half pixel at the border that a turn reaches inside the circle is the border pixel. Behind
# `crop` it leaves out what a turn brings in; what a learned shift brings in is mirrored
PADDING: dict[Corners, str] = {
    "black": "zeros",
    "reflect": "reflection",
    "replicate": "border",
    "circle": "border",
    "crop": "reflection",
}


def act(images: Tensor, element: Element, corners: Corners = "black") -> Tensor:
    """The images [batch, channel, height, width], moved by `element`.

    Quarter turns and flips are index moves, exact in every dtype; a quarter turn of a non-square
    image exchanges height and width. Other angles keep the size and interpolate bilinearly about
    the centre of the image, and `corners` says what lies outside it; they need floating point.
    Angles that differ by a quarter turn (of square images; else a half turn) interpolate alike, and
    so do mirrored ones: see `parts`.
    """
    exact, rest = parts(element, images.shape[-1] == images.shape[-2])
    if rest != IDENTITY:
        images = _rotate(images, rest.degrees, corners)
    if exact.mirror:
        images = images.flip(-1)
    return torch.rot90(images, exact.quarter_turns, (-2, -1)) if exact.quarter_turns else images


@cache
def parts(element: Element, square: bool = True) -> tuple[Element, Element]:
    """(exact, rest) with element = exact @ rest: index moves after a rotation by less than a
    quarter turn, which alone interpolates.

    `act` moves images by the rest and then exactly; so it keeps act(images, k @ e) =
    act(act(images, e), k) bit for bit for every k on the grid. Images that are not square keep
    their size under half turns only, which then take the place of quarter turns.
    """
    if element.on_grid:
        return element, IDENTITY
    step = Fraction(1, 4 if square else 2)
    # a mirror after a rotation turns it round
    turn = (-element.turn if element.mirror else element.turn) % step
    exact = Element(element.turn + turn if element.mirror else element.turn - turn, element.mirror)
    return exact, Element(turn)


def act_on_fields(maps: Tensor, element: Element, group: Group) -> Tensor:
    """The feature maps [batch, fields x |group|, height, width], moved by `element` of `group` as
    regular fields.

    Pixels move as in `act`, and the value at group element h of each field moves to element @ h.
    Raises ValueError if the channels are not a whole number of fields, or if the element is not in
    the group.
    """
    batch, channels = maps.shape[:2]
    if channels % group.order:
        raise ValueError(
            f"{channels} channels are not a whole number of fields of {group}, whose fields have "
            f"{group.order} channels"
        )
    moved = act(maps, element)
    sources = torch.tensor(permutation(group, element.inverse), device=maps.device)
    fields = moved.reshape(batch, -1, group.order, *moved.shape[-2:])
    return fields.index_select(2, sources).reshape(moved.shape)


@lru_cache(maxsize=16)
def gathers(
    element: Element, group: Group | None, channels: int, height: int, width: int
) -> Tensor:
    """Where the values of maps come from that an element on the grid moves, in channels-last order:
    an index, int32.

    Without a group only pixels move: maps.permute(0, 2, 3, 1).flatten(1, 2)[:, index] are the moved
    maps, in the same order. With one it is `act_on_fields` that maps.permute(0, 2, 3,
    1).flatten(1)[:, index] gives, in one gather.
    """
    pixels = act(
        torch.arange(height * width, dtype=torch.int32).view(1, 1, height, width), element
    ).reshape(-1)
    if group is None:
        return pixels
    order = torch.tensor(permutation(group, element.inverse), dtype=torch.int32)
    fields = (torch.arange(0, channels, group.order, dtype=torch.int32)[:, None] + order).view(-1)
    return (pixels[:, None] * channels + fields).view(-1)


@cache
def permutation(group: Group, element: Element) -> tuple[int, ...]:
    """Where left multiplication moves each element: entry h is the index of element @ h.

    Channel h of a regular field moves to entry h; entry h of the inverse's permutation says where
    channel h comes from. Raises ValueError if the element is not in the group.
    """
    group.index(element)  # raises if it is not a member
    return tuple(group.index(element @ h) for h in group.elements)


def _rotate(images: Tensor, degrees: float, corners: Corners) -> Tensor:
    """The images rotated counter-clockwise about their centre, bilinear."""
    batch, channels, height, width = images.shape
    grid = _grid(degrees, height, width, images.dtype, images.device)
    if images.device.type != "cpu":
        return F.grid_sample(
            images,
            grid.expand(batch, -1, -1, -1),
            mode="bilinear",
            padding_mode=PADDING[corners],
            align_corners=False,
        )
    # As channels of one image they share the weights of the interpolation: 2.7 times as fast (2
    # cores, torch 2.15); on a GPU, one thread a pixel.
    stacked = images.reshape(1, batch * channels, height, width)
    return F.grid_sample(
        stacked, grid, mode="bilinear", padding_mode=PADDING[corners], align_corners=False
    ).view(images.shape)


@lru_cache(maxsize=256)
def _grid(
    degrees: float, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Where every pixel of a rotated image comes from: [1, height, width, 2], in -1..1 (right,
    down).
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # else the grid could not serve training later, and would have the precision of its first use
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        # Output coordinates in -1..1 are mapped back into the input; the ratios keep a non-square
        # image from being sheared.
        theta = torch.tensor(
            [[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]],
            dtype=dtype,
            device=device,
        )
        return F.affine_grid(theta, [1, 1, height, width], align_corners=False)
