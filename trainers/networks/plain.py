"""The network that an architecture folds to, in nothing but torch: this file stands alone and may
be copied.

    network = PlainNetwork(json.load(open("network.json")))
    network.load_state_dict(torch.load("network.pt"))
    logits = network(images)        # [batch, channels, height, width] -> [batch, classes]

The description is a dict of numbers and strings:

    entry   a step or null, applied to the images
    stages  a list of {"blocks": [...], "step": a step or a convolution or null, and, where fields
            are invariant, "invariant": [fields, channels of a field]}
    block   {"convolutions": [...], "skip": null (no skip) | "identity" | a convolution}
    convolution  {"in", "out", "kernel", "stride", "padding": [before, after], "dilation", "mode"}
    step    {"kind", "kernel", "stride", "padding": [before, after], "ceil", "output", "mode",
             "channels"}
    head    {"kind": "group_max" | "group_mean" | "block_max" | "none",
             "order": channels of a field or block, or a list of them for the streams, "features",
             "classes"}
    streams may be left out: how many of the stages each stream has; all read the same images
    coordinates  may be left out: "x", "y", "xy" or "radius", channels that follow those of the
            image behind the entry
    orbit   may be left out: the logits are the mean over these moves of the images, a list of
            [mirror left to right first, quarter turns counter-clockwise]
"""

import torch
import torch.nn.functional as F
from torch import nn

BLUR_PIXELS = 5
BLUR_SIGMA = {"blur": 0.66, "blurmax": 0.6}  # pixels, as in escnn's anti-aliased pooling layers


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
    """A step without trained weights that changes the resolution: see
    `searchspace.subsampling.Subsampling`.
    """

    def __init__(self, step):
        super().__init__()
        self.step = dict(step)
        self.reduce = FORWARD[step["kind"]]
        sigma = BLUR_SIGMA.get(step["kind"])
        if sigma is not None:
            offsets = torch.arange(BLUR_PIXELS, dtype=torch.float64) - BLUR_PIXELS // 2
            bell = torch.exp(-offsets.square() / (2 * sigma**2))
            window = bell[:, None] * bell
            self.register_buffer(
                "window",
                (window / window.sum()).to(torch.get_default_dtype())[None, None],
                persistent=False,
            )

    def forward(self, maps):
        """The maps in their new resolution, in the same dtype."""
        if hasattr(self, "window"):
            return self.reduce(maps, self.step, self.window.to(maps.dtype))
        return self.reduce(maps, self.step)


def _maximum(maps, step):
    (before, after), kernel, stride = step["padding"], step["kernel"], step["stride"]
    halves = (kernel, stride, before, after, step["ceil"]) == (2, 2, 0, 0, False)
    if halves and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _halved(maps)
    return _slide(F.max_pool2d, maps, step, float("-inf"))


def _average(maps, step):
    return _slide(F.avg_pool2d, maps, step, 0.0)


def _root(maps, step):
    """The root of the sum of squares of each window, as torch's lp_pool2d with padding.

    The squares are taken in float32 at least. Their sum is at least the smallest normal number, so
    that the gradient at a window of zeros is 0 and not infinite.
    """
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    sums = _slide(F.avg_pool2d, values.square(), step, 0.0) * step["kernel"] ** 2
    return sums.clamp(min=torch.finfo(sums.dtype).tiny).sqrt().to(maps.dtype)


def _slide(pool, maps, step, filler):
    (before, after), kernel, stride = step["padding"], step["kernel"], step["stride"]
    if before == after:
        return pool(maps, kernel, stride, padding=before, ceil_mode=step["ceil"])
    padded = F.pad(maps, (before, after, before, after), value=filler)
    pooled = pool(padded, kernel, stride, ceil_mode=step["ceil"])
    # Rounding up, no window may start behind the image, as torch has it for equal padding.
    height, width = ((pixels + before - 1) // stride + 1 for pixels in maps.shape[-2:])
    return pooled[..., :height, :width]


def _blur(maps, step, window):
    window, groups = window.expand(step["channels"], 1, -1, -1), step["channels"]
    return F.conv2d(maps, window, stride=step["stride"], padding=step["padding"][0], groups=groups)


def _blurred_maximum(maps, step, window):
    return _blur(F.max_pool2d(maps, 3, stride=1, padding=1), step, window)


def _output(maps, step):
    height, width = (step["output"] or -(-side // step["stride"]) for side in maps.shape[-2:])
    return height, width


def _adaptive_average(maps, step):
    return F.adaptive_avg_pool2d(maps, _output(maps, step))


def _adaptive_maximum(maps, step):
    return F.adaptive_max_pool2d(maps, _output(maps, step))


def _resized(maps, step):
    size = _output(maps, step)
    if step["mode"] == "nearest":
        return F.interpolate(maps, size=size)
    shrinks = size[0] < maps.shape[-2] or size[1] < maps.shape[-1]
    # torch has no antialiasing in 16 bits on a CPU
    reduced = shrinks and maps.dtype in (torch.bfloat16, torch.float16)
    values = maps.float() if reduced else maps
    resized = F.interpolate(
        values, size=size, mode=step["mode"], antialias=shrinks, align_corners=False
    )
    return resized.to(maps.dtype) if reduced else resized


def _cropped(maps, step):
    (height, width), size = maps.shape[-2:], _output(maps, step)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    # negative padding cuts
    return F.pad(maps, (left, size[1] - width - left, top, size[0] - height - top))


# By kind of step, the function of (maps, step) or, of those in BLUR_SIGMA, (maps, step, window).
FORWARD = {
    "max": _maximum,
    "avg": _average,
    "lp": _root,
    "blur": _blur,
    "blurmax": _blurred_maximum,
    "adaptive": _adaptive_average,
    "adaptivemax": _adaptive_maximum,
    "resize": _resized,
    "crop": _cropped,
}


def _halved(maps):
    """The maximum of every 2x2 pixels, twice as fast as torch's pooling, which also keeps its
    indices (torch 2.15, CPU).
    """
    height, width = (pixels // 2 * 2 for pixels in maps.shape[-2:])
    pairs = torch.maximum(maps[..., :height, 0:width:2], maps[..., :height, 1:width:2])
    return torch.maximum(pairs[..., 0::2, :], pairs[..., 1::2, :])


class InvariantFields(nn.Module):
    """The maximum over the `order` channels of a field in each of them, of the first `fields`."""

    def __init__(self, fields, order):
        super().__init__()
        self.fields, self.order = fields, order

    def forward(self, maps):
        """The maps with those fields pooled."""
        pooled = maps[:, : self.fields * self.order].unflatten(1, (self.fields, self.order))
        repeated = pooled.amax(2, keepdim=True).expand(-1, -1, self.order, -1, -1)
        return torch.cat([repeated.flatten(1, 2), maps[:, self.fields * self.order :]], 1)


def convolution(spec):
    """A module with bias for one convolution: a Conv2d, after a Pad where Conv2d itself cannot pad
    so.
    """
    before, after = spec["padding"]
    equal_zeros = before == after and spec["mode"] == "zeros"
    conv = nn.Conv2d(
        spec["in"],
        spec["out"],
        spec["kernel"],
        stride=spec["stride"],
        dilation=spec["dilation"],
        padding=before if equal_zeros else 0,
    )
    return conv if equal_zeros else nn.Sequential(Pad(spec["padding"], spec["mode"]), conv)


class Block(nn.Module):
    """A convolution and ReLU; or, with a skip connection, two convolutions whose sum with the skip
    passes the last ReLU.
    """

    def __init__(self, spec):
        super().__init__()
        self.convolutions = nn.ModuleList(convolution(c) for c in spec["convolutions"])
        self.skip = None
        if spec["skip"] is not None:
            is_identity = spec["skip"] == "identity"
            self.skip = nn.Identity() if is_identity else convolution(spec["skip"])

    def forward(self, maps):
        """The feature maps after the last ReLU."""
        out = self.convolutions[0](maps)
        for conv in self.convolutions[1:]:
            out = conv(F.relu(out, inplace=True))
        return F.relu(out if self.skip is None else out + self.skip(maps), inplace=True)


def block_maxima(features, order):
    """The maximum over consecutive blocks of `order` features [batch, blocks]; a last smaller block
    is one by itself.
    """
    whole = features.shape[1] // order * order
    maxima = features[:, :whole].reshape(features.shape[0], -1, order).amax(2)
    if whole == features.shape[1]:
        return maxima
    return torch.cat([maxima, features[:, whole:].amax(1, keepdim=True)], 1)


class Head(nn.Module):
    """Spatial mean, then the maximum or mean over the channels of each field or block (or all
    channels), then a linear layer.
    """

    def __init__(self, spec):
        super().__init__()
        self.kind, order = spec["kind"], spec["order"]
        self.orders = order if isinstance(order, list) else [order]
        self.linear = nn.Linear(spec["features"], spec["classes"])

    def forward(self, *streams):
        """The logits [batch, classes] from the last maps of each stream."""
        features = [self._features(maps, order) for maps, order in zip(streams, self.orders)]
        return self.linear(features[0] if len(features) == 1 else torch.cat(features, 1))

    def _features(self, maps, order):
        features = maps.mean((2, 3))
        if self.kind == "none":
            return features
        if self.kind == "block_max":
            return block_maxima(features, order)
        fields = features.reshape(features.shape[0], -1, order)
        return fields.amax(2) if self.kind == "group_max" else fields.mean(2)


def with_coordinates(maps, kind):
    """The maps with coordinates of their pixels as further channels: `x` and `y` from -1 to 1, or
    `radius`, the distance from the centre, 1 in the corners.
    """
    height, width = maps.shape[-2:]
    # twice the pixels from the centre: whole numbers, so that mirrored ones differ in sign alone
    y, x = (
        2 * torch.arange(n, dtype=maps.dtype, device=maps.device) - (n - 1) for n in (height, width)
    )
    if kind == "radius":
        corner = max(1.0, ((height - 1) ** 2 + (width - 1) ** 2) ** 0.5)
        chosen = [(y[:, None].square() + x.square()).sqrt() / corner]
    else:
        of_axis = {"x": x / max(1, width - 1), "y": y[:, None] / max(1, height - 1)}
        chosen = [of_axis[name].expand(height, width) for name in kind]
    return torch.cat([maps, torch.stack(chosen).expand(maps.shape[0], -1, -1, -1)], 1)


def moved(images, mirror, turns):
    """The images mirrored left to right if `mirror`, then turned by quarters counter-clockwise."""
    images = images.flip(-1) if mirror else images
    return torch.rot90(images, turns, (-2, -1)) if turns else images


class PlainNetwork(nn.Module):
    """The folded network of a description: Conv2d, ReLU, pooling, one Linear. For evaluation; it
    holds no batch norm.
    """

    def __init__(self, description):
        super().__init__()
        self.entry = Subsample(description["entry"]) if description["entry"] else nn.Identity()
        self.stages = nn.ModuleList()
        for stage in description["stages"]:
            parts: list[nn.Module] = [Block(block) for block in stage["blocks"]]
            step = stage["step"]
            if step and "kind" in step:
                parts.append(Subsample(step))
            elif step:
                parts.append(Block({"convolutions": [step], "skip": None}))
            if "invariant" in stage:
                parts.append(InvariantFields(*stage["invariant"]))
            self.stages.append(nn.Sequential(*parts))
        self.head = Head(description["head"])
        counts = description.get("streams", [])
        self.starts = tuple(sum(counts[:n]) for n in range(1, len(counts)))
        self.coordinates = description.get("coordinates")
        self.orbit = tuple(map(tuple, description.get("orbit", [(False, 0)])))

    def forward(self, images):
        """The logits [batch, classes] of images [batch, channels, height, width]."""
        return self._averaged(images, self._logits(images))

    def forward_with_stages(self, images):
        """(logits, a tuple with the feature maps after each stage, of the images as they are)."""
        outputs = []
        logits = self._logits(images, outputs.append)
        return self._averaged(images, logits), tuple(outputs)

    def _logits(self, images, keep=None):
        entered = maps = self._entered(images)
        ends = []
        for number, stage in enumerate(self.stages):
            if number in self.starts:
                ends.append(maps)
                maps = entered
            maps = stage(maps)
            if keep is not None:
                keep(maps)
        return self.head(*ends, maps)

    def _entered(self, images):
        maps = self.entry(images)
        return with_coordinates(maps, self.coordinates) if self.coordinates else maps

    def _averaged(self, images, logits):
        for mirror, turns in self.orbit[1:]:
            logits = logits + self._logits(moved(images, mirror, turns))
        return logits if len(self.orbit) == 1 else logits / len(self.orbit)


class MeanNetwork(nn.Module):
    """Several networks as one: logits whose probabilities are the mean of the members'; of a task
    "regression" the mean of their values.
    """

    def __init__(self, members, task="classification"):
        super().__init__()
        self.members, self.task = nn.ModuleList(members), task

    def forward(self, images):
        """The logits [batch, classes] of images [batch, channels, height, width]."""
        return mean_logits([member(images) for member in self.members], self.task)

    def forward_with_stages(self, images):
        """(logits, a tuple with the feature maps of all members after each stage)."""
        members = [m for m in self.members if isinstance(m, PlainNetwork)]
        runs = [member.forward_with_stages(images) for member in members]
        maps = tuple(torch.cat(stage, 1) for stage in zip(*(maps for _, maps in runs)))
        return mean_logits([logits for logits, _ in runs], self.task), maps


def mean_logits(logits, task="classification"):
    """Logits whose softmax (of "multilabel" whose sigmoid) is the mean of the probabilities of
    several [batch, classes]; of "regression" the mean of the values; of one, the same.
    """
    if len(logits) == 1:
        return logits[0]
    if task == "regression":
        return torch.stack(logits).mean(0)
    if task == "multilabel":
        stacked = torch.stack(logits)
        return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)
    return torch.stack(logits).log_softmax(2).logsumexp(0)
