"""The task of a study: decided where its file leaves it open, refused where something is for
classes, and what its main score is called. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from studies.config import Study
from studies.errors import StudyError
from studies.pareto import OVER_CLASSES
from trainers.scores import MAIN_SCORES

ACCURACY = "accuracy"


def score_name(scores: Mapping[str, Any] | None) -> str:
    """What a training's main score is called."""
    return str((scores or {}).get("score") or ACCURACY)


def task_score(task: str) -> str:
    """What the main score of a task is called; accuracy where the task is still open."""
    return MAIN_SCORES.get(task) or ACCURACY


def in_words(text: str, name: str) -> str:
    """A text about accuracy with the name of the main score in its place."""
    return text if name == ACCURACY else text.replace(ACCURACY, name)


def beside_text(scores: Mapping[str, Any], key: str = "beside") -> str:
    """What stands beside a main score that is no accuracy, such as `mae 1.2, r2 0.9`; empty for
    accuracies.
    """
    return ", ".join(f"{name} {value:.4g}" for name, value in (scores.get(key) or {}).items())


def beside_lines(scores: Mapping[str, Any]) -> list[str]:
    """A line on what stands beside a main score that is no accuracy; none for accuracies."""
    if not scores.get("beside"):
        return []
    moved = beside_text(scores, "symmetry_beside")
    return [f"  beside it: {beside_text(scores)}; under the symmetry: {moved}"]


def with_task(study: Study, note: Callable[[str], None] = lambda text: None) -> Study:
    """The study with `data.task` decided by the form of the labels where it is auto; `note`
    receives the choice. Raises StudyError for settings that do not suit the task, ValueError where
    the labels leave it open or cannot be read.
    """
    data = study.data
    if data.task == "auto":
        from trainers.data.datasets import open_source

        task = open_source(data)[1]().task
        note(f"task: {task}, by the form of the labels")
        data = data.model_copy(update={"task": task})
        study = study.model_copy(update={"data": data})
    _require_suitable(study)
    return study


def _require_suitable(study: Study) -> None:
    """Raises StudyError for objectives and weights that the task does not have."""
    task = study.data.task
    if task == "classification":
        return
    if study.data.files is None:
        raise StudyError(
            f"data.task is {task}, and {study.data.called} has one class for each image; give the "
            "images and labels by `files:` (.npz, .csv, .parquet), or leave task out"
        )
    areas = ("auroc", "symmetry_auroc") if task == "multilabel" else ()
    wrong = [name for name in study.objectives if name in OVER_CLASSES and name not in areas]
    if wrong:
        raise StudyError(
            f"the objective {wrong[0]} is about classes, and data.task is {task}: accuracy and "
            f"symmetry_accuracy stand for its main score, {task_score(task)}; take these"
        )
    if task == "regression" and study.training.class_weights != "none":
        raise StudyError(
            "training.class_weights is for classes and labels, and data.task is regression; leave "
            "it out"
        )


def require_classes(study: Study, what: str) -> None:
    """Raises StudyError where `what` is done with a study whose labels are not classes."""
    if study.data.task not in ("classification", "auto"):
        raise StudyError(
            f"{what} is about classes, and data.task is {study.data.task}; `equisearch front`, "
            "`report`, `retrain`, `export` and `predict` serve this task"
        )
