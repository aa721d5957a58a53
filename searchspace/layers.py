"""The stages of a network, and its layers that have a window: their sizes and remainders, in
order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from searchspace.function.invariant import check_share, pooled_fields
from searchspace.geometry import MOST_PIXELS, MOST_WINDOW, Rule, Size, pixels_text, whole_number
from searchspace.groups import Group
from searchspace.subsampling import CACHED, KINDS, Subsampling, place
from searchspace.training.dropout import NO_DROPOUT, Dropout
from searchspace.weights.relaxation import Relaxation

PaddingMode = Literal["zeros", "reflect", "circular", "replicate"]
PADDING_MODES = get_args(PaddingMode)
MOST_REPEATS = 1000
MOST_FIELDS = 65536

Branch = Literal["main", "skip"]


def one_of(value: str, choices: tuple[str, ...], what: str) -> None:
    """Raises ValueError for a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{what} is '{value}'; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class Stage:
    """One part of the network: a convolution, several, or residual blocks, then optionally one
    subsampling.

    Every convolution is followed by batch norm over fields and ReLU. With `residual`, each of the
    `repeats` is a block of two convolutions and a skip connection, which is a 1x1 convolution where
    stride, fields or group change. Only the first convolution has the stride. In training `dropout`
    acts on the stage's result: after its last ReLU and its subsampling.
    """

    fields: int  # channels = fields x order of the group
    kernel: int  # pixels
    stride: int
    padding: tuple[int, int]  # pixels before and after
    group: Group  # a subgroup of the previous stage's
    subsampling: Subsampling | None = None
    dilation: int = 1
    padding_mode: PaddingMode = "zeros"
    repeats: int = 1
    residual: bool = False
    dropout: Dropout = NO_DROPOUT
    relaxation: Relaxation | None = None  # of the weights of its convolutions
    invariant: float = 0.0  # share of the fields whose result is pooled over the group
    stream: bool = False  # reads the image, beside the stages before: a stream of its own

    def __post_init__(self) -> None:
        whole_number(self.fields, 1, "a stage's number of fields", MOST_FIELDS)
        whole_number(self.repeats, 1, "a stage's number of repeats", MOST_REPEATS)
        for name in ("kernel", "stride", "dilation"):
            whole_number(getattr(self, name), 1, f"a stage's {name}", MOST_WINDOW)
        one_of(self.padding_mode, PADDING_MODES, "padding mode")
        if min(self.padding) < 0:
            raise ValueError(
                f"a stage has padding {self.padding[0]}:{self.padding[1]}; it must not be negative"
            )
        whole_number(max(self.padding), 0, "a stage's padding", MOST_WINDOW)
        if (self.residual and 2 * self.padding[0] != self.reach) or (
            self.residual and self.padding[0] != self.padding[1]
        ):
            raise ValueError(
                f"a residual stage has kernel {self.kernel} and padding "
                f"{self.padding[0]}:{self.padding[1]}, so that its "
                "branches differ in size; take an odd kernel and the default padding"
            )
        check_share(self.invariant)
        if self.relaxation is not None:
            self.relaxation.check(self.group)
            if self.relaxation.is_constraint:
                object.__setattr__(self, "relaxation", None)

    def __hash__(self) -> int:
        """Computed once: enumerations look stages up by the million. Not kept in pickles, since
        hashes of strings are a process's own.
        """
        computed = self.__dict__.get("_hash")
        if computed is None:
            computed = self.__dict__["_hash"] = hash(
                (
                    self.fields,
                    self.kernel,
                    self.stride,
                    self.padding,
                    self.group,
                    self.subsampling,
                    self.dilation,
                    self.padding_mode,
                    self.repeats,
                    self.residual,
                    self.dropout,
                    self.relaxation,
                    self.invariant,
                    self.stream,
                )
            )
        return computed

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @property
    def channels(self) -> int:
        """Channels of the output: fields x order of the group, in field-major order."""
        return self.fields * self.group.order

    @property
    def invariant_fields(self) -> int:
        """How many fields, the first ones, hold the maximum over their |G| channels in each."""
        return pooled_fields(self.invariant, self.fields, self.group.order)

    @property
    def annotation(self) -> str:
        """The group and what is relaxed of it, in text form: `C4`, `C4+C1`."""
        return f"{self.group}{self.relaxation or ''}"

    @property
    def certain_group(self) -> Group:
        """The group under which the stage is exact whatever its parameters are: the group, or what
        its relaxation leaves of it.
        """
        return self.group if self.relaxation is None else self.relaxation.certain(self.group)

    @property
    def reach(self) -> int:
        """Pixels that the kernel extends beyond one pixel: dilation x (kernel - 1)."""
        return self.dilation * (self.kernel - 1)

    def written_out(self) -> Iterator[Stage]:
        """The stages of one repeat each that are the same."""
        for repeat in range(self.repeats):
            first, last = repeat == 0, repeat == self.repeats - 1
            yield replace(
                self,
                repeats=1,
                stride=self.stride if first else 1,
                stream=self.stream and first,
                subsampling=self.subsampling if last else None,
                dropout=self.dropout if last else NO_DROPOUT,
                invariant=self.invariant if last else 0.0,
            )


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
