"""Audits of modules that are not ours: each claim about an element is what is measured."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainers import audit

D4 = ("e", "r90", "r180", "r270", "m", "mr90", "mr180", "mr270")


def pooled(*layers, channels=6):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


class Function(nn.Module):
    """A module whose forward pass is `function(convolution, images)`."""

    def __init__(self, function, channels=6, outputs=6, **options):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, **{"padding": 1, **options})
        self.last = nn.Conv2d(outputs, 5, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.conv, x).relu()).relu().mean((2, 3))


def claims(module, size, **options):
    """{element: claim}, each of which agrees with its measurement."""
    found = audit(module, size, sizes=False, **options)
    assert [f for f in found.findings if f.agrees is False] == [], found.text()
    return {str(f.element): f.claim for f in found.findings}


def kept(module, size, **options):
    found = claims(module, size, **options)
    assert "not known" not in found.values()
    return {name for name, claim in found.items() if claim == "exact"}


CIRCULAR = nn.Conv2d(3, 6, 3, dilation=2, padding_mode="circular", padding=2)
WIDER = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1)
CEIL = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
CONV = nn.Conv2d(3, 6, 3)
OVAL = nn.Conv2d(3, 6, (3, 5), padding=(1, 2))
MANY = nn.Conv2d(3, 12, 3, padding=1)
STRIDED = (nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))


@pytest.mark.parametrize(
    "module, size, expected",
    [
        (pooled(*STRIDED), 9, D4),
        (pooled(*STRIDED), 8, ("e", "mr90")),
        (pooled(OVAL, nn.ReLU()), 8, ("e", "r180", "m", "mr180")),
        (pooled(nn.Conv2d(3, 6, 3, stride=(1, 2), padding=1), nn.ReLU()), 8, ("e", "mr180")),
        (pooled(CONV, nn.ReLU(), nn.MaxPool2d(2)), 9, ("e", "mr90")),
        (pooled(CONV, nn.ReLU(), nn.MaxPool2d(2)), 10, D4),
        (pooled(CONV, nn.ReLU(), CEIL), 10, ("e", "mr90")),
        (pooled(CIRCULAR, nn.GroupNorm(2, 6)), 8, D4),
        (pooled(nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1), nn.ReLU()), 7, D4),
        (nn.Sequential(WIDER, nn.ReLU(), nn.Conv2d(6, 4, 3)), 7, ("e", "mr90")),
        (nn.Sequential(CONV, nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 3)), 7, D4),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)), 8, ("e",)),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 3)), 8, D4),
        (nn.Sequential(MANY, nn.PixelShuffle(2), nn.Conv2d(3, 2, 3, padding=1)), 6, ("e",)),
    ],
)  # fmt: skip
def test_the_grid_keeps_what_is_measured(module, size, expected):
    assert kept(module, size) == set(expected)


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda conv, x: conv(x) + F.interpolate(conv(x)[..., ::2, ::2], 7, mode="bilinear"), D4),
        (lambda conv, x: conv(x) + F.interpolate(conv(x)[..., ::2, ::2], size=7), ("e", "mr90")),
        (lambda conv, x: conv(x) * conv(x).mean((2, 3), keepdim=True).sigmoid(), D4),
        (lambda conv, x: conv(x) - conv(F.pad(x, (0, 1, 0, 1))[..., 1:, 1:]), ("e", "mr90")),
        (lambda conv, x: torch.cat([conv(x)[:, :3], conv(x)[:, 3:].flip(1)], 1), D4),
        (lambda conv, x: conv(x) + torch.linspace(-1, 1, 7), ("e", "mr180")),
        (lambda conv, x: conv(x) + torch.linspace(-1, 1, 7) ** 2, ("e", "r180", "m", "mr180")),
        (lambda conv, x: F.layer_norm(conv(x).permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2), D4),
        (lambda conv, x: conv(x) + conv(x.flip(3)), ("e", "r180", "m", "mr180")),
        (lambda conv, x: conv(x).roll(1, 3), ("e", "mr180")),
        (lambda conv, x: F.conv2d(conv(x), torch.ones(6, 1, 3, 3, dtype=x.dtype), groups=6), D4),
    ],
)
def test_functional_steps_are_followed(function, expected):
    assert kept(Function(function), 7) == set(expected)
