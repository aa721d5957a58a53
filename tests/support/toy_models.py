"""Small models whose symmetry is known by construction, for testing the instruments that measure
it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from searchspace.groups import Group
from trainers.actions import act


class Lifting(nn.Module):
    """A network with one group convolution: exactly invariant under `group` unless `shift` moves
    its subsampling grid.

    The maps of `maps` are regular fields of the group; with `shift`, one row and column is cut
    before pooling, which breaks every element that reverses an axis.
    """

    def __init__(
        self,
        group: str = "C4",
        fields: int = 4,
        classes: int = 5,
        shift: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.group, self.shift = Group.parse(group), shift
        self.kernel = nn.Parameter(torch.randn(fields, 1, 5, 5, generator=generator) / 5)
        self.maps = nn.Identity()
        self.readout = nn.Parameter(torch.randn(classes, fields, generator=generator))
        with torch.no_grad():  # standardise, or every image would be given the same class
            self.register_buffer(
                "usual", self.features(torch.rand(64, 1, 16, 16, generator=generator))
            )
            self.usual = torch.stack([self.usual.mean(0), self.usual.std(0)])

    def forward(self, images):
        return (self.features(images) - self.usual[0]) / self.usual[1] @ self.readout.T

    def features(self, images):
        turned = [act(self.kernel, element) for element in self.group.elements]
        weight = torch.stack(turned, 1).flatten(0, 1)
        start = int(self.shift)
        maps = F.conv2d(images, weight, padding=2)[..., start:, start:].relu()
        maps = self.maps(F.max_pool2d(maps, 2, ceil_mode=self.shift))
        return maps.mean((-1, -2)).unflatten(1, (-1, self.group.order)).amax(2)


def corner(images):
    """Logits that read one corner: nothing moves with them."""
    return images[:, 0, :3, :3].flatten(1) * 3


def pixel_mean(images):
    """Logits that every element leaves alone, and that vary over the images."""
    bands = torch.stack(
        [(images > t).to(images.dtype).mean((1, 2, 3)) for t in (0.2, 0.4, 0.6, 0.8)], 1
    )
    return 10 * bands


def constant(images):
    """The same logits for every image."""
    return torch.arange(4.0).expand(len(images), 4)
