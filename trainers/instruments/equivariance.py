"""The equivariance error: how far a model and its stages are from commuting with a group, by
several definitions.

They answer different questions. `relative` is the one to compare models by: 0 is exact, 1 means
that moving an image changes the output as much as taking another image. An error relative to the
output's norm would hide the effect: a constant has none, and an untrained plain network with global
pooling almost none. `correlation` does not depend on the scale of single channels (Bruintjes et
al., CVPRW 2023); `l1` is that of Edixhoven et al. (arXiv:2308.11316), per element; `l2` that of
Wang et al. (2022) and REMUL's E'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, TRIVIAL, Element, Group
from trainers.actions import act, gathers
from trainers.instruments.feature_maps import (
    Forward,
    Normalise,
    StageMap,
    as_rows,
    measuring,
    pixels,
    variation,
    watch,
)
from trainers.settings import Corners

# The relative error that a score counts for outputs that do not vary over the images: moving an
# image changes a constant as much as taking another image does. It is the error of a network that
# tells nothing apart, so that no constant wins a search by being trivially equivariant.
OF_CONSTANT = 1.0
# values of a stage that are compared at a time: 0.5 MB, which a core's cache holds twice
CACHED_VALUES = 128 * 1024


@dataclass(frozen=True)
class StageError:
    """The equivariance error of one stage, or of the logits, for each element but the identity."""

    stage: str  # its name, or "logits"
    elements: tuple[Element, ...]
    # root mean square difference / that between different images
    relative: tuple[float, ...]
    correlation: tuple[float, ...]  # Pearson, mean over channels, of f(g x) and g f(x)
    l1: tuple[float, ...]  # mean |f(g x) - g f(x)| over values
    l2: tuple[float, ...]  # mean over images of the norm of f(g x) - g f(x)

    @property
    def mean(self) -> float:
        """Mean relative error over the elements."""
        return sum(self.relative) / len(self.relative)

    @property
    def worst(self) -> float:
        """Largest relative error over the elements."""
        return max(self.relative)

    @property
    def mean_correlation(self) -> float:
        """Mean correlation over the elements."""
        return sum(self.correlation) / len(self.correlation)

    def over(self, elements: Sequence[Element]) -> float | None:
        """Mean relative error over those of `elements` that were measured; None where there is
        none.
        """
        chosen = [
            error for element, error in zip(self.elements, self.relative) if element in elements
        ]
        return sum(chosen) / len(chosen) if chosen else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        by_element = {
            str(e): {"relative": r, "correlation": c, "l1": a, "l2": b}
            for e, r, c, a, b in zip(
                self.elements, self.relative, self.correlation, self.l1, self.l2
            )
        }
        return {
            "stage": self.stage,
            "mean": self.mean,
            "worst": self.worst,
            "correlation": self.mean_correlation,
            "elements": by_element,
        }


@dataclass(frozen=True)
class EquivarianceError:
    """The equivariance error of a model under a group: of its logits, which should not change, and
    of its stages.
    """

    group: Group
    num_images: int
    logits: StageError
    stages: tuple[StageError, ...]

    @property
    def features(self) -> float | None:
        """Mean relative error over the stages; None if none was measured."""
        return sum(s.mean for s in self.stages) / len(self.stages) if self.stages else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "group": str(self.group),
            "num_images": self.num_images,
            "features": self.features,
            "logits": self.logits.as_dict(),
            "stages": [s.as_dict() for s in self.stages],
        }


@torch.no_grad()
def equivariance_error(
    model: Forward,
    images: Tensor,
    group: Group,
    *,
    stages: Sequence[str] | None = None,
    fields: Mapping[str, Group] | None = None,
    normalise: Normalise | None = None,
    corners: Corners = "black",
    images_per_pass: int | None = None,
    of_constant: float | None = None,
) -> EquivarianceError:
    """The equivariance error of the logits and of every stage under all elements of `group`, from
    one forward per image and element.

    `images` are [batch, channel, height, width], uint8 or floating point, moved before `normalise`
    is applied; 16 to 64 are enough. `stages` and `fields` are those of
    `trainers.instruments.feature_maps.watch`; `stages=()` measures the logits alone. Elements that
    are no quarter turn or flip interpolate, with `corners` outside, and are compared inside the
    largest circle. Measured in float32 or better, summed up in float64. A pass takes
    `images_per_pass` moved images, by default 64 on a CPU, for its caches, and 512 on a GPU.
    Outputs that do not vary over the images have the relative error `of_constant` (a score counts
    OF_CONSTANT) and the correlation 0; without it they raise ValueError, for their equivariance
    says nothing. Raises ValueError for fewer than two images and for values that are not finite.
    """
    elements = _compared(images, group)
    with measuring(model):
        images = pixels(images, model)
        prepare = normalise or (lambda moved: moved)
        logits, watched = watch(model, prepare(images), stages=stages, fields=fields)
        named = stages is not None or not hasattr(model, "forward_with_stages")
        names = [stage.name for stage in watched] if named else None
        unmoved = StageMap("logits", logits, lambda output, element: output, None)
        references = tuple(_reference(stage, of_constant) for stage in (unmoved, *watched))
        errors: list[list[tuple[float, ...]]] = [[] for _ in references]
        at_once = images_per_pass or (64 if images.device.type == "cpu" else 512)
        for chunk in _chunks(elements, images, at_once):
            moved = torch.cat([prepare(act(images, element, corners)) for element in chunk])
            logits, watched = watch(model, moved, stages=names, fields=fields)
            outputs = (logits, *(stage.maps for stage in watched))
            for reference, row, output in zip(references, errors, outputs):
                for element, after in zip(chunk, output.split(len(images))):
                    row.append(_compare(reference, after, element))
    measured = [
        StageError(reference.stage.name, elements, *zip(*row))
        for reference, row in zip(references, errors)
    ]
    return EquivarianceError(group, len(images), measured[0], tuple(measured[1:]))


def _compared(images: Tensor, group: Group) -> tuple[Element, ...]:
    """The elements to measure under. Raises ValueError where there is nothing to compare."""
    if len(images) < 2:
        raise ValueError(
            f"the equivariance error needs at least two images to compare; got {len(images)}"
        )
    elements = tuple(e for e in group.elements if e != IDENTITY)
    if not elements:
        raise ValueError(
            "group C1 has no element but the identity, under which every model is exact; name a "
            "larger group"
        )
    return elements


def _chunks(
    elements: Sequence[Element], images: Tensor, images_per_pass: int
) -> list[tuple[Element, ...]]:
    """The elements in runs that fit one pass; images of another shape (a quarter turn of a
    non-square one) go apart.
    """
    at_once = max(1, images_per_pass // len(images))
    square = images.shape[-1] == images.shape[-2]
    kinds = (
        [elements]
        if square
        else [
            [e for e in elements if e.on_grid and e.swaps_axes],
            [e for e in elements if not (e.on_grid and e.swaps_axes)],
        ]
    )
    return [tuple(kind[i : i + at_once]) for kind in kinds for i in range(0, len(kind), at_once)]


@dataclass(frozen=True)
class _Reference:
    """A stage's maps for the images as they are, and what every comparison with them needs."""

    stage: StageMap
    variance_between: Tensor
    # the relative error that counts, whatever moving does; None: it is measured
    fixed: float | None
    # sums of values and of squares by channel, over images and positions
    moments: tuple[Tensor, Tensor]


def _reference(stage: StageMap, of_constant: float | None) -> _Reference:
    values = variation(stage.name, stage.maps)
    if values.constant and of_constant is None:
        raise values.refusal
    count, mean = len(stage.maps), values.mean.double()
    return _Reference(
        stage,
        values.between,
        of_constant if values.constant else None,
        ((count * mean).sum(0), values.squares.sum(0)),
    )


def _compare(
    reference: _Reference, after: Tensor, element: Element
) -> tuple[float, float, float, float]:
    """Relative error, correlation, l1 and l2 of one stage under one element."""
    maps, moving, moments = _alignment(reference, after, element)
    inside, variance_between, count = None, reference.variance_between, after[0].numel()
    if after.ndim == 4:
        variance_between = act(variance_between, element)
        if not element.on_grid:
            inside = _disc(*after.shape[-2:], device=after.device).flatten()
            variance_between, count = (
                variance_between.flatten()[inside],
                int(inside.sum()) * after.shape[1],
            )
    step = max(1, CACHED_VALUES // after[0].numel())
    parts = []
    for start in range(0, len(after), step):
        expected, moved = (as_rows(values[start : start + step]) for values in (maps, after))
        expected = moving(expected) if moving else expected
        if inside is not None:
            expected, moved = expected[:, inside], moved[:, inside]
        parts.append(
            _sums(
                expected, moved, moments is None, overwrite=moving is not None or inside is not None
            )
        )
    absolute, squares, of_after, of_expected = zip(*parts)
    squares = torch.cat(squares)  # [image, channel]
    of_after = _added(of_after)
    of_expected = moments or _added(of_expected)
    relative = (squares.sum() / (len(after) * count) / variance_between.double().mean()).sqrt()
    correlation = _correlation(
        of_expected, of_after, squares.sum(0), len(after) * count // after.shape[1]
    )
    if reference.fixed is not None:
        relative, correlation = reference.fixed, 0.0
    return (
        float(relative),
        correlation,
        sum(map(float, absolute)) / (len(after) * count),
        float(squares.sum(1).sqrt().mean()),
    )


def _move_positions(index: Tensor, rows: Tensor) -> Tensor:
    """The rows [image, position, channel], whose position i is that of `index[i]` before."""
    return rows.index_select(1, index)


def _move_values(index: Tensor, rows: Tensor) -> Tensor:
    """As `_move_positions`, over positions and channels together."""
    return rows.flatten(1).index_select(1, index).view(rows.shape)


def _alignment(
    reference: _Reference, after: Tensor, element: Element
) -> tuple[Tensor, Callable[[Tensor], Tensor] | None, tuple[Tensor, Tensor] | None]:
    """(maps, what makes of their rows [image, positions, channels] those of g f(x); None: they are,
    the moments of these; None: unknown).
    """
    stage, maps, moving, moments = reference.stage, reference.stage.maps, None, reference.moments
    shape = list(maps.shape)
    if maps.ndim == 4 and stage.group is not None and element.on_grid:
        if element.swaps_axes:
            shape[2:] = shape[:1:-1]
        # only pixels move, as in `stages`
        if stage.group == TRIVIAL or element not in stage.group:
            index = gathers(element, None, *maps.shape[1:]).to(maps.device)
            moving = partial(_move_positions, index)
        else:
            index = gathers(element, stage.group, *maps.shape[1:]).to(maps.device)

            moving = partial(_move_values, index)
            channels = (index[: maps.shape[1]] % maps.shape[1]).long()
            moments = (moments[0][channels], moments[1][channels])
    elif maps.ndim == 4:
        maps, moments = stage.action(maps, element), None
        shape = list(maps.shape)
    if shape != list(after.shape):
        raise ValueError(
            f"{stage.name} has maps of shape {list(after.shape)} for images moved by {element}, "
            f"and {shape} "
            "when the maps are moved; measure on square images"
        )
    return maps, moving, moments


def _sums(
    expected: Tensor, after: Tensor, both: bool, overwrite: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Of some images' g f(x) and f(g x) [image, positions, channels]: (sum of |difference|, sums of
    its squares [image, channel], moments of f(g x), of g f(x) if `both`), float32 within an image
    and float64 between them. May overwrite `expected`.
    """
    of_expected = _moments(expected) if both else None
    difference = expected.sub_(after) if overwrite else expected - after
    squares = (difference * difference).sum(1).double()
    return difference.abs_().sum(), squares, _moments(after), of_expected


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of values [image, positions, channels] and of their squares by channel."""
    return values.sum(1).double().sum(0), (values * values).sum(1).double().sum(0)


def _added(moments: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    sums, squares = zip(*moments)
    return torch.stack(sums).sum(0), torch.stack(squares).sum(0)


def _correlation(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], difference: Tensor, count: int
) -> float:
    """Pearson correlation, mean over the channels that vary in both, from the moments of both and
    the sums of squares of their difference.
    """
    # Twice the covariance is var a + var b - var (a - b): equal outputs have correlation 1 whatever
    # the rounding.
    moments = (first, second, (first[0] - second[0], difference))
    a, b, d = torch.stack(
        [squares / count - (sums / count).square() for sums, squares in moments]
    ).clamp_min(0)
    floor = 1e-12 * torch.maximum(a, b).max()
    correlations = ((a + b - d) / 2 / (a * b).sqrt())[(a > floor) & (b > floor)]
    return float(correlations.mean()) if len(correlations) else 0.0


def _disc(height: int, width: int, device: torch.device) -> Tensor:
    """True one pixel inside the largest circle, where no angle mixes in what lies outside the
    image: [height, width].
    """
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return y[:, None] ** 2 + x[None] ** 2 <= max(min(height, width) / 2 - 1, 0.5) ** 2
