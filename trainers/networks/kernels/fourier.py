"""Convolutions between regular fields in the Fourier basis of the group: fewer products than a
plain convolution of the same channels.

Let H be the quarter turns and flips of the fields' group. An H-equivariant weight is determined by
its row of the identity, c[s, h] for tap s and element h (`trainers.networks.filters`), and at a
place p

    y_g = sum over s, h of c[s, h] v_s[g h],    v_s[a] = x_a(p + a s)

where a s is the tap to which a moves s. For an irreducible representation r of H, of dimension d,
let

    v_s(r) = sum over a of v_s[a] r(a),    c_s(r) = sum over h of c[s, h] r(h);    then
    y(r) = sum over s of v_s(r) c_s(r)'

and y_g = sum over r of d / |H| trace(y(r) r(g)'); of C4's representation of dimension 2 over the
reals, whose rows repeat each other, only the first row is computed and counted. Representations do
not mix, which leaves |H|^2 / sum of rows x d^2 times fewer products: 16 / 6 = 2.7 for C4, 64 / 12 =
5.3 for D4. That equivariant layers are block-diagonal in this basis is how Bökman, Nordström & Kahl
(arXiv:2502.05169) save theirs, between fields of irreducible type; here the fields are regular, as
ReLU needs them, and the transformed values of a tile of places exist only in the processor's cache
(`fourier.c`).
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

from searchspace.groups import Group
from trainers.networks.filters import Parametrisation, arrange, expand
from trainers.networks.kernels import compiled
from trainers.networks.kernels.calling import in_parts, plain, watched
from trainers.networks.kernels.transform import LayerStruct, Transform, transform_of

__all__ = ["convolve", "fourier_library", "fourier_status", "suits", "transform_of"]

log = logging.getLogger(__name__)

# largest difference from torch's convolution, as a share of the largest value (rounding: 1e-6)
AGREEMENT = 1e-4
LEAST_LENGTH = 5  # of a side of the maps, pixels
LEAST_CHANNELS = 24  # below which transforming a value costs more than its products
# channels to whose multiples torch rounds up, so that even groups of two elements are faster
# between them
CHANNEL_BLOCK = 16


def fourier_library() -> ctypes.CDLL | None:
    """The compiled code, once its results have agreed with torch's; None where there is none."""
    return fourier_status()[0]


@cache
def fourier_status() -> tuple[ctypes.CDLL | None, str]:
    """(the compiled code or None, why there is none)."""
    try:
        return _load(), ""
    except compiled.NotCompiledError as reason:
        log.info("convolutions are torch's: %s", reason)
        return None, str(reason)


def _load() -> ctypes.CDLL:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise compiled.NotCompiledError(
            "they are faster in the Fourier basis only on a processor with AVX-512"
        )
    code = compiled.load_library(Path(__file__).with_suffix(".c"))
    for name in ("convolve", "spectra_gradient"):
        function = getattr(code, name)
        function.argtypes = [ctypes.POINTER(LayerStruct), ctypes.c_int64, *[ctypes.c_void_p] * 3]
        function.restype = ctypes.c_int
    for group in (Group(4), Group(4, True)):
        error = _disagreement(code, group)
        if not error < AGREEMENT:
            raise compiled.NotCompiledError(
                f"compiled code for {group} is wrong by {error:.1g} of the largest value; "
                "another compiler may do"
            )
    return code


def suits(
    group: Group, maps: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> bool:
    """True if a convolution of regular fields of `group` should be computed here: allowed, possible
    and faster than torch's by `tests/benchmarks/bench_convolution.py`.

    The number of images does not matter, so that an image's maps are the same in every batch. Not
    under autocast, in other precisions or on other devices, nor where something must look inside:
    compilers, exporters, tracers, torch.func and forward-mode derivatives.
    """
    kernel, order, channels = weight.shape[-1], group.grid.order, weight.shape[:2]
    if (
        kernel < 3
        or stride > 2
        or min(channels) < LEAST_CHANNELS
        or not (order > 2 or (order == 2 and all(count % CHANNEL_BLOCK for count in channels)))
    ):
        return False
    if watched() or not (plain(maps) and plain(weight)):
        return False
    smallest = min(maps.shape[2:])
    return (
        smallest >= max(LEAST_LENGTH, dilation * (kernel - 1) + 1 - 2 * padding)
        and fourier_library() is not None
    )


def convolve(
    maps: Tensor,
    weight: Tensor,
    shared: Transform,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: Tensor | None = None,
) -> Tensor:
    """conv2d(maps, weight, bias) in channels-last layout, for float32 maps [batch, channels,
    height, width] and an equivariant weight.

    Equal to rounding. The gradient with respect to `weight` is that of the row of the identity and
    zero elsewhere, which gives the parameters behind the weight the same gradient. `bias`
    [channels] has no gradient. Raises MemoryError if there
    is not enough memory.
    """
    return _Convolution.apply(maps, weight, shared, stride, padding, dilation, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, weight, shared, stride, padding, dilation, bias):
        maps = maps.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(maps, weight)
        ctx.shared, ctx.window = shared, (stride, padding, dilation)
        reach = dilation * (shared.kernel - 1) + 1
        size = [(length + 2 * padding - reach) // stride + 1 for length in maps.shape[2:]]
        layer = shared.layer(maps, stride, padding, dilation, bias=bias)
        return _convolve(layer, maps, shared.spectra(weight), (len(maps), len(weight), *size))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        maps, weight = ctx.saved_tensors
        shared, (stride, padding, dilation) = ctx.shared, ctx.window
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_maps = grad_weight = None
        if ctx.needs_input_grad[0]:
            around = dilation * (shared.kernel - 1) - padding
            if stride == 1 and around >= 0:
                grad_maps = _convolve(
                    shared.layer(grad, 1, around, dilation, True),
                    grad,
                    shared.spectra(weight, True),
                    maps.shape,
                )
            else:
                grad_maps = torch.ops.aten.convolution_backward(
                    grad,
                    maps,
                    weight,
                    None,
                    [stride] * 2,
                    [padding] * 2,
                    [dilation] * 2,
                    False,
                    [0, 0],
                    1,
                    [True, False, False],
                )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = shared.weight_gradient(
                _spectra_gradient(
                    shared.layer(maps, stride, padding, dilation), maps, grad, len(shared.order)
                ),
                weight.shape,
            )
        return grad_maps, grad_weight, None, None, None, None, None


def _convolve(layer: LayerStruct, maps: Tensor, spectra: Tensor, shape: tuple[int, ...]) -> Tensor:
    code, out = _required(), torch.empty(shape, memory_format=torch.channels_last)

    def part(first: int, last: int) -> int:
        return code.convolve(
            layer, last - first, maps[first:].data_ptr(), spectra.data_ptr(), out[first:].data_ptr()
        )

    in_parts(part, len(maps))
    return out


def _required() -> ctypes.CDLL:
    code = fourier_library()
    assert code is not None, "`suits` is False without compiled code"
    return code


def _spectra_gradient(layer: LayerStruct, maps: Tensor, grad: Tensor, size: int) -> Tensor:
    code, sums = _required(), dict[int, Tensor]()

    def part(first: int, last: int) -> int:
        out = torch.empty(size)
        sums[first] = out
        return code.spectra_gradient(
            layer, last - first, maps[first:].data_ptr(), grad[first:].data_ptr(), out.data_ptr()
        )

    in_parts(part, len(maps))
    return torch.stack([sums[first] for first in sorted(sums)]).sum(0) if len(sums) > 1 else sums[0]


def _disagreement(code: ctypes.CDLL, group: Group) -> float:
    """How far the compiled convolution of `group` and its gradient are from torch's convolution, as
    a share of their size.
    """
    generator = torch.Generator().manual_seed(0)
    parametrisation = Parametrisation("free", group, 3, lifting=False)
    weight, other = (
        arrange(
            expand(
                torch.randn(6, parametrisation.size, generator=generator),
                parametrisation,
                parametrisation.constants(),
            ),
            3,
        )
        for _ in range(2)
    )
    maps = torch.randn(2, 2 * group.order, 9, 8, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    expected, direction = F.conv2d(maps, weight, padding=1), F.conv2d(maps, other, padding=1)
    shared = Transform(group, group, maps.shape[1], len(weight), 3)
    layer, out = (
        shared.layer(maps, 1, 1, 1),
        torch.empty_like(expected, memory_format=torch.channels_last),
    )
    spectra, gradient = shared.spectra(weight), torch.empty(len(shared.order))
    failed = code.convolve(layer, len(maps), maps.data_ptr(), spectra.data_ptr(), out.data_ptr())
    failed = failed or code.spectra_gradient(
        layer, len(maps), maps.data_ptr(), out.data_ptr(), gradient.data_ptr()
    )
    if failed:
        return float("inf")
    # of half the squared output, as the weight moves to the other
    along = (shared.weight_gradient(gradient, weight.shape) * other).sum()
    return max(
        float((out - expected).abs().max() / expected.abs().max()),
        float((along / (expected * direction).sum() - 1).abs()),
    )
