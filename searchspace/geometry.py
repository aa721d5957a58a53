"""Where windows lie: output sizes and remainders of every layer, by integer arithmetic alone.

A window of `kernel` pixels moves in steps of `stride` over an axis of n pixels with p pixels of
padding before it. It lies symmetrically, so that mirroring the axis maps windows to windows, iff

    remainder = n + 2 p_before - dilation (kernel - 1) - 1 - stride (output - 1)  =  0,

which for equal padding and sizes rounded down is (n + 2p - dilation (kernel - 1) - 1) mod stride
("Using and Abusing Equivariance", arXiv:2308.11316, generalised to unequal padding and rounding
up). What remainders of several layers do together is decided in `searchspace.mirroring`.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from searchspace.architecture import Stage, Subsampling

Branch = Literal["main", "skip"]
Size = tuple[int, int]  # (height, width), pixels
# layers kept: an enumeration meets the same stage at the same size again and again
CACHED = 1 << 16


class Rule(NamedTuple):
    """How a layer reads an axis, whatever the axis's size; both axes are read alike."""

    kind: str  # conv, or the kind of a subsampling
    kernel: int = 1
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    ceil: bool = False
    output: int | None = None  # pixels; None: by stride
    mode: str = "zeros"  # padding mode of a convolution, interpolation of a resize


class Read(NamedTuple):
    """How a step of the main branch reads its maps; with `closing`, the second layer of a residual
    block whose input is read by `skip`.
    """

    rule: Rule
    opening: bool = False  # the input of this layer is that of a residual block
    closing: bool = False
    skip: Rule | None = None  # None: the identity


class Layer(NamedTuple):
    """One layer with a window, as it lies on the feature maps of one architecture."""

    stage: int  # counted from 1; 0 is the entry
    name: str  # such as conv1, skip2, max2/2
    branch: Branch
    size_in: Size
    size_out: Size
    remainder: tuple[int, int]  # per axis, pixels; 0 is exact
    kernel: int = 1
    # (channels in, channels out) of a convolution; in = 0: the image's
    weights: tuple[int, int] | None = None
    read: Read | None = None  # of the main branch


def output_size(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    ceil: bool = False,
) -> int:
    """The number of windows on an axis of `size` pixels; 0 or less if none fits."""
    room = size + padding[0] + padding[1] - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    windows = -(-room // stride) + 1
    # none may start behind the image
    return windows - 1 if (windows - 1) * stride >= size + padding[0] else windows


def remainder(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    ceil: bool = False,
) -> int:
    """By how many pixels the last window ends before (or, negative, behind) its mirror image; 0 is
    exact.
    """
    windows = output_size(size, kernel, stride, padding, dilation, ceil)
    return size + 2 * padding[0] - dilation * (kernel - 1) - 1 - stride * (windows - 1)


def nearest_sources(size: int, output: int) -> list[int]:
    """The pixel that each of `output` samples of a nearest-neighbour resize of `size` pixels reads,
    as torch has it in float32.

    The ratio is rounded to float32: from 82 px on, even a whole multiple may miss a pixel (2 px to
    82 px does).
    """
    ratio = _float32(size / output)
    return [min(int(_float32(i * ratio)), size - 1) for i in range(output)]


def nearest_remainder(size: int, output: int) -> int:
    """How many of `output` samples of a nearest-neighbour resize miss the mirror image of their
    partner; 0 is exact.
    """
    source = nearest_sources(size, output)
    return sum(source[output - 1 - i] != size - 1 - source[i] for i in range(output))


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _step_rule(step: Subsampling) -> Rule:
    mode = step.mode if step.kind == "resize" else "zeros"
    return Rule(step.kind, step.kernel, step.stride, step.padding, 1, step.ceil, step.output, mode)


@lru_cache(maxsize=CACHED)
def place(rule: Rule, size: int) -> tuple[int, int]:
    """(output pixels, remainder) of a layer on an axis of `size` pixels; an output of 0 or less: it
    does not fit.
    """
    kind, kernel, stride, padding, dilation, ceil, output, mode = rule
    if kind in ("max", "avg", "conv", "blur", "blurmax"):
        windows = output_size(size, kernel, stride, padding, dilation, ceil)
        left = remainder(size, kernel, stride, padding, dilation, ceil)
        # what lies behind the padding is not counted, its mirror image in the padding is
        if ceil and kind == "avg" and not left:
            left = min(size + padding[1] - ((windows - 1) * stride - padding[0] + kernel), 0)
        return windows, left
    out = output or -(-size // stride)
    if kind == "crop":
        return out, (size - out) % 2
    if kind == "resize" and mode == "nearest":
        return out, nearest_remainder(size, out)
    # adaptive pooling, bilinear and bicubic resizes are mirror-symmetric
    return out, 0


def layers_of(
    size: Size, entry: Subsampling | None, stages: tuple[Stage, ...]
) -> tuple[Layer, ...]:
    """Every layer of a network in order. Raises ValueError, naming the stage, where one does not
    fit its input.
    """
    found: list[Layer] = []
    if entry is not None:
        found.append(_layer(Read(_step_rule(entry)), 0, str(entry), size))
        size = found[-1].size_out
    channels, fields, group = 0, 0, None
    for number, stage in enumerate(stages, start=1):
        changes = fields != stage.fields or (group is not stage.group and group != stage.group)
        found += _stage_layers(stage, number, size, channels, changes)
        size, fields, group = found[-1].size_out, stage.fields, stage.group
        channels = fields * group.order
    return tuple(found)


@lru_cache(maxsize=CACHED)
def _stage_layers(
    stage: Stage, number: int, size: Size, channels: int, changes: bool
) -> tuple[Layer, ...]:
    """The layers of a stage in order, the main branch last. `channels` come in (0: the image's);
    `changes`: skips need weights.
    """
    found: list[Layer] = []
    out, residual = stage.channels, stage.residual
    for block in range(1, stage.repeats + 1):
        stride = stage.stride if block == 1 else 1
        skip = (
            Rule("conv", 1, stride)
            if residual and (stride != 1 or (changes and block == 1))
            else None
        )
        if skip is not None:
            found.append(_layer(Read(skip), number, f"skip{block}", size, (channels, out), "skip"))
        for conv in (2 * block - 1, 2 * block) if residual else (block,):
            closing = residual and conv % 2 == 0
            rule = Rule(
                "conv", stage.kernel, stride, stage.padding, stage.dilation, mode=stage.padding_mode
            )
            read = Read(rule, residual and not closing, closing, skip if closing else None)
            found.append(_layer(read, number, f"conv{conv}", size, (channels, out)))
            size, channels, stride = found[-1].size_out, out, 1
    step = stage.subsampling
    if step is not None:
        found.append(
            _layer(
                Read(_step_rule(step)),
                number,
                str(step),
                size,
                (out, out) if step.kind == "conv" else None,
            )
        )
    return tuple(found)


def _layer(
    read: Read,
    number: int,
    name: str,
    size: Size,
    weights: tuple[int, int] | None = None,
    branch: Branch = "main",
) -> Layer:
    rule = read.rule
    pad = max(rule.padding)
    least = {"reflect": pad + 1, "circular": pad}.get(rule.mode, 0)
    if min(size) < least:
        raise ValueError(
            f"stage {number} pads {pad} pixels by '{rule.mode}' on a map of {min(size)}; "
            f"the map must have at least {least}; choose a larger input or zero padding"
        )
    height, shift_h = place(rule, size[0])
    width, shift_w = (height, shift_h) if size[0] == size[1] else place(rule, size[1])
    if min(height, width) < 1:
        raise ValueError(
            f"stage {number}: {name} needs {rule.dilation * (rule.kernel - 1) + 1} pixels, but "
            "its input is "
            f"{size[0]}x{size[1]} with padding {rule.padding[0]}:{rule.padding[1]}; "
            "choose a larger input size, a smaller kernel or less subsampling"
        )
    if rule.kind in ("adaptive", "adaptivemax") and (height > size[0] or width > size[1]):
        raise ValueError(
            f"stage {number}: {name} asks for more pixels than its input of {size[0]}x{size[1]} "
            "has; choose fewer"
        )
    return Layer(
        number,
        name,
        branch,
        size,
        (height, width),
        (shift_h, shift_w),
        rule.kernel,
        weights,
        read if branch == "main" else None,
    )
