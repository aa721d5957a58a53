"""Rules of operations that read windows: convolutions, pools, resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.instruments.audit import field
from trainers.instruments.audit.record import Constant
from trainers.instruments.audit.values import (
    OUTSIDE,
    Context,
    Unreadable,
    Value,
    kept_kernel,
    largest,
    lifted,
    members_of,
    rule,
    whole,
)

PerAxis = tuple[int, int]


def pair(values: Sequence[int] | int) -> PerAxis:
    """(height, width) of an argument that may be one number for both."""
    if isinstance(values, int):
        return values, values
    first, last = values[0], values[-1]
    return first, last


@rule("convolution")
def turned_convolution(
    context: Context,
    maps: Value,
    weight: Constant,
    bias: Constant | None,
    stride: Sequence[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Value:
    """A convolution whose kernels the turns keep; one of buffers has their values."""
    if not isinstance(maps, Value) or not isinstance(weight, Constant):
        raise Unreadable("kernels that depend on the image")
    if len(maps.shape) == 3 and weight.trained and not transposed:
        return _along_one_axis(maps, weight, bias, (stride[0], padding[0], dilation[0]), groups)
    if len(maps.shape) != 4:
        raise Unreadable("not a convolution over height and width")
    kernel = tuple(weight.value.shape[2:])
    if transposed:
        maps = _stuffed(maps, pair(stride))
        reach = [d * (k - 1) for d, k in zip(pair(dilation), kernel)]
        before = [r - p for r, p in zip(reach, pair(padding))]
        borders = [(b, b + extra) for b, extra in zip(before, pair(output_padding))]
        stride = [1, 1]
    else:
        borders = [(p, p) for p in pair(padding)]
    padded = maps.holding(_bordered(maps.data, borders, 0))
    outputs = weight.value.shape[1] * groups if transposed else weight.value.shape[0]
    step = pair(stride), pair(dilation)
    if not weight.trained:
        return _fixed(context, padded, weight, bias, step, transposed, groups)
    result, separate = _trained(context, padded, weight, step, groups)
    if bias is not None:
        result = (result + field.drawn((bias.key, "bias"))) % field.PRIME
    if separate and groups > 1 and outputs % result.shape[1] == 0:
        times = outputs // result.shape[1]
        if times == 1:
            return Value(result)
        scale = field.drawn((weight.key, "outputs"), 1, outputs, 1, 1)
        return Value(field.product(result.repeat_interleave(times, 1), scale))
    return Value(result, outputs)


def _along_one_axis(
    rows: Value, weight: Constant, bias: Constant | None, step: tuple[int, int, int], groups: int
) -> Value:
    """A convolution over one axis, of channels say: its kernel is any, whatever the turns are."""
    stride, padding, dilation = step
    if groups > 1:
        raise Unreadable("a grouped convolution over one axis")
    data = F.pad(rows.data, (padding, padding))[:, :, None]
    kernel = field.drawn((weight.key, "kernel"), data.shape[1], 1, weight.value.shape[2])
    result = _slid(data, kernel[None, None], (1, stride), (1, dilation))[:, :, 0]
    if bias is not None:
        result = (result + field.drawn((bias.key, "bias"))) % field.PRIME
    return Value(result, weight.value.shape[0])


def _trained(
    context: Context, maps: Value, weight: Constant, step: tuple[PerAxis, PerAxis], groups: int
) -> tuple[Tensor, bool]:
    """The result with random kernels, and whether it has an entry for each group."""
    inputs = maps.data.shape[1]
    kernel = field.drawn((weight.key, "kernel"), inputs, *weight.value.shape[2:])
    kernel = kept_kernel(kernel, context.turns)
    apart = maps.channels is None and groups > 1
    grouped = (
        kernel.view(groups, 1, inputs // groups, *kernel.shape[1:]) if apart else kernel[None, None]
    )
    return _slid(maps.data, grouped, *step), apart


def _fixed(
    context: Context,
    maps: Value,
    weight: Constant,
    bias: Constant | None,
    step: tuple[PerAxis, PerAxis],
    transposed: bool,
    groups: int,
) -> Value:
    """The result with the kernels of a buffer, as they are."""
    kernels = lifted(weight)  # [outputs, inputs / groups, ...], transposed: [inputs, outputs / ...]
    if transposed:
        kernels = kernels.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-2, -1)
    shape = kernels.shape[-2:]
    each = kernels.shape[1] == 1 and groups == maps.shape[1] == kernels.shape[0]
    if maps.channels is not None and each and bool((kernels == kernels[:1]).all()):
        result = Value(_slid(maps.data, kernels[None, :1], *step), maps.channels)
    else:
        data = whole(maps)
        result = Value(_slid(data, kernels.view(groups, -1, kernels.shape[1], *shape), *step))
    if bias is None:
        return result
    return result.holding((result.data + field.drawn((bias.key, "bias"))) % field.PRIME)


def _slid(maps: Tensor, kernels: Tensor, stride: PerAxis, dilation: PerAxis) -> Tensor:
    """Windows over maps [1, channels, height, width] that are padded, with kernels [groups, outputs
    of a group, inputs of a group, height, width].
    """
    groups, outputs, inputs, *kernel = kernels.shape
    out = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(maps.shape[2:], dilation, kernel, stride)
    ]
    total = torch.zeros((groups, outputs, out[0] * out[1]), dtype=torch.int64)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            seen = _shifted(maps, (i * dilation[0], j * dilation[1]), stride, out)
            seen = seen.reshape(groups, inputs, -1)
            total += field.matrix_product(kernels[..., i, j], seen)
    return (total % field.PRIME).reshape(1, groups * outputs, *out)


def _shifted(maps: Tensor, start: Sequence[int], stride: PerAxis, out: Sequence[int]) -> Tensor:
    """What one tap of every window reads."""
    rows = slice(start[0], start[0] + (out[0] - 1) * stride[0] + 1, stride[0])
    columns = slice(start[1], start[1] + (out[1] - 1) * stride[1] + 1, stride[1])
    return maps[..., rows, columns]


def _stuffed(maps: Value, stride: PerAxis) -> Value:
    """Maps with zeros between their positions."""
    *front, height, width = maps.data.shape
    size = (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1
    data = torch.zeros((*front, *size), dtype=torch.int64)
    data[..., :: stride[0], :: stride[1]] = maps.data
    return maps.holding(data)


def _bordered(maps: Tensor, borders: Sequence[PerAxis], fill: int) -> Tensor:
    """Maps with (before, after) positions more on each axis; less where they are negative."""
    (top, bottom), (left, right) = borders
    return F.pad(maps, (left, right, top, bottom), value=fill)


@rule("max_pool2d_with_indices", "max_pool2d")
def max_pool(
    context: Context,
    maps: Value,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil: bool = False,
) -> tuple[Value, None]:
    """The maximum of a window, as a function of the set of values in it."""
    out = context.step.shapes[0][-2:]
    kernel, padding, dilation = pair(kernel), pair(padding), pair(dilation)
    stride = pair(stride or kernel)
    borders = []
    for n, k, s, p, d, o in zip(maps.shape[-2:], kernel, stride, padding, dilation, out):
        needed = (o - 1) * s + d * (k - 1) + 1  # more than the padding where sizes are rounded up
        borders.append((p, max(p, needed - n - p)))
    data = _bordered(members_of(maps), borders, OUTSIDE)
    taps = [
        _shifted(data, (i * dilation[0], j * dilation[1]), stride, out)
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return largest(torch.cat(taps), maps.channels), None


@rule("_adaptive_max_pool2d", "adaptive_max_pool2d")
def adaptive_max_pool(context: Context, maps: Value, size: list[int]) -> tuple[Value, None]:
    """The maximum of windows of nearly equal size that cover the map."""
    height, width = maps.shape[-2:]
    rows, columns = _adapted(height, size[0]), _adapted(width, size[-1])
    members = members_of(maps)
    cells = [
        members[..., r, c].flatten(-2).movedim(-1, 1).flatten(0, 1) for r in rows for c in columns
    ]
    most = max(map(len, cells))
    # windows of nearly equal size: what is missing in the smaller ones is read by none
    filled = [F.pad(c, (0, 0) * (c.ndim - 1) + (0, most - len(c)), value=OUTSIDE) for c in cells]
    data = torch.stack(filled, -1).unflatten(-1, (len(rows), len(columns)))
    return largest(data, maps.channels), None


def _adapted(pixels: int, windows: int) -> list[slice]:
    return [slice(i * pixels // windows, -(-(i + 1) * pixels // windows)) for i in range(windows)]


@rule(
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def linear_per_axis(context: Context, maps: Value, *args: Any, **kwargs: Any) -> Value:
    """Averages and interpolations: the same matrix for all channels, axis by axis."""
    if kwargs or len(maps.shape) != 4:
        raise Unreadable("keywords")
    rows, columns = (
        _matrix(context.step.call, context.step.operation, axis, pixels, _frozen(args))
        for axis, pixels in zip((0, 1), maps.shape[-2:])
    )
    data = field.matrix_product(rows, maps.data)
    data = field.matrix_product(data, columns.T.contiguous())
    if tuple(data.shape[-2:]) != context.step.shapes[0][-2:]:
        raise Unreadable("an output size that was not expected")
    return maps.holding(data)


def _frozen(args: Any) -> Any:
    return tuple(map(_frozen, args)) if isinstance(args, (list, tuple)) else args


@lru_cache(maxsize=512)
def _matrix(
    call: Callable[..., Tensor], operation: str, axis: int, pixels: int, args: tuple
) -> Tensor:
    """What the operation does on one axis [output, input], by a look at what it does to every unit
    vector.
    """
    other = 2  # alike positions of the other axis: of one, antialiased resizes mix up their strides
    if operation == "avg_pool2d":
        args = _one_axis_of_pool(axis, *args)
    else:
        size = [args[0][0], other] if axis == 0 else [other, args[0][-1]]
        scales = list(args[1:])
        if len(scales) >= 2:  # [align_corners], scale of height, scale of width
            scales[-1 if axis == 0 else -2] = None
        args = (size, *scales)
    units = torch.eye(pixels, dtype=torch.float64).unsqueeze(-1 if axis == 0 else -2)[None]
    units = units.repeat_interleave(other, -1 if axis == 0 else -2)
    result = call(units, *[list(a) if isinstance(a, tuple) else a for a in args])
    weights = result[0].select(-1 if axis == 0 else -2, 0).T  # [output, input]
    return field.of_constant(weights)


def _one_axis_of_pool(
    axis: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...] = (),
    padding: tuple[int, ...] = (0,),
    ceil: bool = False,
    counted: bool = True,
    divisor: int | None = None,
) -> tuple:
    """The arguments of `avg_pool2d` for one axis; a divisor counts once."""

    def only(values: Sequence[int], other: int) -> list[int]:
        value = pair(values)[axis]
        return [value, other] if axis == 0 else [other, value]

    stride = stride or kernel
    divisor = divisor if axis == 0 else None if divisor is None else 1
    return only(kernel, 1), only(stride, 1), only(padding, 0), ceil, counted, divisor
