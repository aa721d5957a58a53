"""Symmetry scores of a model on labelled or unlabelled images: accuracy under each element, by
angle, consistency, invariance.

Everything is computed from `Predictions`, one forward per image and element; `predict` makes them.
Images are moved while they are pixels and normalised afterwards, so that the corners that a
rotation uncovers are black, as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group, largest_subgroup
from trainers.actions import act, parts
from trainers.instruments.equivariance import EquivarianceError, StageError, equivariance_error
from trainers.instruments.feature_maps import Model, Normalise, device_of, measuring, pixels, run

__all__ = [
    "AngleCurve",
    "EquivarianceError",
    "Predictions",
    "Proportion",
    "StageError",
    "SymmetryAccuracy",
    "accuracy_by_angle",
    "angle_elements",
    "consistency",
    "effective_invariance",
    "equivariance_error",
    "invariant_elements",
    "predict",
    "proportion",
    "summarise",
    "summarise_angles",
    "symmetry_accuracy",
]

# relative to the spread of the logits, float32: exact networks have 1e-6, broken layouts 6e-2 and
# more
EXACT = 1e-5


@dataclass(frozen=True)
class Proportion:
    """A share between 0 and 1 with its confidence interval over images."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}] %"

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def proportion(value: float, num_images: int, confidence: float = 0.95) -> Proportion:
    """The share `value` of `num_images` images with its Wilson score interval (Wilson, 1927).

    For the mean of several shares of the same images (over elements) the interval is that of a
    single one: right where the images fail together, as in an exact network, too wide where they
    fail independently, never too narrow.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (value + z * z / (2 * num_images)) / (1 + z * z / num_images)
    half = (
        z
        / (1 + z * z / num_images)
        * (value * (1 - value) / num_images + z * z / (4 * num_images**2)) ** 0.5
    )
    return Proportion(
        value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))
    )


@dataclass(frozen=True)
class Predictions:
    """What a model says of the same images under each of several elements."""

    elements: tuple[Element, ...]
    classes: Tensor  # int64 [element, image]: the predicted class
    confidences: Tensor  # [element, image]: its softmax probability
    # the subgroup whose predictions were shared: measured exact; only the identity: none were
    shared: tuple[Element, ...]
    num_forwards: int  # forwards per image
    # logits [image, class] under the identity, if it was predicted by itself
    upright: Tensor | None = None

    def of(self, element: Element) -> tuple[Tensor, Tensor]:
        """Classes and confidences [image] under `element`. Raises ValueError if it was not
        predicted.
        """
        if element not in self.elements:
            raise ValueError(
                f"there are no predictions for {element}; they were made for "
                f"{', '.join(map(str, self.elements))}"
            )
        return self.classes[self.elements.index(element)], self.confidences[
            self.elements.index(element)
        ]


@torch.no_grad()
def invariant_elements(
    model: Model, images: Tensor, group: Group, *, normalise: Normalise | None = None
) -> tuple[Element, ...]:
    """The subgroup of quarter turns and flips in `group` under which the logits are measured not to
    change, in float32.

    Not to change means by less than 1e-5 of the spread of the logits over `images`, besides
    rounding; 16 images are enough, 2 needed. A constant model is invariant. Non-square images keep
    only the elements that keep their shape.
    """
    with measuring(model):
        images = pixels(images, model)
        prepare = normalise or (lambda moved: moved)
        square = images.shape[-1] == images.shape[-2]
        candidates = [e for e in group.grid.elements if square or not e.swaps_axes]
        logits, _ = run(model, prepare(torch.cat([act(images, e) for e in candidates])), stages=())
        logits = logits.reshape(len(candidates), len(images), -1)
        # Where logits hardly vary, at the start of training, their last digits are larger than 1e-5
        # of the spread.
        rounding = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
        tolerance = EXACT * float(logits[0].std(0).mean()) + rounding
        changes = (logits - logits[0]).abs().amax((1, 2))
        return largest_subgroup(
            e for e, change in zip(candidates, changes) if float(change) <= tolerance
        )


@torch.no_grad()
def predict(
    model: Model,
    images: Tensor,
    elements: Iterable[Element],
    *,
    normalise: Normalise | None = None,
    batch_size: int | None = None,
    share_exact: bool = True,
    crew: Executor | None = None,
) -> Predictions:
    """The predictions of a model for images under each of `elements`.

    `images` are [image, channel, height, width], uint8 or floating point; `normalise` is applied
    after they were moved. With `share_exact`, quarter turns and flips under which the logits are
    measured not to change on 16 of the images cost no forward: 2 instead of 8 for C8 and an exact
    C4 network. A forward takes `batch_size` images, by default 128 on a CPU, where larger ones were
    slower, and 1024 on a GPU, which waits after each. `crew` are threads that take batches side by
    side (`trainers.process.crew`); the model must then bear to be called by several threads at
    once, as folded networks do. Raises ValueError for logits that are not finite.
    """
    batch_size = batch_size or (128 if device_of(model, images).type == "cpu" else 1024)
    elements = tuple(dict.fromkeys(elements))
    if not elements:
        raise ValueError("there is no element to predict under; name at least the identity")
    square = images.shape[-1] == images.shape[-2]
    shared: tuple[Element, ...] = (IDENTITY,)
    if share_exact and square and len(images) > 1:
        shared = invariant_elements(
            model, images[:: max(1, len(images) // 16)][:16], Group(4, True), normalise=normalise
        )
    # Images moved by k @ e, k exact, are those moved by e, then by k, bit for bit
    # (`actions.parts`): the model says the same of both.
    sources = {element: _representative(element, elements, shared) for element in elements}
    needed = tuple(dict.fromkeys(sources.values()))
    prepare = normalise or (lambda moved: moved)
    # Elements that differ by index moves interpolate once for all of them.
    alike: dict[Element, list[tuple[int, Element]]] = {}
    for row, element in enumerate(needed):
        exact, rest = parts(element, square)
        alike.setdefault(rest, []).append((row, exact))

    @torch.no_grad()
    def work(task: tuple[int, Element]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        start, rest = task
        turned = act(pixels(images[start : start + batch_size], model), rest)
        found = []
        for row, exact in alike[rest]:
            logits = run(model, prepare(act(turned, exact)), stages=())[0].float()
            best = logits.softmax(1).max(1)
            found.append((best.indices, best.values, logits if needed[row] == IDENTITY else None))
        return found

    tasks = [(start, rest) for start in range(0, len(images), batch_size) for rest in alike]
    classes = torch.empty(len(needed), len(images), dtype=torch.int64)
    confidences = torch.empty(len(needed), len(images))
    upright = []
    with measuring(model):
        for (start, rest), found in zip(tasks, crew.map(work, tasks) if crew else map(work, tasks)):
            for (row, _), (best, confidence, logits) in zip(alike[rest], found):
                classes[row, start : start + len(best)] = best.cpu()
                confidences[row, start : start + len(best)] = confidence.cpu()
                if logits is not None:
                    upright.append(logits.cpu())
    rows = torch.tensor([needed.index(sources[element]) for element in elements])
    return Predictions(
        elements,
        classes[rows],
        confidences[rows],
        shared,
        len(needed),
        torch.cat(upright) if upright else None,
    )


def _representative(
    element: Element, elements: Sequence[Element], shared: Sequence[Element]
) -> Element:
    """The element among `elements` whose predictions serve for `element`: the first in its coset of
    `shared`.
    """
    coset = {k @ element for k in shared}
    return next(e for e in elements if e in coset)


def angle_elements(step: int = 10) -> tuple[Element, ...]:
    """The rotations by 0, `step`, 2 `step` ... degrees below a full turn."""
    if not 1 <= step <= 180:
        raise ValueError(f"the angles are {step} degrees apart; it must be 1 to 180")
    return tuple(Element(Fraction(degrees, 360)) for degrees in range(0, 360, step))


@dataclass(frozen=True)
class SymmetryAccuracy:
    """Accuracy under every element of a declared group, and its summaries over those that training
    has not seen.

    Where training has seen every declared element, the summaries are over all of them (`unseen` is
    then empty).
    """

    group: Group
    elements: tuple[Element, ...]
    accuracies: tuple[Proportion, ...]  # in the order of `elements`
    seen: tuple[Element, ...]
    num_images: int
    confidence: float
    # elements whose predictions were shared, because measured exact
    shared: tuple[Element, ...]

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
        """Mean accuracy over the unseen elements."""
        return self._over(self._scored)

    @property
    def worst(self) -> tuple[Element, Proportion]:
        """The unseen element with the lowest accuracy; its interval does not account for having
        been chosen.
        """
        scored = self._scored
        return min(
            ((e, a) for e, a in zip(self.elements, self.accuracies) if e in scored),
            key=lambda pair: pair[1].value,
        )

    @property
    def exact(self) -> Proportion | None:
        """Mean accuracy over the unseen quarter turns and flips, which move pixels exactly; None
        where there is none.
        """
        return self._over([e for e in self._scored if e.on_grid])

    @property
    def interpolated(self) -> Proportion | None:
        """Mean accuracy over the unseen elements that interpolate; None where there is none."""
        return self._over([e for e in self._scored if not e.on_grid])

    @property
    def mean_seen(self) -> Proportion | None:
        """Mean accuracy over the declared elements that training has seen; None where there is
        none.
        """
        return self._over([e for e in self.elements if e in self.seen])

    @property
    def mean_all(self) -> Proportion:
        """Mean accuracy over all declared elements, the identity included: what Edixhoven et al.
        call unseen.
        """
        return self._over(self.elements)

    @property
    def _scored(self) -> tuple[Element, ...]:
        return self.unseen or self.elements

    def _over(self, elements: Sequence[Element]) -> Any:
        chosen = [a.value for e, a in zip(self.elements, self.accuracies) if e in elements]
        return (
            proportion(sum(chosen) / len(chosen), self.num_images, self.confidence)
            if chosen
            else None
        )

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
) -> SymmetryAccuracy:
    """The symmetry accuracy of predictions that were made for every element of `group`, among
    others.
    """
    shares = _accuracies(predictions, labels, group.elements, confidence)
    return SymmetryAccuracy(
        group, group.elements, shares, tuple(seen), len(labels), confidence, predictions.shared
    )


def symmetry_accuracy(
    model: Model,
    images: Tensor,
    labels: Tensor,
    group: Group,
    seen: Iterable[Element] = (IDENTITY,),
    *,
    normalise: Normalise | None = None,
    batch_size: int | None = None,
    share_exact: bool = True,
    confidence: float = 0.95,
) -> SymmetryAccuracy:
    """The accuracy of a model under every element of `group`, told apart by what training has seen.

    `labels` are [image] class numbers; `seen` the elements that training has seen; the rest as in
    `predict`.
    """
    predictions = predict(
        model,
        images,
        group.elements,
        normalise=normalise,
        batch_size=batch_size,
        share_exact=share_exact,
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
    predictions: Predictions, labels: Tensor, step: int = 10, confidence: float = 0.95
) -> AngleCurve:
    """The accuracy by angle of predictions that were made for `angle_elements(step)`, among others."""
    elements = angle_elements(step)
    return AngleCurve(
        tuple(e.degrees for e in elements), _accuracies(predictions, labels, elements, confidence)
    )


def accuracy_by_angle(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    step: int = 10,
    normalise: Normalise | None = None,
    batch_size: int | None = None,
    share_exact: bool = True,
    confidence: float = 0.95,
) -> AngleCurve:
    """The accuracy of a model on images rotated by 0, `step`, 2 `step` ... degrees; arguments as in
    `predict`.
    """
    predictions = predict(
        model,
        images,
        angle_elements(step),
        normalise=normalise,
        batch_size=batch_size,
        share_exact=share_exact,
    )
    return summarise_angles(predictions, labels, step, confidence)


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
