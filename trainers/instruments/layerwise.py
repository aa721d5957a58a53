"""What a network that was not built equivariant has learned: matched channels, and features that an
element acts on linearly.

Being equivariant from end to end does not mean being so layer by layer. Two instruments look
inside, on any model: whether each layer is equivariant up to a permutation of its channels, and
whether some matrix does to the features what the element does to the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from searchspace.groups import IDENTITY, Element
from trainers.actions import act
from trainers.instruments.feature_maps import (
    Forward,
    Normalise,
    between_image_variance,
    measuring,
    pixels,
    watch,
)
from trainers.settings import Corners


@dataclass(frozen=True)
class MatchedStage:
    """How equivariant one stage is under one element, up to a permutation of its channels."""

    stage: str
    element: Element
    # mean Pearson correlation of matched channels: 1 for a group convolution
    correlation: float
    unmatched: float  # the same with every channel matched to itself
    # entry c: the channel of the moved network that is matched to channel c
    permutation: tuple[int, ...]
    num_dead: int  # channels without variation, left out of the means

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stage": self.stage,
            "element": str(self.element),
            "correlation": self.correlation,
            "unmatched": self.unmatched,
            "permutation": list(self.permutation),
            "num_dead": self.num_dead,
        }


@torch.no_grad()
def layerwise_equivariance(
    model: Forward,
    images: Tensor,
    element: Element,
    *,
    stages: Sequence[str] | None = None,
    normalise: Normalise | None = None,
) -> tuple[MatchedStage, ...]:
    """The matched correlation of every stage under `element`, a quarter turn or flip (Bokman and
    Kahl, NeurIPS 2023).

    The moved network, all of whose kernels are moved by g, has the maps g h(g^-1 x); its channels
    are matched to those of h(x) one to one by Pearson correlation over images and positions. That
    needs no weights, so any model can be measured; `stages` are those of
    `trainers.instruments.feature_maps.watch`, `images` [batch, channel, height, width] some
    hundred. A broken subsampling layout lowers the correlation by its pixel offset. Raises
    ValueError for a stage that does not vary over the images.
    """
    if not element.on_grid or element == IDENTITY:
        raise ValueError(
            f"matching channels under {element} says nothing; name a quarter turn or flip, such "
            "as r90 or m"
        )
    with measuring(model):
        images = pixels(images, model)
        prepare = normalise or (lambda moved: moved)
        _, here = watch(model, prepare(images), stages=stages)
        _, there = watch(model, prepare(act(images, element.inverse)), stages=stages)
        if not here:
            raise ValueError("the model shows no stages to match; name its modules in `stages`")
        return tuple(
            _matched(a.name, element, a.maps, act(b.maps, element)) for a, b in zip(here, there)
        )


def _matched(name: str, element: Element, maps: Tensor, moved: Tensor) -> MatchedStage:
    between_image_variance(name, maps)
    if maps.shape != moved.shape:
        raise ValueError(
            f"{name} has maps of shape {list(moved.shape)} for moved images and "
            f"{list(maps.shape)} otherwise; use square images"
        )
    correlations = channel_correlations(maps, moved)
    permutation = match(correlations)
    channels = torch.arange(len(permutation))
    alive = _varies(maps) & _varies(moved)[permutation]
    return MatchedStage(
        name,
        element,
        float(correlations[channels, permutation][alive].mean()),
        float(correlations.diagonal()[alive].mean()),
        tuple(permutation.tolist()),
        int((~alive).sum()),
    )


def channel_correlations(first: Tensor, second: Tensor) -> Tensor:
    """The Pearson correlation [channel, channel] of two outputs [batch, channel, ...], over images
    and positions; 0 without variation.
    """
    first, second = (rows - rows.mean(0) for rows in map(_by_channel, (first, second)))
    norms = (first * first).sum(0).sqrt()[:, None] * (second * second).sum(0).sqrt()
    return torch.where(
        norms > 0, first.T @ second / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0
    ).cpu()


def _by_channel(maps: Tensor) -> Tensor:
    """[values, channel]; without a copy of maps in channels-last layout, and summed over ten times
    as fast as [channel, values].
    """
    return maps.movedim(1, -1).flatten(0, -2)


def _varies(maps: Tensor) -> Tensor:
    """Whether each channel [channel] takes more than one value."""
    low, high = _by_channel(maps).aminmax(dim=0)
    return (low < high).cpu()


def match(similarities: Tensor) -> Tensor:
    """The permutation [channel] of columns with the largest sum of similarities (Hungarian)."""
    return torch.from_numpy(linear_sum_assignment(similarities.numpy(), maximize=True)[1])


@dataclass(frozen=True)
class Steerability:
    """Whether a matrix S does to the features what an element does to the image, fitted on one half
    of the images, measured on the other.
    """

    element: Element
    residual: float  # ||S z(x) - z(g x)|| / ||z(g x)||
    residual_of_spread: float  # the same / ||z(g x) - mean||: 1 is no better than the mean
    # ||z(x) - z(g x)|| / ||z(g x) - mean||: 0 means the features are invariant
    change: float
    eigenvalues: tuple[complex, ...]  # of S on the space that the features span
    # mean distance of the eigenvalues from the roots of unity of the element's order
    root_distance: float
    num_features: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; eigenvalues as [real, imaginary]."""
        return {
            "element": str(self.element),
            "residual": self.residual,
            "residual_of_spread": self.residual_of_spread,
            "change": self.change,
            "eigenvalues": [[v.real, v.imag] for v in self.eigenvalues],
            "root_distance": self.root_distance,
            "num_features": self.num_features,
        }


@torch.no_grad()
def steerability(
    model: Forward,
    images: Tensor,
    element: Element,
    *,
    stage: str | None = None,
    normalise: Normalise | None = None,
    corners: Corners = "black",
    batch_size: int = 256,
) -> Steerability:
    """How well a linear map stands for `element` on the spatially averaged features of `stage`
    (None: the last one).

    S is the least-squares solution of S z(x) = z(g x) (Steerers, Bokman et al., CVPR 2024). An
    equivariant network has residual 0 and eigenvalues at roots of unity; `change` tells it from an
    invariant one, whose S is the identity. `corners` is what lies outside an image that is turned
    by an angle off the grid. Needs at least four images per feature dimension. Raises
    ValueError for fewer, and for features that do not vary over the images.
    """
    if element == IDENTITY:
        raise ValueError(
            "the identity is steerable by every model; name another element, such as r90"
        )
    with measuring(model):
        before, after = [], []
        for start in range(0, len(images), batch_size):
            batch = pixels(images[start : start + batch_size], model)
            for moved, into in ((batch, before), (act(batch, element, corners), after)):
                _, watched = watch(
                    model,
                    normalise(moved) if normalise else moved,
                    stages=None if stage is None or stage.startswith("stage ") else [stage],
                )
                into.append(_features(watched, stage))
        return _fit(torch.cat(before), torch.cat(after), element)


def _features(watched: Sequence[Any], stage: str | None) -> Tensor:
    chosen = [s for s in watched if stage in (None, s.name)]
    if not chosen:
        raise ValueError(
            f"the model shows no stage {stage or 'at all'}; its stages are "
            f"{', '.join(s.name for s in watched) or 'none'}"
        )
    return chosen[-1].maps.mean((2, 3))


def _fit(before: Tensor, after: Tensor, element: Element) -> Steerability:
    between_image_variance("the stage", before)
    # Directions that only rounding fills would be fitted to noise.
    smallest = torch.finfo(before.dtype).eps ** (2 / 3)
    before, after = before.double().cpu(), after.double().cpu()
    half = len(before) // 2
    _, sizes, directions = torch.linalg.svd(
        torch.cat([before[:half], after[:half]]), full_matrices=False
    )
    directions = directions[sizes > smallest * sizes[0]].T
    if half < 2 * directions.shape[1]:
        raise ValueError(
            f"{len(before)} images are too few to fit a matrix on {directions.shape[1]} "
            f"features; take at least {4 * directions.shape[1]}"
        )
    matrix = torch.linalg.lstsq(
        before[:half] @ directions, after[:half] @ directions, driver="gelsd"
    ).solution
    error = (before[half:] @ directions @ matrix @ directions.T - after[half:]).norm()
    deviation = (after[half:] - after[half:].mean(0)).norm()
    values = torch.linalg.eigvals(matrix)
    order = 2 if element.mirror else element.turn.denominator
    roots = torch.exp(2j * torch.pi * torch.arange(order, dtype=torch.float64) / order)
    distance = (values[:, None] - roots).abs().amin(1).mean()
    return Steerability(
        element,
        float(error / after[half:].norm()),
        float(error / deviation),
        float((before[half:] - after[half:]).norm() / deviation),
        tuple(complex(v) for v in values),
        float(distance),
        before.shape[1],
    )
