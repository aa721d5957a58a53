"""How images reach the input size: anti-aliased bilinear resize, or centred pad and crop."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as functional

Fit = Literal["resize", "pad"]
# of float32 pixels held at once while resizing
CHUNK_BYTES = 32 << 20


def fit_images(images: torch.Tensor, size: tuple[int, int], fit: Fit) -> torch.Tensor:
    """The uint8 images [N, C, H, W] at `size` (height, width), as uint8 [N, C, height, width].

    `resize` stretches to the size with anti-aliased bilinear interpolation, rounded to the nearest
    value: content keeps its centre, and turning or mirroring an image before or after is the same.
    `pad` keeps the pixels: zeros around, or a crop from, the centre. Where the difference is odd
    the image lies half a pixel towards the upper left: of 2d + 1 added (removed) rows, d come
    before and d + 1 after. A quarter turn is then about a point half a pixel off the image's own
    centre, so with `pad` choose sizes of the images' own parity where that matters.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return _resize(images, size) if fit == "resize" else _pad(images, size)


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    result = torch.empty((*images.shape[:2], *size), dtype=torch.uint8)
    pixels = images.shape[1] * max(images.shape[2] * images.shape[3], size[0] * size[1])
    step = max(1, CHUNK_BYTES // (4 * pixels))
    for start in range(0, len(images), step):
        chunk = images[start : start + step].float()
        chunk = functional.interpolate(
            chunk, size=size, mode="bilinear", align_corners=False, antialias=True
        )
        result[start : start + step] = chunk.round_().clamp_(0, 255).byte()
    return result


def _pad(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    result = torch.zeros((*images.shape[:2], *size), dtype=images.dtype)
    rows, columns = (_overlap(old, new) for old, new in zip(images.shape[-2:], size))
    result[..., rows[1], columns[1]] = images[..., rows[0], columns[0]]
    return result


def _overlap(old: int, new: int) -> tuple[slice, slice]:
    """Which part of an axis of `old` pixels lands where on one of `new` pixels, centred."""
    if old >= new:
        start = (old - new) // 2
        return slice(start, start + new), slice(0, new)
    start = (new - old) // 2
    return slice(0, old), slice(start, start + old)
