"""What a network predicts, as a value: the kind of task, the names of its outputs, and how outputs
become what a user reads. Everything that differs between tasks asks this value.

A network's outputs are logits, or, of regression, numbers standardised by the training images:
scores, losses and tests work with those, and a bundle holds the way back to the user's units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.data.formats.targets import check_targets
from trainers.data.pools import Pool, Source
from trainers.settings import Task


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network, one for each of `names`: classes, labels, or targets.

    `shift` and `scale` are the mean and the standard deviation of each target over the training
    images; empty for other tasks.
    """

    task: Task
    names: tuple[str, ...]
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def learned(self, labels: Tensor) -> Tensor:
        """Labels as training compares them with outputs: class numbers int64 [N], 0 and 1 [N, K],
        or standardised targets [N, K].
        """
        if self.task != "regression":
            return labels
        shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (self.shift, self.scale))
        return ((labels.double() - shift) / scale).float()

    def given(self, outputs: Tensor) -> Tensor:
        """Outputs in the user's units: targets as they were given; others as they are."""
        if self.task != "regression":
            return outputs
        shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (self.shift, self.scale))
        return (outputs.double() * scale + shift).float()

    @property
    def units(self) -> Tensor:
        """What one unit of each output is to a user [K]: the scale of targets, else 1."""
        return torch.tensor(self.scale or (1.0,) * len(self.names))


def task_activation(task: Task, outputs: Tensor) -> Tensor:
    """What a user reads from outputs [N, K]: probabilities of classes, probabilities of labels, or
    the numbers as they are.
    """
    if task == "classification":
        return outputs.softmax(1)
    return outputs.sigmoid() if task == "multilabel" else outputs


def read_labels(about: Mapping[str, Any], outputs: Outputs | None = None) -> tuple[Tensor, Outputs]:
    """Labels as training compares them with outputs, and what these are (those of the training
    images unless given).
    """
    if outputs is None:
        kept = [tuple(about.get(name, ())) for name in ("shift", "scale")]
        outputs = Outputs(about.get("task", "classification"), tuple(about["classes"]), *kept)
    classes = outputs.task == "classification"
    kind = torch.int64 if classes else torch.float64
    labels = outputs.learned(torch.tensor(about["labels"], dtype=kind))
    return (labels if classes else labels.float()), outputs


def held_labels(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """The labels of these images, or their targets, as they were given."""
    return pool.labels[rows] if pool.targets is None else pool.targets[rows]


def about_task(source: Source, held: Sequence[np.ndarray]) -> dict[str, Any]:
    """What is kept of the task beside the labels of training and validation images; nothing of
    classes. Raises ValueError for labels that cannot be trained on or scored.
    """
    if source.task == "classification":
        return {}
    for part, values in zip(("train", "validation"), held):
        check_targets(source.task, source.classes, part, values)
    numbers = source.task == "regression"
    return {
        "task": source.task,
        "shift": held[0].mean(0).tolist() if numbers else [],
        "scale": held[0].std(0).tolist() if numbers else [],
    }
