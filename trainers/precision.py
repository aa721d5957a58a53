"""The precision of training: float32, or bfloat16 where the hardware makes it fast."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as functional

Precision = Literal["float32", "bfloat16"]


def resolve_precision(
    precision: Precision | Literal["auto"], device: torch.device | str
) -> Precision:
    """The training precision on `device`: `auto` is bfloat16 where that is fast, else float32."""
    if precision == "auto":
        return "bfloat16" if fast_bfloat16(torch.device(device).type) else "float32"
    return precision


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager:
    """The context in which a forward pass computes in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


@cache
def fast_bfloat16(device: str = "cpu") -> bool:
    """True if a convolution on `device` (a type: cpu or cuda) is at least a quarter faster in
    bfloat16 than in float32.

    On a CPU without matrix units for bfloat16 (AMX) it is not; measured where there are some, about
    0.1 s, once per process.
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if device != "cpu" or not torch.cpu._is_amx_tile_supported():
        return False
    images = torch.randn(64, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    return _seconds(images.bfloat16(), weight.bfloat16()) < 0.75 * _seconds(images, weight)


def _seconds(images: torch.Tensor, weight: torch.Tensor) -> float:
    """The shortest of several convolutions: what the hardware can do, whoever else is using it."""
    times = []
    for _ in range(8):
        began = time.perf_counter()
        functional.conv2d(images, weight, padding=1)
        times.append(time.perf_counter() - began)
    return min(times)
