"""Maxima over blocks of channels, by which equivariance losses compare what does not depend on the
group: in one pass, backwards in place.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainers.networks.kernels import compiled


def of_parts(maps: Tensor, parts: tuple[slice, ...], block: int) -> tuple[Tensor, ...]:
    """(the maps, the `compiled_block_maxima` of each of these parts of them along the batch)."""
    return _Parts.apply(maps, parts, block)


def compiled_block_maxima(maps: Tensor, block: int) -> Tensor:
    """The maximum over consecutive blocks of `block` channels [B, ceil(C / block), H, W]; a last
    smaller block is one by itself.
    """
    return _over_blocks(maps, block)[0]


def _over_blocks(maps: Tensor, block: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(the maxima, where they lie in the whole blocks and in a last smaller one: [B, H, W, blocks,
    1] each).
    """
    if block == 1:
        return maps.clone(), ()
    pairs = [_maxima(blocks) for blocks in _blocks_of(maps, block)]
    values = [values.squeeze(-1) for values, _ in pairs]
    return (values[0] if len(values) == 1 else torch.cat(values, -1)).permute(0, 3, 1, 2), tuple(
        places for _, places in pairs
    )


def _blocks_of(maps: Tensor, block: int) -> list[Tensor]:
    """Views [B, H, W, blocks, channels of one] of the whole blocks, and of a last smaller one; of
    channels-last maps, a block lies together.
    """
    channels, rest = maps.permute(0, 2, 3, 1), maps.shape[1] % block
    parts = channels.split([maps.shape[1] - rest, rest], -1) if rest else (channels,)
    return [
        part.unflatten(-1, (-1, min(block, part.shape[-1]))) for part in parts if part.shape[-1]
    ]


def _maxima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """blocks.max(-1, keepdim=True); on a CPU by compiled code, which takes a quarter of the time.
    Not for what is differentiated: see `_Parts`.
    """
    differentiated = blocks.requires_grad and torch.is_grad_enabled()
    suits = (
        blocks.device.type == "cpu"
        and blocks.dtype == torch.float32
        and blocks.is_contiguous()
        and not differentiated
    )
    code = maxima_library() if suits else None
    if code is None:
        return blocks.max(-1, keepdim=True)
    values = torch.empty(*blocks.shape[:-1], 1)
    places = torch.empty(values.shape, dtype=torch.int64)
    code.block_maxima(
        blocks.shape[-1], values.numel(), blocks.data_ptr(), values.data_ptr(), places.data_ptr()
    )
    return values, places


@cache
def maxima_library() -> ctypes.CDLL | None:
    """The compiled code; None where there is none, or where it does not find torch's maxima."""
    try:
        code = compiled.load_library(Path(__file__).with_suffix(".c"))
    except compiled.NotCompiledError:  # `trainers.networks.kernels.fourier` says why
        return None
    code.block_maxima.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    for block in (2, 3, 4, 8, 16):
        blocks = torch.rand(8, block, generator=torch.Generator().manual_seed(0))
        values, places = torch.empty(8), torch.empty(8, dtype=torch.int64)
        code.block_maxima(block, 8, blocks.data_ptr(), values.data_ptr(), places.data_ptr())
        expected = blocks.max(1)
        if not (torch.equal(values, expected.values) and torch.equal(places, expected.indices)):
            return None
    return code


class _Parts(torch.autograd.Function):
    """The maps themselves, and the block maxima of these parts of them along the batch.

    The gradient of a part is added in place where it belongs: the gradients of a slice and of a
    maximum would fill maps with zeros and add them, for every part. The maps' own gradient comes
    from the next layer of the network, which gives it to no other.
    """

    @staticmethod
    def forward(ctx, maps, parts, block):
        maxima, places = zip(*(_over_blocks(maps[part], block) for part in parts))
        ctx.parts, ctx.block, ctx.shape = parts, block, maps.shape
        ctx.save_for_backward(*(place for part in places for place in part))
        ctx.set_materialize_grads(False)
        return maps.view_as(maps), *maxima

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *of_parts):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:  # the gradient of a loss on the parts alone
            like = next((added for added in of_parts if added is not None), None)
            if like is None:
                return None, None, None
            grad = like.new_zeros(ctx.shape)
        # maps that were averaged have one gradient for all places, which must become many
        grad = grad.contiguous(memory_format=torch.channels_last)
        places = iter(ctx.saved_tensors)
        for part, added in zip(ctx.parts, of_parts):
            if ctx.block == 1:
                if added is not None:
                    grad[part] += added
                continue
            start = 0
            for blocks in _blocks_of(grad[part], ctx.block):
                where, stop = next(places), start + blocks.shape[3]
                if added is not None:
                    blocks.scatter_add_(
                        -1, where, added[:, start:stop].permute(0, 2, 3, 1).unsqueeze(-1)
                    )
                start = stop
        return grad, None, None
