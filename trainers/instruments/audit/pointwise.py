"""Rules of operations on every value alone, and on pairs of values in the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.instruments.audit import field
from trainers.instruments.audit.record import Constant
from trainers.instruments.audit.values import (
    OUTSIDE,
    Context,
    Unreadable,
    Value,
    largest,
    lifted,
    members_of,
    of_set,
    rule,
    varies_along,
    whole,
)

# 0 stays 0
ODD_AT_ZERO = {
    "relu", "relu6", "gelu", "silu", "hardswish", "tanh", "leaky_relu", "elu", "selu", "celu",
    "mish", "hardtanh", "abs", "sqrt", "sin", "sinh", "asin", "atan", "erf", "sign", "softsign",
    "square", "prelu", "_prelu_kernel", "expm1", "log1p", "floor", "ceil", "round", "trunc",
    "tan", "hardshrink", "softshrink", "asinh", "tanhshrink",
}  # fmt: skip
OTHER_POINTWISE = {
    "sigmoid", "hardsigmoid", "softplus", "exp", "log", "log2", "log10", "cos", "cosh", "acos",
    "rsqrt", "reciprocal", "log_sigmoid_forward", "erfc", "threshold", "isnan", "logical_not",
    "isfinite", "isinf", "clamp", "clamp_min", "clamp_max", "exp2", "logit", "nan_to_num",
}  # fmt: skip
EVEN = ("abs", "square")  # the same for x and -x
# never decreasing: of a maximum, they are the maximum of what they make of its members
INCREASING = {
    "relu", "relu6", "tanh", "leaky_relu", "elu", "selu", "celu", "hardtanh", "sqrt", "sinh",
    "asin", "atan", "erf", "sign", "softsign", "expm1", "log1p", "floor", "ceil", "round", "trunc",
    "hardshrink", "softshrink", "asinh", "sigmoid", "hardsigmoid", "softplus", "exp", "log", "log2",
    "log10", "log_sigmoid_forward", "clamp", "clamp_min", "clamp_max", "exp2", "logit",
}  # fmt: skip
IDENTITIES = (
    "clone", "alias", "detach", "_to_copy", "lift_fresh", "contiguous", "dropout",
    "feature_dropout", "to", "type_as", "positive", "real",
)  # fmt: skip
PAIRS = (
    "maximum", "minimum", "pow", "atan2", "fmod", "remainder", "gt", "lt", "ge", "le", "eq", "ne",
    "logical_and", "logical_or", "logaddexp", "fmax", "fmin", "hypot", "xlogy", "logical_xor",
)  # fmt: skip


@rule(*ODD_AT_ZERO, *OTHER_POINTWISE)
def activation(context: Context, value: Value, *args: Any, **kwargs: Any) -> Any:
    """A function of every value; parameters of PReLU are one a channel."""
    name = context.step.operation
    constants = [a for a in (*args, *kwargs.values()) if isinstance(a, (Constant, Value))]
    if constants and name not in ("prelu", "_prelu_kernel"):
        raise Unreadable("limits that are tensors")
    numbers = [a for a in args if not isinstance(a, Constant)]
    key = (
        name,
        numbers,
        sorted(kwargs.items()),
        [c.key for c in constants if isinstance(c, Constant)],
    )
    zero = name in ODD_AT_ZERO or (name.startswith("clamp") and _holds_zero(name, args, kwargs))

    def applied(values: Tensor) -> Tensor:
        read = field.product(values, values) if name in EVEN else values
        result = field.hashed(read, key)
        return result.masked_fill(values == 0, 0) if zero else result

    result = value.holding(applied(value.data))
    if value.members is not None and _increases(name, numbers):
        outside = value.members == OUTSIDE
        members = applied(value.members).masked_fill(outside, OUTSIDE)
        result = largest(members, value.channels)
    return (result, None) if name == "log_sigmoid_forward" else result


@rule("rrelu_with_noise")
def sloped(context: Context, value: Value, *_: Any, **kwargs: Any) -> Value:
    """A leaky activation whose slope is the mean of those of training."""
    return value.holding(field.hashed(value.data, "rrelu").masked_fill(value.data == 0, 0))


def _increases(name: str, numbers: Sequence[Any]) -> bool:
    """Whether an activation never decreases; a leaky one with a negative slope does."""
    if name in ("leaky_relu", "elu", "celu"):
        return all(n >= 0 for n in numbers)
    return name in INCREASING


def _holds_zero(name: str, args: Any, kwargs: Any) -> bool:
    given = [*args, None, None]
    low = given[0] if name != "clamp_max" else None
    high = given[1] if name == "clamp" else given[0] if name == "clamp_max" else None
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    return (low is None or low <= 0) and (high is None or high >= 0)


@rule(*IDENTITIES)
def unchanged_value(context: Context, value: Value, *args: Any, **kwargs: Any) -> Value:
    """The value as it is."""
    if kwargs.get("dtype") is not None and not kwargs["dtype"].is_floating_point:
        return value.holding(field.hashed(value.data, "whole number"))
    return value


@rule("neg")
def negative(context: Context, value: Value) -> Value:
    """The value times -1."""
    return value.holding(-value.data % field.PRIME)


@rule("add", "sub", "rsub")
def add(context: Context, first: Any, second: Any, alpha: float = 1) -> Value:
    """A sum, or a difference."""
    sign = field.of_number(float(alpha))
    if context.step.operation == "rsub":
        first, second = second, first
    if context.step.operation != "add":
        sign = -sign % field.PRIME
    one, two, channels = paired(context, first, second)
    return Value((one + field.product(two, sign)) % field.PRIME, channels)


@rule("mul", "multiply")
def multiply(context: Context, first: Any, second: Any) -> Value:
    """A product."""
    one, two, channels = paired(context, first, second)
    return Value(field.product(one, two), channels)


@rule("div", "divide", "true_divide")
def divide(context: Context, first: Any, second: Any, **kwargs: Any) -> Value:
    """A quotient: exact by a number, else a function of the two."""
    if isinstance(second, (int, float)) and isinstance(first, Value) and not kwargs:
        return first.holding(
            field.product(first.data, field.inverse(field.of_number(float(second))))
        )
    one, two, channels = paired(context, first, second)
    return Value(field.hashed_pairs(one, two, ("div", sorted(kwargs.items()))), channels)


@rule(*PAIRS)
def function_of_two(context: Context, first: Any, second: Any, **kwargs: Any) -> Value:
    """Any other function of two values in the same place."""
    one, two, channels = paired(context, first, second)
    name = context.step.operation
    if name == "pow" and _is_even(second):
        one = field.product(one, one)  # the same for x and -x
    if name == "maximum" and _of_one_shape(first, second):
        return largest(torch.cat([members_of(first), members_of(second)]), first.channels)
    if name in ("maximum", "minimum", "fmax", "fmin"):
        stacked = torch.stack(torch.broadcast_tensors(one, two))
        return Value(
            of_set(stacked) if "max" in name else field.hashed(of_set(stacked), name), channels
        )
    return Value(field.hashed_pairs(one, two, name), channels)


def _is_even(exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and exponent % 2 == 0


def _of_one_shape(first: Any, second: Any) -> bool:
    if not isinstance(first, Value) or not isinstance(second, Value):
        return False
    return first.channels == second.channels and first.data.shape == second.data.shape


@rule("where")
def where(context: Context, condition: Any, first: Any, second: Any) -> Value:
    """One of two values; a function of three."""
    given = [condition, first, second]
    if all(isinstance(v, Constant) for v in given[:1]) and condition.value.numel() == 1:
        chosen = first if bool(condition.value) else second
        if isinstance(chosen, Value):
            return chosen
    datas = [_alone(v) for v in given]
    return Value(
        field.hashed_pairs(datas[0], field.hashed_pairs(datas[1], datas[2], "where"), "where if")
    )


@rule("masked_fill")
def masked_fill(context: Context, value: Value, mask: Any, fill: Any) -> Value:
    """Values replaced where a mask is true."""
    if not isinstance(mask, Constant) or isinstance(fill, Value):
        return where(context, mask, fill, value)
    number = (
        field.of_number(float(fill.value)) if isinstance(fill, Constant) else field.of_number(fill)
    )
    data = whole(value)
    return Value(data.masked_fill(mask.value.bool().cpu(), number))


@rule("lerp", "addcmul", "addcdiv")
def function_of_three(
    context: Context, first: Any, second: Any, third: Any, **kwargs: Any
) -> Value:
    """A function of three values in the same place."""
    datas = [_alone(v) for v in (first, second, third)]
    key = (context.step.operation, sorted(kwargs.items()))
    return Value(field.hashed_pairs(datas[0], field.hashed_pairs(datas[1], datas[2], key), key))


def _alone(given: Any) -> Tensor:
    if isinstance(given, Value):
        return whole(given)
    if isinstance(given, Constant):
        return lifted(given)
    return torch.tensor(field.of_number(float(given)))


def paired(context: Context, first: Any, second: Any) -> tuple[Tensor, Tensor, int | None]:
    """Two arguments as numbers that broadcast, and the channels that they stand for."""
    values = [v for v in (first, second) if isinstance(v, Value)]
    rank = max(len(v.shape) for v in values)
    together: set[int | None] = {v.channels for v in values if v.channels is not None}
    if len(together) == 1 and all(_joins(v, rank, together) for v in (first, second)):
        one, two = (_narrow(context, v, n) for n, v in enumerate((first, second)))
        return one, two, together.pop()
    one, two = _alone(first), _alone(second)
    return one, two, None


def _joins(given: Any, rank: int, channels: set[int | None]) -> bool:
    """Whether an argument has nothing of its own for single channels."""
    if isinstance(given, Value):
        if len(given.shape) != rank:
            return not given.shape
        return given.channels is not None or given.shape[1] == 1
    if isinstance(given, Constant):
        axes = varies_along(given.value.shape, rank)
        return axes == {1} or 1 not in axes
    return True


def _narrow(context: Context, given: Any, number: int) -> Tensor:
    """An argument, one number for all channels."""
    if isinstance(given, Value):
        return given.data
    if not isinstance(given, Constant):
        return torch.tensor(field.of_number(float(given)))
    values = lifted(given)
    if varies_along(values.shape, len(context.step.shapes[0])) != {1}:
        return values
    first = values.reshape(-1)[0]
    return first if bool((values == first).all()) else field.drawn((given.key, "of channels"))
