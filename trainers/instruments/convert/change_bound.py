"""A bound on how far what a module computes is from what it computes with symmetric kernels.

As in `trainers.networks.soft.logit_bound`, with W the kernels of a layer, P W their symmetric part
and h the maps that come in, the maps that come out differ by at most

    e_out <= ||P W|| e_in + ||W - P W|| ||h||

in the Euclidean norm. Pointwise functions enlarge a difference by their Lipschitz constant, batch
norms by their largest scale, linear layers by their matrix norm, sums add, windows of a pool count
by how often they hold a pixel. Where the sampling grid is exact, an image that is moved has in the
symmetric network what it had, so that the change is at most the sum of both bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from searchspace.groups import Group
from trainers.actions import act
from trainers.instruments.audit.symmetrised import double_copy
from trainers.instruments.convert.operations import BATCH_NORMS, is_spatial_mean, name_of
from trainers.instruments.convert.tracing import trace
from trainers.networks.soft.any_module import symmetric_part
from trainers.networks.soft.logit_bound import operator_norm, windows_of

# whose slope is at most 1
GENTLE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Softplus,
    nn.LogSigmoid, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten,
)  # fmt: skip
GENTLE = {
    "relu", "relu6", "tanh", "sigmoid", "dropout", "flatten", "view", "reshape", "contiguous",
    "abs", "clone", "detach", "neg",
}  # fmt: skip
# at least the steepest slope of other activations, by layer and function
SLOPES = {"gelu": 1.13, "silu": 1.1, "mish": 1.09, "hardswish": 1.5}
ROUNDING = 1e-12  # of a kernel's norm: what float64 leaves of a symmetric one


@torch.no_grad()
def change_bound(model: nn.Module, group: Group, images: Tensor) -> Tensor:
    """For each of `images` [batch, channel, height, width] how much the logits change at most, in
    the Euclidean norm, when it is moved by an element of `group` [batch], float64; given that the
    sampling grid is exact. Raises ValueError for a module with a layer that has no bound here.
    """
    copied = double_copy(model)
    size = (int(images.shape[-2]), int(images.shape[-1]))
    traced = trace(copied, size, images.shape[1])
    moved = torch.cat([act(images.double(), e) for e in group.elements])
    walk = _Walk(traced.module, group)
    walk.run(moved)
    bounds = walk.errors[walk.last].view(group.order, -1)
    return bounds[0] + bounds.amax(0)


class _Walk(fx.Interpreter):
    """The bounds node after node, beside what the module computes."""

    def __init__(self, module: fx.GraphModule, group: Group) -> None:
        super().__init__(module)
        self.group, self.maps = group, {}
        self.errors: dict[fx.Node, Tensor] = {}
        self.last: fx.Node = next(iter(module.graph.nodes))

    def run_node(self, n: fx.Node) -> object:
        """The result of a node; its bound is noted."""
        given = [(a, self.env[a]) for a in n.all_input_nodes if isinstance(self.env[a], Tensor)]
        values = [v.clone() for _, v in given]  # before the node writes in place
        result = super().run_node(n)
        if n.op == "placeholder" and isinstance(result, Tensor):
            self.errors[n] = torch.zeros(len(result), dtype=torch.float64)
        elif n.op == "output":
            self.last = n.all_input_nodes[0]
        elif isinstance(result, Tensor) and given:
            self.errors[n] = self._bound(n, [a for a, _ in given], values, result)
        return result

    def _bound(
        self, node: fx.Node, inputs: Sequence[fx.Node], values: Sequence[Tensor], result: Tensor
    ) -> Tensor:
        errors = [self.errors[a] for a in inputs]
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            return self._module(node, module, values[0], errors[0], result)
        name = name_of(node)
        if name in SLOPES:
            return errors[0] * SLOPES[name]
        if name in GENTLE or (name in ("cat", "add", "iadd", "sub")):
            same = all(v.shape == result.shape for v in values)
            if name == "cat":
                return torch.stack([e.square() for e in errors]).sum(0).sqrt()
            if len(errors) == 1 or same:
                return torch.stack(errors).sum(0)
        shapes = tuple(values[0].shape), tuple(result.shape)
        if is_spatial_mean(node, shapes) and name == "mean":
            return errors[0] / math.sqrt(math.prod(shapes[0][2:]))
        if name == "adaptive_avg_pool2d" and result.shape[-2:] == (1, 1):
            return errors[0] / math.sqrt(math.prod(shapes[0][2:]))
        raise ValueError(f"{name} has no bound on what it makes of a difference")

    def _module(
        self, node: fx.Node, module: nn.Module, maps: Tensor, error: Tensor, result: Tensor
    ) -> Tensor:
        if isinstance(module, GENTLE_MODULES):
            return error
        if type(module).__name__.lower() in SLOPES:
            return error * SLOPES[type(module).__name__.lower()]
        if isinstance(module, BATCH_NORMS) and module.running_var is not None:
            scale = (module.running_var + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight.abs()
            return error * float(scale.max())
        if isinstance(module, nn.Linear):
            return error * float(torch.linalg.matrix_norm(module.weight, 2))
        if isinstance(module, nn.AdaptiveAvgPool2d) and result.shape[-2:] == (1, 1):
            return error / math.sqrt(math.prod(maps.shape[-2:]))
        divided = getattr(module, "divisor_override", None) is not None
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and not divided:
            return error * _overlap(module)
        if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str):
            return self._convolved(module, maps, error)
        raise ValueError(f"{node.target} has no bound on what it makes of a difference")

    def _convolved(self, module: nn.Conv2d, maps: Tensor, error: Tensor) -> Tensor:
        weight = _whole(module)
        part = symmetric_part(weight, self.group)
        outside = weight - part
        outside = outside * (outside.norm() > ROUNDING * weight.norm())
        zeros = module.padding_mode == "zeros"
        windows = windows_of(module, module, maps)
        bounds = [operator_norm(w, windows, zeros) for w in (part, outside)]
        return bounds[0] * error + bounds[1] * maps.flatten(1).norm(dim=1)


def _whole(module: nn.Conv2d) -> Tensor:
    """The weight of a grouped convolution as that of one without groups."""
    if module.groups == 1:
        return module.weight
    blocks = module.weight.chunk(module.groups)
    rows, columns = len(blocks[0]), blocks[0].shape[1]
    whole = module.weight.new_zeros(module.out_channels, module.in_channels, *module.kernel_size)
    for number, block in enumerate(blocks):
        place = slice(number * rows, (number + 1) * rows)
        whole[place, number * columns : (number + 1) * columns] = block
    return whole


def _overlap(module: nn.MaxPool2d | nn.AvgPool2d) -> float:
    """The root of how many windows hold a pixel, at most (an average is no larger)."""
    count = 1
    for axis in (0, 1):
        kernel, stride = (
            s if isinstance(s, int) else s[axis] for s in (module.kernel_size, module.stride)
        )
        count *= -(-kernel // stride)
    return math.sqrt(count)
