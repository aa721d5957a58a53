"""Random changes of brightness, contrast, saturation and hue, each image by its own amount: the
formulas of torchvision's ColorJitter, whose functions take one amount for a whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.devices import send
from trainers.settings import ColourJitter

TORCHVISION_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of a grey value


def jitter(images: Tensor, settings: ColourJitter, drawn: Tensor) -> Tensor:
    """The float images [B, C, H, W] in 0..1 with changed brightness, contrast, saturation and hue,
    in this order. `drawn` [4, B] in 0..1 says by how much; 0.5 is not at all. Saturation and hue
    of grey images stay.
    """
    amounts = send(2 * drawn - 1, images.device).to(images.dtype)[..., None, None, None]
    bright, contrast, saturation, hue = amounts
    if settings.brightness:
        images = (images * (1 + settings.brightness * bright)).clamp(0, 1)
    if settings.contrast:
        mean = _grey(images).mean((1, 2, 3), keepdim=True)
        images = _blend(images, mean, 1 + settings.contrast * contrast)
    if images.shape[1] == 1:
        return images
    if settings.saturation:
        images = _blend(images, _grey(images), 1 + settings.saturation * saturation)
    return turn_hue(images, settings.hue * hue) if settings.hue else images


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """The colour images [B, 3, H, W] in 0..1 with their hue moved by `turn` [B, 1, 1, 1] of a full
    circle, by way of hue, saturation and value.
    """
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = high - low
    red, green, blue = ((high - images) / spread.clamp_min(1e-12)).split(1, 1)
    is_red, is_green = images[:, :1] == high, images[:, 1:2] == high
    hue = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(spread > 0, hue / 6, torch.zeros_like(hue)) + turn
    # each channel is the value less a part of the spread, by how far its own hue is away
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype, device=images.device)
    away = (offsets.view(1, 3, 1, 1) + 6 * hue).remainder(6)
    return high - spread * torch.minimum(away, 4 - away).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(TORCHVISION_LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(images: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    return (images * ratio + other * (1 - ratio)).clamp(0, 1)
