"""Softness of any torch module: its kernels keep their part that is symmetric under a group, and a
share of the rest.

The channels of a network that is not ours are fields of no known order, so that each counts as a
scalar field: the part P W of a kernel that an element keeps is the mean of the kernel moved by the
elements of the group. A network all of whose kernels are such is exact wherever its sampling grid
keeps the group (`trainers.instruments.audit`). A twin whose channels are regular fields is what
`trainers.instruments.convert` makes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from searchspace.groups import TRIVIAL, Element, Group
from trainers.actions import act

KERNEL_LAYERS = (nn.Conv2d, nn.ConvTranspose2d)
SAME = 1e-6  # of a kernel's norm: rounding
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def project(
    model: nn.Module, group: Group | str, softness: float = 0.0, images: Tensor | None = None
) -> nn.Module:
    """A copy of `model` in evaluation whose kernels keep `softness` (0 to 1) of what they have
    outside of those that are symmetric under `group`; at 1 a copy bit for bit.

    With `images` [batch, channel, height, width] of the training data, as the module takes them,
    batch norms that keep statistics get those under the new kernels. Raises ValueError for a
    softness outside of 0 to 1, a module without convolutions or with kernels that are not
    parameters, and a group that does not move pixels onto pixels.
    """
    if not 0 <= softness <= 1:
        raise ValueError(
            f"softness is {softness:g}; it must be from 0 (the constraint) to 1 (the network as it "
            "was trained)"
        )
    group = _on_grid(group)
    made = copy.deepcopy(model).eval()
    layers = kernels_of(made, group)
    if softness == 1:
        return made
    done: set[int] = set()
    for layer in layers.values():
        if id(layer.weight) not in done:
            done.add(id(layer.weight))
            part = symmetric_part(layer.weight, group)
            layer.weight.copy_(torch.lerp(part, layer.weight, softness))
    if images is not None:
        _estimate_statistics(made, images)
    return made


def distance(model: nn.Module, group: Group | str) -> float:
    """How far the kernels of a module are from symmetric ones: the root of the sum over its
    convolutions of ||W - P W||^2 / ||W||^2, divided by their number; 0 to 1. Errors as `project`.
    """
    group = _on_grid(group)
    squares = []
    for layer in kernels_of(model, group).values():
        weight = layer.weight.detach().double()
        whole = float(weight.square().sum())
        outside = float((weight - symmetric_part(weight, group)).square().sum())
        squares.append(outside / whole if whole else 0.0)
    return (sum(squares) / len(squares)) ** 0.5


def kept_by_kernels(model: nn.Module, elements: Sequence[Element]) -> tuple[Element, ...]:
    """Those of `elements`, quarter turns and flips, that leave every kernel of a module as it is,
    to 1e-6 of its norm. Raises ValueError as `project` does.
    """
    layers = kernels_of(model, TRIVIAL).values()

    def kept(weight: Tensor, element: Element) -> bool:
        if element.swaps_axes and weight.shape[-2] != weight.shape[-1]:
            return False
        return float((act(weight, element) - weight).norm()) <= SAME * float(weight.norm())

    weights = [layer.weight.detach().double() for layer in layers]
    return tuple(e for e in elements if all(kept(weight, e) for weight in weights))


def kernels_of(model: nn.Module, group: Group) -> dict[str, nn.Conv2d | nn.ConvTranspose2d]:
    """The convolutions of a module by name. Raises ValueError where there is none, or where the
    group does not act on a kernel.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, KERNEL_LAYERS)}
    if not layers:
        raise ValueError("the module has no Conv2d whose kernels could be softened")
    turns = any(e.swaps_axes for e in group.elements)
    for name, layer in layers.items():
        if not isinstance(layer._parameters.get("weight"), nn.Parameter) or layer.weight.ndim != 4:
            raise ValueError(
                f"the kernels of {name} are computed from other parameters; soften a module whose "
                "convolutions have their weights themselves"
            )
        if turns and layer.kernel_size[0] != layer.kernel_size[1]:
            raise ValueError(
                f"{name} has kernels of {layer.kernel_size[0]}x{layer.kernel_size[1]} pixels, "
                f"which quarter turns give another shape; soften under {_still(group)}"
            )
    return layers


def symmetric_part(weight: Tensor, group: Group) -> Tensor:
    """The mean of kernels [..., k, k] moved by the elements of a group, in their dtype."""
    exact = weight.detach().double()
    return torch.stack([act(exact, e) for e in group.elements]).mean(0).to(weight.dtype)


def _still(group: Group) -> Group:
    """The largest subgroup that keeps height and width."""
    return Group(min(group.rotations, 2), group.mirror)


def _on_grid(group: Group | str) -> Group:
    group = Group.parse(group) if isinstance(group, str) else group
    if not group.on_grid:
        raise ValueError(
            f"kernels cannot be moved by {group}, whose elements are not all quarter turns and "
            f"flips; give {group.grid}"
        )
    return group


def _estimate_statistics(model: nn.Module, images: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # of these images alone
    try:
        model(images)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        model.eval()
