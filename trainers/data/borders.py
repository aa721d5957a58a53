"""What should fill the corners of turned images, by a look at the borders of some of them, and
what a network sees of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from trainers.settings import Corners

BORDER_IMAGES = 512  # that are looked at, at most
ALIKE = 12  # grey values of 255 that count as one colour: noise, compression
# of the pixels outside the inscribed disc that one colour must have. Digits, clothes and plankton
# have it on 0.90 to 1.00 of them (mean over images), photographs on 0.21
PLAIN = 0.8
MOST_BORDER = (
    0.5  # of the images: 1.00, 0.88 and 0.81 of them are plain in those sets, 0.02 in photographs
)
BLACK = 0.9  # of the plain images whose colour must be zero


@dataclass(frozen=True)
class CornerChoice:
    """What to fill corners with, and the reason as a clause."""

    corners: Corners
    reason: str


def choose_corners(pixels: Tensor) -> CornerChoice:
    """The choice for images uint8 [N, C, H, W], of which 512, evenly spaced, are looked at.

    An image is plain where most of what lies outside its inscribed disc has one colour. Plain
    images get black corners where that colour is black, else their border pixels repeated; images
    that fill their frame are mirrored at their borders.
    """
    chosen = torch.linspace(0, len(pixels) - 1, min(len(pixels), BORDER_IMAGES)).long()
    height, width = pixels.shape[-2:]
    corners = pixels[chosen][..., ~inscribed_circle(height, width)].short()
    colour = corners.median(2, keepdim=True).values
    share = ((corners - colour).abs() <= ALIKE).all(1).float().mean(1)
    plain = share >= PLAIN
    if plain.float().mean() <= MOST_BORDER:
        return CornerChoice("reflect", "the images fill their frame")
    dark = (colour[plain] <= ALIKE).flatten(1).all(1)
    if dark.float().mean() >= BLACK:
        return CornerChoice("black", "the images have a black background")
    return CornerChoice("replicate", "the images have a plain background that is not black")


def see(pixels: Tensor, corners: Corners) -> Tensor:
    """The images [batch, channel, height, width] in 0..1, after they were moved, as a network sees
    them: with `circle` black outside their inscribed circle, with `crop` their centre
    (`kept_centre`) enlarged to the same size (bilinear), else as they are.
    """
    height, width = pixels.shape[-2:]
    if corners == "circle":
        return pixels * inscribed_circle(height, width, pixels.device)
    if corners == "crop":
        rows, columns = kept_centre(height, width)
        top, left = (height - rows) // 2, (width - columns) // 2
        centre = pixels[..., top : top + rows, left : left + columns]
        return functional.interpolate(
            centre, size=(height, width), mode="bilinear", align_corners=False
        )
    return pixels


def kept_centre(height: int, width: int) -> tuple[int, int]:
    """The rows and columns of the largest centred rectangle of an image's shape whose pixels an
    angle interpolates between pixels of the image alone: its half diagonal is at most half the
    shorter side, from centre to centre of pixels.

    Each has the parity of its side, so that the centre is the image's own and flips and quarter
    turns (half turns, if the image is not square) keep the rectangle. `trainers.bundles.model` has
    the same for bundles.
    """
    shorter, diagonal = min(height, width) - 1, (height - 1) ** 2 + (width - 1) ** 2
    sides = []
    for side in (height, width):
        reach = math.isqrt(((side - 1) * shorter) ** 2 // diagonal) if diagonal else 0
        kept = reach + 1 - (side - reach - 1) % 2
        sides.append(kept if kept > 0 else side)  # of two pixels none can be left out
    return sides[0], sides[1]


def inscribed_circle(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """True [height, width] at the pixels whose centres lie in the largest circle about the centre.

    All that is compared is a multiple of 1/4 and exact, so that flips and quarter turns keep it.
    `trainers.bundles.model` has the same for bundles.
    """
    down = torch.arange(height, device=device) - (height - 1) / 2
    right = torch.arange(width, device=device) - (width - 1) / 2
    return down[:, None].square() + right.square() <= (min(height, width) / 2) ** 2
