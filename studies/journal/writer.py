"""What a driver writes: the optuna study of one directory, behind the words that the driver uses.

Attributes first, then `commit`: from there on a trial has ended. A full disk becomes a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from studies.errors import NO_SPACE, StudyError
from studies.journal.reader import JOURNAL, Outcome, Record, drop_torn_line, read_journal

Result = TypeVar("Result")


@dataclass(frozen=True)
class Before:
    """What the journal held when it was opened."""

    attributes: dict[str, Any]  # of the study
    # in the order in which their trials ended, then those that have not, by number
    records: list[Record]
    torn: Path | None  # where a torn last line was kept


def open_ledger(directory: Path, objectives: Sequence[str]) -> tuple[Ledger, Before]:
    """The journal of the study in `directory`, opened for writing by its only writer, and what it
    held.

    Raises StudyError where a line is damaged or no space is left.
    """
    with writing(directory):
        torn = drop_torn_line(directory)
        attributes, records = (
            read_journal(directory) if (directory / JOURNAL).exists() else ({}, [])
        )
        for record in records:
            _ = record.attributes  # a damaged line is named here; optuna would fail at it
        records.sort(key=lambda r: (r.order is None, r.order, r.number))
        return Ledger(directory, objectives), Before(attributes, records, torn)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns a full disk into a message; the journal itself is whole
    (`SingleWriterJournal.append_logs`).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StudyError(
            f"no space is left on the device of {directory}; nothing earlier is lost: "
            f"free some space, then `equisearch resume {directory}`"
        ) from error


class Ledger:
    """The journal of one study, open for writing; made by `open_ledger`."""

    def __init__(self, directory: Path, objectives: Sequence[str]) -> None:
        from studies.journal.storage import open_study

        self.optuna, self._storage, self._backend = open_study(directory / JOURNAL, objectives)
        self._id = self._storage.get_study_id_from_name(self.optuna.study_name)

    def next_number(self) -> int:
        """The number of the trial that optuna will give when asked: the first that waits, else a
        new one.
        """
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        return next(
            (trial.number for trial in trials if trial.state.name == "WAITING"), len(trials)
        )

    def ask(self, sampler: Any, register: Callable[[Any], Result]) -> tuple[Any, Result]:
        """(trial, `register(trial)`) of a new trial that `sampler` proposes; what `register` writes
        down is on disk whole or not at all.
        """
        self.optuna.sampler = sampler
        with self._backend.transaction():
            trial = self.optuna.ask()
            return trial, register(trial)

    def again(self, number: int, attributes: Mapping[str, Any]) -> tuple[int, int]:
        """(storage's number, number) of a new running trial with the choices of trial `number`, and
        these attributes: on disk whole or not at all.
        """
        from optuna.trial import FrozenTrial, TrialState

        first = self._storage.get_trial(self.trial_id(number))
        new = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=first.params,
            distributions=first.distributions,
            user_attrs=dict(attributes),
            system_attrs=first.system_attrs,
            intermediate_values={},
        )
        trial_id = self._storage.create_new_trial(self._id, template_trial=new)
        return trial_id, self._storage.get_trial_number_from_id(trial_id)

    def trial_id(self, number: int) -> int:
        """The storage's own number of trial `number`."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def attributes(self, number: int) -> dict[str, Any]:
        """What is written of trial `number`."""
        return dict(self._storage.get_trial(self.trial_id(number)).user_attrs)

    def set(self, trial_id: int, name: str, value: Any) -> None:
        """Sets an attribute of a trial."""
        self._storage.set_trial_user_attr(trial_id, name, value)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Sets attributes of the study."""
        for name, value in attributes.items():
            self.optuna.set_user_attr(name, value)

    def move(self, trial_id: int, state: str) -> None:
        """Gives a trial the state WAITING or RUNNING."""
        from optuna.trial import TrialState

        self._storage.set_trial_state_values(trial_id, TrialState[state])

    def commit(self, number: int, outcome: Outcome, values: list[float] | None = None) -> None:
        """Ends trial `number`: complete with `values`, failed, or, for every other outcome, pruned."""
        from optuna.trial import TrialState

        state = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(
            outcome, TrialState.PRUNED
        )
        self.optuna.tell(number, values=values, state=state)

    @property
    def exhausted(self) -> bool:
        """Whether the grid sampler has nothing left; it notices at a commit."""
        return getattr(self.optuna.sampler, "exhausted", False)

    def close(self) -> None:
        """Closes the journal."""
        self._backend.close()
