"""Which channels of a traced network are the same ones: those that an addition or a depthwise
convolution ties together have one width, and are kept or left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainers.instruments.convert.operations import (
    BATCH_NORMS,
    BINARY,
    LEFT_OUT,
    MIXING_MODULES,
    POINTWISE,
    POINTWISE_MODULES,
    SIZE_OPERATIONS,
    SOFTMAXES,
    WINDOW_MODULES,
    WINDOWS,
    is_flatten,
    is_spatial_mean,
    name_of,
)
from trainers.instruments.convert.tracing import Traced


@dataclass(frozen=True)
class ChannelsOfResult:
    """The channels of a result: those of the listed spaces, one after another."""

    spaces: tuple[int, ...]
    lifted: bool  # whether they are fields; else an image's channels, which no element permutes
    positions: tuple[int, int] | None = None  # of maps that the network reads as a vector


class Spaces:
    """Sets of channels, some of which turn out to be one."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._same: list[int] = []
        self.whole: set[int] = set()  # of which every channel is needed
        self.strengths: dict[int, Tensor] = {}  # of the channels of a space

    def new(self, count: int) -> int:
        """Another set of `count` channels."""
        self.counts.append(count)
        self._same.append(len(self._same))
        return len(self._same) - 1

    def root(self, space: int) -> int:
        """The space that stands for all that are one with `space`."""
        while self._same[space] != space:
            space = self._same[space]
        return space

    def join(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Makes them one, part by part; False where they differ in number. Those whose parts differ
        in size are kept whole.
        """
        counts = [[self.counts[s] for s in spaces] for spaces in (first, second)]
        if sum(counts[0]) != sum(counts[1]):
            return False
        if counts[0] != counts[1]:
            self.whole.update(first, second)
            return True
        for one, other in zip(first, second):
            self._same[self.root(other)] = self.root(one)
        return True


@dataclass(frozen=True)
class Flow:
    """What every node of a traced network does to channels."""

    values: dict[fx.Node, ChannelsOfResult]
    spaces: Spaces


def follow_channels(traced: Traced) -> Flow:
    """The channels of every result. Raises ValueError that names the first layer that is not
    followed.
    """
    walk = _Walk(traced)
    for node in traced.module.graph.nodes:
        walk.visit(node)
    if not walk.layers:
        raise ValueError("the module has no convolution; convert needs one that reads images")
    return Flow(walk.values, walk.spaces)


class _Walk:
    def __init__(self, traced: Traced) -> None:
        self.traced, self.spaces = traced, Spaces()
        self.values: dict[fx.Node, ChannelsOfResult] = {}
        self.layers: dict[
            str, tuple[ChannelsOfResult, ChannelsOfResult]
        ] = {}  # with weights: what goes in and out

    def visit(self, node: fx.Node) -> None:
        """Notes the channels of the node's result."""
        if node.op == "placeholder":
            space = self.spaces.new(self.traced.channels)
            self.spaces.whole.add(space)
            self.values[node] = ChannelsOfResult((space,), lifted=False)
        elif node.op == "output":
            for space in self._value(node, node.args[0]).spaces:
                self.spaces.whole.add(space)
        elif node.op == "call_module":
            self.values[node] = self._module(node)
        elif node.op in ("call_function", "call_method"):
            value = self._function(node)
            if value is not None:
                self.values[node] = value

    def _value(self, node: fx.Node, argument: Any) -> ChannelsOfResult:
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if value is None:
            raise refused(node, "reads something other than feature maps")
        return value

    def _module(self, node: fx.Node) -> ChannelsOfResult:
        module, value = self.traced.layer(node), self._value(node, node.args[0])
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._weighted(node, module, value)
        if isinstance(module, POINTWISE_MODULES):
            return value
        if isinstance(module, BATCH_NORMS):
            if value.positions:
                raise refused(node, "normalises a flattened map")
            if module.affine:
                self._scaled(value, module.weight)
            return value
        if isinstance(module, (*WINDOW_MODULES, *MIXING_MODULES)):
            if value.positions or self.traced.shapes[node] is None:
                raise refused(node, "reads a flattened map, or gives several results")
            if isinstance(module, MIXING_MODULES):
                self.spaces.whole.update(value.spaces)
            return value
        return self._reshaped(node, value)

    def _scaled(self, value: ChannelsOfResult, scales: Tensor) -> None:
        for space, part in zip(value.spaces, scales.detach().split(self._counts(value))):
            if space in self.spaces.strengths:
                self.spaces.strengths[space] = self.spaces.strengths[space] * part.abs().cpu()

    def _counts(self, value: ChannelsOfResult) -> list[int]:
        return [self.spaces.counts[s] for s in value.spaces]

    def _weighted(
        self, node: fx.Node, module: nn.Conv2d | nn.Linear, value: ChannelsOfResult
    ) -> ChannelsOfResult:
        name = str(node.target)
        before = self.layers.get(name)
        if before is not None:  # the same layer at another place
            if value.lifted != before[0].lifted or not self.spaces.join(
                before[0].spaces, value.spaces
            ):
                raise refused(node, "runs at several places, on different channels")
            return before[1]
        if isinstance(module, nn.Linear) and len(self.traced.shapes[node] or ()) != 2:
            raise refused(node, "reads something other than vectors")
        if isinstance(module, nn.Conv2d) and value.positions:
            raise refused(node, "reads a flattened map")
        weight, groups = module.weight.detach().cpu(), getattr(module, "groups", 1)
        strength = weight.flatten(1).norm(dim=1)
        if groups == weight.shape[0] == sum(self._counts(value)) and groups > 1:
            made = replace(value, lifted=True) if value.lifted else None
        else:
            made = None
            if groups > 1:
                self.spaces.whole.update(value.spaces)
        if made is None:
            made = ChannelsOfResult((self.spaces.new(len(weight)),), lifted=True)
            if groups > 1:
                self.spaces.whole.update(made.spaces)
            self.spaces.strengths[made.spaces[0]] = strength
        self.layers[name] = value, made
        return made

    def _function(self, node: fx.Node) -> ChannelsOfResult | None:
        name, first = name_of(node), node.args[0] if node.args else None
        given = [n for n in node.all_input_nodes if n in self.values]
        if (name in SIZE_OPERATIONS and self.traced.shapes[node] is None) or not given:
            return None
        if name == "cat":
            return self._concatenated(node)
        if name in BINARY and len(given) == 2:
            return self._combined(node, given)
        value = self._value(node, first if first in self.values else given[0])
        if len(node.all_input_nodes) == 1 and (
            name in BINARY or name in POINTWISE or name in ("dropout", *LEFT_OUT)
        ):
            return value
        if name in WINDOWS and not value.positions and self.traced.shapes[node] is not None:
            return value
        if name in SOFTMAXES and _axis(node) == 1 and not value.positions:
            return value
        return self._reshaped(node, value)

    def _reshaped(self, node: fx.Node, value: ChannelsOfResult) -> ChannelsOfResult:
        before = self.traced.shapes[node.all_input_nodes[0]]
        after = self.traced.shapes[node]
        if before is None or after is None:
            raise refused(node, "is not followed")
        shapes = before, after
        if is_spatial_mean(node, shapes):
            return value
        if is_flatten(node, self.traced.layer(node), shapes) and value.lifted:
            several = len(before) == 4 and before[2] * before[3] > 1
            return replace(value, positions=before[2:]) if several else value
        raise refused(node, "is not followed")

    def _concatenated(self, node: fx.Node) -> ChannelsOfResult:
        parts = [self._value(node, a) for a in node.args[0]]  # pyright: ignore
        if (
            _axis(node) != 1
            or any(p.positions for p in parts)
            or len({p.lifted for p in parts}) > 1
        ):
            raise refused(node, "concatenates along another axis, or an image with feature maps")
        return ChannelsOfResult(tuple(s for p in parts for s in p.spaces), parts[0].lifted)

    def _combined(self, node: fx.Node, given: Sequence[fx.Node]) -> ChannelsOfResult:
        one, other = (self._value(node, n) for n in given)
        alike = (one.lifted, one.positions) == (other.lifted, other.positions)
        if not alike or not self.spaces.join(one.spaces, other.spaces):
            raise refused(node, "combines channels that are not the same ones")
        return one


def refused(node: fx.Node, why: str) -> ValueError:
    """The error for a layer that cannot be converted."""
    name = str(node.target) if node.op == "call_module" else f"{name_of(node)} ({node.name})"
    return ValueError(
        f"the layer {name} {why}, so that the network cannot be converted; convert takes "
        "convolutions (not transposed), linear layers, batch, group and instance norms, pointwise "
        "functions, pooling, sums, products and concatenations of channels, and flattening"
    )


def _axis(node: fx.Node) -> Any:
    if len(node.args) > 1:
        return node.args[1]
    return node.kwargs.get("dim", node.kwargs.get("axis", 0))


def kept_channels(spaces: Spaces, share: Callable[[int], int]) -> dict[int, Tensor]:
    """For each root the indices of the channels that are kept: the `share(count)` strongest, all of
    those that are needed whole.
    """
    roots = {spaces.root(s) for s in range(len(spaces.counts))}
    whole = {spaces.root(s) for s in spaces.whole}
    kept = {}
    for root in roots:
        count = spaces.counts[root]
        wanted = count if root in whole else min(count, max(1, share(count)))
        strength = torch.zeros(count)
        for space, values in spaces.strengths.items():
            if spaces.root(space) == root:
                strength = strength + values.float()
        order = torch.argsort(strength, descending=True, stable=True)
        kept[root] = order[:wanted].sort().values
    return kept
