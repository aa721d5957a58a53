"""Every kind of subsampling is one entry of `KINDS`: its text, where its windows lie, what they
read, its simplest equal form and its neighbours.

What a kind computes is the entry of the same name in `trainers.networks.plain.FORWARD`. A kind with
a new way to combine what its windows read has an entry in `searchspace.symbolic` too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

from searchspace.geometry import (
    MOST_PIXELS,
    MOST_WINDOW,
    Adapted,
    Bell,
    Convolved,
    Cropped,
    Interpolated,
    Rule,
    Size,
    Sliding,
    Weights,
    pixels_text,
    whole_number,
)

ResizeMode = Literal["bilinear", "bicubic", "nearest"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
# How values of a window become one: their maximum, a weighted sum, the root of the weighted sum of
# squares, or a convolution with trained weights.
Reduction = Literal["maximum", "sum", "power", "trained"]
# places kept: an enumeration meets the same layer at the same size again and again
CACHED = 1 << 16
# pixels: escnn's PointwiseAvgPoolAntialiased at its usual sigma of 0.66, 2 * round(3 sigma) + 1
BLUR_KERNEL = 5


@dataclass(frozen=True)
class Subsampling:
    """What changes the resolution after a stage (or of the input), on both axes alike.

    `max`, `avg`, `lp` (the root of the sum of squares) and `conv` (a strided convolution with norm
    and ReLU) slide a window; `blur` averages a Gaussian of 5 pixels and `blurmax` takes the maximum
    of 3 pixels first; `adaptive` and `adaptivemax` pool to `output` pixels, or to a `stride`-th of
    the size, rounded up; `resize` interpolates to `output` pixels; `crop` cuts, or pads with zeros,
    centrally to `output` pixels.
    """

    kind: str  # a key of KINDS
    kernel: int = 1  # pixels
    stride: int = 1
    padding: tuple[int, int] = (0, 0)  # pixels before and after
    ceil: bool = False  # round the output size up
    output: int | None = None  # pixels
    mode: ResizeMode = "bilinear"  # of resize

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"a subsampling's kind is '{self.kind}'; choose one of {', '.join(KINDS)}"
            )
        if self.mode not in RESIZE_MODES:
            raise ValueError(f"resize mode is '{self.mode}'; choose {', '.join(RESIZE_MODES)}")
        whole_number(self.kernel, 1, f"the kernel of {self.kind}", MOST_WINDOW)
        whole_number(self.stride, 1, f"the stride of {self.kind}", MOST_WINDOW)
        if self.output is not None:
            whole_number(self.output, 1, f"the output size of {self.kind}", MOST_PIXELS)
        if min(self.padding) < 0 or max(self.padding) > self.kernel // 2:
            raise ValueError(
                f"{self.kind}{self.kernel} has padding {self.padding[0]}:{self.padding[1]}; "
                f"it must be 0 to half of the kernel, {self.kernel // 2}"
            )
        self.rules.check(self)

    @classmethod
    def parse(cls, text: str) -> Subsampling:
        """The subsampling that `text` describes, such as `max3/2p1`. Raises ValueError for any
        other text.
        """
        name = re.match("[a-z]*", text)
        kind = KINDS.get(name[0]) if name else None
        match = re.fullmatch(kind.pattern, text[len(kind.name) :]) if kind else None
        if kind is None or match is None:
            examples = [kind.example for kind in KINDS.values()]
            raise ValueError(
                f"'{text}' is not a subsampling; write one like {', '.join(examples[:-1])} or "
                f"{examples[-1]}"
            )
        values = {name: value for name, value in match.groupdict().items() if value}
        return cls(kind.name, **kind.parsed(values))

    def __str__(self) -> str:
        return f"{self.kind}{self.rules.format(self)}"

    @property
    def rules(self) -> SubsamplingKind:
        """The entry of its kind."""
        return KINDS[self.kind]

    @property
    def trained(self) -> bool:
        """True for a convolution: it has weights, a norm and a ReLU."""
        return self.rules.reduction == "trained"

    @property
    def pure_maximum(self) -> bool:
        """True if every output is the maximum of pixels: it may change places with a ReLU."""
        return self.rules.reduction == "maximum"

    @property
    def slides_maximum(self) -> bool:
        """True if it is the maximum of a window that slides."""
        return self.pure_maximum and type(self.rules.windows) is Sliding

    @cached_property
    def rule(self) -> Rule:
        """How it reads an axis."""
        mode = self.mode if self.rules.interpolates else "zeros"
        return Rule(
            self.kind, self.kernel, self.stride, self.padding, 1, self.ceil, self.output, mode
        )

    def simplest(self, size: Size) -> Subsampling | None:
        """The simplest subsampling with the same effect on a map of `size`; None if it has none."""
        return self.rules.simplest(self, size)

    def neighbours(self) -> tuple[Subsampling, ...]:
        """Steps of the same kind with another window, then the nearest of other kinds."""
        return tuple(other for other in dict.fromkeys(self.rules.neighbours(self)) if other != self)


@dataclass(frozen=True)
class SubsamplingKind:
    """A kind of subsampling: its text, windows and relatives; written as a sliding window unless a
    subclass differs.
    """

    name: str
    example: str
    reduction: Reduction
    windows: Sliding
    # of the same character: (a sliding window, adaptive, blurred)
    relatives: tuple[str, str, str]
    can_ceil: bool = False

    first: Rule | None = None  # what the map is read by before, at the same size

    pattern = (
        r"(?P<kernel>\d+)(/(?P<stride>\d+))?(p(?P<before>\d+)(:(?P<after>\d+))?)?(?P<ceil>ceil)?"
    )
    of_input = False  # whether the input may be changed by it
    may_enlarge = True
    interpolates = False

    # ---- text

    def parsed(self, values: dict[str, str]) -> dict[str, Any]:
        """The arguments of a Subsampling from the parts of its text."""
        before = values.get("before", "0")
        padding = (int(before), int(values.get("after", before)))
        stride = int(values.get("stride", "1"))
        return {
            "kernel": int(values["kernel"]),
            "stride": stride,
            "padding": padding,
            "ceil": "ceil" in values,
        }

    def format(self, step: Subsampling) -> str:
        """The text behind the kind; parses back."""
        padding = "" if step.padding == (0, 0) else f"p{pixels_text(step.padding)}"
        return f"{step.kernel}/{step.stride}{padding}{'ceil' if step.ceil else ''}"

    def check(self, step: Subsampling) -> None:
        """Raises ValueError for a step that this kind cannot take."""
        if step.ceil and not self.can_ceil:
            able = ", ".join(kind.name for kind in KINDS.values() if kind.can_ceil)
            raise ValueError(f"{self.name} cannot round its size up; only {able} can")

    # ---- the same and the similar

    def simplest(self, step: Subsampling, size: Size) -> Subsampling | None:
        """The simplest step with the same effect on a map of `size`, which is not negative; None if
        it has none.
        """
        if step.kernel == 1:
            return None if step.stride == 1 else Subsampling("max", stride=step.stride)
        if step.ceil and not any((n + sum(step.padding) - step.kernel) % step.stride for n in size):
            return replace(step, ceil=False)
        return step

    def neighbours(self, step: Subsampling) -> Iterator[Subsampling]:
        """Steps of the same kind with another window, then the nearest of other kinds."""
        kernels = {step.kernel, step.kernel - 1, step.kernel + 1, step.stride, step.stride + 1}
        for kernel in sorted(kernels):
            if kernel >= max(step.stride, 2):
                for pad in (0, kernel // 2):
                    yield Subsampling(self.name, kernel, step.stride, (pad, pad))
        yield from self._of_other_kinds(step.stride)

    def _windows(self, stride: int) -> Iterator[Subsampling]:
        for kernel in (stride, stride + 1) if stride > 1 else ():
            for pad in dict.fromkeys((0, (kernel - 1) // 2)):
                yield Subsampling(self.relatives[0], kernel, stride, (pad, pad))

    def _of_other_kinds(self, stride: int) -> Iterator[Subsampling]:
        if stride > 1:
            yield Subsampling(self.relatives[1], stride=stride)
            yield blurred(self.relatives[2], stride)
            yield Subsampling("conv", 3, stride, (1, 1))


class ConvolutionKind(SubsamplingKind):
    """A convolution with norm and ReLU; a stage's own convolutions read as it does."""

    def simplest(self, step: Subsampling, size: Size) -> Subsampling | None:
        """Itself."""
        return step

    def _of_other_kinds(self, stride: int) -> Iterator[Subsampling]:
        if stride > 1:
            yield Subsampling(self.relatives[1], stride=stride)
            yield blurred(self.relatives[2], stride)
        yield Subsampling(self.relatives[0], stride, stride)


class Blur(SubsamplingKind):
    """A Gaussian window of 5 pixels, after the maximum of 3 pixels where `first` says so."""

    pattern = r"/(?P<stride>\d+)"

    def parsed(self, values: dict[str, str]) -> dict[str, Any]:
        """The arguments of a Subsampling from the parts of its text."""
        half = BLUR_KERNEL // 2
        return {"kernel": BLUR_KERNEL, "stride": int(values["stride"]), "padding": (half, half)}

    def format(self, step: Subsampling) -> str:
        """The text behind the kind; parses back."""
        return f"/{step.stride}"

    def simplest(self, step: Subsampling, size: Size) -> Subsampling | None:
        """Itself."""
        return step

    def neighbours(self, step: Subsampling) -> Iterator[Subsampling]:
        """Windows, then the nearest of other kinds."""
        yield from self._windows(step.stride)
        yield from self._of_other_kinds(step.stride)


class Adaptive(SubsamplingKind):
    """Windows of nearly equal size that cover the axis."""

    pattern = r"/(?P<stride>\d+)|(?P<output>\d+)?"
    may_enlarge = False

    def parsed(self, values: dict[str, str]) -> dict[str, Any]:
        """The arguments of a Subsampling from the parts of its text."""
        return {name: int(value) for name, value in values.items()} or {"stride": 2}

    def format(self, step: Subsampling) -> str:
        """The text behind the kind; parses back."""
        return str(step.output) if step.output else f"/{step.stride}"

    def simplest(self, step: Subsampling, size: Size) -> Subsampling | None:
        """The ordinary pool where every size is a whole multiple of the output."""
        out = [self.windows.place(step.rule, n)[0] for n in size]
        ratios = {n // o if n % o == 0 else 0 for n, o in zip(size, out)}
        if len(ratios) == 1 and (ratio := ratios.pop()):
            return Subsampling(self.relatives[0], ratio, ratio).simplest(size)
        if step.output is None and out[0] == out[1]:
            return replace(step, output=out[0], stride=1)
        return step

    def neighbours(self, step: Subsampling) -> Iterator[Subsampling]:
        """Windows, then the nearest of other kinds."""
        yield from self._windows(step.stride)
        yield from self._of_other_kinds(step.stride)


class Crop(SubsamplingKind):
    """Centrally cut, or padded with zeros, to a size in pixels."""

    pattern = r"(?P<output>\d+)"
    of_input = True

    def parsed(self, values: dict[str, str]) -> dict[str, Any]:
        """The arguments of a Subsampling from the parts of its text."""
        return {"output": int(values["output"])}

    def format(self, step: Subsampling) -> str:
        """The text behind the kind; parses back."""
        return str(step.output)

    def check(self, step: Subsampling) -> None:
        """Raises ValueError for a step without its output size."""
        super().check(step)
        if step.output is None:
            raise ValueError(f"{self.name} needs its output size in pixels, such as {self.name}29")

    def simplest(self, step: Subsampling, size: Size) -> Subsampling | None:
        """None at the size that it asks for."""
        return None if size == (step.output, step.output) else step

    def neighbours(self, step: Subsampling) -> Iterator[Subsampling]:
        """A pixel less or more, or resized."""
        output = step.output or 1
        for other in (output - 1, output + 1):
            if other > 0:
                yield replace(step, output=other)
        yield Subsampling("resize", output=output)


class Resize(Crop):
    """Interpolated to a size in pixels; anti-aliased where it shrinks."""

    interpolates = True
    pattern = rf"(?P<output>\d+)(?P<mode>{'|'.join(RESIZE_MODES)})?"

    def parsed(self, values: dict[str, str]) -> dict[str, Any]:
        """The arguments of a Subsampling from the parts of its text."""
        return {"output": int(values["output"]), "mode": values.get("mode", "bilinear")}

    def format(self, step: Subsampling) -> str:
        """The text behind the kind; parses back."""
        return f"{step.output}{'' if step.mode == 'bilinear' else step.mode}"

    def neighbours(self, step: Subsampling) -> Iterator[Subsampling]:
        """The other ways to interpolate."""
        yield from (replace(step, mode=mode) for mode in RESIZE_MODES)


MEANS, MAXIMA = ("avg", "adaptive", "blur"), ("max", "adaptivemax", "blurmax")
_WIDEST = Rule("max", 3, 1, (1, 1))
KINDS: dict[str, SubsamplingKind] = {
    kind.name: kind
    for kind in (
        SubsamplingKind("max", "max2/2", "maximum", Sliding(), MAXIMA, can_ceil=True),
        SubsamplingKind("avg", "avg3/2p1", "sum", Sliding(mean=True), MEANS, can_ceil=True),
        # the root of the sum of squares: torch's lp_pool2d of norm 2
        SubsamplingKind("lp", "lp3/2", "power", Sliding(), MEANS),
        ConvolutionKind("conv", "conv3/2p1", "trained", Convolved(), MEANS),
        Blur("blur", "blur/2", "sum", Bell(sigma=0.66), MEANS),
        Blur("blurmax", "blurmax/2", "sum", Bell(sigma=0.6, around=1), MAXIMA, first=_WIDEST),
        Adaptive("adaptive", "adaptive/2", "sum", Adapted(), MEANS),
        Adaptive("adaptivemax", "adaptivemax14", "maximum", Adapted(), MAXIMA),
        Resize("resize", "resize29", "sum", Interpolated(), MEANS),
        Crop("crop", "crop27", "sum", Cropped(), MEANS),
    )
}


@lru_cache(maxsize=CACHED)
def place(rule: Rule, size: int) -> tuple[int, int]:
    """(output pixels, remainder) of a layer on an axis of `size` pixels; an output of 0 or less: it
    does not fit.
    """
    return KINDS[rule.kind].windows.place(rule, size)


@lru_cache(maxsize=4096)
def reads(rule: Rule, size: int) -> tuple[Weights, ...]:
    """What each output of a layer without trained weights reads on an axis of `size` pixels."""
    return tuple(KINDS[rule.kind].windows.reads(rule, size))


def blurred(kind: str, stride: int) -> Subsampling:
    """A blur, or `blurmax`, of this stride."""
    return Subsampling(kind, BLUR_KERNEL, stride, (BLUR_KERNEL // 2, BLUR_KERNEL // 2))


def pools(stride: int) -> Iterable[Subsampling]:
    """What may stand in place of a stride of a convolution."""
    odd = stride + 1 if stride % 2 == 0 else stride
    return dict.fromkeys(
        (
            Subsampling("avg", stride, stride),
            Subsampling("avg", odd, stride, ((odd - 1) // 2, (odd - 1) // 2)),
            Subsampling("max", stride, stride),
            Subsampling("max", odd, stride),
            Subsampling("adaptive", stride=stride),
            blurred("blur", stride),
        )
    )
