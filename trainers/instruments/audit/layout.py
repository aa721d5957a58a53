"""Rules of operations that move values to other places, or choose some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from trainers.instruments.audit import field
from trainers.instruments.audit.record import Constant
from trainers.instruments.audit.values import (
    OUTSIDE,
    Context,
    Unreadable,
    Value,
    lifted,
    rule,
    some_channels,
    whole,
)

# what reads the position of values in their tensor alone
MOVES = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze",
    "squeeze", "expand", "cat", "stack", "split", "split_with_sizes", "chunk", "slice", "select",
    "narrow", "flip", "roll", "rot90", "unbind", "index_select", "repeat", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "movedim", "swapaxes", "unflatten", "flatten", "tile",
    "diagonal", "unfold", "im2col", "_pad_circular", "fliplr", "flipud", "repeat_interleave",
    "view_as", "expand_as", "tensor_split", "unsafe_split", "squeeze_", "triu", "tril", "gather",
    "take_along_dim", "hstack", "vstack", "unsafe_chunk",
)  # fmt: skip
FLOATING = ("reflection_pad2d", "replication_pad2d", "im2col", "pixel_shuffle", "pixel_unshuffle")


@rule(*MOVES)
def moved_places(context: Context, *args: Any, **kwargs: Any) -> Any:
    """The operation itself, on whole numbers; of a maximum, on what it is the largest of."""
    result, value = _moved(context, *args, **kwargs), args[0]
    if not isinstance(result, Value) or not isinstance(value, Value) or value.members is None:
        return result
    if result.channels != value.channels:
        return result
    parts = [_moved(context, value.holding(m), *args[1:], **kwargs).data for m in value.members]
    return result._replace(members=torch.stack(parts))


def _moved(context: Context, *args: Any, **kwargs: Any) -> Any:
    kept = _kept(context, *args, **kwargs)
    if kept is not None:
        return kept

    def numbers(given: Any) -> Any:
        if isinstance(given, Value):
            return whole(given)
        if isinstance(given, Constant):
            whole_numbers = not given.value.dtype.is_floating_point
            return given.value.cpu() if whole_numbers else lifted(given)
        return given

    given, named = tree_map(numbers, (args, kwargs), is_leaf=_is_leaf)
    if context.step.operation == "constant_pad_nd":
        given = _filled(given)
    return as_values(_done(context, given, named))


def _done(context: Context, args: tuple, kwargs: dict) -> Any:
    if context.step.operation in ("view", "_unsafe_view", "_reshape_alias"):
        return args[0].reshape(context.step.shapes[0])
    if context.step.operation not in FLOATING:
        return context.step.call(*args, **kwargs)
    double = tree_map(lambda x: x.double() if isinstance(x, Tensor) else x, args)
    return context.step.call(*double, **kwargs).long()


def as_values(result: Any) -> Any:
    """Tensors as values."""
    if isinstance(result, Tensor):
        return Value(result)
    return [as_values(item) for item in result]


def _is_leaf(given: Any) -> bool:
    return isinstance(given, (Value, Constant))


def _filled(args: tuple) -> tuple:
    """The arguments of a padding, whose number is one of the field; minus infinity is what a
    maximum does not read.
    """
    if len(args) < 3:
        return args
    return (*args[:2], OUTSIDE if args[2] == -torch.inf else field.of_number(float(args[2])))


def _kept(context: Context, *args: Any, **kwargs: Any) -> Any:
    """The result of what leaves channels apart, one number still for all; else None."""
    value, name = args[0], context.step.operation
    if not isinstance(value, Value) or value.channels is None or kwargs:
        return None
    if (
        name in ("view", "_unsafe_view", "reshape", "flatten", "squeeze")
        and value.data.numel() == 1
    ):
        shape = context.step.shapes[0]
        if len(shape) >= 2 and shape[1] == value.channels and torch.Size(shape).numel() == shape[1]:
            return Value(value.data.reshape([1] * len(shape)), value.channels)
        return None
    if name == "unsqueeze" and args[1] >= 2:
        return value.holding(value.data.unsqueeze(args[1]))
    if name in ("split", "split_with_sizes", "chunk", "slice", "narrow", "unsafe_split"):
        return _cut(context, value, *args[1:])
    if name in ("flip", "roll", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"):
        return _moved_in_space(context, value, *args[1:])
    return None


def _cut(context: Context, value: Value, *args: Any) -> Any:
    """Parts of the channels, or of the positions."""
    name, rank = context.step.operation, len(value.shape)
    place = 0 if name in ("slice", "narrow") else 1
    axis = (args[place] if len(args) > place else 0) % rank
    if axis == 0:
        return None
    if axis > 1:
        return tree_map(
            lambda part: Value(part.data, value.channels),
            as_values(context.step.call(value.data, *args)),
            is_leaf=_is_leaf,
        )
    counts = [shape[1] for shape in context.step.shapes]
    if place == 0:
        start = args[1] if len(args) > 1 and args[1] is not None else 0
        step = args[3] if name == "slice" and len(args) > 3 else 1
        return some_channels(value, start % value.shape[1], counts[0], step)
    return [some_channels(value, sum(counts[:n]), count) for n, count in enumerate(counts)]


def _moved_in_space(context: Context, value: Value, *args: Any) -> Value | None:
    name, rank = context.step.operation, len(value.shape)
    if name in ("flip", "roll"):
        axes = args[0] if name == "flip" else args[1] if len(args) > 1 else ()
        if not axes or any(axis % rank < 2 for axis in axes):
            return None
    elif name == "constant_pad_nd":
        args = _filled((value, *args))[1:]
        if len(args[0]) > 2 * (rank - 2):
            return None
    return value.holding(_done(context, (value.data, *args), {}))


@rule("index")
def index(context: Context, value: Any, places: list[Any]) -> Value:
    """Values at places that are constants."""
    if any(isinstance(p, Value) for p in places) or not isinstance(value, Value):
        raise Unreadable("places that depend on the image")
    data = whole(value)
    return Value(data[tuple(slice(None) if p is None else p.value.cpu() for p in places)])


@rule("written")
def written(
    context: Context, target: Any, size: Any, stride: Any, offset: int, source: Value
) -> Value:
    """A tensor after a part of it was written in place."""
    before = target if isinstance(target, Value) else Value(lifted(target))
    data = whole(before).clone(memory_format=torch.contiguous_format)
    part = whole(source)
    data.as_strided(size, stride, offset).copy_(part)
    return Value(data)


@rule("strided")
def strided(context: Context, source: Value, size: Any, stride: Any, offset: int) -> Value:
    """A view of what was written."""
    data = whole(source).contiguous()
    return Value(data.as_strided(size, stride, offset))


@rule("copy")
def copied(context: Context, target: Any, source: Any, *args: Any) -> Value:
    """What is written."""
    if isinstance(source, Constant):
        return Value(lifted(source).expand(context.step.shapes[0]))
    return Value(whole(source).expand(context.step.shapes[0]))


@rule("fill", "zero")
def filled(context: Context, target: Any, number: Any = 0.0) -> Value:
    """One number everywhere."""
    if not isinstance(number, (int, float)):
        raise Unreadable("")
    return Value(torch.full(context.step.shapes[0], field.of_number(float(number))))
