"""What the operations of a traced network do to channels and positions, by name."""

from __future__ import annotations

import torch
from torch import fx, nn

# one value at a time
POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.LogSigmoid, nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Threshold,
)  # fmt: skip
# one channel at a time: windows, whose symmetry the verdict judges
WINDOW_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d,
    nn.CircularPad2d, nn.Dropout2d,
)  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# between channels, without a place: on each group element alone
MIXING_MODULES = (nn.GroupNorm, nn.InstanceNorm2d, nn.PReLU, nn.LocalResponseNorm)
POINTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "neg", "abs", "square", "sqrt", "exp",
    "clamp", "clip", "contiguous", "clone", "detach", "float", "pow", "pos",
}  # fmt: skip
WINDOWS = {
    "max_pool2d", "boolean_dispatch", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "interpolate", "upsample",
}  # fmt: skip
BINARY = {"add", "iadd", "mul", "imul", "sub", "isub", "truediv", "div", "maximum", "minimum"}
SOFTMAXES = {"softmax", "log_softmax"}
LEFT_OUT = {"stochastic_depth"}  # the identity in evaluation
SIZE_OPERATIONS = {"size", "getattr", "getitem", "dim", "floordiv", "numel"}


def name_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls, without the mark of in-place ones."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_")


def is_flatten(
    node: fx.Node, module: nn.Module | None, shapes: tuple[tuple[int, ...], ...]
) -> bool:
    """Whether a node makes vectors of maps: the same values in the order of channels and places.

    `shapes` are those of its input and its result.
    """
    named = isinstance(module, nn.Flatten) or (
        module is None and name_of(node) in ("flatten", "view", "reshape", "squeeze")
    )
    before, after = shapes
    return (
        named and len(before) in (2, 4) and len(after) == 2 and before[0] == after[0]
        and torch.Size(before).numel() == torch.Size(after).numel()
    )  # fmt: skip


def is_spatial_mean(node: fx.Node, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether a node takes the mean over both axes of maps."""
    before, after = shapes
    return (
        node.op != "call_module"
        and name_of(node) in ("mean", "amax")
        and len(before) == 4
        and after in (before[:2], (*before[:2], 1, 1))
    )
