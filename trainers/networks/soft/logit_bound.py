"""A bound on how far the logits of a folded network are from those of its equivariant part, from
the norms of its layers and of the feature maps of given images.

With W the weight of a layer, P W its equivariant part and h the maps that come in, the maps that
come out differ from those of the equivariant network by at most

    e_out <= ||P W|| e_in + ||W - P W|| ||h|| + ||b - P b|| sqrt(pixels)

in the Euclidean norm; ReLU does not enlarge a difference, and a pooling layer by a known factor.
Norms of convolutions are bounded from above: by the number of windows that a pixel lies in and the
matrix norm of the kernels, or by the sum of the norms of their taps. An image that is moved has the
logits that it had in the equivariant network, so that its logits change by at most the sum of both
bounds, where the subsampling layout is exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.groups import Group
from trainers.networks.plain import Block, InvariantFields, PlainNetwork, Subsample
from trainers.networks.projection import project_weight
from trainers.networks.soft.softening import Action

ROUNDING_UNITS = 8  # units of the last digit, as a share of a weight's norm, that count as 0
MOST_POOL_PIXELS = 4096  # of a map, up to which the norm of a linear pooling layer is computed


@torch.no_grad()
def logit_bounds(
    folded: PlainNetwork, acting: Sequence[Action], group: Group, images: Tensor
) -> Tensor:
    """For each image [batch, channel, height, width] a bound on the Euclidean distance of its
    logits from those of the network whose weights are the parts of `folded`'s that are equivariant
    under `group` [batch], float64; 0 where they are all of it to rounding.

    `acting` are the actions of its convolutions (`trainers.networks.soft.softening.actions`).
    Raises ValueError for maps too large for their pooling layers to be bounded.
    """
    network = copy.deepcopy(folded).double().to(memory_format=torch.contiguous_format)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    rounding = ROUNDING_UNITS * torch.finfo(folded.head.linear.weight.dtype).eps
    walk = _Walk(dict(zip(convolutions, acting, strict=True)), group, rounding)
    maps, error = network.entry(images.double()), torch.zeros(len(images), dtype=torch.float64)
    for stage in network.stages:
        assert isinstance(stage, nn.Sequential)
        for part in stage:
            maps, error = walk.through(part, maps, error)
    return walk.logits(network.head, maps, error, acting[-1].fields)


class _Walk:
    """The bounds layer after layer."""

    def __init__(self, acting: dict[nn.Conv2d, Action], group: Group, rounding: float) -> None:
        self._acting, self._group, self._rounding = acting, group, rounding

    def _outside(self, weight: Tensor, part: Tensor) -> Tensor:
        """What a weight has outside of its part; 0 where that is the rounding of its numbers."""
        outside = weight - part
        return outside * (outside.norm() > self._rounding * weight.norm())

    def through(self, part: nn.Module, maps: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """(the maps after the part, the bound on them)."""
        if isinstance(part, Block):
            return part(maps), self._block(part, maps, error)
        if isinstance(part, Subsample):
            return part(maps), error * _pooling_norm(part, maps)
        if isinstance(part, InvariantFields):
            return part(maps), error * math.sqrt(part.order)
        raise ValueError(f"the logits of a network with {type(part).__name__} are not bounded")

    def _block(self, block: Block, maps: Tensor, error: Tensor) -> Tensor:
        out, bound = maps, error
        for number, module in enumerate(block.convolutions):
            out = F.relu(out) if number else out
            bound = self._convolved(module, out, bound)
            out = module(out)
        if block.skip is None:
            return bound
        if isinstance(block.skip, nn.Identity):
            return bound + error
        return bound + self._convolved(block.skip, maps, error)

    def _convolved(self, module: nn.Module, maps: Tensor, error: Tensor) -> Tensor:
        conv = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
        action = self._acting[conv]
        weight, bias = conv.weight.double(), conv.bias
        assert bias is not None, "every convolution of a folded network has a bias"
        part = project_weight(weight, action.source, action.fields, self._group)
        windows = windows_of(module, conv, maps)
        zeros = module is conv  # else a layer before it pads in another way
        mean = _block_mean(bias, action.fields.order)
        pixels = math.prod(module(maps[:1]).shape[-2:])
        return (
            operator_norm(part, windows, zeros) * error
            + operator_norm(self._outside(weight, part), windows, zeros)
            * maps.flatten(1).norm(dim=1)
            + self._outside(bias, mean).norm() * math.sqrt(pixels)
        )

    def logits(self, head: nn.Module, maps: Tensor, error: Tensor, fields: Group) -> Tensor:
        """The bound on the logits of the last maps, of fields of `fields`."""
        error = error / math.sqrt(math.prod(maps.shape[-2:]))
        features: list[Tensor] = []
        linear = head.get_submodule("linear")
        assert isinstance(linear, nn.Linear)
        hook = linear.register_forward_pre_hook(lambda module, given: features.append(given[0]))
        head(maps)
        hook.remove()
        weight = linear.weight
        unpooled = weight.shape[1] == maps.shape[1]
        part = _block_mean(weight, fields.order) if unpooled else weight
        outside = torch.linalg.matrix_norm(self._outside(weight, part), 2)
        return torch.linalg.matrix_norm(part, 2) * error + outside * features[0].norm(dim=1)


def _block_mean(values: Tensor, block: int) -> Tensor:
    blocks = values.unflatten(-1, (-1, block))
    return blocks.mean(-1, keepdim=True).expand_as(blocks).flatten(-2)


def operator_norm(weight: Tensor, windows: float, zeros: bool) -> float:
    """At least the operator norm of the convolution with a weight whose windows hold each pixel at
    most `windows` times.
    """
    if not bool(weight.any()):
        return 0.0
    by_window = math.sqrt(windows) * float(_spectral(weight.flatten(1)))
    by_tap = float(_spectral(weight.flatten(2).movedim(2, 0)).sum()) if zeros else math.inf
    return min(by_window, by_tap)


def _spectral(matrices: Tensor) -> Tensor:
    """The spectral norms of matrices [..., rows, columns], double precision, from their Gram
    matrices: a singular value decomposition takes twice as long.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


def windows_of(module: nn.Module, conv: nn.Conv2d, maps: Tensor) -> float:
    """How often a pixel of maps of that size occurs in the windows of a convolution, at most."""
    counting = copy.deepcopy(module)
    inner = next(m for m in counting.modules() if isinstance(m, nn.Conv2d))
    inner.weight = nn.Parameter(torch.ones(1, 1, *conv.kernel_size, dtype=torch.float64))
    inner.bias, inner.in_channels, inner.out_channels, inner.groups = None, 1, 1, 1
    with torch.enable_grad():
        pixels = torch.ones(1, 1, *maps.shape[-2:], dtype=torch.float64, requires_grad=True)
        (counts,) = torch.autograd.grad(counting(pixels).sum(), pixels)
    return float(counts.max())


def _pooling_norm(part: Subsample, maps: Tensor) -> float:
    """By what factor a layer that changes the resolution enlarges a difference, at most."""
    step = part.step
    kind = step["kind"]
    if kind in ("max", "lp"):
        return float(-(-step["kernel"] // step["stride"]))
    spread = 3.0 if kind == "blurmax" else 1.0  # the maximum over 3x3 pixels before the blur
    linear = {"blurmax": "blur", "adaptivemax": "adaptive"}.get(kind, kind)
    height, width = maps.shape[-2:]
    if height * width > MOST_POOL_PIXELS:
        raise ValueError(
            f"the logits are not bounded: {kind} on maps of {height}x{width} pixels, and at most "
            f"{MOST_POOL_PIXELS} pixels are examined"
        )
    single = Subsample({**step, "kind": linear, "channels": 1})
    each = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    matrix = single(each).flatten(1)
    if kind == "adaptivemax":
        return math.sqrt(float((matrix > 0).sum(1).max()))
    return spread * float(torch.linalg.matrix_norm(matrix, 2))
