"""Rules of operations that combine many values: linear layers, norms, means, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.instruments.audit import field
from trainers.instruments.audit.record import Constant
from trainers.instruments.audit.values import (
    Context,
    Unreadable,
    Value,
    largest,
    lifted,
    members_of,
    of_set,
    rule,
    whole,
)

MOST_NUMBERS = 1 << 24  # of a constant matrix that is looked at in full


@rule("addmm", "baddbmm")
def linear(context: Context, bias: Any, first: Any, second: Any, **kwargs: Any) -> Value:
    """A linear layer: a product and a bias."""
    if kwargs:
        raise Unreadable("factors of a sum")
    result = matmul(context, first, second)
    if isinstance(bias, Value):
        raise Unreadable("a bias that depends on the image")
    if result.channels is not None:
        return result.holding((result.data + field.drawn((bias.key, "bias"))) % field.PRIME)
    return Value((result.data + lifted(bias)) % field.PRIME)


@rule("mm", "bmm", "matmul", "mv")
def matmul(context: Context, first: Any, second: Any) -> Value:
    """A matrix product: of two values, or with a constant."""
    layer = isinstance(first, Value) and isinstance(second, Constant) and second.trained
    if layer and second.value.ndim == 2 and len(first.shape) == 2:
        return _weighted(first, second)
    one, two = _full(first), _full(second)
    if two.ndim == 1:
        return Value(field.matrix_product(one, two[:, None])[..., 0])
    return Value(field.matrix_product(one, two))


def _weighted(value: Value, weight: Constant) -> Value:
    """Rows times a trained matrix, one number for all outputs."""
    inputs, outputs = weight.value.shape
    if value.channels is None:
        weights = field.drawn((weight.key, "matrix"), inputs)
        data = field.matrix_product(value.data, weights[:, None])
    else:
        data = field.product(value.data, field.drawn((weight.key, "row")))
    return Value(data, outputs)


def _full(given: Any) -> Tensor:
    if isinstance(given, Value):
        return whole(given)
    if given.value.numel() > MOST_NUMBERS:
        raise Unreadable("a matrix too large to look at")
    return lifted(given)


@rule("mean", "sum")
def mean(
    context: Context, value: Value, axes: Sequence[int] | None = None, keep: bool = False, **_: Any
) -> Value:
    """A sum or a mean, exact."""
    rank = len(value.shape)
    axes = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    value = _alone_or_whole(value, axes)
    data = value.data.sum(axes, keepdim=keep) % field.PRIME
    if context.step.operation == "mean":
        count = torch.Size([value.data.shape[axis] for axis in axes]).numel()
        data = field.product(data, field.inverse(count))
    return _reduced(context, value, data)


def _alone_or_whole(value: Value, axes: Sequence[int]) -> Value:
    """The value, channels apart if the axes mix them."""
    if value.channels is None or (1 not in axes and 0 not in axes):
        return value
    return Value(whole(value))


def _reduced(context: Context, value: Value, data: Tensor) -> Value:
    return Value(data, value.channels)


@rule("amax", "amin", "linalg_vector_norm", "norm", "prod", "std", "var", "logsumexp", "any", "all")
def symmetric_function(context: Context, value: Value, *args: Any, **kwargs: Any) -> Value:
    """A function of the values along axes, in whatever order."""
    rank, name = len(value.shape), context.step.operation
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple))]
    axes = sorted({axis % rank for axis in given[0]}) if given and given[0] else list(range(rank))
    value = _alone_or_whole(value, axes)
    shape = context.step.shapes[0]
    others = [axis for axis in range(rank) if axis not in axes]
    moved = members_of(value) if name == "amax" else value.data[None]
    moved = moved.permute(0, *(axis + 1 for axis in (*axes, *others))).flatten(0, len(axes))
    if name == "amin":
        data = field.hashed(of_set(moved), name)
    else:
        data = field.hashed(field.hashed(moved, name).sum(0) % field.PRIME, (name, args))
    sizes = list(shape)
    if value.channels is not None and len(sizes) > 1:
        sizes[1] = 1
    if name == "amax":
        return largest(moved.reshape(len(moved), *sizes), value.channels)
    return Value(data.reshape(sizes), value.channels)


@rule("max", "min")
def extreme(context: Context, value: Value, *args: Any, **kwargs: Any) -> Any:
    """The largest value of all, or along one axis (its place is not followed)."""
    if kwargs or (args and not isinstance(args[0], int)):
        raise Unreadable("")
    rank = len(value.shape)
    axes = [args[0] % rank] if args else list(range(rank))
    if context.step.operation == "max" and not {0, 1} & set(axes):
        read, channels = members_of(value), value.channels
    else:
        read, channels = whole(value)[None], None
    read = read.movedim([axis + 1 for axis in axes], list(range(1, len(axes) + 1)))
    read = read.flatten(0, len(axes))
    shape = list(context.step.shapes[0])
    if channels is not None:
        shape[1] = 1
    if context.step.operation == "min":
        result = Value(field.hashed(of_set(read), "min").reshape(shape))
    else:
        result = largest(read.reshape(len(read), *shape), channels)
    return (result, None) if args else result


@rule("median", "nanmedian")
def middle(context: Context, value: Value, axis: int | None = None, keep: bool = False) -> Any:
    """The median of all values, or along an axis (its place is not followed)."""
    found = symmetric_function(context, value, *([] if axis is None else [[axis]]))
    return found if axis is None else (found, None)


@rule("cumsum")
def running_sum(context: Context, value: Value, axis: int, **_: Any) -> Value:
    """The sums of the values up to each along an axis, exact."""
    axis = axis % len(value.shape)
    value = _alone_or_whole(value, [axis])
    return value.holding(value.data.cumsum(axis) % field.PRIME)


@rule("sort", "topk")
def ordered(context: Context, value: Value, *args: Any, **kwargs: Any) -> list[Value | None]:
    """The values along an axis in their order, or the first of them (their places are not
    followed).
    """
    name, rank = context.step.operation, len(value.shape)
    given = args[1:] if name == "topk" else args
    axis = next((a for a in given if isinstance(a, int) and not isinstance(a, bool)), -1)
    axis = kwargs.get("dim", axis) % rank
    value = _alone_or_whole(value, [axis])
    largest_first = next((a for a in given if isinstance(a, bool)), name == "topk")
    largest_first = kwargs.get("descending", kwargs.get("largest", largest_first))
    first = value.data.sort(axis).values.narrow(axis, 0, context.step.shapes[0][axis])
    return [value.holding(field.hashed(first, (name, largest_first))), None]


@rule("glu")
def gated(context: Context, value: Value, axis: int = -1) -> Value:
    """The first half of the values along an axis, weighed by the second."""
    axis = axis % len(value.shape)
    value = _alone_or_whole(value, [axis])
    first, second = value.data.chunk(2, axis)
    return value.holding(field.product(first, field.hashed(second, "sigmoid")))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(context: Context, value: Value, axis: int, *args: Any) -> Value:
    """Every value, and a function of all along the axis."""
    axis = axis % len(value.shape)
    value = _alone_or_whole(value, [axis])
    total = field.hashed(value.data, "softmax").sum(axis, keepdim=True) % field.PRIME
    return value.holding(field.hashed_pairs(value.data, total, context.step.operation))


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
      "cudnn_batch_norm")  # fmt: skip
def batch_norm(context: Context, value: Value, weight: Any, bias: Any, *rest: Any) -> Any:
    """A factor and a shift for each channel; of an instance norm, those of its map."""
    name = context.step.operation
    with_mean = isinstance(rest[0], Constant)
    training = name != "_native_batch_norm_legit_no_training" and next(
        flag for flag in rest if isinstance(flag, bool)
    )
    if training:
        axes = [axis for axis in range(len(value.shape)) if axis > 1]
        value = value.holding(_normalised(value.data, axes))
    keyed = rest[0] if with_mean else weight
    if keyed is None:
        return [value, None, None]
    width = (1, value.data.shape[1], *(1,) * (value.data.ndim - 2))
    scale, shift = (
        field.drawn((keyed.key, "scale"), *width),
        field.drawn((keyed.key, "shift"), *width),
    )
    return [value.holding((value.data * scale + shift) % field.PRIME), None, None]


def _normalised(data: Tensor, axes: Sequence[int], alone: bool = True) -> Tensor:
    """Values less their mean, times a function of all along the axes; unless one number stands for
    channels of which each has its own mean: then a function of the value and all.
    """
    axes = list(axes)
    if not axes:
        return data
    total = field.hashed(data, "norm").sum(axes, keepdim=True) % field.PRIME
    if not alone:
        return field.hashed_pairs(data, total, "normalised")
    count = torch.Size([data.shape[axis] for axis in axes]).numel()
    mean = field.product(data.sum(axes, keepdim=True) % field.PRIME, field.inverse(count))
    return field.product((data - mean) % field.PRIME, field.hashed(total, "deviation"))


@rule("native_group_norm")
def group_norm(
    context: Context, value: Value, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int,
    eps: float,
) -> Any:  # fmt: skip
    """Values with a function of all in their group."""
    if value.channels is not None:
        data = _normalised(value.data, range(1, value.data.ndim), groups == c)
    else:
        apart = value.data.unflatten(1, (groups, -1))
        data = _normalised(apart, range(2, apart.ndim)).reshape(value.data.shape)
    if weight is not None:
        width = (1, data.shape[1], *(1,) * (data.ndim - 2))
        scale, shift = (field.drawn((weight.key, what), *width) for what in ("scale", "shift"))
        data = (data * scale + shift) % field.PRIME
    return [value.holding(data), None, None]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(context: Context, value: Value, shape: Sequence[int], *rest: Any) -> Any:
    """Values with a function of all along the last axes, and a factor for each place there."""
    data = whole(value)
    data = _normalised(data, range(data.ndim - len(shape), data.ndim))
    for number, constant in enumerate(r for r in rest if isinstance(r, Constant)):
        numbers = lifted(constant)
        data = (data + numbers if number else data * numbers) % field.PRIME
    return [Value(data), None, None]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
def attention(
    context: Context, query: Value, key: Value, value: Value, *args: Any, **kw: Any
) -> Any:
    """Values weighted by functions of queries and keys."""
    given = (*args, *kw.values())
    masks = [a for a in given if isinstance(a, Constant)]
    if True in args or len(masks) > 1 or any(isinstance(a, Value) for a in given):
        raise Unreadable("attention with a mask that depends on the image")
    q, k, v = whole(query), whole(key), whole(value)
    scores = field.matrix_product(q, k.transpose(-1, -2))
    scores = field.hashed(scores, "softmax") if not masks else _masked(scores, masks[0])
    total = scores.sum(-1, keepdim=True) % field.PRIME
    shares = field.hashed_pairs(scores, total, "shares").masked_fill(scores == 0, 0)
    return [Value(field.matrix_product(shares, v)), *[None] * 10]


def _masked(scores: Tensor, mask: Constant) -> Tensor:
    """Functions of scores and what is added to them; 0 where a mask leaves them out."""
    values = mask.value.cpu()
    out = ~values if values.dtype == torch.bool else values == -torch.inf
    return field.hashed_pairs(scores, lifted(mask), "softmax").masked_fill(out, 0)
