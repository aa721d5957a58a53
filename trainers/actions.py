"""How a group element acts on images and on feature maps: the one definition that training, measuring and testing share.

The convention is that of `searchspace.groups`: mirror left to right first, then rotate counter-clockwise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.groups import Element, Group


def act(images: Tensor, element: Element) -> Tensor:
    """The images [batch, channel, height, width], moved by `element`.

    Quarter turns and flips are index moves, exact in every dtype; a quarter turn of a non-square image exchanges height and width.
    Other angles keep the size and interpolate bilinearly about the centre of the image, with zeros outside; they need floating point.
    """
    if element.mirror:
        images = images.flip(-1)
    if element.on_grid:
        return torch.rot90(images, element.quarter_turns, (-2, -1))
    return _rotate(images, element.degrees)


def act_on_fields(maps: Tensor, element: Element, group: Group) -> Tensor:
    """The feature maps [batch, fields x |group|, height, width], moved by `element` of `group` as regular fields.

    Pixels move as in `act`, and the value at group element h of each field moves to element @ h.
    Raises ValueError if the channels are no whole number of fields, or if the element is not in the group.
    """
    batch, channels = maps.shape[:2]
    if channels % group.order:
        raise ValueError(f"{channels} channels are no whole number of fields of {group}, whose fields have {group.order} channels")
    moved = act(maps, element)
    sources = torch.tensor(permutation(group, element.inverse), device=maps.device)
    fields = moved.reshape(batch, -1, group.order, *moved.shape[-2:])
    return fields.index_select(2, sources).reshape(moved.shape)


@lru_cache(maxsize=None)
def permutation(group: Group, element: Element) -> tuple[int, ...]:
    """Where left multiplication moves each element: entry h is the index of element @ h.

    Channel h of a regular field moves to entry h; entry h of the inverse's permutation says where channel h comes from.
    Raises ValueError if the element is not in the group.
    """
    group.index(element)    # raises if it is no member
    return tuple(group.index(element @ h) for h in group.elements)


def _rotate(images: Tensor, degrees: float) -> Tensor:
    """The images rotated counter-clockwise about their centre, bilinear, zeros outside."""
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Output coordinates in -1..1 are mapped back into the input; the ratios keep a non-square image from being sheared.
    theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]], dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta.expand(images.shape[0], 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
