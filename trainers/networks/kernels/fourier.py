"""Convolutions between regular fields in the Fourier basis of the group: fewer products than a
plain convolution of the same channels.

Let H be the quarter turns and flips of the fields' group. An H-equivariant weight is determined by
its row of the identity, c[s, h] for tap s and element h (`trainers.networks.filters`), and at a
place p

    y_g = sum over s, h of c[s, h] v_s[g h],    v_s[a] = x_a(p + a s)

where a s is the tap to which a moves s. For an irreducible representation r of H, of dimension d,
let

    v_s(r) = sum over a of v_s[a] r(a),    c_s(r) = sum over h of c[s, h] r(h);    then    y(r) = sum over s of v_s(r) c_s(r)'

and y_g = sum over r of d / |H| trace(y(r) r(g)'); of C4's representation of dimension 2 over the
reals, whose rows repeat each other, only the first row is made and counted. Representations do not
mix, which leaves |H|^2 / sum of rows x d^2 times fewer products: 16 / 6 = 2.7 for C4, 64 / 12 = 5.3
for D4. That equivariant layers are block-diagonal in this basis is how Bökman, Nordström & Kahl
(arXiv:2502.05169) save theirs, between fields of irreducible type; here the fields are regular, as
ReLU needs them, and the transformed values of a tile of places exist only in the processor's cache
(`fourier.c`).
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from searchspace.groups import Element, Group
from trainers.actions import act
from trainers.networks.filters import Parametrisation, arrange, expand, restricted_order
from trainers.networks.kernels import compiled

log = logging.getLogger(__name__)

KINDS = {"C1": 0, "C2": 1, "D1": 1, "D2": 2, "C4": 3, "D4": 4}  # as fourier.c numbers them
LEAST_LENGTH = 5  # of a side of the maps, pixels
LEAST_CHANNELS = 24  # below which transforming a value costs more than its products
# channels to whose multiples torch rounds up, so that even groups of two elements are faster
# between them
BLOCK = 16


class _Layer(ctypes.Structure):
    """`struct layer` of fourier.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "kind",
                "order",
                "fields_in",
                "fields_out",
                "height",
                "width",
                "kernel",
                "stride",
                "padding",
                "dilation",
            )
        ),
        *((name, ctypes.c_void_p) for name in ("channels_in", "channels_out", "taps", "bias")),
    ]


def library() -> ctypes.CDLL | None:
    """The compiled code, once it has agreed with torch's convolution; None where there is none."""
    return status()[0]


@cache
def status() -> tuple[ctypes.CDLL | None, str]:
    """(the compiled code or None, why there is none)."""
    try:
        return _load(), ""
    except compiled.NotCompiled as reason:
        log.info("convolutions are torch's: %s", reason)
        return None, str(reason)


def _load() -> ctypes.CDLL:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise compiled.NotCompiled(
            "they are faster in the Fourier basis only on a processor with AVX-512"
        )
    found = compiled.load(Path(__file__).with_suffix(".c"))
    for name in ("convolve", "spectra_gradient"):
        getattr(found, name).argtypes = [
            ctypes.POINTER(_Layer),
            ctypes.c_int64,
            *[ctypes.c_void_p] * 3,
        ]
        getattr(found, name).restype = ctypes.c_int
    for group in (Group(4), Group(4, True)):
        apart = _disagreement(found, group)
        if not apart < 1e-4:
            raise compiled.NotCompiled(
                f"compiled code for {group} is wrong by {apart:.1g} of the largest value; "
                "another compiler may do"
            )
    return found


class Transform:
    """What all convolutions of a kernel between fields of `source` and of `group` share: where the
    entries of their spectra come from.
    """

    def __init__(
        self, group: Group, source: Group, channels_in: int, channels_out: int, kernel: int
    ) -> None:
        self.grid, self.kernel = group.grid, kernel
        self.channels_in, self.channels_out = (
            _channels(source, self.grid, channels_in),
            _channels(group, self.grid, channels_out),
        )
        self.taps = _taps(self.grid, kernel)
        self.matrix, dimensions = _matrix(self.grid)
        shape = (channels_out, channels_in, kernel * kernel)
        self.entries = _entries(shape, self.channels_out[:, :1], self.channels_in, self.taps)
        self.order = _order(len(self.channels_out), len(self.channels_in), kernel**2, dimensions)
        self.inverse_order = torch.argsort(self.order).to(torch.int32)
        # The gradient of the maps is a convolution with the filters turned by 180 degrees, from
        # outgoing to incoming fields.
        backward = _entries(shape, self.channels_out, self.channels_in[:, :1], self.taps.flip(1))
        by_field = backward.view(
            len(self.channels_out), len(self.channels_in), kernel**2, self.grid.order
        )
        self.backward_entries = by_field.transpose(0, 1).flatten()
        self.backward_order = _order(
            len(self.channels_in), len(self.channels_out), kernel**2, dimensions
        )

    def spectra(self, weight: Tensor, backward: bool = False) -> Tensor:
        """c_s(r) of all pairs of fields, each times d / |H|, from a weight [channels out, channels
        in, k, k]: flat, block by block.
        """
        entries, order = (
            (self.backward_entries, self.backward_order) if backward else (self.entries, self.order)
        )
        rows = weight.reshape(-1).index_select(0, entries).view(-1, self.grid.order)
        return (rows @ self.matrix).view(-1).index_select(0, order)

    def weight_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of a weight from that of its spectra: all of it at the rows that determine
        the others.
        """
        rows = (
            gradient.index_select(0, self.inverse_order).view(-1, self.matrix.shape[1])
            @ self.matrix.t()
        )
        return (
            gradient.new_zeros(shape.numel())
            .index_copy_(0, self.entries.long(), rows.view(-1))
            .view(shape)
        )

    def layer(
        self,
        maps: Tensor,
        stride: int,
        padding: int,
        dilation: int,
        backward: bool = False,
        bias: Tensor | None = None,
    ) -> _Layer:
        """What the compiled code must know of a convolution of `maps`."""
        fields = (
            (self.channels_out, self.channels_in)
            if backward
            else (self.channels_in, self.channels_out)
        )
        return _Layer(
            KINDS[str(self.grid)],
            self.grid.order,
            *map(len, fields),
            *maps.shape[2:],
            self.kernel,
            stride,
            padding,
            dilation,
            *(table.data_ptr() for table in (*fields, self.taps)),
            None if bias is None else bias.data_ptr(),
        )


@lru_cache(maxsize=256)
def transform(
    group: Group, source: Group, channels_in: int, channels_out: int, kernel: int
) -> Transform:
    """The shared tables of such convolutions."""
    return Transform(group, source, channels_in, channels_out, kernel)


def suits(
    group: Group, maps: Tensor, weight: Tensor, stride: int, padding: int, dilation: int
) -> bool:
    """True if a convolution of regular fields of `group` is to be made here: allowed, possible and
    faster than torch's by `tests/benchmarks/bench_convolution.py`.

    The number of images does not matter, so that an image's maps are the same in every batch. Not
    under autocast, in other precisions or on other devices, nor where something must look inside:
    compilers, exporters, tracers, torch.func and forward-mode derivatives.
    """
    kernel, order, channels = weight.shape[-1], group.grid.order, weight.shape[:2]
    if (
        kernel < 3
        or stride > 2
        or min(channels) < LEAST_CHANNELS
        or not (order > 2 or (order == 2 and all(count % BLOCK for count in channels)))
    ):
        return False
    if _watched() or not (_plain(maps) and _plain(weight)):
        return False
    smallest = min(maps.shape[2:])
    return (
        smallest >= max(LEAST_LENGTH, dilation * (kernel - 1) + 1 - 2 * padding)
        and library() is not None
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
    zero elsewhere, which is the same for the parameters that the weight is made from. `bias`
    [channels] has no gradient. Raises MemoryError where memory lacks.
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
    def backward(ctx, grad):
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


def _convolve(layer: _Layer, maps: Tensor, spectra: Tensor, shape: tuple[int, ...]) -> Tensor:
    out = torch.empty(shape, memory_format=torch.channels_last)

    def part(first: int, last: int) -> int:
        return library().convolve(
            layer, last - first, maps[first:].data_ptr(), spectra.data_ptr(), out[first:].data_ptr()
        )

    _in_parts(part, len(maps))
    return out


def _spectra_gradient(layer: _Layer, maps: Tensor, grad: Tensor, size: int) -> Tensor:
    sums: dict[int, Tensor] = {}

    def part(first: int, last: int) -> int:
        out = torch.empty(size)
        sums[first] = out
        return library().spectra_gradient(
            layer, last - first, maps[first:].data_ptr(), grad[first:].data_ptr(), out.data_ptr()
        )

    _in_parts(part, len(maps))
    return torch.stack([sums[first] for first in sorted(sums)]).sum(0) if len(sums) > 1 else sums[0]


def _in_parts(part: Callable[[int, int], int], images: int) -> None:
    """Calls `part(first, last)` for as many parts of the batch as torch has threads."""
    threads = max(1, min(torch.get_num_threads(), images))
    edges = [number * images // threads for number in range(threads + 1)]
    if threads == 1:
        failed = part(0, images)
    else:
        with ThreadPoolExecutor(threads) as pool:
            failed = max(pool.map(part, edges, edges[1:]))
    if failed:
        raise MemoryError("not enough memory for a convolution")


def _plain(values: Tensor) -> bool:
    if (
        values.device.type != "cpu"
        or values.dtype != torch.float32
        or type(values) not in (Tensor, torch.nn.Parameter)
    ):
        return False
    # The level is that of all threads: one that takes derivatives must not change what the others
    # compute.
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(values).tangent is None


def _watched() -> bool:
    """True where an operation must not disappear into compiled code."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


def _representations(group: Group) -> list[tuple[int, Callable[[Element], Tensor]]]:
    """(dimension, matrices) of the irreducible representations of a group on the grid, in the order
    of fourier.h; over the reals.
    """
    signs = (
        [lambda e: 1.0, lambda e: -1.0 if e.mirror else 1.0] if group.mirror else [lambda e: 1.0]
    )
    steps = group.rotations  # a half turn of two, a quarter turn of four: -1
    turns = (
        [lambda e: 1.0, lambda e: (-1.0) ** int(e.turn * steps)] if steps > 1 else [lambda e: 1.0]
    )
    found = [
        (1, lambda e, t=turn, s=sign: torch.tensor([[t(e) * s(e)]]))
        for turn in turns
        for sign in signs
    ]
    if steps == 4:
        found.append((2, _plane))
    return found


def _plane(element: Element) -> Tensor:
    """The element as a matrix of the plane: a mirror of its second axis, then a rotation."""
    turn = torch.linalg.matrix_power(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), element.quarter_turns)
    return turn * torch.tensor([1.0, -1.0]) if element.mirror else turn


@cache
def _matrix(group: Group) -> tuple[Tensor, tuple[int, ...]]:
    """(the entries of all representations times d / |H| [|H|, sum of d^2], their dimensions d)."""
    kinds = _representations(group)
    columns = [
        torch.stack([matrices(e) for e in group.elements]).flatten(1) * dimension / group.order
        for dimension, matrices in kinds
    ]
    return torch.cat(columns, 1), tuple(dimension for dimension, _ in kinds)


@cache
def _taps(group: Group, kernel: int) -> Tensor:
    """[|H|, k x k]: the tap to which an element moves a tap."""
    taps = torch.arange(kernel * kernel).view(1, 1, kernel, kernel)
    return torch.stack(
        [torch.argsort(act(taps, element).flatten()) for element in group.elements]
    ).to(torch.int32)


def _channels(group: Group, subgroup: Group, channels: int) -> Tensor:
    """[fields, |H|]: the channels of fields of `group`, seen as fields of the subgroup."""
    found = torch.arange(0, channels, group.order)[:, None] + torch.tensor(
        restricted_order(group, subgroup)
    )
    return found.view(-1, subgroup.order).to(torch.int32)


def _entries(shape: tuple[int, int, int], rows: Tensor, columns: Tensor, taps: Tensor) -> Tensor:
    """Where c[s, h] of all pairs of fields lies in a weight of that shape: flat [fields out, fields
    in, k x k, |H|], int32.

    `rows` and `columns` [fields, 1 or |H|] are the channels of the elements h, or of the identity.
    """
    _, channels_in, size = shape
    found = (rows[:, None, None, :] * channels_in + columns[None, :, None, :]) * size + taps.t()[
        None, None
    ]
    return found.flatten().to(torch.int32)


def _order(fields_out: int, fields_in: int, size: int, dimensions: tuple[int, ...]) -> Tensor:
    """Where [block][field out, row, field in, tap, column] lies in [field out, field in, tap,
    entry], flat, int32.
    """
    entries = sum(d * d for d in dimensions)
    places = torch.arange(fields_out * fields_in * size * entries).view(
        fields_out, fields_in, size, entries
    )
    parts = places.split([d * d for d in dimensions], -1)
    return torch.cat(
        [
            part.unflatten(-1, (d, d)).permute(0, 3, 1, 2, 4).flatten()
            for part, d in zip(parts, dimensions)
        ]
    ).to(torch.int32)


def _disagreement(found: ctypes.CDLL, group: Group) -> float:
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
    failed = found.convolve(layer, len(maps), maps.data_ptr(), spectra.data_ptr(), out.data_ptr())
    failed = failed or found.spectra_gradient(
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
