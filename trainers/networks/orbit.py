"""The average of a network's logits over the orbit of each image under a finite group of quarter
turns and flips.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from searchspace.function.orbit import check_orbit
from searchspace.groups import Group
from trainers.actions import act


class OrbitAverage(nn.Module):
    """The mean of what `module` gives for the images moved by each element of `group`: invariant
    under the group to rounding, whatever the module computes.

    The module runs |group| times, once for each element, so that buffers such as running statistics
    see one batch for each.
    """

    def __init__(self, module: nn.Module, group: Group) -> None:
        super().__init__()
        self.module, self.group = module, group

    def forward(self, images: Tensor) -> Tensor:
        """The averaged outputs [batch, ...] of images [batch, channels, height, width]. Raises
        ValueError where the group changes the shape of the images.
        """
        check_orbit(self.group, (images.shape[-2], images.shape[-1]))
        total, *others = (self.module(act(images, e)) for e in self.group.elements)
        for output in others:
            total = total + output
        return total / self.group.order

    def extra_repr(self) -> str:
        return f"group={self.group}"


def orbit_average(module: nn.Module, group: Group | str) -> nn.Module:
    """`module` averaged over the orbit of each image under `group`, such as `C4`; the module itself
    under C1. Weights are shared with it, and training and evaluation modes follow.

    Raises ValueError for a group off the pixel grid, such as C8.
    """
    group = Group.parse(group) if isinstance(group, str) else group
    check_orbit(group, (1, 1))
    return module if group.order == 1 else OrbitAverage(module, group)


def orbit_of(images: Tensor, group: Group) -> Tensor:
    """The images [batch, channels, height, width] moved by every element of `group`, the identity
    first, in one batch [|group| x batch, channels, height, width]; in their layout.
    """
    if group.order == 1:
        return images
    return torch.cat([act(images, element) for element in group.elements])


def averaged(outputs: Tensor, group: Group) -> Tensor:
    """The mean over the orbit of what `orbit_of` led to: [|group| x batch, ...] to [batch, ...]."""
    return outputs if group.order == 1 else outputs.unflatten(0, (group.order, -1)).mean(0)
