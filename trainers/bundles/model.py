"""The model of a bundle: a folded network with its normalisation, in nothing but torch.

`trainers.bundles.formats` writes this file, after `trainers/networks/plain.py` and without the
import below, into every bundle as `model.py`.
"""

import math
import os

import torch
import torch.nn.functional as F
from torch import nn

from trainers.networks.plain import MeanNetwork, PlainNetwork

STATE = "model.pt"
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns colour into grey


class Model(nn.Module):
    """The logits of images whose values lie in 0..1: normalisation is inside.

    `content` is a dict of plain values: "network" (what PlainNetwork takes), "mean" and "std" (one
    number per channel, of values in 0..1), "fit" ("resize" or "pad": how `prepare` reaches the
    size), "classes" (names), "members" where it is the mean of several networks (their number), and
    "corners" where it is "circle" (pixels outside the inscribed circle are made black first) or
    "crop" (the centre, which no corner of a turned image reaches, is enlarged to the size first).
    With a "task" the classes are labels ("multilabel": the sigmoid of each logit is a probability)
    or targets ("regression": the results are values in the units of the training's targets).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, content):
        super().__init__()
        self.classes, self.fit = tuple(content["classes"]), content["fit"]
        self.channels, self.size = content["network"]["channels"], tuple(content["network"]["size"])
        plain = [PlainNetwork(content["network"]) for _ in range(content.get("members", 1))]
        task = content.get("task", "classification")
        self.network = plain[0] if len(plain) == 1 else MeanNetwork(plain, task)
        for name in ("mean", "std"):
            self.register_buffer(
                name, torch.tensor(content[name], dtype=torch.float32).view(-1, 1, 1)
            )
        seen = _circle(*self.size) if content.get("corners") == "circle" else None
        self.register_buffer("seen", seen, persistent=False)
        self.centre = _centre(*self.size) if content.get("corners") == "crop" else None

    def normalise(self, images):
        """What the network takes, from images in 0..1."""
        if self.seen is not None:
            images = images * self.seen
        if self.centre is not None:
            (rows, columns), size = self.centre, list(self.size)
            images = F.interpolate(
                images[..., rows, columns], size=size, mode="bilinear", align_corners=False
            )
        return (images - self.mean) / self.std

    def forward(self, images):
        """The logits [batch, classes] of floating point images [batch, channels, height, width] in
        0..1.
        """
        if not images.is_floating_point():
            raise ValueError(
                f"the images are {images.dtype}; give floating point values in 0..1, such as "
                "prepare(images)"
            )
        if tuple(images.shape[1:]) != (self.channels, *self.size):
            raise ValueError(
                f"the images have shape {list(images.shape)}; the model takes [batch, "
                f"{self.channels}, {self.size[0]}, "
                f"{self.size[1]}], which prepare(images) makes of any uint8 images"
            )
        return self.network(self.normalise(images))

    def prepare(self, pixels):
        """What `forward` takes, from uint8 images [batch, 1 or 3, any height, any width]: exactly
        what training did.

        Colour becomes grey or grey colour where the model asks for it, the size is reached by an
        anti-aliased bilinear resize or by centred padding and cropping (as `fit` says), and values
        become 0..1. Raises ValueError for other images.
        """
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"the images are {pixels.dtype} of shape {list(pixels.shape)}; give uint8 "
                "[batch, 1 or 3, height, width]"
            )
        if self.channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif pixels.shape[1] == 3:
            pixels = (
                (pixels * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).round().byte()
            )
        if tuple(pixels.shape[-2:]) != self.size and self.fit == "resize":
            resized = F.interpolate(
                pixels.float(), size=self.size, mode="bilinear", align_corners=False, antialias=True
            )
            pixels = resized.round().clamp(0, 255).byte()
        elif tuple(pixels.shape[-2:]) != self.size:
            (top, bottom), (left, right) = (
                _margins(old, new) for old, new in zip(pixels.shape[-2:], self.size)
            )
            pixels = F.pad(pixels, (left, right, top, bottom))
        return pixels.float() / 255


def _circle(height, width):
    """1 [height, width] at pixels whose centres lie in the inscribed circle, 0 at the others."""
    down = torch.arange(height) - (height - 1) / 2
    right = torch.arange(width) - (width - 1) / 2
    inside = down[:, None].square() + right.square() <= (min(height, width) / 2) ** 2
    return inside.float()


def _centre(height, width):
    """The slices of the largest centred rectangle of an image's shape whose half diagonal is at
    most half the shorter side, between centres of pixels; each side keeps its parity.
    """
    shorter, diagonal, slices = min(height, width) - 1, (height - 1) ** 2 + (width - 1) ** 2, []
    for side in (height, width):
        kept = math.isqrt(((side - 1) * shorter) ** 2 // max(diagonal, 1)) + 1
        kept -= (side - kept) % 2
        start = (side - kept) // 2 if kept > 0 else 0
        slices.append(slice(start, side - start))
    return tuple(slices)


def _margins(old, new):
    """How many pixels come before and after an axis, centred; negative ones are cut."""
    before = (new - old) // 2 if new > old else -((old - new) // 2)
    return before, new - old - before


def load(folder=None, device="cpu"):
    """The model in `folder` (that of this file by default) on the device, in evaluation."""
    folder = os.path.dirname(os.path.abspath(__file__)) if folder is None else folder
    content = torch.load(os.path.join(folder, STATE), map_location=device, weights_only=True)
    model = Model(content)
    model.load_state_dict(content["state"])
    return model.to(device).eval()
