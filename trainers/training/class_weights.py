"""Weights of classes in the cross entropy, for classes of very different sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.data.datasets import Splits
from trainers.settings import ClassWeights


def class_weights(wanted: ClassWeights, splits: Splits) -> Tensor | None:
    """The weight of each class [class], whose mean over the training images is 1; None for
    weights that are all 1.

    `balanced` weighs a class by the reciprocal of its number of training images (`balanced` of
    scikit-learn's `compute_class_weight`); a mapping gives weights by class name, 1 to the others.
    Raises ValueError for the name of a class that the data do not have, and where no class with
    training images has a weight.
    """
    if wanted == "none":
        return None
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


def check_class_names(wanted: ClassWeights, classes: tuple[str, ...]) -> None:
    """Raises ValueError where a weight names a class that the data do not have."""
    unknown = [] if isinstance(wanted, str) else [name for name in wanted if name not in classes]
    if unknown:
        names = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise ValueError(
            f"training.class_weights names '{unknown[0]}', which is not a class of the data; "
            f"they have: {names}"
        )
