"""Random transformations of image batches: every image draws its own, from a generator that is
given.

Directions are those of `trainers.actions`: mirror left to right first, then rotate
counter-clockwise. Pixels that a shift brings in from outside the image are zero, and so are those
of a rotation with black corners: transform images in 0..1 and normalise afterwards. What is drawn
for one kind of change does not depend on those after it, in the order of the keys of `augment:`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as functional
from torch import Tensor

from searchspace.groups import Element, Group
from trainers.actions import PADDING, act
from trainers.data.colour import jitter
from trainers.devices import send
from trainers.settings import Augment, ColourJitter, Corners, Normal

QUARTERS = tuple(Element.parse(name) for name in ("e", "r90", "r180", "r270"))


def transform_images(
    images: Tensor,
    augment: Augment,
    group: Group,
    generator: torch.Generator,
    corners: Corners = "black",
) -> Tensor:
    """The float images [B, C, H, W], each mirrored, turned, shifted, cropped and recoloured
    as it draws. Sizes and
    device stay.

    `group` is what `rotation: group` draws elements of, `corners` what lies outside a turned image.
    Draws come from `generator` (on the CPU) and depend on B only, so the same generator gives the
    same transformations on every device. Without augmentation the images themselves are returned.
    """
    count = len(images)
    mirrored = torch.zeros(count, dtype=torch.bool)
    degrees = None
    by_group = None
    if augment.rotation == "group":
        drawn = torch.randint(group.order, (count,), generator=generator)
        by_group = drawn % group.rotations * (360 / group.rotations)
        mirrored = drawn >= group.rotations
    elif augment.rotation == "uniform":
        degrees = torch.rand(count, generator=generator, dtype=torch.float64) * 360
    elif isinstance(augment.rotation, Normal):
        mean, deviation = augment.rotation.normal
        degrees = torch.randn(count, generator=generator, dtype=torch.float64) * deviation + mean
    if augment.mirror:
        mirrored = mirrored ^ (torch.rand(count, generator=generator) < 0.5)
    images = _mirror(images, mirrored)
    if by_group is not None:
        images = _turn_by_group(images, by_group, corners)
    elif degrees is not None:
        images = rotate(images, degrees, corners)
    if augment.shift:
        offsets = torch.randint(-augment.shift, augment.shift + 1, (2, count), generator=generator)
        images = shift(images, offsets[0], offsets[1], augment.shift)
    if augment.crop < 1:
        drawn = torch.rand((3, count), generator=generator)
        images = crop(images, (augment.crop + (1 - augment.crop) * drawn[0]).sqrt(), drawn[1:])
    if augment.colour_jitter != ColourJitter():
        images = jitter(images, augment.colour_jitter, torch.rand((4, count), generator=generator))
    return images


def crop(images: Tensor, scale: Tensor, place: Tensor) -> Tensor:
    """The float images [B, C, H, W], of each a part with `scale` [B] of both sides, resized to the
    whole (bilinear). `place` [2, B] in 0..1 says where: 0 at the upper and left border, 1 at the
    lower and right one.
    """
    scale, place = (send(value, images.device) for value in (scale, place))
    down, right = ((2 * value - 1) * (1 - scale) for value in place)  # of the centre, in -1..1
    zero = torch.zeros_like(scale)
    matrices = torch.stack([scale, zero, right, zero, scale, down], -1).view(-1, 2, 3)
    grid = functional.affine_grid(
        matrices.to(images.dtype), list(images.shape), align_corners=False
    )
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def rotate(images: Tensor, degrees: Tensor, corners: Corners = "black") -> Tensor:
    """The float images [B, C, H, W], each turned counter-clockwise about its centre by its own
    angle [B] in degrees.

    Bilinear interpolation, with `corners` outside; the size stays, so a turned image that is not
    square loses its ends.
    """
    height, width = images.shape[-2:]
    angles = send(
        degrees.to(images.dtype if images.dtype == torch.float64 else torch.float32), images.device
    ).deg2rad()
    cosine, sine = angles.cos(), angles.sin()
    zero = torch.zeros_like(cosine)
    # Output coordinates in -1..1 are mapped back into the input; the ratios keep a non-square image
    # from being sheared.
    matrices = torch.stack(
        [cosine, -sine * (height / width), zero, sine * (width / height), cosine, zero], -1
    ).view(-1, 2, 3)
    grid = functional.affine_grid(
        matrices.to(images.dtype), list(images.shape), align_corners=False
    )
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode=PADDING[corners], align_corners=False
    )


def shift(images: Tensor, down: Tensor, right: Tensor, most: int) -> Tensor:
    """The images [B, C, H, W], each moved by its own whole pixels `down` and `right` [B], at most
    `most` either way; zero outside.
    """
    height, width = images.shape[-2:]
    windows = functional.pad(images, (most,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, most - send(down, images.device), most - send(right, images.device)]


def seen(augment: Augment, group: Group, learned: float = 0.0) -> tuple[Element, ...]:
    """The elements of `group` at which training sees images, in the group's order; the identity
    (upright) among them or not.

    Without rotation that is the identity; with `group` every element; with `uniform` every
    rotation; with `normal: [mean, deviation]` every rotation within two deviations of the mean (95
    % of the images are). `mirror` adds the mirrored counterpart of each that the group has. Small
    shifts do not count as orientations. `learned` is the largest angle in degrees by which images
    are turned either way by a learned augmentation.
    """
    if augment.rotation == "group":
        return group.elements
    return tuple(
        element
        for element in group.elements
        if (augment.mirror or not element.mirror)
        and _turn_is_seen(element.degrees, augment, learned)
    )


def _turn_is_seen(degrees: float, augment: Augment, learned: float) -> bool:
    if augment.rotation == "uniform":
        return True
    if isinstance(augment.rotation, Normal):
        mean, deviation = augment.rotation.normal
        away = abs((degrees - mean + 180) % 360 - 180)
        return away <= 2 * deviation + 1e-9
    return min(degrees, 360 - degrees) <= learned


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    if not mirrored.any():
        return images
    return torch.where(send(mirrored, images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def _turn_by_group(images: Tensor, degrees: Tensor, corners: Corners) -> Tensor:
    """Quarter turns by exact index moves, other angles (and quarter turns of images that are not
    square) bilinearly.
    """
    height, width = images.shape[-2:]
    step = 90 if height == width else 180
    exact = degrees % step == 0
    sources = _sources(height, width, images.device)[
        send((degrees // step * exact).long(), images.device)
    ]
    result = (
        images.flatten(2)
        .gather(2, sources[:, None].expand(-1, images.shape[1], -1))
        .view(images.shape)
    )
    if not exact.all():
        index = send((~exact).nonzero().squeeze(1), images.device)
        result[index] = rotate(images[index], degrees[~exact], corners)
    return result


@lru_cache(maxsize=64)
def _sources(height: int, width: int, device: torch.device) -> Tensor:
    """Which pixel each comes from after 0, 1, 2 and 3 quarter turns [4, pixels], or, of an image
    that is not square, 0 and 1 half turns [2, pixels].
    """
    pixels = torch.arange(height * width).view(1, 1, height, width)
    return torch.stack(
        [
            act(pixels, element).flatten()
            for element in (QUARTERS if height == width else QUARTERS[::2])
        ]
    ).to(device)
