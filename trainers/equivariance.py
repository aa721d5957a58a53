"""The equivariance error: how far a model and its stages are from commuting with a group, by several definitions.

They answer different questions. `relative` is the one to compare models by: 0 is exact, 1 means that moving an image changes the
output as much as taking another image. An error relative to the output's norm would hide the effect: a constant has none,
and an untrained plain network with global pooling almost none. `correlation` does not depend on the scale of single
channels (Bruintjes et al., CVPRW 2023); `l1` is that of Edixhoven et al. (arXiv:2308.11316), per element; `l2` that of Wang et al. (2022) and REMUL's E'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act
from trainers.stages import FieldAction, Model, Normalise, Stage, measuring, pixels, run


@dataclass(frozen=True)
class StageError:
    """The equivariance error of one stage, or of the logits, for each element but the identity."""

    stage: str                              # its name, or "logits"
    elements: tuple[Element, ...]
    relative: tuple[float, ...]             # root mean square difference / that between different images
    correlation: tuple[float, ...]          # Pearson, mean over channels, of f(g x) and g f(x)
    l1: tuple[float, ...]                   # mean |f(g x) - g f(x)| over values
    l2: tuple[float, ...]                   # mean over images of the norm of f(g x) - g f(x)

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

    def over(self, elements: Sequence[Element]) -> Optional[float]:
        """Mean relative error over those of `elements` that were measured; None where there is none."""
        chosen = [error for element, error in zip(self.elements, self.relative) if element in elements]
        return sum(chosen) / len(chosen) if chosen else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        by_element = {str(e): {"relative": r, "correlation": c, "l1": a, "l2": b}
                      for e, r, c, a, b in zip(self.elements, self.relative, self.correlation, self.l1, self.l2)}
        return {"stage": self.stage, "mean": self.mean, "worst": self.worst, "correlation": self.mean_correlation, "elements": by_element}


@dataclass(frozen=True)
class EquivarianceError:
    """The equivariance error of a model under a group: of its logits, which should not change, and of its stages."""

    group: Group
    num_images: int
    logits: StageError
    stages: tuple[StageError, ...]

    @property
    def features(self) -> Optional[float]:
        """Mean relative error over the stages; None if none was measured."""
        return sum(s.mean for s in self.stages) / len(self.stages) if self.stages else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"group": str(self.group), "num_images": self.num_images, "features": self.features,
                "logits": self.logits.as_dict(), "stages": [s.as_dict() for s in self.stages]}


@torch.no_grad()
def equivariance_error(model: Model, images: Tensor, group: Group, *, stages: Optional[Sequence[str]] = None,
                       fields: Optional[Mapping[str, Group]] = None, normalise: Optional[Normalise] = None,
                       images_per_pass: int = 512) -> EquivarianceError:
    """The equivariance error of the logits and of every stage under all elements of `group`, from one forward per image and element.

    `images` are [batch, channel, height, width], uint8 or floating point, moved before `normalise` is applied; 16 to 64 are
    enough. `stages` and `fields` are those of `trainers.stages.run`; `stages=()` measures the logits alone. Elements that are
    no quarter turn or flip interpolate, and are compared inside the largest circle. Measured in float32 or better.
    Raises ValueError for fewer than two images, for outputs that do not vary over the images (a constant is trivially
    equivariant and must not win a search) and for values that are not finite.
    """
    if len(images) < 2:
        raise ValueError(f"the equivariance error needs at least two images, to compare with; {len(images)} came")
    elements = tuple(e for e in group.elements if e != IDENTITY)
    if not elements:
        raise ValueError("group C1 has no element but the identity, under which every model is exact; name a larger group")
    with measuring(model):
        images = pixels(images, model)
        prepare = normalise or (lambda moved: moved)
        logits, found = run(model, prepare(images), stages=stages, fields=fields)
        names = [stage.name for stage in found]
        references = (Stage("logits", logits, lambda output, element: output, None), *found)
        spreads = [spread_of(stage.name, stage.maps) for stage in references]
        rows: list[list[tuple[float, ...]]] = [[] for _ in references]
        for chunk in _chunks(elements, images, images_per_pass):
            moved = [prepare(act(images, element)) for element in chunk]
            logits, found = run(model, torch.cat(moved), stages=names if stages is not None or not hasattr(model, "forward_with_stages") else None,
                                fields=fields)
            for stage, spread, row, output in zip(references, spreads, rows, (logits, *(s.maps for s in found))):
                for element, after in zip(chunk, output.split(len(images))):
                    row.append(_compare(stage, after, element, spread))
    measured = [StageError(stage.name, elements, *zip(*row)) for stage, row in zip(references, rows)]
    return EquivarianceError(group, len(images), measured[0], tuple(measured[1:]))


def _chunks(elements: Sequence[Element], images: Tensor, images_per_pass: int) -> list[tuple[Element, ...]]:
    """The elements in runs that fit one pass; images of another shape (a quarter turn of a non-square one) go apart."""
    at_once = max(1, images_per_pass // len(images))
    square = images.shape[-1] == images.shape[-2]
    kinds = [elements] if square else [[e for e in elements if e.on_grid and e.swaps_axes], [e for e in elements if not (e.on_grid and e.swaps_axes)]]
    return [tuple(kind[i:i + at_once]) for kind in kinds for i in range(0, len(kind), at_once)]


def spread_of(name: str, values: Tensor) -> Tensor:
    """Mean squared difference between different images: twice the variance, mean over channels; [1, 1, height, width] or [].

    `values` are [batch, channel, height, width] or [batch, class]. Raises ValueError where they do not vary over the images.
    """
    if len(values) < 2:
        raise ValueError(f"the outputs of {name} must be compared between images, of which at least two are needed; {len(values)} came")
    # Written out, because var over the first dimension takes several times as long (torch 2.15, CPU).
    spread = 2 * (values - values.mean(0)).square_().sum(0).mean(0) / (len(values) - 1)
    # Rounding makes a constant vary in its last digits.
    floor = 16 * torch.finfo(values.dtype).eps * values.abs().max()
    if not math.isfinite(float(spread.sum())):
        raise ValueError(f"the outputs of {name} are not all finite; nothing can be measured")
    if float(spread.mean().sqrt()) <= float(floor):
        raise ValueError(f"the outputs of {name} do not vary over the images, so that their equivariance says nothing; "
                         "train the model, or measure on different images")
    return spread[None, None] if spread.ndim else spread


def _compare(stage: Stage, after: Tensor, element: Element, spread: Tensor) -> tuple[float, float, float, float]:
    """Relative error, correlation, l1 and l2 of one stage under one element."""
    expected = stage.action(stage.maps, element)
    if expected.shape != after.shape:
        raise ValueError(f"{stage.name} has maps of shape {list(after.shape)} for images moved by {element}, and {list(expected.shape)} "
                         "when the maps are moved; measure on square images")
    if expected.ndim == 4:
        spread = act(spread, element)
        if not element.on_grid:
            inside = _disc(*expected.shape[-2:], device=expected.device)
            expected, after, spread = expected[:, :, inside], after[:, :, inside], spread[:, :, inside]
    # One layout, and one pass over memory for each sum: what is measured costs little more than the forward.
    expected, after = (t.flatten(2).contiguous() if t.ndim > 2 else t[:, :, None] for t in (expected, after))
    difference = after - expected
    squares = difference.norm(dim=2).double().square()      # [batch, channel]
    relative = (squares.mean() / expected.shape[2] / spread.double().mean()).sqrt()
    l1 = float(difference.abs().mean())
    return float(relative), _correlation(expected, after, difference), l1, float(squares.sum(1).sqrt().mean())


def _correlation(first: Tensor, second: Tensor, difference: Tensor) -> float:
    """Pearson correlation, mean over the channels that vary in both: [batch, channel, positions]."""
    # Twice the covariance is var a + var b - var (a - b): equal outputs have correlation 1 whatever the rounding.
    count = first.shape[0] * first.shape[2]
    variances = []
    for values in (first, second, difference):
        mean = values.sum(2).double().sum(0) / count
        variances.append((values.norm(dim=2).double().square().sum(0) / count - mean.square()).clamp_min(0))
    floor = 1e-12 * max(float(v.max()) for v in variances[:2])
    varying = (variances[0] > floor) & (variances[1] > floor)
    if not varying.any():
        return 0.0
    a, b, d = (v[varying] for v in variances)
    return float(((a + b - d) / 2 / (a * b).sqrt()).mean())


def _disc(height: int, width: int, device: torch.device) -> Tensor:
    """True one pixel inside the largest circle, where no angle mixes in what lies outside the image: [height, width]."""
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return y[:, None] ** 2 + x[None] ** 2 <= max(min(height, width) / 2 - 1, 0.5) ** 2
