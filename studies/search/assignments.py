"""What the driver hands to a worker, and what comes back: plain values that travel between
processes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from studies.config import Study
from studies.errors import StudyError
from studies.journal.folders import (
    EPOCH,
    TRIALS,
    move_aside,
    read_folder,
    set_aside_not_files,
    write_given,
)
from studies.journal.trial import KIND, Decision, Outcome, TrialRecord
from trainers.files import PARTIAL, as_word, read_whole, write_plain


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
    # the trial with whose weights the training begins, and after which epoch of the schedule
    inherited_from: int | None = None
    inherited_epoch: int = 0
    # of a trial beside the search: its kind, the trial that it is compared with, and as what
    beside: Mapping[str, Any] | None = None


class Report(Protocol):
    """How a worker speaks to the driver."""

    def __call__(self, scores: Mapping[str, Any]) -> Decision:
        """Reports the scores at a rung (with their `epoch`), and returns whether to train on."""
        ...

    def heartbeat(self, epoch: int) -> None:
        """Says that an epoch is trained and saved. Raises LeaveError if the study is stopping."""


Trainable = Callable[[Study, Assignment, Report], None]


class Driver(Protocol):
    """Who hands out the work of a run and is told how it ends: a search, or any list of jobs.

    `next` may run in one thread while the others run in another.
    """

    study: Study  # with the resources, and in `search.trials` how much work there is
    directory: Path  # which every worker must see, with a study.yaml in it
    ended: str | None  # why nothing more is handed out
    again: str  # the command that goes on after an end, as words of a sentence

    @property
    def finished(self) -> int:
        """How much of the work is done."""
        ...

    @property
    def left(self) -> int:
        """How much of the work may still end, what runs included."""
        ...

    def next(self) -> Assignment | None:
        """The next piece of work; None: nothing is left, or what runs must end first."""
        ...

    def heartbeat(self, number: int, epoch: int) -> None:
        """Notes that an epoch of a piece of work is saved."""

    def report(self, number: int, epoch: int, scores: Mapping[str, Any]) -> Decision:
        """Whether a piece of work goes on after its scores at an epoch."""
        ...

    def finish(
        self, number: int, state: Outcome, reason: str | None = None, detail: str | None = None
    ) -> None:
        """Takes a piece of work back, or counts it as ended."""


class LeaveError(BaseException):
    """The study is being stopped: the epoch is saved, the worker should end.

    A BaseException, so that `except Exception` in a trainable does not catch it.
    """


def assignment_of(directory: Path, study: Study, record: TrialRecord) -> Assignment:
    """The work of a trial of the study in `directory`."""
    assert record.architecture is not None, f"trial {record.number} is not wholly proposed"
    return Assignment(
        record.number,
        record.architecture,
        record.learning_rate,
        record.seed,
        study.rungs[-1],
        str(directory / TRIALS / f"{record.number:05d}"),
        record.continues,
        record.batch_divisor,
        record.inherited_from,
        record.inherited_epoch,
        beside_of(record),
    )


def beside_of(record: TrialRecord) -> dict[str, Any] | None:
    """What marks a trial as one beside the search; None for one of the search."""
    if record.kind == "search":
        return None
    return {name: record.attributes.get(name) for name in (KIND, "of", "role")}


def note_epoch(assignment: Assignment, epoch: int) -> None:
    """Notes in the trial's folder that an epoch is trained and saved."""
    write_plain(Path(assignment.directory) / EPOCH, f"{epoch}\n")


def noted_epoch(assignment: Assignment) -> int:
    """The last epoch that was noted; 0 without one, or where the note is torn."""
    try:
        return int(read_whole(Path(assignment.directory) / EPOCH))
    except (OSError, ValueError):
        return 0


def note_error(assignment: Assignment, text: str) -> None:
    """Writes into the trial's folder why it failed."""
    folder = Path(assignment.directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_plain(folder / "error.txt", f"{text}\n")


def with_folder(assignment: Assignment, *, new: bool = False) -> Assignment:
    """The assignment, once its folder is there; that of a trial that continues another begins as a
    copy of the other's.

    A folder of that number that holds another training is moved to `orphaned/`; so is every one
    that a `new` trial finds. Raises StudyError where the other's cannot be copied; the next attempt
    begins anew.
    """
    folder, given = Path(assignment.directory), asdict(assignment)
    if os.path.lexists(folder) and (
        new or not folder.is_dir() or not read_folder(folder).belongs_to(given)
    ):
        move_aside(folder)
    if assignment.continues is not None and not folder.exists():
        _copy_folder(folder, assignment)
    folder.mkdir(parents=True, exist_ok=True)
    set_aside_not_files(folder)
    write_given(folder, given)
    return assignment


def _not_files(folder: str, names: list[str]) -> list[str]:
    """What is not copied: pipes, devices and links, which a copy would read without end or from
    elsewhere. A trial's folder has folders too (one for each fold).
    """
    return [
        name
        for name in names
        if not stat.S_ISREG(mode := os.lstat(os.path.join(folder, name)).st_mode)
        and not stat.S_ISDIR(mode)
    ]


def _copy_folder(folder: Path, assignment: Assignment) -> None:
    before = folder.with_name(f"{assignment.continues:05d}")
    whole = folder.with_name(f"{folder.name}{PARTIAL}")
    if not before.is_dir() or not read_folder(before).belongs_to(
        {**asdict(assignment), "continues": read_folder(before).given.get("continues")}
    ):
        return
    try:
        shutil.copytree(before, whole, dirs_exist_ok=True, ignore=_not_files)
    except shutil.Error as error:  # a list of what went wrong, without error numbers
        raise StudyError(
            f"{before} could not be copied for trial {assignment.number}, which "
            f"continues it: {error.args[0][0][2]}; "
            "nothing earlier is lost: make room, then `equisearch resume "
            f"{as_word(folder.parent.parent)}`"
        ) from error
    write_given(whole, asdict(assignment))
    os.replace(whole, folder)
