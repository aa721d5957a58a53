"""The Lie derivative: how fast a model leaves equivariance as an image starts to rotate, shift,
grow or shear.

The derivative at t = 0 of T_-t f(T_t x), by forward-mode differentiation (Gruver et al., ICLR
2023): 0 if f commutes with the motion, however small, while group elements test only some angles.

T_t resamples, and by bilinear interpolation it has a kink at t = 0, where samples lie on the grid:
one-sided derivatives would differ. So the image is the cubic B-spline through its pixels, mirrored
at the border, which is twice differentiable; the derivative of T_t x at 0 is then -v . grad x, with
the velocity v of the motion and the spline's gradient: one matrix per axis. (torch's bicubic
kernel, a = -0.75, is differentiable too, but gives 1.5 times the slope of a straight edge.)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from searchspace.groups import Group
from trainers.instruments.feature_maps import (
    Forward,
    Normalise,
    StageMap,
    between_image_variance,
    measuring,
    pixels,
    watch,
)

# Velocity at the point (x right, y down) from the centre, pixels per unit: v = matrix @ (x, y) +
# offset.
MOTIONS: dict[str, tuple[tuple[tuple[float, float], tuple[float, float]], tuple[float, float]]] = {
    "rotation": (((0, 1), (-1, 0)), (0, 0)),  # counter-clockwise
    "translation_x": (((0, 0), (0, 0)), (1, 0)),
    "translation_y": (((0, 0), (0, 0)), (0, 1)),
    "scale": (((1, 0), (0, 1)), (0, 0)),  # the image grows by e^t
    "shear": (((0, 1), (0, 0)), (0, 0)),  # rows slide
}
GENERATOR_UNITS = {
    "rotation": "radian",
    "translation_x": "pixel",
    "translation_y": "pixel",
    "scale": "e-fold",
    "shear": "pixel per row",
}


@dataclass(frozen=True)
class LieDerivative:
    """How fast one stage, or the logits, leave equivariance under one motion."""

    motion: str  # a key of MOTIONS; per unit of UNITS
    stage: str  # its name, or "logits"
    absolute: float  # root mean square of the derivative over images and values
    # the same / the difference between different images, as in the equivariance error
    relative: float
    # relative, for a motion that moves pixels by one pixel in the root mean square
    per_pixel: float
    # mean |derivative| of the class probabilities; of the logits only
    softmax: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "motion": self.motion,
            "unit": GENERATOR_UNITS[self.motion],
            "stage": self.stage,
            "absolute": self.absolute,
            "relative": self.relative,
            "per_pixel": self.per_pixel,
            "softmax": self.softmax,
        }


def lie_derivatives(
    model: Forward,
    images: Tensor,
    *,
    motions: Sequence[str] = tuple(MOTIONS),
    stages: Sequence[str] | None = (),
    fields: Mapping[str, Group] | None = None,
    normalise: Normalise | None = None,
) -> tuple[LieDerivative, ...]:
    """The Lie derivative of the logits, then of the stages, for each of `motions`, from one forward
    each.

    `images` are [batch, channel, height, width], uint8 or floating point; `stages` and `fields` are
    those of `trainers.instruments.feature_maps.watch`, and by default only the logits are measured.
    On regular fields of C_N or D_N a rotation also turns the channels, as a band-limited function
    on the circle; of other fields rotation is left out. A stage's stride, which a translation is
    divided by, is the one that fits best. Raises ValueError for outputs that do not vary over the
    images.
    """
    derivatives = []
    for motion in motions:
        logits, stage_outputs = _differentiate(model, images, motion, stages, fields, normalise)
        slide = _rms_velocity(motion, images.shape[-2:])
        value, slope = logits
        probabilities = value.softmax(1)
        softmax = probabilities * (slope - (probabilities * slope).sum(1, keepdim=True))
        derivatives.append(
            _summary(motion, "logits", value, slope, slide, float(softmax.abs().mean()))
        )
        for stage, slope in stage_outputs:
            residual = _residual(motion, stage, slope)
            if residual is not None:
                derivatives.append(_summary(motion, stage.name, stage.maps, residual, slide, None))
    return tuple(derivatives)


def lie_derivative(
    model: Forward, images: Tensor, motion: str, *, normalise: Normalise | None = None
) -> Tensor:
    """The derivative of the logits [batch, classes] as the images start to move, per unit of the
    motion; 0 for constant images.
    """
    return _differentiate(model, images, motion, (), None, normalise)[0][1]


def moving(maps: Tensor, motion: str) -> Tensor:
    """The derivative at t = 0 of maps [batch, channel, height, width] that start to move, per unit
    of the motion, in their own pixels.
    """
    if motion not in MOTIONS:
        raise ValueError(f"there is no motion '{motion}'; choose one of {', '.join(MOTIONS)}")
    down, right = velocity(motion, maps.shape[-2:], maps)
    along_x = maps @ _slope_matrix(maps.shape[-1]).to(maps).T
    along_y = _slope_matrix(maps.shape[-2]).to(maps) @ maps
    return -(right * along_x + down * along_y)


def velocity(motion: str, size: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity (down, right) of every pixel [height, width], pixels per unit, in the dtype and
    on the device of `like`.
    """
    matrix, offset = MOTIONS[motion]
    y, x = (torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2 for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return matrix[1][0] * x + matrix[1][1] * y + offset[1], matrix[0][0] * x + matrix[0][
        1
    ] * y + offset[0]


@lru_cache(maxsize=64)
def _slope_matrix(size: int) -> Tensor:
    """The matrix [size, size] from samples to the slopes of the cubic B-spline through them,
    mirrored at the first and last sample.
    """
    if size == 1:
        return torch.zeros(1, 1, dtype=torch.float64)
    values, slopes = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    for i in range(size):
        before, after = abs(i - 1), size - 1 - abs(size - 2 - i)
        for j, value, slope in ((before, 1 / 6, -0.5), (i, 4 / 6, 0.0), (after, 1 / 6, 0.5)):
            values[i, j] += value
            slopes[i, j] += slope
    return torch.linalg.solve(values, slopes, left=False)


def _differentiate(
    model: Forward,
    images: Tensor,
    motion: str,
    stages: Sequence[str] | None,
    fields: Mapping[str, Group] | None,
    normalise: Normalise | None,
) -> tuple[tuple[Tensor, Tensor], list[tuple[StageMap, Tensor]]]:
    """(logits, their derivative) and [(stage, derivative of its maps)] of f(T_t x) at t = 0."""
    with measuring(model), torch.no_grad(), forward_ad.dual_level():
        images = pixels(images, model)
        dual = forward_ad.make_dual(images, moving(images, motion))
        try:
            with _Duals():
                logits, watched = watch(
                    model, normalise(dual) if normalise else dual, stages=stages, fields=fields
                )
        except NotImplementedError as error:
            raise ValueError(
                f"the model cannot be differentiated forwards ({error}); measure a folded or "
                "plain torch version of it"
            ) from error
        maps = [_split(stage.maps) for stage in watched]
        pairs = [
            (replace(stage, maps=value), slope) for stage, (value, slope) in zip(watched, maps)
        ]
        return _split(logits), pairs


class _Duals(TorchFunctionMode):
    """Sums, products and linear layers of dual numbers, written out: torch's own rules for them
    import 900 modules, which takes 3 s (2.15).
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = {"__truediv__": "div"}.get(
            getattr(function, "__name__", ""), getattr(function, "__name__", "").strip("_")
        )
        if (
            name not in (*_WITH_CONSTANT, "maximum")
            or kwargs
            or len(args) < 2
            or not isinstance(args[0], Tensor)
        ):
            return function(*args, **(kwargs or {}))
        (first, slope), (second, other) = (
            forward_ad.unpack_dual(a) if isinstance(a, Tensor) else (a, None) for a in args[:2]
        )
        if slope is not None and other is None and name != "maximum":
            slope = _WITH_CONSTANT[name](slope, second)
        elif slope is not None and other is not None and name == "maximum":
            # of equal ones the first, as in max pooling
            slope = torch.where(first >= second, slope, other)
        elif slope is not None and other is not None and name in ("add", "sub"):
            slope = slope + other if name == "add" else slope - other
        else:
            return function(*args)
        value = function(first, second, *args[2:])  # the third is the bias of a linear layer
        return forward_ad.make_dual(value, slope.expand_as(value).contiguous())


_WITH_CONSTANT: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "add": lambda slope, constant: slope,
    "sub": lambda slope, constant: slope,
    "mul": operator.mul,
    "div": operator.truediv,
    "matmul": operator.matmul,
    "linear": lambda slope, weight: slope @ weight.T,
}


def _split(dual: Tensor) -> tuple[Tensor, Tensor]:
    """(value, derivative) of a dual number; what does not depend on the image has none."""
    value, slope = forward_ad.unpack_dual(dual)
    return value, torch.zeros_like(value) if slope is None else slope


def _residual(motion: str, stage: StageMap, slope: Tensor) -> Tensor | None:
    """The derivative of T_-t h(T_t x): how the maps change, less how moving maps would; None where
    that is unknown.
    """
    moved = moving(stage.maps, motion)
    if motion.startswith("translation"):
        ratio = float(
            (moved * slope).sum() / moved.square().sum().clamp_min(torch.finfo(moved.dtype).tiny)
        )
        return slope - ratio * moved
    if motion == "rotation":
        if stage.group is None:
            return None
        moved = moved + _turning(stage.maps, stage.group)
    return slope - moved


def _turning(maps: Tensor, group: Group) -> Tensor:
    """The derivative of the maps as their regular fields start to turn counter-clockwise, pixels in
    place.
    """
    count = group.rotations
    frequencies = torch.fft.fftfreq(count, 1 / count, dtype=torch.float64)
    if count % 2 == 0:
        # its sign is arbitrary, so that a real function has no derivative there
        frequencies[count // 2] = 0
    columns = torch.fft.fft(torch.eye(count, dtype=torch.float64), dim=0)
    along = torch.fft.ifft(1j * frequencies[:, None] * columns, dim=0).real.to(maps)
    fields = maps.unflatten(1, (-1, count))
    return -torch.einsum("ij,bfjhw->bfihw", along, fields).flatten(1, 2)


def _rms_velocity(motion: str, size: Sequence[int]) -> float:
    """Root mean square displacement of the pixels, pixels per unit."""
    down, right = velocity(motion, size, torch.zeros(0, dtype=torch.float64))
    return max(float((down.square() + right.square()).mean().sqrt()), 1e-12)


def _summary(
    motion: str, name: str, value: Tensor, slope: Tensor, slide: float, softmax: float | None
) -> LieDerivative:
    if not slope.isfinite().all():
        raise ValueError(
            f"the derivative of {name} under {motion} is not finite; nothing can be measured"
        )
    absolute = float(slope.square().mean().sqrt())
    relative = absolute / float(between_image_variance(name, value).mean().sqrt())
    return LieDerivative(motion, name, absolute, relative, relative / slide, softmax)
