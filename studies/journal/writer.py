"""What a driver writes: the journal of one study, as changes of trial records.

Attributes first, then the end: from there on a trial never changes. A full disk becomes a message.
Optuna's own objects and ids stay in here; callers know trials by their records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from studies.errors import NO_SPACE, READ_ONLY, DamagedError, StudyError
from studies.journal.reader import JOURNAL, drop_torn_line, read_journal
from studies.journal.trial import RUNG, SAW, Decision, Outcome, State, TrialRecord
from trainers.files import as_word


@dataclass(frozen=True)
class OpenedJournal:
    """What the journal held when it was opened."""

    attributes: dict[str, Any]  # of the study
    # in the order in which their trials ended, then those that have not, by number
    records: list[TrialRecord]
    torn: Path | None  # where a torn last line was kept

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the file, in sentences."""
        if self.torn is None:
            return ()
        copy = f"a copy is in {self.torn.name}"
        return (f"the journal's last line was torn and has been dropped; {copy}",)


@dataclass(frozen=True)
class Refusal:
    """Why a proposal is not trained."""

    reason: str
    # samplers learn from it: it breaks a constraint
    learn: bool = False


# The parameters of a trial that waits to be proposed, and its first attributes.
Queued = tuple[Mapping[str, Any], Mapping[str, Any]]
# The attributes of a proposal, and why it is refused, if it is.
Described = tuple[Mapping[str, Any], Refusal | None]


def open_journal(directory: Path, objectives: Sequence[str]) -> tuple[JournalWriter, OpenedJournal]:
    """The journal of the study in `directory`, opened for writing by its only writer, and what it
    held.

    Raises StudyError where a line is damaged or no space is left.
    """
    with writing(directory):
        torn = drop_torn_line(directory)
        attributes, records = (
            # what is read here is what Optuna reads next: parameters too
            read_journal(directory, parameters=True) if (directory / JOURNAL).exists() else ({}, [])
        )
        for record in records:
            len(record.attributes)  # a damaged line is named here; optuna would fail at it
            if record.state in ("running", "waiting") and record.architecture and not record.whole:
                raise DamagedError(
                    f"{directory / JOURNAL} lost the seed of trial {record.number}, which is to go "
                    f"on: rebuild it with `equisearch repair {as_word(directory)}`"
                )
        records.sort(key=lambda r: (r.order is None, r.order, r.number))
        return JournalWriter(directory, objectives), OpenedJournal(attributes, records, torn)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns a full disk into a message; the journal itself is whole
    (`SingleWriterJournal.append_logs`).
    """
    try:
        yield
    except OSError as error:
        if error.errno in READ_ONLY:
            raise StudyError(
                f"{error.filename or directory} cannot be written ({error.strerror}): use an "
                "account that may write to it, or a copy of the directory"
            ) from error
        if error.errno not in NO_SPACE:
            raise
        begun = (directory / "study.yaml").exists()
        again = f"`equisearch resume {as_word(directory)}`" if begun else "the same command"
        raise StudyError(
            f"no space is left on the device of {directory}; nothing earlier is lost: "
            f"free some space, then {again}"
        ) from error


class JournalWriter:
    """The journal of one study, open for writing (`open_journal`).

    What changes a trial takes its record and returns the new one.
    """

    def __init__(self, directory: Path, objectives: Sequence[str]) -> None:
        from studies.journal.storage import open_optuna_study

        self._directory = directory
        self.optuna, self._storage, self._backend = open_optuna_study(
            directory / JOURNAL, objectives
        )
        self._id = self._storage.get_study_id_from_name(self.optuna.study_name)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Sets attributes of the study."""
        for name, value in attributes.items():
            self.optuna.set_user_attr(name, value)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Turns the trace of another program that ends trials, or deletes the study, into a
        message; what others note in the journal does not matter.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            yield
        except (UpdateFinishedTrialError, KeyError) as error:
            raise StudyError(
                f"another program ended a trial of {self._directory}, or deleted the study, while "
                "this one drove it; end that program, then "
                f"`equisearch repair {as_word(self._directory)}` and `equisearch resume`"
            ) from error

    def next_number(self) -> int:
        """Which proposal of the search is next: that of the first trial that waits, else a new one.

        It counts the trials of the search alone, so that it is the trial's number only where none
        was trained beside the search.
        """
        from studies.journal.storage import next_place

        with self._alone():
            return next_place(self._storage.get_all_trials(self._id, deepcopy=False))

    def seen(self) -> list[Any]:
        """The trials of the search, as samplers see them."""
        with self._alone():
            return self._storage.get_all_trials(self._id, deepcopy=False)

    def queue_beside(self, attributes: Sequence[Mapping[str, Any]]) -> list[TrialRecord]:
        """New trials beside the search, which wait: on disk all of them or none. They have no
        parameters, and optuna never proposes them.
        """
        from optuna.trial import TrialState, create_trial

        made = []
        with self._backend.transaction():
            for given in attributes:
                trial = create_trial(state=TrialState.WAITING, user_attrs=dict(given))
                trial_id = self._storage.create_new_trial(self._id, template_trial=trial)
                number = self._storage.get_trial_number_from_id(trial_id)
                made.append(TrialRecord(number, "waiting", attributes=dict(given)))
        return made

    def add_complete(self, attributes: Mapping[str, Any], values: Sequence[float]) -> int:
        """The number of a new trial that is complete, on disk whole or not at all."""
        from optuna.trial import TrialState, create_trial

        trial = create_trial(
            state=TrialState.COMPLETE, values=list(values), user_attrs=dict(attributes)
        )
        made = self._storage.create_new_trial(self._id, template_trial=trial)
        return self._storage.get_trial_number_from_id(made)

    def queue(self, queued: Queued) -> int:
        """The number of a new trial that waits to be proposed."""
        parameters, attributes = queued
        number = len(self._storage.every_trial(self._id))
        self.optuna.enqueue_trial(dict(parameters), user_attrs=dict(attributes))
        return number

    def propose(
        self,
        sampler: Any,
        describe: Callable[[Any], Described],
        queued: Queued | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> TrialRecord:
        """A new trial, running or refused, on disk whole or not at all.

        `describe(trial)` draws the proposal from an Optuna trial that asks `sampler`; `queued` is
        proposed before anything is sampled, unless a trial waits already. `asked` is what else the
        sampler was made from: the journal keeps it, with what the sampler saw.
        """
        self.optuna.sampler = sampler
        with self._backend.transaction():
            if queued is not None and not self._waits:
                self.queue(queued)
            with self._storage.one_view(self._id) as view:
                trial = self.optuna.ask()
                attributes, refusal = describe(trial)
            record = TrialRecord(
                trial.number, "running", attributes=trial.user_attrs, parameters=trial.params
            )
            saw = {"records": view.records, **(asked or {})}
            record = self.set(record, {SAW: saw, **attributes})
            return record if refusal is None else self._refuse(record, refusal)

    def _refuse(self, record: TrialRecord, refusal: Refusal) -> TrialRecord:
        record = self.set(record, {"refused": True, "reason": refusal.reason})
        # TPE learns from pruned trials that break a constraint, and ignores failed ones
        return replace(self.end(record, "pruned" if refusal.learn else "failed"), state="refused")

    def continue_stopped(self, record: TrialRecord, attributes: Mapping[str, Any]) -> TrialRecord:
        """A new running trial with the choices of the stopped trial `record` and these attributes:
        on disk whole or not at all.
        """
        from optuna.trial import FrozenTrial, TrialState

        first = self._storage.get_trial(self._trial_id(record))
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
        number = self._storage.get_trial_number_from_id(
            self._storage.create_new_trial(self._id, template_trial=new)
        )
        return TrialRecord(number, "running", attributes=attributes, parameters=first.params)

    def set(self, record: TrialRecord, attributes: Mapping[str, Any]) -> TrialRecord:
        """The trial with these attributes set."""
        with self._alone():
            trial_id = self._trial_id(record)
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(trial_id, name, value)
        return replace(record, attributes={**record.attributes, **attributes})

    def set_rung(
        self, record: TrialRecord, epoch: int, scores: Mapping[str, Any], decision: Decision
    ) -> TrialRecord:
        """The trial with its scores and the decision at a rung."""
        return self.set(record, {f"{RUNG}{epoch}": {"scores": scores, "decision": decision}})

    def move(self, record: TrialRecord, state: Literal["waiting", "running"]) -> TrialRecord:
        """The trial, waiting or running."""
        from optuna.trial import TrialState

        with self._alone():
            self._storage.set_trial_state_values(self._trial_id(record), TrialState[state.upper()])
        return replace(record, state=state)

    def end(
        self, record: TrialRecord, outcome: Outcome, values: Sequence[float] | None = None
    ) -> TrialRecord:
        """The trial, ended: complete with `values`, failed, or, for every other outcome, pruned."""
        from optuna.trial import TrialState

        state: State = outcome if outcome in ("complete", "failed") else "pruned"
        code = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}
        with self._alone():
            self.optuna.tell(record.number, values=values, state=code.get(state, TrialState.PRUNED))
        return replace(record, state=state, values=None if values is None else tuple(values))

    def read(self, number: int) -> TrialRecord:
        """Trial `number`, as it is written."""
        from studies.journal.storage import record_of

        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        return record_of(self._storage.get_trial(trial_id))

    def _trial_id(self, record: TrialRecord) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, record.number)

    @property
    def _waits(self) -> bool:
        from studies.journal.storage import next_place

        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        return next_place(trials) < len(trials)

    @property
    def exhausted(self) -> bool:
        """Whether the grid sampler has nothing left; it notices when a trial ends."""
        return getattr(self.optuna.sampler, "exhausted", False)

    def close(self) -> None:
        """Closes the journal."""
        self._backend.close()
