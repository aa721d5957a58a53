"""Values of a followed network: numbers of the field in the shape of its tensors.

The channels of a convolution's result all read the same positions with other weights. One number
stands for them all as long as nothing tells channels apart, and each gets its own, made from it,
where something does (a reshape, say).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from searchspace.groups import Element
from trainers.actions import act
from trainers.instruments.audit import field
from trainers.instruments.audit.record import Constant, RecordedStep


class Value(NamedTuple):
    """A tensor of the network; where `channels` is given, axis 1 of `data` has one entry that
    stands for so many.
    """

    data: Tensor  # int64
    channels: int | None = None
    # of maxima: what they are the largest of [n, *shape of data], so that maxima of maxima are
    # maxima; OUTSIDE where there are fewer
    members: Tensor | None = None

    def holding(self, data: Tensor) -> Value:
        """Other numbers for the same channels."""
        return Value(data, self.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the network's tensor has."""
        shape = tuple(self.data.shape)
        return shape if self.channels is None else (shape[0], self.channels, *shape[2:])


OUTSIDE = -1  # what a maximum does not read
MOST_OPERANDS = 128  # of one maximum
MOST_READ = 1 << 24  # numbers of all members of a map


def members_of(value: Value) -> Tensor:
    """What a value is the largest of; itself, if it is not a maximum."""
    return value.data[None] if value.members is None else value.members


def of_set(values: Tensor) -> Tensor:
    """A function of the set of values along the first axis; of one value, that value."""
    ordered = values.sort(0).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    new &= ordered != OUTSIDE
    number = field.hashed(ordered, "in a set").masked_fill(~new, 0).sum(0) % field.PRIME
    number = field.hashed(number, "set")  # else sums of maxima would be sums over what they read
    return torch.where(new.sum(0) == 1, ordered[-1], number)


def largest(members: Tensor, channels: int | None) -> Value:
    """The maximum along the first axis, as a function of the set of values there."""
    result = of_set(members)
    if len(members) > MOST_OPERANDS and members.numel() <= MOST_READ:
        members = _once(members)
    few = len(members) <= MOST_OPERANDS and members.numel() <= MOST_READ
    return Value(result, channels, members if few else None)


def _once(members: Tensor) -> Tensor:
    """The same sets with every value once, on the fewest rows that hold them."""
    ordered = members.sort(0, descending=True).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[1:] = ordered[1:] == ordered[:-1]
    ordered = ordered.masked_fill(again, OUTSIDE).sort(0, descending=True).values
    most = int((ordered != OUTSIDE).flatten(1).any(1).sum()) if ordered.ndim > 1 else len(ordered)
    return ordered[: max(1, most)]


class Unreadable(ValueError):
    """An operation that is not followed; the text says why, or nothing."""


class Context(NamedTuple):
    """What a rule is given besides its arguments."""

    turns: tuple[Element, ...]  # which every convolution's kernel keeps, as far as its shape does
    step: RecordedStep


OperationRule = Callable[..., Any]
RULES: dict[str, OperationRule] = {}


def rule(*names: str) -> Callable[[OperationRule], OperationRule]:
    """Enters a function as the rule of the operations of these names."""

    def enter(function: OperationRule) -> OperationRule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def whole(value: Value) -> Tensor:
    """The numbers of every channel: each a function of its own of the one that stood for all, the
    same for all values, so that equal channels stay equal wherever they are joined.
    """
    if value.channels in (None, 1):
        return value.data
    shape = (1, value.channels, *(1,) * (value.data.ndim - 2))
    scale, shift = (field.drawn(("channels", what), *shape) for what in ("scale", "shift"))
    return ((value.data * scale + shift) % field.PRIME).masked_fill(value.data == 0, 0)


def some_channels(value: Value, start: int, count: int, step: int = 1) -> Value:
    """`count` channels from `start` on: another number stands for them than for others."""
    if count == value.channels:
        return value
    key = "some channels", value.channels, start, count, step
    scale, shift = int(field.drawn((key, "scale"), 1)), int(field.drawn((key, "shift"), 1))
    data = ((value.data * scale + shift) % field.PRIME).masked_fill(value.data == 0, 0)
    return Value(data, count)


def lifted(constant: Constant) -> Tensor:
    """A constant's numbers: those of parameters are random, the same where its values are."""
    numbers = field.of_constant(constant.value)
    if constant.trained:
        numbers = field.hashed(numbers, constant.key)
    return numbers


def varies_along(shape: Sequence[int], rank: int) -> set[int]:
    """The axes of a tensor of that rank along which a constant of this shape, broadcast to it, has
    more than one entry.
    """
    missing = rank - len(shape)
    return {axis + missing for axis, pixels in enumerate(shape) if pixels > 1}


def kept_kernel(kernel: Tensor, turns: tuple[Element, ...]) -> Tensor:
    """The sum of a kernel [..., height, width] over the turns, of which those count that keep its
    shape.
    """
    height, width = kernel.shape[-2:]
    keeping = [t for t in turns if height == width or not t.swaps_axes]
    flat = kernel.reshape(1, -1, height, width)
    total = torch.stack([act(flat, turn) for turn in keeping]).sum(0)
    return total.reshape(kernel.shape) % field.PRIME
