"""The main score of each task in 0..1, which takes the place of accuracy, and what stands beside.

    classification  accuracy: the share of images of which the likeliest class is right
    multilabel      AUROC: the area under the ROC curve of each label, mean over labels (scikit-
                    learn's `roc_auc_score`, macro)
    regression      R2: 1 - squared errors / squared deviations from the mean, mean over targets
                    (`r2_score`), 0 where it is negative

Scores that are not shares of images get their errors from a bootstrap over images (Efron, 1979):
200 resamples, the same ones for all networks on as many images, so that two networks are compared
on equal resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from trainers.data.tasks import Outputs
from trainers.instruments.proportions import Proportion
from trainers.settings import Task

RESAMPLES, SEED = 200, 20261127


@lru_cache(maxsize=4)
def resamples(images: int) -> Tensor:
    """How often each image is drawn in each resample [1 + 200, images], float64; the first row
    draws each once: the images themselves.
    """
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(images, (RESAMPLES, images), generator=generator)
    counts = torch.zeros(1 + RESAMPLES, images, dtype=torch.float64)
    counts[0] = 1
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    counts[1:].scatter_add_(1, drawn, ones)
    return counts


def main_scores(task: Task, outputs: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """The main score [R] of outputs [N, K] for each row of counts [R, N]."""
    outputs, labels = outputs.double().cpu(), labels.cpu()
    if task == "classification":
        right = (outputs.argmax(1) == labels).double()
        return counts @ right / counts.sum(1)
    score = _aurocs if task == "multilabel" else _explained
    return score(outputs, labels.double(), counts)


def main_score(task: Task, outputs: Tensor, labels: Tensor) -> float:
    """The main score of outputs [N, K]."""
    once = torch.ones(1, len(outputs), dtype=torch.float64)
    return float(main_scores(task, outputs, labels, once)[0])


def _explained(outputs: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    total = counts.sum(1, keepdim=True)
    mean = counts @ labels / total
    deviations = counts @ labels.square() - total * mean.square()
    errors = counts @ (outputs - labels).square()
    # of a resample in which a target is constant nothing can be explained
    shares = 1 - errors / deviations.clamp(min=torch.finfo(torch.float64).tiny)
    return shares.clamp(0, 1).mean(1)


def _aurocs(outputs: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    areas = torch.stack([_auroc(o, y, counts) for o, y in zip(outputs.T, labels.T)])
    # a resample may hold no image with a label: the mean is over the others
    return areas.nanmean(0).nan_to_num(0.5)


def _auroc(values: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """The area under the ROC curve [R] of one label; nan where all images have it, or none."""
    levels, places = values.unique(return_inverse=True)
    size = len(counts), len(levels)
    with_, without = (
        torch.zeros(size, dtype=torch.float64).index_add_(1, places, counts * part)
        for part in (labels, 1 - labels)
    )
    below = without.cumsum(1) - without
    return (with_ * (below + without / 2)).sum(1) / (with_.sum(1) * without.sum(1))


def share(row: Tensor, images: int, confidence: float = 0.95) -> Proportion:
    """A score on the images and on each resample [1 + R] as a value with its interval: the normal
    one by the standard error over resamples, within 0..1.
    """
    value, error = float(row[0]), float(row[1:].std())
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Proportion(value, max(0.0, value - half), min(1.0, value + half), images)


def side_scores(outputs: Outputs, values: Tensor, labels: Tensor) -> dict[str, float]:
    """What is said beside the main score of values [N, K], by name: of labels the share that is
    right at a probability of 0.5 and the macro F1 score, of targets the mean absolute error of each
    in the user's unit, and the R2 that may be negative.
    """
    task, values, labels = outputs.task, values.double().cpu(), labels.cpu()
    if task == "multilabel":
        called, given = values > 0, labels > 0.5
        hits = (called & given).sum(0).double()
        f1 = 2 * hits / (called.sum(0) + given.sum(0)).clamp(min=1)
        return {
            "label_accuracy": float((called == given).double().mean()),
            "f1": float(f1.mean()),
        }
    if task == "regression":
        labels = labels.double()
        errors = ((values - labels).abs().mean(0) * outputs.units.double()).tolist()
        spread = (labels - labels.mean(0)).square().sum(0)
        r2 = 1 - (values - labels).square().sum(0) / spread
        single = len(errors) == 1
        names = ["mae"] if single else [f"mae {name}" for name in outputs.names]
        return {"r2": float(r2.mean()), **dict(zip(names, errors))}
    return {}


def means_over(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The means of such values over elements."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
