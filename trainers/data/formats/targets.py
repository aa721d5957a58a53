"""Labels that are not one class for each image: several labels of 0 and 1 (multilabel), and numbers
(regression), as files and arrays hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from searchspace.geometry import counted
from trainers.data.formats.labels import require_distinct
from trainers.settings import Task

SEPARATOR = "|"  # between the names of labels in one column of text
FEWEST = 25  # images of each range of targets that splits are drawn from in proportion
MOST_RANGES = 10


class Targets(NamedTuple):
    """The labels of images as float64 [N, K], with a name for each of the K outputs."""

    task: Task
    names: tuple[str, ...]
    values: np.ndarray


def task_of(
    labels: Any, asked: Task | Literal["auto"], where: str, separator: str = SEPARATOR
) -> Task:
    """The task `asked` for, or, where it is auto, the one that the form of the labels decides.

    Rows of 0 and 1 are several labels, fractions are numbers, integers and text classes. Raises
    ValueError where the form leaves it open: rows with one 1 each, and whole numbers as fractions.
    """
    if asked != "auto":
        return asked
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    numbers = _numbers(array)
    if array.ndim > 1:
        if numbers is None or not np.isin(numbers, (0, 1)).all():
            return "regression"
        if (numbers.sum(1) != 1).any():
            return "multilabel"
        raise ValueError(_open(where, "rows of 0 with one 1 each, which may be classes or labels"))
    if numbers is None:
        split = any(separator in str(value) for value in array.tolist())
        return "multilabel" if split else "classification"
    if array.dtype.kind in "biu" or _whole(array):
        return "classification"
    if (numbers != np.rint(numbers)).any():
        return "regression"
    raise ValueError(_open(where, "whole numbers of a floating point type"))


def _open(where: str, what: str) -> str:
    return (
        f"data.task is auto, and the labels of {where} are {what}: say which by `data: {{task: "
        "classification|multilabel|regression}`"
    )


def _whole(labels: np.ndarray) -> bool:
    """Whether labels of text are integers."""
    try:
        labels.astype(np.int64)
    except (ValueError, TypeError):
        return False
    return labels.dtype.kind == "U"


def _numbers(labels: np.ndarray) -> np.ndarray | None:
    try:
        return labels.astype(np.float64)
    except (ValueError, TypeError):
        return None


def read_targets(
    labels: Any,
    task: Task,
    where: str,
    names: Sequence[str] | None = None,
    separator: str = SEPARATOR,
) -> Targets:
    """Labels [N] or [N, K] as targets. `names` are those of the outputs, where the files or the
    study give them.

    Several labels are [N, K] of 0 and 1, or text [N] with names between separators; numbers are [N]
    or [N, K]. Raises ValueError for labels of another shape or kind, with the first image that has
    one.
    """
    require_distinct(names or (), where)
    array = np.asarray(labels)
    if task == "multilabel" and array.ndim == 1 and array.dtype.kind in "UO":
        return _named_labels([str(value) for value in array], where, names, separator)
    if array.ndim == 1 and task == "regression":
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        wanted = (
            "[images, labels] of 0 and 1, or [images] of text such as 'a|b'"
            if task == "multilabel"
            else "[images] or [images, targets] of numbers"
        )
        raise ValueError(
            f"the labels of {where} have the shape {array.shape}, and data.task is {task}: they "
            f"must be {wanted}; write them so, or correct data.task"
        )
    values = _numbers(array)
    if values is None:
        raise ValueError(
            f"the labels of {where} hold {_first_text(array)!r}, which is not a number, and "
            f"data.task is {task}; correct it, or data.task"
        )
    _check_values(values, task, where)
    count = values.shape[1]
    if names is not None and len(names) != count:
        raise ValueError(
            f"data.classes has {counted(len(names), 'name')} "
            f"({', '.join(list(names)[:5])}), and the "
            f"labels of {where} have {counted(count, 'column')}; give one name for each"
        )
    return Targets(task, tuple(names or _default_names(task, count)), values)


def _default_names(task: Task, count: int) -> list[str]:
    if task == "multilabel":
        return [f"label {number}" for number in range(count)]
    return ["target"] if count == 1 else [f"target {number}" for number in range(count)]


def _first_text(array: np.ndarray) -> str:
    for value in array.ravel().tolist():
        try:
            float(value)
        except (ValueError, TypeError):
            return str(value)
    return str(array.dtype)


def _check_values(values: np.ndarray, task: Task, where: str) -> None:
    """Raises ValueError for a number that is not finite, or a label that is neither 0 nor 1."""
    bad = ~np.isfinite(values) if task == "regression" else ~np.isin(values, (0, 1))
    if not bad.any():
        return
    row, column = (int(place[0]) for place in np.nonzero(bad))
    what = "finite numbers" if task == "regression" else "0 or 1"
    raise ValueError(
        f"the label of image {row} of {where} is {values[row, column]:g} in column {column} "
        f"(such labels: of {counted(int(bad.any(1).sum()), 'image')}); with data.task "
        f"{task} labels must be "
        f"{what}: correct them, or leave these images out"
    )


def _named_labels(
    texts: Sequence[str], where: str, names: Sequence[str] | None, separator: str
) -> Targets:
    """Names between separators as 0 and 1; an empty text is an image without a label."""
    found = [{part.strip() for part in text.split(separator)} - {""} for text in texts]
    present = sorted(set().union(*found))
    unknown = [name for name in present if names is not None and name not in names]
    if unknown:
        raise ValueError(
            f"{where} has the label {unknown[0]!r}, which is not among data.classes "
            f"({', '.join(list(names or ())[:8])}); correct it, or add it there"
        )
    order = list(names or present)
    values = np.array([[name in own for name in order] for own in found], dtype=np.float64)
    return Targets("multilabel", tuple(order), values.reshape(len(found), len(order)))


def strata(targets: Targets, train: np.ndarray) -> np.ndarray:
    """What splits are drawn from in proportion, int64 [N]: the rarest label that an image has among
    the images `train` (1 to K; 0: it has none), or the range of its first target by quantiles.
    """
    if targets.task == "multilabel":
        order = np.argsort(targets.values[train].sum(0), kind="stable")
        has = targets.values[:, order] > 0
        return np.where(has.any(1), order[has.argmax(1)] + 1, 0).astype(np.int64)
    first = targets.values[:, 0]
    ranges = min(MOST_RANGES, max(1, int(np.sum(train)) // FEWEST))
    edges = np.quantile(first[train], np.arange(1, ranges) / ranges) if ranges > 1 else []
    return np.searchsorted(edges, first, side="right").astype(np.int64)


def check_targets(task: Task, names: Sequence[str], part: str, values: np.ndarray) -> None:
    """Raises ValueError where the images of a part (`train`, `validation`, `test`) cannot train or
    score an output: a label that none or all of them have, a target that is the same for all.
    """
    for name, column in zip(names, values.T):
        if len(np.unique(column)) > 1:
            continue
        there = f"the {part} split, {counted(len(column), 'image')},"
        if task == "regression":
            held = column[0] if len(column) else "nothing"
            raise ValueError(
                f"the target '{name}' is {held} for every image of {there} so that nothing "
                "can be learned or scored; leave this column out, or add images"
            )
        which = "no image" if not column.any() else "only images"
        raise ValueError(
            f"{there} holds {which} with the label '{name}': every split needs images with and "
            f"without each label; add images, raise `{part}:`, or leave this label out"
        )
