"""The layers of a network that have a window: their sizes and remainders, in order."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from searchspace.geometry import MOST_PIXELS, Rule, Size, pixels_text
from searchspace.subsampling import CACHED, KINDS, Subsampling, place

if TYPE_CHECKING:
    from searchspace.architecture import Stage

Branch = Literal["main", "skip"]


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

    @property
    def reading(self) -> Read:
        """How this layer of the main branch reads its maps."""
        assert self.read is not None, f"{self.name} is a skip connection"
        return self.read


def layers_of(
    size: Size, entry: Subsampling | None, stages: tuple[Stage, ...]
) -> tuple[Layer, ...]:
    """Every layer of a network in order. Raises ValueError, naming the stage, where one does not
    fit its input.
    """
    layers: list[Layer] = []
    if entry is not None:
        layers.append(_layer(Read(entry.rule), 0, str(entry), size))
        size = layers[-1].size_out
    entered, channels, fields, group = size, 0, 0, None
    for number, stage in enumerate(stages, start=1):
        if stage.stream:
            size, channels, fields, group = entered, 0, 0, None
        changes = fields != stage.fields or (group is not stage.group and group != stage.group)
        layers += _stage_layers(stage, number, size, channels, changes)
        size, fields, group = layers[-1].size_out, stage.fields, stage.group
        channels = fields * group.order
    return tuple(layers)


@lru_cache(maxsize=CACHED)
def _stage_layers(
    stage: Stage, number: int, size: Size, channels: int, changes: bool
) -> tuple[Layer, ...]:
    """The layers of a stage in order, the main branch last. `channels` come in (0: the image's);
    `changes`: skips need weights.
    """
    layers: list[Layer] = []
    out, residual = stage.channels, stage.residual
    for block in range(1, stage.repeats + 1):
        stride = stage.stride if block == 1 else 1
        skip = (
            Rule("conv", 1, stride)
            if residual and (stride != 1 or (changes and block == 1))
            else None
        )
        if skip is not None:
            layers.append(_layer(Read(skip), number, f"skip{block}", size, (channels, out), "skip"))
        for conv in (2 * block - 1, 2 * block) if residual else (block,):
            closing = residual and conv % 2 == 0
            rule = Rule(
                "conv", stage.kernel, stride, stage.padding, stage.dilation, mode=stage.padding_mode
            )
            read = Read(rule, residual and not closing, closing, skip if closing else None)
            layers.append(_layer(read, number, f"conv{conv}", size, (channels, out)))
            size, channels, stride = layers[-1].size_out, out, 1
    step = stage.subsampling
    if step is not None:
        layers.append(
            _layer(
                Read(step.rule),
                number,
                str(step),
                size,
                (out, out) if step.trained else None,
            )
        )
    return tuple(layers)


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
            f"{size[0]}x{size[1]} with padding {pixels_text(rule.padding)}; "
            "choose a larger input size, a smaller kernel or less subsampling"
        )
    if not KINDS[rule.kind].may_enlarge and (height > size[0] or width > size[1]):
        raise ValueError(
            f"stage {number}: {name} asks for more pixels than its input of {size[0]}x{size[1]} "
            "has; choose fewer"
        )
    if max(height, width) > MOST_PIXELS:
        raise ValueError(
            f"stage {number}: {name} gives maps of {height}x{width} pixels; they must have at "
            f"most {MOST_PIXELS} on an axis; choose less padding or a smaller size"
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
