"""What weighs classes alike: their weights in training, and scores, from logits: balanced accuracy,
macro AUROC and the accuracy of the worst class, on upright images and under the declared symmetry.

The scores are those of scikit-learn (`balanced_accuracy_score`; `roc_auc_score` with
`multi_class="ovr"`; the lowest `recall_score`), which a test compares; importing it would take each
worker a second or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainers.data.datasets import Splits
from trainers.settings import ClassWeights


def class_weights(wanted: ClassWeights, splits: Splits) -> Tensor | None:
    """The weight of each class [class], whose mean over the training images is 1; None for
    weights that are all 1.

    `balanced` weighs a class by the reciprocal of its number of training images (`balanced` of
    scikit-learn's `compute_class_weight`); a mapping gives weights by class name, 1 to the others.
    Of labels, what images with each weigh, as often as there are more without it.
    Raises ValueError for the name of a class that the data do not have, and where no class with
    training images has a weight.
    """
    if wanted == "none":
        return None
    if splits.task != "classification":
        return _positive_weights(wanted, splits)
    counts = splits.train.labels.cpu().bincount(minlength=len(splits.classes)).double()
    if wanted == "balanced":
        weights = 1 / counts.clamp(min=1)
    else:
        check_class_names(wanted, splits.classes)
        weights = torch.tensor([wanted.get(name, 1.0) for name in splits.classes]).double()
    total = float((weights * counts).sum())
    if not total > 0:
        raise ValueError(
            "training.class_weights gives no weight to any class with training images; give at "
            "least one class a weight above 0"
        )
    return (weights * counts.sum() / total).float()


def _positive_weights(wanted: ClassWeights, splits: Splits) -> Tensor:
    """How much more an image with a label weighs than one without it [K]: `balanced`, as often as
    there are more of these; by name, 1 for the others. Raises ValueError for targets, which have no
    classes, and for the name of a label that the data do not have.
    """
    if splits.task == "regression":
        raise ValueError(
            "training.class_weights is for classes and labels, and data.task is regression; leave "
            "it out"
        )
    if wanted != "balanced":
        check_class_names(wanted, splits.classes)
        given = {} if isinstance(wanted, str) else wanted
        return torch.tensor([float(given.get(name, 1.0)) for name in splits.classes])
    positives = splits.train.labels.cpu().double().sum(0)
    return ((len(splits.train) - positives) / positives.clamp(min=1)).float()


def check_class_names(wanted: ClassWeights, classes: tuple[str, ...]) -> None:
    """Raises ValueError where a weight names a class that the data do not have."""
    unknown = [] if isinstance(wanted, str) else [name for name in wanted if name not in classes]
    if unknown:
        names = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise ValueError(
            f"training.class_weights names '{unknown[0]}', which is not a class of the data; "
            f"they have: {names}"
        )


def class_scores(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Balanced accuracy, macro AUROC and the accuracy of the worst class, of logits [image, class],
    each with its standard error over images, by the names of `trainers.scores.Scores`; None where a
    class has no image.
    """
    count, classes = logits.shape[1], logits.argmax(1)
    area = macro_auroc(logits, labels)
    return {
        "balanced_accuracy": balanced_accuracy(classes, labels, count),
        "balanced_accuracy_error": balanced_accuracy_error(classes, labels, count),
        "auroc": area,
        "auroc_error": auroc_error(area, labels, count),
        **worst_class(classes, labels, count),
    }


def symmetry_class_scores(
    rows: Sequence[Mapping[str, float | None]],
) -> dict[str, float | None]:
    """The means over elements of their class scores, and of their standard errors: the elements
    move the same images, so that more of them do not make a score surer. None where an element has
    none.
    """
    means: dict[str, float | None] = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        whole = len(values) == len(rows)
        means[f"symmetry_{name}"] = sum(values) / len(values) if whole else None
    return means


def worst_class(classes: Tensor, labels: Tensor, num_classes: int) -> dict[str, float | None]:
    """The lowest share over classes of a class's images [image] that are classified as it, with
    that share's standard error (smoothed by one image more on either side); None where a class has
    no image. It is the lowest `recall_score(average=None)` of scikit-learn.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if not num_classes or not bool((counts > 0).all()):
        return {"worst_class": None, "worst_class_error": None}
    correct = torch.bincount(labels[classes == labels], minlength=num_classes)
    worst = int((correct.double() / counts).argmin())
    right, images = int(correct[worst]), int(counts[worst])
    share = (right + 1) / (images + 2)
    error = math.sqrt(share * (1 - share) / images)
    return {"worst_class": right / images, "worst_class_error": error}


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
    columns = logits.double().softmax(1).T.contiguous()
    ordered = columns.sort(dim=1).values
    # the mean rank among equal probabilities, from 1
    first = torch.searchsorted(ordered, columns)
    last = torch.searchsorted(ordered, columns, right=True)
    ranks = (first + last + 1).double() / 2
    mine = ranks.masked_fill(labels[None] != torch.arange(num_classes)[:, None], 0).sum(1)
    above = mine - positives * (positives + 1) / 2
    return float((above / (positives * (count - positives))).mean())


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
