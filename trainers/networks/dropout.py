"""Dropout of values or of whole fields, in training alone (Srivastava et al., JMLR 15, 2014).

Its draws come from a generator that the training seeds for every epoch, so that a training that
goes on after an interruption has the masks of one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from searchspace.training import dropout as settings

LEVELS = 2**16  # a draw has 16 bits: a rate is rounded to a multiple of 1 / 65,536


class DropoutLayer(nn.Module):
    """Multiplies maps [batch, fields x order, height, width] by a random mask of zeros and 1 / (1 -
    rate) in training; in evaluation nothing.

    `generator` lies on the maps' device; without one (as in a copy of a network) torch's global
    one draws.
    """

    def __init__(self, dropout: settings.Dropout, order: int) -> None:
        super().__init__()
        self.dropout, self.order = dropout, order
        self.generator: torch.Generator | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "generator": None}

    def forward(self, maps: Tensor) -> Tensor:
        """The maps with zeros, in their own layout."""
        if not self.training:
            return maps
        batch, channels, height, width = maps.shape
        if self.dropout.kind == "fields":
            shape = batch, 1, 1, channels // self.order
        else:
            shape = batch, height, width, channels
        dropped = min(LEVELS - 1, round(self.dropout.rate * LEVELS))
        mask = self._drawn(shape, maps.device) >= dropped - LEVELS // 2
        if self.dropout.kind == "fields" and self.order > 1:
            mask = mask.repeat_interleave(self.order, -1)
        # drawn in channels-last order, so that the layout of the maps does not decide on masks
        return _Masked.apply(maps, mask.permute(0, 3, 1, 2), LEVELS / (LEVELS - dropped))

    def _drawn(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Whole numbers of 16 bits, with sign. Drawn four at a time: three times as fast as
        torch's bernoulli_ on a CPU (torch 2.15).
        """
        count = torch.Size(shape).numel()
        drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
        drawn.random_(-(2**63), None, generator=self.generator)
        return drawn.view(torch.int16)[:count].view(shape)

    def extra_repr(self) -> str:
        return str(self.dropout)


class _Masked(torch.autograd.Function):
    """maps x mask x factor; keeps one byte of each value for the gradient."""

    @staticmethod
    def forward(ctx, maps, mask, factor):
        ctx.factor = factor
        ctx.save_for_backward(mask)
        return (maps * mask).mul_(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.factor), None, None


def dropouts(network: nn.Module) -> list[DropoutLayer]:
    """The dropouts of a network, in their order."""
    return [module for module in network.modules() if isinstance(module, DropoutLayer)]


@contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """No dropout inside, whatever the mode of the network."""
    layers = dropouts(network)
    modes = [module.training for module in layers]
    for module in layers:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(layers, modes, strict=True):
            module.train(mode)
