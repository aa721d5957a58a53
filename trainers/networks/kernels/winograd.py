"""Convolutions with kernels of 3 x 3 and stride 1 in Winograd's form F(2 x 2, 3 x 3): 16 products
for every 2 x 2 pixels of the output, where the sum over the kernel takes 36.

For a tile d of 4 x 4 pixels of a channel, a kernel g and the gradient y of the 2 x 2 outputs

    convolution        A' [(G g G') (B' d B)] A
    of the maps        the convolution of the output's gradient with the kernel turned by 180
                       degrees
    of the kernel      G' [(B' d B) (A y A')] G

with products of corresponding entries, summed over the incoming channels, or over tiles (Lavin &
Gray, arXiv:1509.09308, section 4.1). Any weight: that of a plain network, of a residual pathway, of
a mixed layer. Equal to torch's to rounding: the matrices hold 0, 1 and 1/2 only.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainers.networks.kernels import compiled
from trainers.networks.kernels.calling import in_parts, plain, watched

log = logging.getLogger(__name__)

# largest difference from torch's convolution, as a share of the largest value (rounding: 1e-6)
WINOGRAD_AGREEMENT = 1e-4
LANES = 16  # of winograd.c: channels out are padded to their multiples, and there are as many
TILE_VALUES = 16  # of a transformed tile
KERNEL = 3
LEAST_WINOGRAD_CHANNELS = 20  # below which transforming tiles costs what products save
LEAST_USED = 0.75  # of the pixels of all tiles that must lie in the output


class ShapeStruct(ctypes.Structure):
    """`struct shape` of winograd.c: of the maps, pixels; the bias of the outgoing channels."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("channels_in", "channels_out", "height", "width", "padding")
        ),
        ("bias", ctypes.c_void_p),
    ]


def winograd_library() -> ctypes.CDLL | None:
    """The compiled code, once its results have agreed with torch's; None where there is none."""
    return winograd_status()[0]


@cache
def winograd_status() -> tuple[ctypes.CDLL | None, str]:
    """(the compiled code or None, why there is none)."""
    try:
        return _load(), ""
    except compiled.NotCompiledError as reason:
        log.info("convolutions of 3 x 3 are torch's: %s", reason)
        return None, str(reason)


def _load() -> ctypes.CDLL:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise compiled.NotCompiledError("they are faster only on a processor with AVX-512")
    code = compiled.load_library(Path(__file__).with_suffix(".c"))
    for name in ("convolve", "weights_gradient"):
        function = getattr(code, name)
        function.argtypes = [ctypes.POINTER(ShapeStruct), ctypes.c_int64, *[ctypes.c_void_p] * 3]
        function.restype = ctypes.c_int
    error = _disagreement(code)
    if not error < WINOGRAD_AGREEMENT:
        raise compiled.NotCompiledError(
            f"compiled code is wrong by {error:.1g} of the largest value; another compiler may do"
        )
    return code


def suits(maps: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> bool:
    """True if a convolution should be computed here: allowed, possible and faster than torch's by
    `tests/benchmarks/bench_convolution.py`.

    As for `trainers.networks.kernels.fourier.suits`, the number of images does not matter.
    """
    if (
        tuple(weight.shape[2:]) != (KERNEL, KERNEL)
        or (stride, dilation) != (1, 1)
        or not 0 <= padding < KERNEL
        or min(weight.shape[:2]) < LEAST_WINOGRAD_CHANNELS
    ):
        return False
    height, width = (length + 2 * padding - KERNEL + 1 for length in maps.shape[2:])
    if height < 2 or width < 2:
        return False
    tiled = (height + height % 2) * (width + width % 2)
    if height * width < LEAST_USED * tiled or watched():
        return False
    return plain(maps) and plain(weight) and winograd_library() is not None


def convolve(maps: Tensor, weight: Tensor, padding: int = 0, bias: Tensor | None = None) -> Tensor:
    """conv2d(maps, weight, bias) in channels-last layout, for float32 maps [batch, channels,
    height, width] and a weight [channels out, channels in, 3, 3], at least 16 channels each, and a
    padding of 0 to 2 pixels.

    Equal to rounding. `bias` [channels out] has no gradient. Raises MemoryError if there is not
    enough memory.
    """
    return _Convolution.apply(maps, weight, padding, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, weight, padding, bias):
        maps = maps.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return _convolve(_required(), maps, weight, padding, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        maps, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_maps = grad_weight = None
        if ctx.needs_input_grad[0]:
            turned = weight.flip(2, 3).transpose(0, 1)
            grad_maps = _convolve(_required(), grad, turned, KERNEL - 1 - ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(_required(), maps, grad, ctx.padding)
        return grad_maps, grad_weight, None, None


def _convolve(
    code: ctypes.CDLL, maps: Tensor, weight: Tensor, padding: int, bias: Tensor | None = None
) -> Tensor:
    shape = _shape(maps, len(weight), padding, bias)
    size = [length + 2 * padding - KERNEL + 1 for length in maps.shape[2:]]
    out = torch.empty((len(maps), len(weight), *size), memory_format=torch.channels_last)
    transformed = _transformed(weight)

    def part(first: int, last: int) -> int:
        return code.convolve(
            shape,
            last - first,
            maps[first:].data_ptr(),
            transformed.data_ptr(),
            out[first:].data_ptr(),
        )

    in_parts(part, len(maps))
    return out


def _weight_gradient(code: ctypes.CDLL, maps: Tensor, grad: Tensor, padding: int) -> Tensor:
    into, out = maps.shape[1], grad.shape[1]
    shape, sums = _shape(maps, out, padding), dict[int, Tensor]()

    def part(first: int, last: int) -> int:
        sums[first] = torch.empty(TILE_VALUES, into, out + -out % LANES)
        return code.weights_gradient(
            shape,
            last - first,
            maps[first:].data_ptr(),
            grad[first:].data_ptr(),
            sums[first].data_ptr(),
        )

    in_parts(part, len(maps))
    total = (
        torch.stack([sums[first] for first in sorted(sums)]).sum(0) if len(sums) > 1 else sums[0]
    )
    taps = (_matrix().t() @ total.flatten(1)).view(KERNEL, KERNEL, into, -1)
    return taps[..., :out].permute(3, 2, 0, 1).contiguous()


def _shape(
    maps: Tensor, channels_out: int, padding: int, bias: Tensor | None = None
) -> ShapeStruct:
    """The compiled code's description of a convolution of `maps`; `bias` must outlive it."""
    address = None if bias is None else bias.data_ptr()
    return ShapeStruct(maps.shape[1], channels_out, *maps.shape[2:], padding, address)


def _transformed(weight: Tensor) -> Tensor:
    """G g G' of all pairs of channels: [VALUES, channels in, channels out, padded]."""
    out, into = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
    return F.pad((_matrix() @ taps).view(TILE_VALUES, into, out), (0, -out % LANES)).contiguous()


@cache
def _matrix() -> Tensor:
    """G g G' of a kernel, as a matrix [VALUES, 9] of its entries."""
    with torch.inference_mode(False):  # or it could not serve training later
        g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        return torch.kron(g, g)


def _required() -> ctypes.CDLL:
    code = winograd_library()
    assert code is not None, "`suits` is False without compiled code"
    return code


def _disagreement(code: ctypes.CDLL) -> float:
    """How far the compiled convolution and its gradient are from torch's, as a share of their
    size.
    """
    generator, error = torch.Generator().manual_seed(0), 0.0
    for into, out, padding in ((16, 40, 1), (24, 17, 0)):
        maps, weight, other = (
            torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
            for shape in ((2, into, 9, 8), *((out, into, KERNEL, KERNEL),) * 2)
        )
        expected, direction = (F.conv2d(maps, w, padding=padding) for w in (weight, other))
        found = _convolve(code, maps, weight, padding)
        # of half the squared output, as the weight moves to the other
        along = (_weight_gradient(code, maps, found, padding) * other).sum()
        error = max(
            error,
            float((found - expected).abs().max() / expected.abs().max()),
            float((along / (expected * direction).sum() - 1).abs()),
        )
    return error
