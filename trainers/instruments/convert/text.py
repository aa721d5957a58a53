"""The text form of a twin, where the language of architectures has its layers: stages of a
convolution, batch norm and ReLU, residual blocks of two of them, pooling, and the mean over
positions before one linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, fx, nn

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.layers import Stage
from searchspace.subsampling import Subsampling
from trainers.instruments.convert.channels import Flow
from trainers.instruments.convert.operations import is_flatten, is_spatial_mean, name_of
from trainers.instruments.convert.tracing import Traced


class NoTextError(ValueError):
    """The language does not have this layer; the text says which."""


def architecture_of(
    traced: Traced, flow: Flow, group: Group, kept: Mapping[int, Tensor]
) -> Architecture:
    """The architecture of the twin with these channels. Raises NoTextError."""
    reader = _Reader(traced, group, lambda node: _count(flow, kept, node))
    stages, node = [], reader.only(next(iter(traced.module.graph.nodes)))
    while not reader.is_head(node):
        stage, node = reader.stage(node, first=not stages)
        last = stages[-1] if stages else None
        if last is not None and _repeats(last, stage):
            stages[-1] = replace(last, repeats=last.repeats + stage.repeats)
        else:
            stages.append(stage)
    if not stages:
        raise NoTextError("nothing stands before its head")
    reader.head(node)
    try:
        found = Architecture(stages=tuple(stages), size=traced.size, head="group_mean",
                             filters="free")  # fmt: skip
        found = Architecture.parse(str(found))
    except ValueError as error:
        raise NoTextError(str(error)) from None
    return found


def twin_text(
    architecture: Architecture, group: Group, surviving: tuple[Any, ...]
) -> tuple[str | None, str]:
    """(its text, "") where its verdict is what was found of the twin; else (None, why)."""
    own = verdict(architecture, group).surviving
    if set(own) == set(surviving):
        return str(architecture), ""
    return None, f"of '{architecture}' the verdict is {', '.join(map(str, own))}"


def _count(flow: Flow, kept: Mapping[int, Tensor], node: fx.Node) -> int:
    return sum(len(kept[flow.spaces.root(s)]) for s in flow.values[node].spaces)


def _repeats(last: Stage, stage: Stage) -> bool:
    """Whether a block is one more of the stage before."""
    alike = replace(last, repeats=1, stride=1) == replace(stage, repeats=1, stride=1)
    return last.residual and last.subsampling is None and stage.stride == 1 and alike


@dataclass(frozen=True)
class _Reader:
    traced: Traced
    group: Group
    fields: Callable[[fx.Node], int]

    def only(self, node: fx.Node) -> fx.Node:
        """The one node that reads a result, sizes left out."""
        users = self.users(node)
        if len(users) != 1:
            raise NoTextError(f"{_named(node)} is read by {len(users)} layers")
        return users[0]

    def users(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a result."""
        return [u for u in node.users if self.traced.shapes.get(u) is not None or u.op == "output"]

    def stage(self, node: fx.Node, first: bool) -> tuple[Stage, fx.Node]:
        """The stage that begins at `node`, and what follows."""
        source = node.all_input_nodes[0]
        if len(self.users(source)) > 1 and not first:
            found, end = self.block(source)
        else:
            conv, after = self.convolution(node)
            end = self.relu(self.only(after))
            found = self.made(conv, self.fields(end))
        readers = self.users(end)
        step = self.pooling(readers[0]) if len(readers) == 1 else None
        if step is not None and not self.is_head(readers[0]):
            found, end = replace(found, subsampling=step), readers[0]
            readers = self.users(end)
        return found, readers[0]

    def made(self, conv: nn.Conv2d, fields: int) -> Stage:
        """A stage of one convolution."""
        sizes = conv.kernel_size, conv.stride, conv.dilation, conv.padding
        if conv.groups > 1 or any(isinstance(s, str) or len({*s}) > 1 for s in sizes):
            raise NoTextError(f"a convolution has {conv.extra_repr()}")
        padding = cast(int, conv.padding[0])
        return Stage(
            fields, conv.kernel_size[0], conv.stride[0], (padding, padding), self.group, None,
            conv.dilation[0], cast(Any, conv.padding_mode),
        )  # fmt: skip

    def convolution(self, node: fx.Node) -> tuple[nn.Conv2d, fx.Node]:
        """A convolution and the batch norm behind it."""
        conv = self.traced.layer(node)
        if not isinstance(conv, nn.Conv2d):
            raise NoTextError(f"{_named(node)} stands where a convolution must")
        norm = self.only(node)
        if not isinstance(self.traced.layer(norm), nn.BatchNorm2d):
            raise NoTextError(f"no batch norm follows the convolution {_named(node)}")
        return conv, norm

    def relu(self, node: fx.Node) -> fx.Node:
        """The node, which is a ReLU."""
        module = self.traced.layer(node)
        if isinstance(module, nn.ReLU) or (module is None and name_of(node) == "relu"):
            return node
        raise NoTextError(f"{_named(node)} stands where a ReLU must")

    def block(self, source: fx.Node) -> tuple[Stage, fx.Node]:
        """The residual block that reads `source`, and its last ReLU."""
        if len(self.users(source)) != 2:
            raise NoTextError(f"{_named(source)} is read by {len(self.users(source))} layers")
        sums = [u for u in self.users(source) if name_of(u) in ("add", "iadd")]
        others = [u for u in self.users(source) if u not in sums]
        first, norm = self.convolution(others[0])
        second, end = self.convolution(self.only(self.relu(self.only(norm))))
        total = self.only(end)
        if not sums:
            skip, norm = self.convolution(others[1])
            if skip.kernel_size != (1, 1) or skip.stride != first.stride or skip.padding != (0, 0):
                raise NoTextError(f"{_named(others[1])} is not a convolution of one pixel")
            sums = [self.only(norm)]
        found = self.made(first, self.fields(end))
        again = self.made(second, self.fields(end))
        same = replace(found, stride=1) == again and self.fields(norm) == again.fields
        if sums != [total] or name_of(total) not in ("add", "iadd") or not same:
            raise NoTextError(f"{_named(others[0])} begins no block of two equal convolutions")
        return replace(found, residual=True), self.relu(self.only(total))

    def pooling(self, node: fx.Node) -> Subsampling | None:
        """The subsampling that a layer is; None: it is none of them."""
        module = self.traced.layer(node)
        if not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            return None
        kind = "max" if isinstance(module, nn.MaxPool2d) else "avg"
        sizes = [module.kernel_size, module.stride, module.padding]
        kernel, stride, padding = (s if isinstance(s, int) else s[0] for s in sizes)
        square = all(isinstance(s, int) or len({*s}) == 1 for s in sizes)
        plain = getattr(module, "dilation", 1) == 1 and getattr(module, "count_include_pad", True)
        if not square or not plain or getattr(module, "divisor_override", None) is not None:
            raise NoTextError(f"{_named(node)} has {module.extra_repr()}")
        return Subsampling(kind, kernel, stride, (padding, padding), bool(module.ceil_mode))

    def is_head(self, node: fx.Node) -> bool:
        """Whether a node takes the mean over all positions."""
        shapes = (self.traced.shapes[n] or () for n in (node.all_input_nodes[0], node))
        before, after = shapes
        module = self.traced.layer(node)
        pools = isinstance(module, (nn.AdaptiveAvgPool2d, nn.AvgPool2d)) or (
            module is None and name_of(node) == "adaptive_avg_pool2d"
        )
        means = is_spatial_mean(node, (before, after)) and name_of(node) == "mean"
        return (pools and after[2:] == (1, 1)) or means

    def head(self, node: fx.Node) -> None:
        """Raises NoTextError unless a linear layer alone follows the mean over positions."""
        after = self.only(node)
        shapes = tuple(self.traced.shapes[n] or () for n in (node, after))
        if is_flatten(after, self.traced.layer(after), shapes):
            after = self.only(after)
        if not isinstance(self.traced.layer(after), nn.Linear) or self.only(after).op != "output":
            raise NoTextError("its head is not one linear layer")


def _named(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
