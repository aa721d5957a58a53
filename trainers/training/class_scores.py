"""Scores that weigh every class alike, from logits: balanced accuracy and macro AUROC.

They are those of scikit-learn (`balanced_accuracy_score`; `roc_auc_score` with
`multi_class="ovr"`), which a test compares; importing it would take each worker a second or more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# scores that are not defined unless each class has an image
NEED_EVERY_CLASS = ("balanced_accuracy", "auroc")


def class_scores(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Balanced accuracy and macro AUROC of logits [image, class], each with its standard error over
    images, by the names of `trainers.scores.Scores`; None where a class has no image.
    """
    count, classes = logits.shape[1], logits.argmax(1)
    area = macro_auroc(logits, labels)
    return {
        "balanced_accuracy": balanced_accuracy(classes, labels, count),
        "balanced_accuracy_error": balanced_accuracy_error(classes, labels, count),
        "auroc": area,
        "auroc_error": auroc_error(area, labels, count),
    }


def balanced_accuracy(classes: Tensor, labels: Tensor, num_classes: int) -> float | None:
    """The mean over classes of the share of a class's images [image] that are classified as it;
    None where a class has no image.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if not bool((counts > 0).all()):
        return None
    correct = torch.bincount(labels[classes == labels], minlength=num_classes)
    return float((correct.double() / counts).mean())


def macro_auroc(logits: Tensor, labels: Tensor) -> float | None:
    """The mean over classes of the area under the ROC curve of one class against the others, by
    the softmax of logits [image, class]; None where a class has no image, or all of them.
    """
    count, num_classes = logits.shape
    positives = torch.bincount(labels, minlength=num_classes)
    if not bool(((positives > 0) & (positives < count)).all()):
        return None
    probabilities = logits.double().softmax(1)
    total = 0.0
    for number in range(num_classes):
        column, mine = probabilities[:, number], int(positives[number])
        _, inverse, ties = column.unique(return_inverse=True, return_counts=True)
        # the mean rank among equal probabilities, from 1
        ranks = ties.cumsum(0).double() - (ties.double() - 1) / 2
        above = float(ranks[inverse][labels == number].sum()) - mine * (mine + 1) / 2
        total += above / (mine * (count - mine))
    return total / num_classes


def balanced_accuracy_error(classes: Tensor, labels: Tensor, num_classes: int) -> float | None:
    """The standard error over images of the balanced accuracy, each class's share smoothed by one
    image more on either side; None where a class has no image.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    if not bool((counts > 0).all()):
        return None
    share = (torch.bincount(labels[classes == labels], minlength=num_classes) + 1) / (counts + 2)
    return float((share * (1 - share) / counts).sum().sqrt()) / num_classes


def auroc_error(auroc: float | None, labels: Tensor, num_classes: int) -> float | None:
    """An upper estimate of the standard error over images of a macro AUROC: the mean over classes
    of that of Hanley and McNeil (1982) for one class with that area, as if the classes' errors
    were wholly correlated. None without an AUROC.
    """
    if auroc is None:
        return None
    mine = torch.bincount(labels, minlength=num_classes).double()
    others = mine.sum() - mine
    both, same = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (
        auroc * (1 - auroc) + (mine - 1) * (both - auroc**2) + (others - 1) * (same - auroc**2)
    ) / (mine * others)
    return float(variance.clamp(min=0).sqrt().mean())


def missing_classes(labels: Tensor, classes: Sequence[str]) -> list[str]:
    """The names of the classes that no image has."""
    counts = torch.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts.tolist()) if not count]
