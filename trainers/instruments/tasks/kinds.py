"""Kinds of images where labels are not classes, so that what is asked of classes can be asked of
them: sets of labels, and ranges of targets.
"""

from __future__ import annotations

from itertools import pairwise, product

import torch
from torch import Tensor

from trainers.data.tasks import Outputs
from trainers.settings import Task

KIND_NAMES = {"classification": "class", "multilabel": "label set", "regression": "range"}
MOST_SETS = 8  # of labels, the most frequent; the others are one kind
LEAST_IMAGES = 20  # of a set of labels that is a kind of its own
# ranges of each target, by the number of targets; of more, the first 3
RANGES = {1: 4, 2: 2, 3: 2}


def as_kinds(outputs: Outputs, labels: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The kind of each image, int64 [N], and the names of the kinds; classes as they are."""
    if outputs.task == "classification":
        return labels, outputs.names
    if outputs.task == "multilabel":
        return _sets(outputs.names, labels)
    return _ranges(outputs.names, outputs.given(labels))


def kind_of(task: Task) -> str:
    """What a kind of images is called."""
    return KIND_NAMES[task]


def _sets(names: tuple[str, ...], labels: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    found, places, counts = (labels > 0.5).unique(dim=0, return_inverse=True, return_counts=True)
    frequent = counts.argsort(descending=True)[:MOST_SETS]
    chosen = [int(n) for n in frequent if counts[n] >= LEAST_IMAGES]
    kinds = torch.full((len(labels),), len(chosen), dtype=torch.int64)
    said = []
    for number, place in enumerate(chosen):
        kinds[places == place] = number
        held = [name for name, has in zip(names, found[place].tolist()) if has]
        said.append(" + ".join(held) if held else "without labels")
    if len(chosen) < len(found):
        said.append("of other labels")
    return kinds, tuple(said)


def _ranges(names: tuple[str, ...], values: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    asked = names[: max(RANGES)]
    parts = RANGES[len(asked)]
    kinds, said = torch.zeros(len(values), dtype=torch.int64), [()]
    for column, name in enumerate(asked):
        shares = torch.linspace(0, 1, parts + 1, dtype=torch.float64)[1:-1]
        edges = values[:, column].double().quantile(shares).unique()
        here = torch.bucketize(values[:, column].double(), edges)
        kinds = kinds * (len(edges) + 1) + here
        said = [(*before, text) for before, text in product(said, _names(name, edges.tolist()))]
    present, kinds = kinds.unique(return_inverse=True)
    return kinds, tuple(", ".join(said[n]) for n in present.tolist())


def _names(name: str, edges: list[float]) -> list[str]:
    between = [f"{name} {low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return [f"{name} up to {edges[0]:.4g}", *between, f"{name} above {edges[-1]:.4g}"]
