"""What one training is judged by."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

MAIN_SCORES = {"classification": None, "multilabel": "AUROC", "regression": "R2"}
"""What stands in the place of accuracy, by task; None: accuracy itself."""


@dataclass(frozen=True)
class Scores:
    """The scores of one network on validation images. Refuses values that are not finite with
    ValueError.

    Accuracies and errors are fractions in 0..1, except the equivariance errors, which are relative
    to the spread over images (0 exact, 1 as much as another image, and of outputs that do not vary
    over the images). Symmetry accuracy is over the declared group's elements other than the
    identity, whatever training has seen; what training has not seen is a score of its own. (Studies
    of version 0.1.0 go on with the elements that training has not seen, or all where it saw all:
    `symmetry.scored: unseen`.)

    Of other tasks than classification `score` names the main score that stands in the place of
    accuracy, upright and under the elements: AUROC (multilabel) or R2 (regression). It is no share
    of images, so it comes with its standard error over images.
    """

    epoch: int  # epochs trained
    accuracy: float  # upright images
    symmetry_accuracy: float  # mean over the elements
    symmetry_accuracy_worst: float  # the lowest of them
    # mean over those that are quarter turns and flips; None: none declared
    symmetry_accuracy_exact: float | None
    # mean over those off the pixel grid; None: none declared
    symmetry_accuracy_interpolated: float | None
    # mean over the declared elements that training has not seen; None: it has seen all
    unseen_symmetry_accuracy: float | None
    equivariance_error: float  # of the logits, mean over elements
    equivariance_error_features: float  # mean over stages and elements
    loss: float  # validation cross entropy, nats
    params: int
    macs: int  # multiply-accumulates per image
    # milliseconds per image of a forward in batches of 128, this machine
    latency: float
    seconds: float  # of training and evaluation so far
    # on upright images, every class alike; None: a class has no validation image
    balanced_accuracy: float | None = None
    auroc: float | None = None  # one class against the others, mean over classes
    worst_class: float | None = None  # accuracy on the images of the worst class
    balanced_accuracy_error: float | None = None  # standard errors of the three over images
    auroc_error: float | None = None
    worst_class_error: float | None = None
    # means of the three over the elements that symmetry accuracy is a mean over, and their errors
    symmetry_balanced_accuracy: float | None = None
    symmetry_auroc: float | None = None
    symmetry_worst_class: float | None = None
    symmetry_balanced_accuracy_error: float | None = None
    symmetry_auroc_error: float | None = None
    symmetry_worst_class_error: float | None = None
    # what accuracies are, where they are not accuracies, their standard errors over images, and
    # what is said beside: of labels accuracy and F1, of targets the mean absolute error (mae) in
    # the user's unit; the same as means over the elements
    score: str | None = None
    accuracy_error: float | None = None
    symmetry_accuracy_error: float | None = None
    symmetry_accuracy_worst_error: float | None = None
    beside: dict[str, float] | None = None
    symmetry_beside: dict[str, float] | None = None
    num_images: int | None = None  # validation images that accuracies are shares of
    # of cross-validation: score -> its standard deviation over folds, of which the scores are means
    fold_spread: dict[str, float] | None = None
    # what was trained beside the network, by name: widths of augmentation, weights of losses
    learned: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            values = value.values() if isinstance(value, dict) else [value]
            if any(isinstance(v, (int, float)) and not math.isfinite(v) for v in values):
                raise ValueError(
                    f"score {field.name} is {value} at epoch {self.epoch}; scores must be "
                    "finite: try a lower learning rate"
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, keys in the order of the fields."""
        return asdict(self)
