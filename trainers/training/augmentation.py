"""Augmentation whose widths are trained (Augerino, Benton et al. 2020, arXiv:2010.11882).

Every image is moved by exp(sum over i of u_i A_i), u_i uniform in -width_i/2 .. width_i/2, for six
generators A_i of affine maps of the plane. The widths lie behind a softplus and get gradients
through the interpolation; the loss is lowered by `regularisation` times their norm, so they grow
until labels forbid it. Augerino also averages over such copies at test time; here the network is
scored and deployed as it is, and `equisearch soften` evaluates the average.

A learning rate of 0.01 suits the widths (Adam). With 0.1 the authors' own run on rotated MNIST
could not be reproduced (their issue 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from trainers.actions import PADDING
from trainers.devices import send
from trainers.settings import Corners

# generators in homogeneous coordinates -1..1 (right, down, 1): shifts by a tenth of half the image,
# rotation in radians, scaling, stretching along the axes and along the diagonals
GENERATORS: dict[str, tuple[tuple[float, ...], ...]] = {
    "right": ((0, 0, 0.1), (0, 0, 0), (0, 0, 0)),
    "down": ((0, 0, 0), (0, 0, 0.1), (0, 0, 0)),
    "rotation": ((0, 1, 0), (-1, 0, 0), (0, 0, 0)),
    "scale": ((1, 0, 0), (0, 1, 0), (0, 0, 0)),
    "stretch": ((1, 0, 0), (0, -1, 0), (0, 0, 0)),
    "shear": ((0, 1, 0), (1, 0, 0), (0, 0, 0)),
}
START = 0.1  # width of each at the start
WIDEST = 10.0  # the regularisation stops where a width reaches it, as in the authors' safe loss


class LearnedAugmentation(nn.Module):
    """Moves images by random affine maps of trained widths."""

    def __init__(self, regularisation: float, corners: Corners = "black") -> None:
        super().__init__()
        self.regularisation = regularisation
        self.corners: Corners = corners
        start = math.log(math.expm1(START))  # softplus of it is START
        self.raw = nn.Parameter(torch.full((len(GENERATORS),), start))
        self.register_buffer("generators", torch.tensor(list(GENERATORS.values())).float(), False)

    @property
    def widths(self) -> Tensor:
        """The six widths, in the order of `GENERATORS`."""
        return functional.softplus(self.raw)

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The float images [B, C, H, W], each moved by its own map; draws come from `generator` on
        the CPU. Bilinear, with `corners` outside the image.
        """
        drawn = torch.rand(len(images), len(GENERATORS), generator=generator) - 0.5
        # bfloat16 would blur where pixels come from
        with torch.autocast(images.device.type, enabled=False):
            return self._moved(images, drawn)

    def _moved(self, images: Tensor, drawn: Tensor) -> Tensor:
        shares = send(drawn, images.device) * self.widths
        maps = torch.linalg.matrix_exp(torch.einsum("bi,ijk->bjk", shares, self.generators))
        height, width = images.shape[-2:]
        ratio = height / width  # keeps images that are not square from being sheared
        scale = torch.tensor([[1, ratio, 1], [1 / ratio, 1, 1]], device=images.device)
        grid = functional.affine_grid(
            (maps[:, :2] * scale).to(images.dtype), list(images.shape), align_corners=False
        )
        return functional.grid_sample(
            images, grid, mode="bilinear", padding_mode=PADDING[self.corners], align_corners=False
        )

    def penalty(self) -> Tensor:
        """What the loss is changed by [], which is never above 0."""
        widths = self.widths
        allowed = (widths.detach().max() < WIDEST).to(widths.dtype)
        return -self.regularisation * widths.norm() * allowed

    def learned(self) -> dict[str, float]:
        """The widths by name: shifts in tenths of half the image, rotation in radians."""
        return {f"width {name}": w for name, w in zip(GENERATORS, self.widths.tolist())}
