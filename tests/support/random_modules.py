"""Random torch modules as anybody might write them, for audits."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 4
FIXED = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


class Branches(nn.Module):
    """Two ways side by side, added, joined, or one weighing the other."""

    def __init__(self, first, second, how):
        super().__init__()
        self.first, self.second, self.how = first, second, how

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.first(x), self.second(x)
        if one.shape[2:] != two.shape[2:]:
            two = F.interpolate(two, size=one.shape[2:], mode="bilinear", align_corners=False)
        if self.how == "cat":
            return (
                torch.cat([one, two], 1)[:, : one.shape[1]]
                + torch.cat([two, one], 1)[:, -one.shape[1] :]
            )
        return one + two if self.how == "add" else one * two.sigmoid()


class Squeeze(nn.Module):
    """A squeeze-and-excitation block."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]


class Shuffle(nn.Module):
    """Channels in two halves, one of them through a convolution, shuffled."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels // 2, channels // 2, 3, padding=1, groups=channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1)
        batch, channels, height, width = x.shape
        joined = torch.cat([one, self.conv(two)], 1)
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class LastChannels(nn.Module):
    """A layer norm and a linear layer with channels last."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Attention among all positions, with or without an embedding of them."""

    def __init__(self, channels, positions=0):
        super().__init__()
        self.heads = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.embedding = nn.Parameter(torch.randn(1, positions, channels)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.embedding is not None:
            tokens = tokens + self.embedding
        mixed = self.heads(tokens, tokens, tokens, need_weights=False)[0]
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Blur(nn.Module):
    """A fixed kernel in steps of two."""

    def __init__(self, channels, padding):
        super().__init__()
        self.register_buffer("kernel", FIXED.repeat(channels, 1, 1, 1))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.padding, mode="reflect")
        return F.conv2d(x, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


class Fold(nn.Module):
    """Space to depth, or every other pixel, or a part of the map."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "every other":
            return x[:, :, ::2, ::2]
        if self.how == "crop":
            return x[:, :, 1:-1, 1:-1]
        if self.how == "crop odd":
            return x[..., 1:]
        if self.how == "roll":
            return x.roll((1, 1), (2, 3))
        return F.pad(x, (0, 1, 0, 1))


class Coordinates(nn.Module):
    """Adds the distance from the centre, or the column."""

    def __init__(self, radial):
        super().__init__()
        self.radial = radial

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype) for n in x.shape[2:])
        return x + ((rows[:, None] ** 2 + columns**2) if self.radial else columns)


def _convolution(draw: random.Random, inputs: int, outputs: int) -> nn.Module:
    kernel = draw.choice([1, 2, 3, 3, 3, 4, 5, (1, 3), (3, 1), (3, 5)])
    stride = draw.choice([1, 1, 1, 2, 2, 3, (1, 2), (2, 1)])
    dilation = draw.choice([1, 1, 1, 2])
    reach = [k // 2 * dilation for k in (kernel if isinstance(kernel, tuple) else (kernel,) * 2)]
    padding = draw.choice([tuple(reach), tuple(reach), 0, 1])
    mode = draw.choice(["zeros", "zeros", "zeros", "reflect", "circular", "replicate"])
    groups = draw.choice([1, 1, 2, inputs]) if outputs % inputs == 0 and inputs % 2 == 0 else 1
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation, groups, draw.random() < 0.7, mode
    )


def _pool(draw: random.Random, channels: int) -> nn.Module:
    kernel, stride = draw.choice([2, 3, 3, 4, (2, 3)]), draw.choice([1, 2, 2, 3])
    padding, ceil = draw.choice([0, 0, 1]), draw.random() < 0.3
    size = draw.choice([1, 2, 3, 4, 5, 7])
    return draw.choice(
        [
            nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil),
            nn.AvgPool2d(kernel, stride, padding, ceil, draw.random() < 0.5),
            nn.AdaptiveAvgPool2d(size),
            nn.AdaptiveMaxPool2d(size),
            Blur(channels, draw.choice([(1, 1, 1, 1), (0, 1, 0, 1)])),
            nn.Upsample(scale_factor=2, mode=draw.choice(["nearest", "bilinear", "bicubic"])),
            nn.Upsample(size=draw.choice([5, 6, 9]), mode=draw.choice(["nearest", "bilinear"])),
            nn.ConvTranspose2d(
                channels, channels, draw.choice([2, 3, 4]), 2, draw.choice([0, 1]),
                draw.choice([0, 0, 1]), draw.choice([1, channels]),
            ),
            Fold(draw.choice(["every other", "crop", "crop odd", "roll", "pad"])),
        ]
    )  # fmt: skip


def _other(draw: random.Random, channels: int) -> nn.Module:
    return draw.choice(
        [
            nn.BatchNorm2d(channels),
            nn.BatchNorm2d(channels),
            nn.GroupNorm(2, channels),
            nn.InstanceNorm2d(channels, affine=True),
            nn.Sequential(nn.Dropout2d(0.2), nn.PReLU(channels)),
            Squeeze(channels),
            Shuffle(channels),
            LastChannels(channels),
            nn.PixelUnshuffle(1),
            draw.choice([Attention(channels), Coordinates(True), Coordinates(False)]),
            draw.choice([nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ZeroPad2d((0, 1, 0, 1))]),
        ]
    )


ACTIVATIONS = (nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.ELU())


def random_module(seed: int) -> tuple[nn.Module, int, int]:
    """(module, image size, channels), which runs at that size."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        size, channels = draw.randint(7, 20), draw.choice([1, 3])
        module = _module(draw, channels)
        head = _head(draw, module, size, channels)
        if head is not None:
            return nn.Sequential(module, *head), size, channels


def _module(draw: random.Random, inputs: int) -> nn.Module:
    width = draw.choice([4, 6, 8])
    layers: list[nn.Module] = [_convolution(draw, inputs, width), draw.choice(ACTIVATIONS)]
    for _ in range(draw.randint(1, 4)):
        chance = draw.random()
        if chance < 0.35:
            layers += [_convolution(draw, width, width), draw.choice(ACTIVATIONS)]
        elif chance < 0.6:
            layers.append(_pool(draw, width))
        elif chance < 0.85:
            layers.append(_other(draw, width))
        else:
            first = nn.Sequential(_convolution(draw, width, width), draw.choice(ACTIVATIONS))
            second = draw.choice([nn.Identity(), _convolution(draw, width, width)])
            layers.append(Branches(first, second, draw.choice(["add", "cat", "mul"])))
    return nn.Sequential(*layers)


@torch.no_grad()
def _head(draw: random.Random, module: nn.Module, size: int, channels: int) -> list | None:
    """Layers behind the module; None where it does not take the size."""
    try:
        shape = module.eval()(torch.randn(1, channels, size, size)).shape
    except (RuntimeError, ValueError):
        return None
    if not shape.numel():  # a map without positions, whose mean is no number
        return None
    kind = draw.choice(["mean", "mean", "mean", "flatten", "max", "map"])
    if kind == "flatten":
        return [nn.Flatten(), nn.Dropout(0.5), nn.Linear(shape[1:].numel(), 5)]
    if kind == "map":
        return [nn.Conv2d(shape[1], 2, 1)]
    pool = nn.AdaptiveMaxPool2d(1) if kind == "max" else nn.AdaptiveAvgPool2d(1)
    return [pool, nn.Flatten(), nn.Linear(shape[1], 8), nn.ReLU(), nn.Linear(8, 5)]
