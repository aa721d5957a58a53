"""Where windows lie: output sizes and remainders of every layer, by integer arithmetic alone.

A window of `kernel` pixels moves in steps of `stride` over an axis of n pixels with p pixels of padding before it. It lies
symmetrically, so that mirroring the axis maps windows to windows, iff

    remainder = n + 2 p_before - dilation (kernel - 1) - 1 - stride (output - 1)  =  0,

which for equal padding and sizes rounded down is (n + 2p - dilation (kernel - 1) - 1) mod stride ("Using and Abusing
Equivariance", arXiv:2308.11316, generalised to unequal padding and rounding up).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, Literal, Optional

if TYPE_CHECKING:
    from searchspace.architecture import Architecture, Stage, Subsampling

Branch = Literal["main", "skip"]


@dataclass(frozen=True)
class Layer:
    """One layer with a window, as it lies on the feature maps of one architecture."""

    stage: int                                      # counted from 1; 0 is the entry
    name: str                                       # such as conv1, skip2, max2/2
    branch: Branch
    size_in: tuple[int, int]                        # (height, width), pixels
    size_out: tuple[int, int]
    remainder: tuple[int, int]                      # per axis, pixels; 0 is exact
    kernel: int = 1
    weights: Optional[tuple[int, int]] = None       # (channels in, channels out) of a convolution; in = 0: the image's


def output_size(size: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1,
                ceil: bool = False) -> int:
    """The number of windows on an axis of `size` pixels; 0 or less if none fits."""
    room = size + sum(padding) - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    windows = -(-room // stride) + 1
    return windows - 1 if (windows - 1) * stride >= size + padding[0] else windows     # none may start behind the image


def remainder(size: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1,
              ceil: bool = False) -> int:
    """By how many pixels the last window ends before (or, negative, behind) its mirror image; 0 is exact."""
    windows = output_size(size, kernel, stride, padding, dilation, ceil)
    return size + 2 * padding[0] - dilation * (kernel - 1) - 1 - stride * (windows - 1)


def nearest_remainder(size: int, output: int) -> int:
    """How many of `output` samples of a nearest-neighbour resize miss the mirror image of their partner; 0 is exact."""
    source = [i * size // output for i in range(output)]
    return sum(source[output - 1 - i] != size - 1 - source[i] for i in range(output))


def layers(architecture: "Architecture") -> tuple[Layer, ...]:
    """Every layer of `architecture` in order. Raises ValueError, naming the stage, where one does not fit its input."""
    found: list[Layer] = []
    size, previous = architecture.size, None
    if architecture.entry is not None:
        found.append(_subsampling_layer(architecture.entry, 0, size))
        size = found[-1].size_out
    for number, stage in enumerate(architecture.stages, start=1):
        found.extend(_stage_layers(stage, number, size, previous))
        size, previous = found[-1].size_out, stage
        if stage.subsampling is not None:
            weights = (stage.channels, stage.channels) if stage.subsampling.kind == "conv" else None
            found.append(_subsampling_layer(stage.subsampling, number, size, weights))
            size = found[-1].size_out
    return tuple(found)


def _stage_layers(stage: "Stage", number: int, size: tuple[int, int], previous: "Optional[Stage]") -> Iterator[Layer]:
    """The convolutions of a stage in order, the main branch last. `previous` is the stage before, None for the image."""
    changes = previous is None or (previous.fields, previous.group) != (stage.fields, stage.group)
    channels = 0 if previous is None else previous.channels
    for block in range(1, stage.repeats + 1):
        stride = stage.stride if block == 1 else 1
        first = _conv_layer(stage, number, f"conv{2 * block - 1 if stage.residual else block}", size, stride, channels)
        if not stage.residual:
            yield first
            size, channels = first.size_out, stage.channels
            continue
        if stride != 1 or changes and block == 1:
            yield _window_layer(number, f"skip{block}", "skip", size, 1, stride, weights=(channels, stage.channels))
        yield first
        last = _conv_layer(stage, number, f"conv{2 * block}", first.size_out, 1, stage.channels)
        yield last
        size, channels = last.size_out, stage.channels


def _conv_layer(stage: "Stage", number: int, name: str, size: tuple[int, int], stride: int, channels: int) -> Layer:
    for pixels in size:
        least = {"reflect": max(stage.padding) + 1, "circular": max(stage.padding)}.get(stage.padding_mode, 0)
        if pixels < least:
            raise ValueError(f"stage {number} pads {max(stage.padding)} pixels by '{stage.padding_mode}' on a map of {pixels}; "
                             f"the map must have at least {least}; choose a larger input or zero padding")
    return _window_layer(number, name, "main", size, stage.kernel, stride, stage.padding, stage.dilation,
                         weights=(channels, stage.channels))


def _window_layer(number: int, name: str, branch: Branch, size: tuple[int, int], kernel: int, stride: int,
                  padding: tuple[int, int] = (0, 0), dilation: int = 1, ceil: bool = False,
                  weights: Optional[tuple[int, int]] = None) -> Layer:
    out = tuple(output_size(n, kernel, stride, padding, dilation, ceil) for n in size)
    if min(out) < 1:
        raise ValueError(f"stage {number}: {name} needs {dilation * (kernel - 1) + 1} pixels, but its input is "
                         f"{size[0]}x{size[1]} with padding {padding[0]}:{padding[1]}; "
                         "choose a larger input size, a smaller kernel or less subsampling")
    left = tuple(remainder(n, kernel, stride, padding, dilation, ceil) for n in size)
    return Layer(number, name, branch, size, out, left, kernel, weights)


def _subsampling_layer(step: "Subsampling", number: int, size: tuple[int, int],
                       weights: Optional[tuple[int, int]] = None) -> Layer:
    if step.kind in ("max", "avg", "conv", "blur", "blurmax"):
        return _window_layer(number, str(step), "main", size, step.kernel, step.stride, step.padding,
                             ceil=step.ceil, weights=weights)
    out = tuple(step.output or -(-n // step.stride) for n in size)
    if step.kind.startswith("adaptive") and any(o > n for o, n in zip(out, size)):
        raise ValueError(f"stage {number}: {step} asks for more pixels than its input of {size[0]}x{size[1]} has; choose fewer")
    if step.kind == "crop":
        left = tuple((n - o) % 2 for n, o in zip(size, out))
    elif step.kind == "resize" and step.mode == "nearest":
        left = tuple(nearest_remainder(n, o) for n, o in zip(size, out))
    else:                                           # adaptive pooling, bilinear and bicubic resizes are mirror-symmetric
        left = (0, 0)
    return Layer(number, str(step), "main", size, out, left)
