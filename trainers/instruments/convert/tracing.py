"""A torch module as a graph of its layers, with the shapes of their results for one image size."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

MOST_QUOTED = 200  # characters of a module's own error


@dataclass(frozen=True)
class Traced:
    """A module's graph; its modules are a copy in evaluation mode."""

    module: fx.GraphModule
    size: tuple[int, int]  # (height, width), pixels
    channels: int
    shapes: dict[fx.Node, tuple[int, ...] | None]  # of each result; None: it is not one tensor

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None


def trace(model: nn.Module, size: tuple[int, int], channels: int) -> Traced:
    """The graph of `model` for images [1, channels, *size]. Raises ValueError for what cannot be
    traced: several inputs, results that are not one tensor, control flow that depends on values.
    """
    copied = copy.deepcopy(model).eval()
    if type(model).__module__.startswith("torch.nn") and not list(model.children()):
        copied = nn.Sequential(copied)  # a layer itself, whose forward pass is a function
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the user's module
            graph = fx.symbolic_trace(copied)
    except Exception as error:  # the user's code
        said = " ".join(str(error).split())[:MOST_QUOTED]
        raise ValueError(
            f"the module cannot be traced by torch.fx: {type(error).__name__}: {said}; give one "
            "whose control flow does not depend on its input"
        ) from error
    needed = [str(n.target) for n in graph.graph.nodes if n.op == "placeholder" and not n.args]
    if len(needed) != 1:
        raise ValueError(
            f"the module takes {len(needed)} inputs ({', '.join(needed)}); wrap it in a module "
            "that takes images alone"
        )
    graph.graph.eliminate_dead_code()
    shapes = _Shapes(graph)
    image = torch.zeros(1, channels, *size).to(next(copied.parameters(), torch.zeros(())))
    try:
        with torch.no_grad():
            result = shapes.run(image)
    except Exception as error:  # the user's code
        said = " ".join(str(error).split())[:MOST_QUOTED]
        raise ValueError(
            f"the module does not take images of shape [1, {channels}, {size[0]}, {size[1]}]: "
            f"{said}; give a size and a number of channels that it takes"
        ) from error
    if not isinstance(result, Tensor):
        kind = next((k for k in (dict, list, tuple) if isinstance(result, k)), type(result))
        raise ValueError(
            f"the module returned {kind.__name__}; it must return one tensor: wrap it in "
            "a module that does"
        )
    if result.ndim not in (2, 4):
        raise ValueError(
            f"the module returned shape {list(result.shape)} for one image; it must return vectors "
            "[batch, n] or maps [batch, channels, height, width]"
        )
    return Traced(graph, size, channels, shapes.seen)


class _Shapes(fx.Interpreter):
    """Notes the shapes of results."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, tuple[int, ...] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node; a layer that fails is named."""
        try:
            result = super().run_node(n)
        except Exception as error:
            raise ValueError(f"{n.target}: {error}") from error
        self.seen[n] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result
