"""The twin of a traced network: the same graph with group convolutions.

At the start the filter between two fields is that of the original on the identity, and 0 on the
other elements. So element g of every field is what the original with its filters moved by g
computes, and the mean over the elements, before the last layer, that of the original over the orbit
of the image, wherever the grid keeps the group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from searchspace.groups import Group
from trainers.actions import act, permutation
from trainers.instruments.convert.channels import ChannelsOfResult, Flow, refused
from trainers.instruments.convert.layers import GroupConv2d, OfFields, OnEachElement
from trainers.instruments.convert.operations import (
    BATCH_NORMS,
    LEFT_OUT,
    MIXING_MODULES,
    SOFTMAXES,
    is_flatten,
    name_of,
)
from trainers.instruments.convert.tracing import Traced

OPTIONS = ("stride", "padding", "dilation", "groups", "padding_mode")  # of convolutions, kept


def gather_index(group: Group, incoming: int, kernel: tuple[int, int]) -> Tensor:
    """Which parameter of a pair of fields every entry of its filters is [|G|, incoming x height x
    width].

    Raises ValueError for a kernel that an element of the group gives another shape.
    """
    row = torch.arange(incoming * kernel[0] * kernel[1]).view(1, incoming, *kernel)
    rows = []
    for element in group.elements:
        moved = act(row, element)
        if moved.shape != row.shape:
            raise ValueError(
                f"a kernel of {kernel[0]}x{kernel[1]} pixels cannot be turned by {element}; "
                "convert under C2, D1 or D2, whose elements keep height and width"
            )
        if incoming > 1:
            moved = moved[:, list(permutation(group, element.inverse))]
        rows.append(moved.flatten())
    return torch.stack(rows)


class Rewriting:
    """One rewriting of a traced network, with the channels that are kept of every space."""

    def __init__(
        self, traced: Traced, flow: Flow, group: Group, kept: Mapping[int, Tensor]
    ) -> None:
        self.traced, self.flow, self.group, self.kept = traced, flow, group, kept
        self.graph = fx.Graph()
        self.modules = nn.Module()
        self.made: dict[fx.Node, fx.Node] = {}
        self.mean: set[fx.Node] = set()  # old nodes whose new result is no longer of fields
        self.names: dict[str, str] = {}

    def network(self) -> fx.GraphModule:
        """The twin, in evaluation. Raises ValueError that names a layer that has none."""
        for node in self.traced.module.graph.nodes:
            self.made[node] = self._visit(node)
        made = fx.GraphModule(self.modules, self.graph, type(self.traced.module).__name__).eval()
        made.graph.eliminate_dead_code()
        made.recompile()
        return made

    def _visit(self, node: fx.Node) -> fx.Node:
        value = self.flow.values.get(node)
        if node.op == "output":
            self._pooled(node.all_input_nodes[0])
        module = self.traced.layer(node)
        if module is not None:
            assert value is not None, "every layer was followed"
            return self._layer(node, module)
        if self._is_kept_flat(node):
            return self.made[node.all_input_nodes[0]]
        if node.op == "get_attr":
            self._put(str(node.target), _attribute(self.traced.module, str(node.target)))
        if name_of(node) in SOFTMAXES and node.op != "placeholder":
            self._pooled(node.all_input_nodes[0])
        if node.op == "call_function" and name_of(node) in LEFT_OUT:
            return self.made[node.all_input_nodes[0]]
        if name_of(node) == "dropout" and node.op == "call_function":
            return self._dropout(node)
        copied = self.graph.node_copy(node, lambda n: self.made[n])
        if any(n in self.mean for n in node.all_input_nodes):
            self.mean.add(node)
        return copied

    def _is_kept_flat(self, node: fx.Node) -> bool:
        """Whether a node flattens maps of several positions, which stay maps in the twin."""
        return self.flow.values.get(node, _NONE).positions is not None and is_flatten(
            node,
            self.traced.layer(node),
            tuple(self.traced.shapes[n] or () for n in (node.all_input_nodes[0], node)),
        )

    def _dropout(self, node: fx.Node) -> fx.Node:
        """A functional dropout, which tracing in evaluation turned off, as a layer."""
        rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        return self._call(node, node.name, nn.Dropout(float(rate)))  # pyright: ignore

    def _layer(self, node: fx.Node, module: nn.Module) -> fx.Node:
        source, name = node.all_input_nodes[0], str(node.target)
        value, order = self.flow.values[source], self.group.order
        if self._is_kept_flat(node):
            return self.made[source]
        if isinstance(module, nn.Linear) and not value.positions and self._is_last(node):
            self._pooled(source)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._weighted(node, module, value)
        if isinstance(module, BATCH_NORMS):
            kept = self._indices(value)
            twin = norm_of(module, lambda values: values[kept])
        else:
            twin = copy.deepcopy(module)
        if value.lifted and order > 1 and source not in self.mean:
            if isinstance(module, BATCH_NORMS):
                twin = OfFields(twin, order)
            elif isinstance(module, MIXING_MODULES):
                twin = OnEachElement(twin, order)
        return self._call(node, name, twin)

    def _is_last(self, node: fx.Node) -> bool:
        """Whether a layer's result is the network's."""
        return all(
            user.op == "output"
            or (name_of(user) in SOFTMAXES and all(u.op == "output" for u in user.users))
            for user in node.users
        )

    def _weighted(
        self, node: fx.Node, module: nn.Conv2d | nn.Linear, value: ChannelsOfResult
    ) -> fx.Node:
        source, name = node.all_input_nodes[0], str(node.target)
        kept, group = self._indices(self.flow.values[node]), self.group
        into = self._indices(value)
        weight, groups = module.weight.detach(), getattr(module, "groups", 1)
        if isinstance(module, nn.Linear):
            weight = weight.view(len(weight), -1, *(value.positions or (1, 1)))
        weight = weight[kept] if groups > 1 else weight[kept][:, into]
        bias = None if module.bias is None else module.bias.detach()[kept]
        fields = source in self.mean or not value.lifted
        if group.order == 1 or source in self.mean:
            twin = _plain(module, weight, bias, value)
        else:
            twin = self._group_convolution(node, module, weight, bias, 1 if fields else group.order)
        vector = isinstance(module, nn.Linear) and isinstance(twin, nn.Conv2d)
        called = self._call(node, name, twin, maps=vector and not value.positions)
        if vector:
            called = self.graph.call_function(torch.flatten, (called, 1))
        return called

    def _group_convolution(
        self, node: fx.Node, module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None,
        incoming: int,
    ) -> GroupConv2d:  # fmt: skip
        groups, kernel = getattr(module, "groups", 1), tuple(weight.shape[2:])
        depthwise = groups > 1 and weight.shape[1] == 1
        try:
            sources = gather_index(self.group, incoming, kernel)  # pyright: ignore
        except ValueError as error:
            raise ValueError(f"the layer {node.target}: {error}") from None
        if groups > 1 and incoming == 1:
            raise refused(node, "is a grouped convolution of an image")
        options = _options(module)
        groups = len(weight) if depthwise else groups
        twin = GroupConv2d(
            weight.shape[1] * groups, len(weight), kernel, sources, incoming,
            bias=bias is not None, **{**options, "groups": groups},
        ).to(weight)  # fmt: skip
        with torch.no_grad():
            twin.weight[:, :, 0] = weight
            if bias is not None and twin.bias is not None:
                twin.bias.copy_(bias)
        return twin

    def _pooled(self, source: fx.Node) -> None:
        """Makes the result of an old node, if of fields, their mean over the group."""
        value = self.flow.values[source]
        if self.group.order == 1 or not value.lifted or source in self.mean:
            return
        fields = (self.made[source], 1, (-1, self.group.order))
        apart = self.graph.call_method("unflatten", fields)
        self.made[source] = self.graph.call_method("mean", (apart, 2))
        self.mean.add(source)

    def _call(self, node: fx.Node, name: str, module: nn.Module, *, maps: bool = False) -> fx.Node:
        source = self.made[node.all_input_nodes[0]]
        if maps:  # a vector is a map of one position
            source = self.graph.call_method("unflatten", (source, 1, (-1, 1, 1)))
        if node.all_input_nodes[0] in self.mean:
            self.mean.add(node)
        return self.graph.call_module(self._put(name, module), (source,))

    def _put(self, name: str, value: object) -> str:
        """Keeps a module under its old name; the same layer, at another place, once."""
        if name in self.names:
            return self.names[name]
        owner, *parts = self.modules, *name.split(".")
        for part in parts[:-1]:
            if not hasattr(owner, part):
                setattr(owner, part, nn.Module())
            owner = getattr(owner, part)
        setattr(owner, parts[-1], value)
        self.names[name] = name
        return name

    def _indices(self, value: ChannelsOfResult) -> Tensor:
        """Which channels of a result, of one group element, are kept."""
        spaces, start, parts = self.flow.spaces, 0, []
        for space in value.spaces:
            parts.append(self.kept[spaces.root(space)] + start)
            start += spaces.counts[space]
        return torch.cat(parts)


_NONE = ChannelsOfResult((), lifted=False)


def _attribute(module: nn.Module, name: str) -> object:
    found: object = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _options(module: nn.Module) -> dict[str, object]:
    if not isinstance(module, nn.Conv2d):
        return {}
    return {name: getattr(module, name) for name in OPTIONS}


def _plain(
    module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None, value: ChannelsOfResult
) -> nn.Module:
    """The layer itself with the weights that are kept."""
    if isinstance(module, nn.Linear) and not value.positions:
        twin: nn.Module = nn.Linear(weight.shape[1], len(weight), bias is not None)
        weight = weight.flatten(1)
    else:
        options = _options(module)
        if options.get("groups", 1) != 1 and weight.shape[1] == 1:
            options["groups"] = len(weight)
        into = weight.shape[1] * int(options.get("groups", 1))  # pyright: ignore
        kernel = tuple(weight.shape[2:])
        given: dict[str, Any] = {**options, "bias": bias is not None}
        twin = nn.Conv2d(into, len(weight), cast(Any, kernel), **given)
    twin.to(weight)
    with torch.no_grad():
        twin.get_parameter("weight").copy_(weight)
        if bias is not None:
            twin.get_parameter("bias").copy_(bias)
    return twin


def norm_of(norm: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The batch norm whose values are those of `norm`, of some channels or of each several times,
    as `change` makes them [channels].
    """
    assert isinstance(norm, BATCH_NORMS)
    values = {n: change(v) if v.ndim else v for n, v in norm.state_dict().items()}
    features = len(change(torch.zeros(norm.num_features)))
    momentum, tracks = norm.momentum, norm.track_running_stats
    made = type(norm)(features, norm.eps, momentum, norm.affine, tracks)
    made.load_state_dict(values)
    reference = next((v for v in values.values() if v.dtype.is_floating_point), torch.zeros(()))
    return made.to(reference)
