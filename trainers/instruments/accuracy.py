"""Symmetry scores of a model on labelled or unlabelled images: accuracy under each element, by
angle, consistency, invariance.

Everything is computed from `trainers.instruments.predictions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.instruments.feature_maps import Forward, Normalise
from trainers.instruments.predictions import Predictions, angle_elements, predict_elements
from trainers.instruments.proportions import Proportion, proportion
from trainers.instruments.tasks.scoring import main_scores, resamples, share
from trainers.settings import Corners, Task

Over = Literal["others", "unseen"]  # the elements that symmetry accuracy is a mean over


@dataclass(frozen=True)
class SymmetryAccuracy:
    """Accuracy under every element of a declared group, and its summaries over those other than
    the identity, whatever training has seen: one definition for every model.

    `over` unseen is the definition of version 0.1.0: the summaries are over the elements that
    training has not seen, or over all where it has seen all. Of the trivial group the identity is
    summarised.
    """

    group: Group
    elements: tuple[Element, ...]
    accuracies: tuple[Proportion, ...]  # in the order of `elements`
    seen: tuple[Element, ...]
    num_images: int
    confidence: float
    # elements whose predictions were shared, because measured exact
    shared: tuple[Element, ...]
    over: Over = "others"
    # of other tasks than classification: the main score under each element on the images and on
    # each resample of them [element, 1 + resample]; "accuracy" is that score
    resampled: Tensor | None = None

    @property
    def unseen(self) -> tuple[Element, ...]:
        """The declared elements that training has not seen."""
        return tuple(e for e in self.elements if e not in self.seen)

    @property
    def accuracy(self) -> Proportion:
        """Accuracy on the images as they are."""
        return self.accuracies[self.elements.index(IDENTITY)]

    @property
    def mean(self) -> Proportion:
        """Mean accuracy over the elements that are scored."""
        return self._over(self.scored)

    @property
    def worst(self) -> tuple[Element, Proportion]:
        """The scored element with the lowest accuracy; its interval does not account for having
        been chosen.
        """
        scored = self.scored
        return min(
            ((e, a) for e, a in zip(self.elements, self.accuracies) if e in scored),
            key=lambda pair: pair[1].value,
        )

    @property
    def exact(self) -> Proportion | None:
        """Mean accuracy over the scored quarter turns and flips, which move pixels exactly; None
        where there is none.
        """
        return self._over([e for e in self.scored if e.on_grid])

    @property
    def interpolated(self) -> Proportion | None:
        """Mean accuracy over the scored elements that interpolate; None where there is none."""
        return self._over([e for e in self.scored if not e.on_grid])

    @property
    def mean_seen(self) -> Proportion | None:
        """Mean accuracy over the declared elements that training has seen; None where there is
        none.
        """
        return self._over([e for e in self.elements if e in self.seen])

    @property
    def mean_unseen(self) -> Proportion | None:
        """Mean accuracy over the declared elements that training has not seen; None where it has
        seen all.
        """
        return self._over(self.unseen)

    @property
    def mean_all(self) -> Proportion:
        """Mean accuracy over all declared elements, the identity included: what Edixhoven et al.
        call unseen.
        """
        return self._over(self.elements)

    @property
    def scored(self) -> tuple[Element, ...]:
        """The elements that the summaries are over."""
        others = tuple(e for e in self.elements if e != IDENTITY)
        return (self.unseen if self.over == "unseen" else others) or self.elements

    def _over(self, elements: Sequence[Element]) -> Any:
        chosen = [a.value for e, a in zip(self.elements, self.accuracies) if e in elements]
        if self.resampled is not None and chosen:
            return share(self.rows(elements), self.num_images, self.confidence)
        return (
            proportion(sum(chosen) / len(chosen), self.num_images, self.confidence)
            if chosen
            else None
        )

    def rows(self, elements: Sequence[Element]) -> Tensor:
        """The mean score over elements on the images and on each resample [1 + resample]."""
        assert self.resampled is not None, "of accuracies nothing is resampled"
        return self.resampled[[self.elements.index(e) for e in elements]].mean(0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def plain(share: Proportion | None) -> dict[str, float] | None:
            return share.as_dict() if share else None

        worst, lowest = self.worst
        return {
            "group": str(self.group),
            "seen": [str(e) for e in self.seen],
            "unseen": [str(e) for e in self.unseen],
            "accuracy": self.accuracy.as_dict(),
            "mean": self.mean.as_dict(),
            "worst": {"element": str(worst), **lowest.as_dict()},
            "exact": plain(self.exact),
            "interpolated": plain(self.interpolated),
            "mean_seen": plain(self.mean_seen),
            "mean_unseen": plain(self.mean_unseen),
            "mean_all": self.mean_all.as_dict(),
            "num_images": self.num_images,
            "confidence": self.confidence,
            "shared": [str(e) for e in self.shared],
            "elements": {str(e): a.as_dict() for e, a in zip(self.elements, self.accuracies)},
        }


def summarise(
    predictions: Predictions,
    labels: Tensor,
    group: Group,
    seen: Iterable[Element] = (IDENTITY,),
    confidence: float = 0.95,
    over: Over = "others",
    task: Task = "classification",
) -> SymmetryAccuracy:
    """The symmetry accuracy of predictions for every element of `group`, among others; of another
    task its main score (`tasks.scoring`), for which predictions must have kept their logits.
    """
    resampled = None
    if task == "classification":
        shares = _accuracies(predictions, labels, group.elements, confidence)
    else:
        resampled = _resampled(predictions, labels, group.elements, task)
        shares = tuple(share(row, len(labels), confidence) for row in resampled)
    return SymmetryAccuracy(
        group,
        group.elements,
        shares,
        tuple(seen),
        len(labels),
        confidence,
        predictions.shared,
        over,
        resampled,
    )


def _resampled(
    predictions: Predictions, labels: Tensor, elements: Sequence[Element], task: Task
) -> Tensor:
    """The main score under each element on the images and on each resample of them."""
    assert predictions.logits is not None, "the score of a task is computed from outputs"
    counts = resamples(len(labels))
    found = {
        n: main_scores(task, predictions.logits[n], labels, counts)
        for n in dict.fromkeys(predictions.forwards)
    }
    places = [predictions.forwards[predictions.elements.index(e)] for e in elements]
    return torch.stack([found[n] for n in places])


def symmetry_accuracy(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    group: Group,
    seen: Iterable[Element] = (IDENTITY,),
    *,
    normalise: Normalise | None = None,
    batch_size: int | None = None,
    share_exact: bool = True,
    corners: Corners = "black",
    confidence: float = 0.95,
) -> SymmetryAccuracy:
    """The accuracy of a model under every element of `group`, told apart by what training has seen.

    `labels` are [image] class numbers; `seen` the elements that training has seen; the rest as in
    `predict_elements`.
    """
    predictions = predict_elements(
        model,
        images,
        group.elements,
        normalise=normalise,
        batch_size=batch_size,
        share_exact=share_exact,
        corners=corners,
    )
    return summarise(predictions, labels, group, seen, confidence)


@dataclass(frozen=True)
class AngleCurve:
    """Accuracy by the angle by which images are rotated counter-clockwise."""

    degrees: tuple[float, ...]
    accuracies: tuple[Proportion, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the angles."""
        return sum(a.value for a in self.accuracies) / len(self.accuracies)

    @property
    def worst(self) -> tuple[float, Proportion]:
        """The angle in degrees with the lowest accuracy, and that accuracy."""
        return min(zip(self.degrees, self.accuracies), key=lambda pair: pair[1].value)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        worst, lowest = self.worst
        return {
            "degrees": list(self.degrees),
            "accuracy": [a.value for a in self.accuracies],
            "low": [a.low for a in self.accuracies],
            "high": [a.high for a in self.accuracies],
            "mean": self.mean,
            "worst": {"degrees": worst, **lowest.as_dict()},
        }


def summarise_angles(
    predictions: Predictions,
    labels: Tensor,
    step: int = 10,
    confidence: float = 0.95,
    task: Task = "classification",
) -> AngleCurve:
    """The accuracy (or the main score of another task) by angle of predictions for
    `angle_elements(step)`, among others.
    """
    elements = angle_elements(step)
    degrees = tuple(e.degrees for e in elements)
    if task == "classification":
        return AngleCurve(degrees, _accuracies(predictions, labels, elements, confidence))
    rows = _resampled(predictions, labels, elements, task)
    return AngleCurve(degrees, tuple(share(row, len(labels), confidence) for row in rows))


def accuracy_by_angle(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    step: int = 10,
    normalise: Normalise | None = None,
    batch_size: int | None = None,
    share_exact: bool = True,
    corners: Corners = "black",
    confidence: float = 0.95,
    task: Task = "classification",
) -> AngleCurve:
    """The accuracy of a model (or the main score of another task) on images rotated by 0, `step`,
    2 `step` ... degrees; arguments as in `predict_elements`.
    """
    predictions = predict_elements(
        model,
        images,
        angle_elements(step),
        normalise=normalise,
        batch_size=batch_size,
        share_exact=share_exact,
        corners=corners,
        keep_logits=task != "classification",
    )
    return summarise_angles(predictions, labels, step, confidence, task)


def _accuracies(
    predictions: Predictions, labels: Tensor, elements: Sequence[Element], confidence: float
) -> tuple[Proportion, ...]:
    if labels.shape != predictions.classes.shape[1:]:
        raise ValueError(
            f"labels have shape {list(labels.shape)} for {predictions.classes.shape[1]} images; "
            "there must be one for each"
        )
    labels = labels.cpu()
    return tuple(
        proportion(float((predictions.of(e)[0] == labels).double().mean()), len(labels), confidence)
        for e in elements
    )


def consistency(
    predictions: Predictions, elements: Iterable[Element] | None = None, confidence: float = 0.95
) -> Proportion:
    """The share of images, mean over the elements but the identity, whose predicted class is that
    of the image as it is.

    Needs no labels. A constant model is perfectly consistent: read it beside the accuracy.
    """
    upright, _ = predictions.of(IDENTITY)
    others = _others(predictions, elements)
    shares = [float((predictions.of(e)[0] == upright).double().mean()) for e in others]
    return proportion(sum(shares) / len(shares), len(upright), confidence)


def effective_invariance(
    predictions: Predictions, elements: Iterable[Element] | None = None
) -> float:
    """Effective invariance, 0 to 1, mean over images and the elements but the identity (Deng et
    al., NeurIPS 2022).

    Where the predicted class is that of the image as it is, the geometric mean of both confidences,
    else 0. Needs no labels. An exact network has its mean confidence.
    """
    upright, confidence = predictions.of(IDENTITY)
    total = 0.0
    others = _others(predictions, elements)
    for element in others:
        classes, other = predictions.of(element)
        total += float(((classes == upright) * (confidence * other).sqrt()).double().mean())
    return total / len(others)


def _others(predictions: Predictions, elements: Iterable[Element] | None) -> tuple[Element, ...]:
    others = tuple(
        e for e in (predictions.elements if elements is None else elements) if e != IDENTITY
    )
    if not others:
        raise ValueError(
            "predictions were made for the identity only; there is nothing to compare them with"
        )
    return others
