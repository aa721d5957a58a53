"""What the driver hands to a worker, and what comes back: plain values that travel between
processes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from studies.config import Study
from studies.errors import ScoresError, StudyError
from studies.journal.directory import TRIALS

Decision = Literal["continue", "stop"]

# what rungs compare: costs are known before training
RUNG_SCORES = ("accuracy", "symmetry_accuracy")


@dataclass(frozen=True)
class Assignment:
    """One trial, or the rest of one: the worker continues from what lies in `directory`."""

    number: int  # of the trial
    architecture: str  # text form
    learning_rate: float | None  # None: the study's
    seed: int
    until_epoch: int  # the last epoch
    directory: str  # absolute; the only place where the worker writes
    continues: int | None = None  # the stopped trial whose training goes on, under this number
    # 2 after the batch did not fit into memory: half the batch, gradients accumulated
    batch_divisor: int = 1


class Report(Protocol):
    """How a worker speaks to the driver."""

    def __call__(self, scores: Mapping[str, Any]) -> Decision:
        """Reports the scores at a rung (with their `epoch`), and returns whether to train on."""

    def heartbeat(self, epoch: int) -> None:
        """Says that an epoch is trained and saved. Raises `Leave` when the study is being stopped."""


Trainable = Callable[[Study, Assignment, Report], None]


class Leave(BaseException):
    """The study is being stopped: the epoch is saved, the worker should end. No Exception, so that
    nobody swallows it.
    """


def checked(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores as a plain dict, if they can be compared.

    Raises ScoresError if the epoch or a score that rungs compare is missing, or any number is not
    finite.
    """
    scores = dict(scores)
    if not isinstance(scores.get("epoch"), int):
        raise ScoresError(f"scores need their epoch, a whole number; {scores.get('epoch')!r} came")
    for name in RUNG_SCORES:
        if not isinstance(scores.get(name), (int, float)):
            raise ScoresError(
                f"the scores at epoch {scores['epoch']} need {name}; {scores.get(name)!r} came"
            )
    for name, value in scores.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ScoresError(
                f"{name} is {value} at epoch {scores['epoch']}; scores must be finite "
                "(a lower learning rate may help)"
            )
    return scores


def compared(scores: Mapping[str, Any]) -> tuple[float, ...]:
    """The scores that rungs compare."""
    return tuple(float(scores[name]) for name in RUNG_SCORES)


def assignment_of(
    directory: Path, study: Study, number: int, attributes: Mapping[str, Any]
) -> Assignment:
    """The work of trial `number` of the study in `directory`, from what its journal says of the
    trial.
    """
    return Assignment(
        number,
        attributes["architecture"],
        attributes["learning_rate"],
        attributes["seed"],
        study.rungs[-1],
        str(directory / TRIALS / f"{number:05d}"),
        attributes.get("continues"),
        attributes.get("batch_divisor", 1),
    )


def with_folder(assignment: Assignment) -> Assignment:
    """The assignment, once its folder is there; that of a trial that continues another begins as a
    copy of the other's.

    Raises StudyError where that cannot be copied; the next attempt begins anew.
    """
    folder = Path(assignment.directory)
    if assignment.continues is not None and not folder.exists():
        before, whole = (
            folder.with_name(f"{assignment.continues:05d}"),
            folder.with_name(f"{folder.name}.new"),
        )
        if before.is_dir():
            try:
                shutil.copytree(before, whole, dirs_exist_ok=True)
            except shutil.Error as error:  # a list of what went wrong, without error numbers
                raise StudyError(
                    f"{before} could not be copied for trial {assignment.number}, which "
                    f"continues it: {error.args[0][0][2]}; "
                    "nothing earlier is lost: make room, then `equisearch resume "
                    f"{folder.parent.parent}`"
                ) from error
            os.replace(whole, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.txt").write_text(f"{assignment.architecture}\n", encoding="utf-8")
    return assignment
