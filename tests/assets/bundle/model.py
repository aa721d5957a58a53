"""The exported model in nothing but torch: `from model import load; model = load()`.

The description is a dict of numbers and strings:

    entry   a step or null, applied to the images
    stages  a list of {"blocks": [...], "step": a step or a convolution or null}
    block   {"convolutions": [...], "skip": null (no skip) | "identity" | a convolution}
    convolution  {"in", "out", "kernel", "stride", "padding": [before, after], "dilation", "mode"}
    step    {"kind", "kernel", "stride", "padding": [before, after], "ceil", "output", "mode", "channels"}
    head    {"kind": "group_max" | "group_mean" | "none", "order": channels of a field, "features", "classes"}
"""

import os

import torch
import torch.nn.functional as F
from torch import nn

BLUR_PIXELS = 5
BLUR_SIGMA = {"blur": 0.66, "blurmax": 0.6}     # pixels, as in escnn's anti-aliased pooling layers


class Pad(nn.Module):
    """Padding of both axes by (before, after) pixels: zeros, reflect, circular or replicate."""

    def __init__(self, padding, mode="zeros"):
        super().__init__()
        self.padding = (*padding, *padding)
        self.mode = "constant" if mode == "zeros" else mode

    def forward(self, maps):
        """The padded maps."""
        return F.pad(maps, self.padding, self.mode)


class Subsample(nn.Module):
    """A step without trained weights that changes the resolution: see `searchspace.architecture.Subsampling`."""

    def __init__(self, step):
        super().__init__()
        self.step = dict(step)
        if step["kind"] in BLUR_SIGMA:
            offsets = torch.arange(BLUR_PIXELS, dtype=torch.float64) - BLUR_PIXELS // 2
            bell = torch.exp(-offsets.square() / (2 * BLUR_SIGMA[step["kind"]] ** 2))
            window = bell[:, None] * bell
            self.register_buffer("window", (window / window.sum()).to(torch.get_default_dtype())[None, None], persistent=False)

    def forward(self, maps):
        """The maps in their new resolution, in the same dtype."""
        step, kind = self.step, self.step["kind"]
        if kind in ("max", "avg"):
            return self._slide(maps)
        if kind in BLUR_SIGMA:
            if kind == "blurmax":
                maps = F.max_pool2d(maps, 3, stride=1, padding=1)
            window = self.window.to(maps.dtype).expand(step["channels"], 1, -1, -1)
            return F.conv2d(maps, window, stride=step["stride"], padding=step["padding"][0], groups=step["channels"])
        height, width = maps.shape[-2:]
        output = [step["output"] or -(-pixels // step["stride"]) for pixels in (height, width)]
        if kind == "adaptive":
            return F.adaptive_avg_pool2d(maps, output)
        if kind == "adaptivemax":
            return F.adaptive_max_pool2d(maps, output)
        if kind == "resize":
            if step["mode"] == "nearest":
                return F.interpolate(maps, size=output)
            shrinks = output[0] < height or output[1] < width
            return F.interpolate(maps, size=output, mode=step["mode"], antialias=shrinks, align_corners=False)
        top, left = (output[0] - height) // 2, (output[1] - width) // 2     # crop: negative padding cuts
        return F.pad(maps, (left, output[1] - width - left, top, output[0] - height - top))

    def _slide(self, maps):
        step = self.step
        (before, after), kernel, stride = step["padding"], step["kernel"], step["stride"]
        halves = step["kind"] == "max" and (kernel, stride, before, after, step["ceil"]) == (2, 2, 0, 0, False)
        if halves and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _halved(maps)
        pool = F.max_pool2d if step["kind"] == "max" else F.avg_pool2d
        if before == after:
            return pool(maps, kernel, stride, padding=before, ceil_mode=step["ceil"])
        filler = float("-inf") if step["kind"] == "max" else 0.0
        pooled = pool(F.pad(maps, (before, after, before, after), value=filler), kernel, stride, ceil_mode=step["ceil"])
        # Rounding up, no window may start behind the image, as torch has it for equal padding.
        height, width = ((pixels + before - 1) // stride + 1 for pixels in maps.shape[-2:])
        return pooled[..., :height, :width]


def _halved(maps):
    """The maximum of every 2x2 pixels, twice as fast as torch's pooling, which also keeps its indices (torch 2.15, CPU)."""
    height, width = (pixels // 2 * 2 for pixels in maps.shape[-2:])
    pairs = torch.maximum(maps[..., :height, 0:width:2], maps[..., :height, 1:width:2])
    return torch.maximum(pairs[..., 0::2, :], pairs[..., 1::2, :])


def convolution(spec):
    """A module with bias for one convolution: a Conv2d, after a Pad where Conv2d itself cannot pad so."""
    before, after = spec["padding"]
    equal_zeros = before == after and spec["mode"] == "zeros"
    conv = nn.Conv2d(spec["in"], spec["out"], spec["kernel"], stride=spec["stride"], dilation=spec["dilation"],
                     padding=before if equal_zeros else 0)
    return conv if equal_zeros else nn.Sequential(Pad(spec["padding"], spec["mode"]), conv)


class Block(nn.Module):
    """A convolution and ReLU; or, with a skip connection, two convolutions whose sum with the skip passes the last ReLU."""

    def __init__(self, spec):
        super().__init__()
        self.convolutions = nn.ModuleList(convolution(c) for c in spec["convolutions"])
        self.residual = spec["skip"] is not None
        self.skip = convolution(spec["skip"]) if isinstance(spec["skip"], dict) else nn.Identity() if self.residual else None

    def forward(self, maps):
        """The feature maps after the last ReLU."""
        out = self.convolutions[0](maps)
        for conv in self.convolutions[1:]:
            out = conv(F.relu(out, inplace=True))
        return F.relu(out + self.skip(maps) if self.residual else out, inplace=True)


class Head(nn.Module):
    """Spatial mean, then the maximum or mean over the channels of each field (or all channels), then a linear layer."""

    def __init__(self, spec):
        super().__init__()
        self.kind, self.order = spec["kind"], spec["order"]
        self.linear = nn.Linear(spec["features"], spec["classes"])

    def forward(self, maps):
        """The logits [batch, classes]."""
        features = maps.mean((2, 3))
        if self.kind != "none":
            fields = features.reshape(features.shape[0], -1, self.order)
            features = fields.amax(2) if self.kind == "group_max" else fields.mean(2)
        return self.linear(features)


class PlainNetwork(nn.Module):
    """The folded network of a description: Conv2d, ReLU, pooling, one Linear. For evaluation; it holds no batch norm."""

    def __init__(self, description):
        super().__init__()
        self.entry = Subsample(description["entry"]) if description["entry"] else nn.Identity()
        self.stages = nn.ModuleList()
        for stage in description["stages"]:
            parts = [Block(block) for block in stage["blocks"]]
            if stage["step"]:
                is_step = "kind" in stage["step"]
                parts.append(Subsample(stage["step"]) if is_step else Block({"convolutions": [stage["step"]], "skip": None}))
            self.stages.append(nn.Sequential(*parts))
        self.head = Head(description["head"])

    def forward(self, images):
        """The logits [batch, classes] of images [batch, channels, height, width]."""
        maps = self.entry(images)
        for stage in self.stages:
            maps = stage(maps)
        return self.head(maps)

    def forward_with_stages(self, images):
        """(logits, a tuple with the feature maps after each stage)."""
        maps, outputs = self.entry(images), []
        for stage in self.stages:
            maps = stage(maps)
            outputs.append(maps)
        return self.head(maps), tuple(outputs)


STATE = "model.pt"
LUMA = (0.299, 0.587, 0.114)        # ITU-R BT.601, as Pillow turns colour into grey


class Model(nn.Module):
    """The logits of images whose values lie in 0..1: normalisation is inside.

    `content` is a dict of plain values: "network" (what PlainNetwork takes), "mean" and "std" (one number per channel, of
    values in 0..1), "fit" ("resize" or "pad": how `prepare` reaches the size) and "classes" (names).
    """

    def __init__(self, content):
        super().__init__()
        self.classes, self.fit = tuple(content["classes"]), content["fit"]
        self.channels, self.size = content["network"]["channels"], tuple(content["network"]["size"])
        self.network = PlainNetwork(content["network"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(content[name], dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images):
        """The logits [batch, classes] of floating point images [batch, channels, height, width] in 0..1."""
        if not images.is_floating_point():
            raise ValueError(f"the images are {images.dtype}; give floating point values in 0..1, such as prepare(images)")
        if tuple(images.shape[1:]) != (self.channels, *self.size):
            raise ValueError(f"the images have shape {list(images.shape)}; the model takes [batch, {self.channels}, {self.size[0]}, "
                             f"{self.size[1]}], which prepare(images) makes of any uint8 images")
        return self.network((images - self.mean) / self.std)

    def prepare(self, pixels):
        """What `forward` takes, from uint8 images [batch, 1 or 3, any height, any width]: exactly what training did.

        Colour becomes grey or grey colour where the model asks for it, the size is reached by an anti-aliased bilinear resize or by
        centred padding and cropping (as `fit` says), and values become 0..1. Raises ValueError for other images.
        """
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(f"the images are {pixels.dtype} of shape {list(pixels.shape)}; give uint8 [batch, 1 or 3, height, width]")
        if self.channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif pixels.shape[1] == 3:
            pixels = (pixels * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).round().byte()
        if tuple(pixels.shape[-2:]) != self.size and self.fit == "resize":
            resized = F.interpolate(pixels.float(), size=self.size, mode="bilinear", align_corners=False, antialias=True)
            pixels = resized.round().clamp(0, 255).byte()
        elif tuple(pixels.shape[-2:]) != self.size:
            (top, bottom), (left, right) = (_margins(old, new) for old, new in zip(pixels.shape[-2:], self.size))
            pixels = F.pad(pixels, (left, right, top, bottom))
        return pixels.float() / 255


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
