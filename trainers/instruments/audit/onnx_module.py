"""An ONNX graph as a torch module, for an audit: it is read, and nothing in it is executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from searchspace.geometry import counted

Attributes = dict[str, Any]
# what may be trained where it is a number with a fraction; others are shapes, axes and limits
WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1),
           "BatchNormalization": (1, 2), "PRelu": (1,), "InstanceNormalization": (1, 2),
           "LayerNormalization": (1, 2), "Add": (0, 1), "Mul": (0, 1)}  # fmt: skip


OUTPUT_COUNT = "number of outputs"  # beside a node's attributes, whose names have no spaces


def from_onnx(path: Path) -> nn.Module:
    """The module of an ONNX file with one image as its input and one output. Raises ValueError for
    other files, and naming the operation that it cannot read.
    """
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # of whatever the file holds
        raise ValueError(f"{path} is not an ONNX file: {type(error).__name__}: {error}") from error
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(
            f"{path} has {counted(len(inputs), 'input')} and "
            f"{counted(len(graph.output), 'output')}; an audit needs one "
            "image and one result"
        )
    unread = sorted({node.op_type for node in graph.node} - set(ONNX_OPERATIONS) - {"Constant"})
    if unread:
        raise ValueError(
            f"{path} has operations that an audit does not read from ONNX: {', '.join(unread)}; "
            "give the torch module, or a .pt2 file"
        )
    known = {*stored, *inputs, ""}
    for node in graph.node:
        if missing := [name for name in node.input if name not in known]:
            raise ValueError(
                f"{path} is damaged: {node.op_type} reads '{missing[0]}', which nothing before it "
                "gives; write it again"
            )
        known |= set(node.output)
    try:
        return OnnxModule(graph, inputs[0], graph.output[0].name)
    except Exception as error:  # of whatever the file holds
        raise ValueError(
            f"{path} is damaged: {type(error).__name__}: {error}; write it again"
        ) from error


class OnnxModule(nn.Module):
    """Runs the nodes of a graph one after the other."""

    def __init__(self, graph: Any, image: str, result: str) -> None:
        super().__init__()
        self.image, self.result = image, result
        self.nodes = [
            (n.op_type, tuple(n.input), tuple(n.output), n.name or n.output[0], _attributes(n))
            for n in graph.node
        ]
        trained = {
            name
            for kind, inputs, *_ in self.nodes
            for place, name in enumerate(inputs)
            if place in WEIGHTS.get(kind, ())
        }
        self.names: dict[str, str] = {}  # of a tensor in the graph -> of the module's
        constants = [(t.name, t) for t in graph.initializer]
        constants += [
            (outputs[0], attributes["value"])
            for kind, _, outputs, _, attributes in self.nodes
            if kind == "Constant" and "value" in attributes
        ]
        for name, stored in constants:
            tensor = torch.tensor(numpy_helper.to_array(stored))
            own = name.replace(".", "/") or "unnamed"
            while hasattr(self, own):  # a method of modules, or another tensor's name
                own += "_"
            self.names[name] = own
            if name in trained and tensor.is_floating_point() and tensor.ndim:
                self.register_parameter(own, nn.Parameter(tensor))
            else:
                self.register_buffer(own, tensor)
        self.nodes = [node for node in self.nodes if node[0] != "Constant"]

    def forward(self, image: Tensor) -> Tensor:
        values: dict[str, Any] = {name: getattr(self, own) for name, own in self.names.items()}
        values |= {self.image: image, "": None}
        for kind, inputs, outputs, _, attributes in self.nodes:
            given = {**attributes, OUTPUT_COUNT: len(outputs)}
            found = ONNX_OPERATIONS[kind](given, *(values[name] for name in inputs))
            values |= zip(outputs, found if isinstance(found, tuple) else (found,))
        return values[self.result]


def _attributes(node: Any) -> Attributes:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}


def _borders(attributes: Attributes, images: Tensor, kernel: Sequence[int]) -> list[int]:
    """Padding as torch has it: left, right, top, bottom."""
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        strides, dilations = (attributes.get(k, [1, 1]) for k in ("strides", "dilations"))
        pads: list[int] = []
        for n, k, s, d in zip(images.shape[2:], kernel, strides, dilations):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small, large = total // 2, total - total // 2
            pads = [*((small, large) if automatic == "SAME_UPPER" else (large, small)), *pads]
        return pads
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return [left, right, top, bottom]


def _padded(images: Tensor, borders: list[int], fill: float = 0.0) -> Tensor:
    return F.pad(images, borders, value=fill) if any(borders) else images


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = _padded(x, _borders(a, x, weight.shape[2:]))
    steps = a.get("strides", [1, 1]), 0, a.get("dilations", [1, 1]), a.get("group", 1)
    return F.conv2d(x, weight, bias, *steps)


def _transposed(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise ValueError("a transposed convolution with unequal padding is not read")
    extra = a.get("output_padding", [0, 0])
    steps = a.get("strides", [1, 1]), (top, left), extra, a.get("group", 1)
    return F.conv_transpose2d(x, weight, bias, *steps, a.get("dilations", [1, 1]))


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    dilations, ceil = a.get("dilations", [1, 1]), bool(a.get("ceil_mode", 0))
    if (top, left) == (bottom, right) and a.get("auto_pad", "NOTSET") == "NOTSET":
        return F.max_pool2d(x, kernel, a.get("strides", [1, 1]), (top, left), dilations, ceil)
    x = _padded(x, _borders(a, x, kernel), -torch.inf)
    return F.max_pool2d(x, kernel, a.get("strides", [1, 1]), 0, dilations, ceil)


def _avg_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel, counted = a["kernel_shape"], bool(a.get("count_include_pad", 0))
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or a.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("an average pool with unequal padding is not read")
    ceil, strides = bool(a.get("ceil_mode", 0)), a.get("strides", [1, 1])
    return F.avg_pool2d(x, kernel, strides, (top, left), ceil, counted)


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    weight = weight if a.get("transB", 0) else weight.t()
    return F.linear(x.t() if a.get("transA", 0) else x, weight, bias)


def _axes(a: Attributes, given: tuple) -> list[int] | None:
    axes = a.get("axes", given[0].tolist() if given and given[0] is not None else None)
    return None if axes is None else list(axes)


def _mean(a: Attributes, x: Tensor, *axes: Tensor) -> Tensor:
    return x.mean(_axes(a, axes) or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))


def _max(a: Attributes, x: Tensor, *axes: Tensor) -> Tensor:
    return x.amax(_axes(a, axes) or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))


def _squeeze(a: Attributes, x: Tensor, *axes: Tensor) -> Tensor:
    found = _axes(a, axes)
    return x.squeeze() if found is None else x.squeeze(found)


def _unsqueeze(a: Attributes, x: Tensor, *axes: Tensor) -> Tensor:
    found = _axes(a, axes) or []
    rank = x.ndim + len(found)
    for axis in sorted(axis % rank for axis in found):
        x = x.unsqueeze(axis)
    return x


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, given = a.get("axis", 0), a.get("split")
    if sizes is not None:
        given = sizes.tolist()
    return x.split(given or -(-x.shape[axis] // a[OUTPUT_COUNT]), axis)


def _slice(a: Attributes, x: Tensor, *given: Tensor | None) -> Tensor:
    starts, ends, axes, steps = [
        v if v is None else v.tolist() for v in (*given, None, None, None, None)[:4]
    ]
    if starts is None or ends is None:
        raise ValueError("a slice of an opset before 10 is not read from ONNX")
    axes = axes or list(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes)):
        if step == -1 and start in (-1, x.shape[axis] - 1) and end < -x.shape[axis]:
            x = x.flip(axis)
            continue
        if step < 1:
            raise ValueError("a slice that goes backwards is not read from ONNX")
        whole = [slice(None)] * x.ndim
        whole[axis] = slice(start, end, step)
        x = x[tuple(whole)]
    return x


def _to_space(a: Attributes, x: Tensor) -> Tensor:
    size = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, size, size, channels // size**2, height, width)
    apart = apart.permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(batch, channels // size**2, height * size, width * size)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())]
    return x.reshape(sizes)


def _clip(a: Attributes, x: Tensor, *limits: Tensor | None) -> Tensor:
    low, high = [None if v is None else float(v) for v in (*limits, None, None)][:2]
    return x.clamp(a.get("min", low), a.get("max", high))


def _pad(a: Attributes, x: Tensor, pads: Tensor, *rest: Tensor | None) -> Tensor:
    numbers = pads.tolist()
    if x.ndim != 4 or len(numbers) != 8 or any(numbers[i] for i in (0, 1, 4, 5)):
        raise ValueError("padding of other axes than height and width is not read")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    fill = float(rest[0]) if rest and rest[0] is not None else 0.0
    borders = [numbers[3], numbers[7], numbers[2], numbers[6]]
    name = mode[a.get("mode", "constant")]
    return F.pad(x, borders, name, fill if name == "constant" else None)


# (mode, coordinates, rounding of places) of ONNX -> (mode, align_corners) of torch
RESIZES = {
    ("linear", "half_pixel"): ("bilinear", False),
    ("linear", "pytorch_half_pixel"): ("bilinear", False),
    ("linear", "align_corners"): ("bilinear", True),
    ("cubic", "half_pixel"): ("bicubic", False),
    ("cubic", "pytorch_half_pixel"): ("bicubic", False),
    ("nearest", "asymmetric"): ("nearest", None),
}


def _resize(a: Attributes, x: Tensor, *given: Tensor | None) -> Tensor:
    _, scales, sizes = (*given, None, None, None)[:3]
    kind = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    floors = kind[0] != "nearest" or a.get("nearest_mode", "round_prefer_floor") == "floor"
    usual = kind[0] != "cubic" or a.get("cubic_coeff_a", -0.75) == -0.75
    if kind not in RESIZES or not floors or not usual or a.get("exclude_outside", 0):
        raise ValueError(f"a resize by {' '.join(kind)} is not read from ONNX")
    wanted = sizes.tolist() if sizes is not None and sizes.numel() else None
    if wanted is None:
        assert scales is not None, "a resize has scales or sizes"
        wanted = [int(n * s + 1e-6) for n, s in zip(x.shape, scales.tolist())]
    mode, corners = RESIZES[kind]
    antialias = bool(a.get("antialias", 0))
    return F.interpolate(x, wanted[-2:], None, mode, corners, antialias=antialias)


def _batch_norm(a: Attributes, x: Tensor, *parts: Tensor) -> Tensor:
    weight, bias, mean, variance = parts
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, a.get("epsilon", 1e-5))


ONNX_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax((2, 3), keepdim=True),
    "ReduceMean": _mean,
    "ReduceMax": _max,
    "ReduceSum": lambda a, x, *axes: x.sum(
        _axes(a, axes) or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1))
    ),
    "LayerNormalization": lambda a, x, w, b=None: F.layer_norm(
        x, x.shape[a.get("axis", -1) % x.ndim :], w, b, a.get("epsilon", 1e-5)
    ),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda a, x, w, b: F.instance_norm(
        x, weight=w, bias=b, eps=a.get("epsilon", 1e-5)
    ),
    "Gemm": _gemm,
    "MatMul": lambda a, x, y: x @ y,
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)),
    "Reshape": _reshape,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Split": _split,
    "Slice": _slice,
    "DepthToSpace": _to_space,
    "Identity": lambda a, x: x,
    "Dropout": lambda a, x, *rest: x,
    "Pad": _pad,
    "Resize": _resize,
    "Relu": lambda a, x: x.relu(),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "PRelu": lambda a, x, slope: F.prelu(x, slope.reshape(-1)),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: F.hardswish(x),
    "Tanh": lambda a, x: x.tanh(),
    "Erf": lambda a, x: x.erf(),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Softplus": lambda a, x: F.softplus(x),
    "Sqrt": lambda a, x: x.sqrt(),
    "Exp": lambda a, x: x.exp(),
    "Log": lambda a, x: x.log(),
    "Abs": lambda a, x: x.abs(),
    "Neg": lambda a, x: -x,
    "Pow": lambda a, x, y: x ** (float(y) if y.numel() == 1 else y),
    "Clip": _clip,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
}
