"""Optuna's journal storage for a single writer: the same file format, one write per proposal,
synced at commit points.

optuna's own file backend takes a lock file and syncs for each of the about 25 records of a trial,
and leaves its lock behind when it is killed (the next writer waits 30 s). Here the study's lock
(`studies.journal.lock`) already makes the writer unique.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from studies.journal.reader import OPTUNA_STATES
from studies.journal.records import SET_STATE
from studies.journal.trial import KIND, TrialRecord
from studies.pareto import DIRECTIONS

log = logging.getLogger(__name__)

NAME = "equisearch"  # of the optuna study inside the journal
# seconds; optuna's own writers (a dashboard) hold their lock for milliseconds
STALE = 60.0
SYNC_EVERY = 0.2  # seconds
WAITS, WAIT = 20, 0.01  # seconds: for the rest of a line that another program appends
# What Optuna reads of each kind of record.
_STUDY, _TRIAL = frozenset({"study_id"}), frozenset({"trial_id"})
NEEDED_KEYS = {
    0: frozenset({"study_name", "directions"}),
    1: _STUDY,
    2: _STUDY | {"user_attr"},
    3: _STUDY | {"system_attr"},
    4: _STUDY | {"datetime_start"},
    5: _TRIAL | {"param_name", "param_value_internal", "distribution"},
    6: _TRIAL | {"state", "values"},
    7: _TRIAL | {"step", "intermediate_value"},
    8: _TRIAL | {"user_attr"},
    9: _TRIAL | {"system_attr"},
}


@dataclass(frozen=True)
class View:
    """The trials at one moment, for one thread."""

    thread: int
    records: int  # of the journal, from its beginning, that lead to them
    trials: list[FrozenTrial]
    own: set[int] = field(default_factory=set)  # ids of trials that the thread began since


def _taken_back(trial: FrozenTrial) -> FrozenTrial:
    """The trial; one that waits for a worker, its proposal complete, as one that runs."""
    if trial.state != TrialState.WAITING or not is_proposed(trial):
        return trial
    running = copy.copy(trial)
    running.state = TrialState.RUNNING
    return running


def is_proposed(trial: FrozenTrial) -> bool:
    """Whether the trial's proposal is complete."""
    return "architecture" in trial.user_attrs


def next_place(trials: Sequence[FrozenTrial]) -> int:
    """The place of the next proposal among the trials of a search: that of the first which waits
    to be proposed, else a new one.
    """
    waiting = (
        place
        for place, trial in enumerate(trials)
        if trial.state == TrialState.WAITING and not is_proposed(trial)
    )
    return next(waiting, len(trials))


class SearchStorage(JournalStorage):
    """Optuna's storage, in which samplers see the trials of the search alone, not those beside it
    (`TrialRecord.kind`): no sampler can learn from them, whatever it looks at.

    Thousands of trials are looked at several times for each proposal: each is asked once of what
    kind it is.
    """

    _view: View | None = None  # what the thread that proposes sees

    def __init__(self, backend: BaseJournalBackend) -> None:
        super().__init__(backend)
        self._asked = 0  # trials of which it is known
        self._beside: set[int] = set()  # numbers of those beside the search

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials of the search, in the order of their numbers."""
        if (view := self._my_view) is not None:
            others = [trial for trial in view.trials if trial._trial_id not in view.own]
            trials = [*others, *map(super().get_trial, sorted(view.own))]
            trials = [trial for trial in trials if states is None or trial.state in states]
        else:
            trials = super().get_all_trials(study_id, deepcopy=False, states=states)
            if states is None:
                self._ask_kinds(trials)
        if view is None and states is not None:
            seen = [trial for trial in trials if KIND not in trial.user_attrs]
        else:
            seen = [t for t in trials if t.number not in self._beside] if self._beside else trials
        return copy.deepcopy(seen) if deepcopy else seen

    def _ask_kinds(self, trials: Sequence[FrozenTrial]) -> None:
        """Takes in of what kind the trials are that were not asked before."""
        new = trials[self._asked :]
        self._beside.update(trial.number for trial in new if KIND in trial.user_attrs)
        self._asked = len(trials)

    @property
    def _my_view(self) -> View | None:
        view = self._view
        return view if view is not None and view.thread == threading.get_ident() else None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See optuna."""
        trial_id = super().create_new_trial(study_id, template_trial)
        if (view := self._my_view) is not None:
            view.own.add(trial_id)
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See optuna."""
        if (view := self._my_view) is not None:
            view.own.add(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    @contextmanager
    def one_view(self, study_id: int) -> Iterator[View]:
        """Until its end this thread sees the trials as they are now, whatever other threads write:
        a proposal learns from one state of the journal, which `equisearch rederive` finds again.

        A trial that was taken back from its worker waits for a worker, not to be proposed, and is
        not seen as waiting.
        """
        trials = super().get_all_trials(study_id, deepcopy=False)
        self._ask_kinds(trials)
        backend: Any = self._backend
        self._view = View(
            threading.get_ident(), backend.handed_out, [_taken_back(trial) for trial in trials]
        )
        try:
            yield self._view
        finally:
            self._view = None

    def every_trial(self, study_id: int) -> list[FrozenTrial]:
        """All trials, those beside the search included, in the order of their numbers."""
        return super().get_all_trials(study_id, deepcopy=False)


class SingleWriterJournal(BaseJournalBackend):
    """Appends to and reads one journal file. Records survive a killed process at once, and a power
    cut from each `tell` on; those of trials that end within SYNC_EVERY of another, that much later.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        # of the file, up to which everything was handed to optuna or written by us
        self._offset = 0
        self._new: list[bytes] = []  # records that optuna has not read yet
        self._unwritten: list[bytes] = []  # of the transaction
        self._owner: int | None = None  # the thread in a transaction
        self._lock = threading.RLock()
        self._handed_out = 0
        self._of_thread = threading.local()
        self._synced = -SYNC_EVERY  # when the file last was
        self._late: threading.Timer | None = None  # syncs what was not synced at once
        self._failed: OSError | None = None  # in doing so

    @property
    def handed_out(self) -> int:
        """How many records optuna had read when this thread read last."""
        return getattr(self._of_thread, "handed_out", 0)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records since the last call, those of other programs (a dashboard's notes) included.

        `log_number_from` is what optuna has read, which is what was handed out: only optuna
        reads through this object.
        """
        with self._lock:
            self._take_in()
            new, self._new = self._new, []
            self._handed_out += len(new)
            self._of_thread.handed_out = self._handed_out
        for line in new:
            yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends the records whole or not at all: on a full disk what was begun is cut off again,
        and OSError raised.
        """
        lines = [
            json.dumps(log, separators=(",", ":"), allow_nan=False).encode() + b"\n" for log in logs
        ]
        with self._lock:
            if self._owner is None:
                self._take_in()  # in the file's order: trials that others created have numbers
            self._new += lines
            self._unwritten += lines
            if self._owner != threading.get_ident():
                self._write()
                if any(log["op_code"] == SET_STATE for log in logs):
                    self._sync()

    def _sync(self) -> None:
        """Has what is written reach the disk, at once or, where it was just done, soon: a sync
        takes milliseconds, and one serves all trials that ended meanwhile.
        """
        if (failed := self._failed) is not None:
            self._failed = None
            raise failed
        if time.monotonic() - self._synced >= SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        elif self._late is None:
            self._late = threading.Timer(SYNC_EVERY, self._sync_late)
            self._late.daemon = True
            self._late.start()

    def _sync_late(self) -> None:
        with self._lock:
            if self._late is None:
                return
            self._late = None
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._failed = error  # raised where the next trial ends
            self._synced = time.monotonic()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds back this thread's records to write them at once: a killed process leaves a whole
        proposal, or none.

        If another thread appends meanwhile, what is held back is written before its records: order
        counts more.
        """
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None
            with self._lock:
                self._write()

    def _take_in(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size > self._offset:
            content = os.pread(self._file.fileno(), size - self._offset, self._offset)
            whole = content[: content.rfind(b"\n") + 1]
            lines = whole.splitlines(keepends=True)
            self._new += [line for line in lines if is_readable_by_optuna(line)]
            if unread := sum(not is_readable_by_optuna(line) for line in lines):
                log.warning(
                    "another program wrote %d lines to the journal that are not records; they are "
                    "left out, and `equisearch repair` removes them when this run has ended",
                    unread,
                )
            self._offset += len(whole)

    def _settle_tail(self) -> None:
        """Takes in what others wrote; an append of theirs that stays half done becomes a line of
        its own.
        """
        self._take_in()
        for _ in range(WAITS):
            if os.fstat(self._file.fileno()).st_size == self._offset:
                return
            time.sleep(WAIT)
            self._take_in()
        os.write(self._file.fileno(), b"\n")
        self._take_in()

    def _write(self) -> None:
        self._settle_tail()
        lines, self._unwritten = b"".join(self._unwritten), []
        descriptor = self._file.fileno()
        before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(lines):
                written += os.write(descriptor, lines[written:])
        except OSError:
            os.ftruncate(descriptor, before)
            raise
        self._offset += len(lines)

    def close(self) -> None:
        """Closes the file; what it holds has then reached the disk."""
        with self._lock:
            late, self._late = self._late, None
            if late is not None and not self._file.closed:
                late.cancel()
                os.fsync(self._file.fileno())
            self._file.close()


def is_readable_by_optuna(line: bytes) -> bool:
    """Whether Optuna, which stops at any other line, can read this one."""
    try:
        entry = json.loads(line)
        return (
            isinstance(entry, dict)
            and "worker_id" in entry
            and type(entry["op_code"]) is int
            and NEEDED_KEYS[entry["op_code"]] <= entry.keys()
        )
    except (ValueError, KeyError, RecursionError):
        return False


def record_of(trial: FrozenTrial) -> TrialRecord:
    """The record of an Optuna trial of a study of ours."""
    return TrialRecord(
        trial.number,
        OPTUNA_STATES[trial.state.value],
        tuple(trial.values) if trial.values else None,
        trial.user_attrs,
        parameters=trial.params,
    )


def open_storage(path: Path) -> tuple[SearchStorage, SingleWriterJournal]:
    """Optuna's storage over the journal at `path`, which is created if absent, and the backend to
    close.
    """
    backend = SingleWriterJournal(path)
    return SearchStorage(backend), backend


def open_optuna_study(
    path: Path, objectives: Sequence[str]
) -> tuple[optuna.Study, SearchStorage, SingleWriterJournal]:
    """The optuna study in the journal at `path`, created if absent, with its storage and the
    backend to close.

    Only the holder of the study's lock may call this. A lock that another optuna process left
    behind is removed.
    """
    stale = path.with_name(path.name + ".lock")
    if stale.is_symlink() and time.time() - stale.lstat().st_mtime > STALE:
        stale.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage, backend = open_storage(path)
    if not any(study.study_name == NAME for study in storage.get_all_studies()):
        optuna.create_study(
            storage=storage, study_name=NAME, directions=[DIRECTIONS[name] for name in objectives]
        )
    return (
        optuna.load_study(study_name=NAME, storage=storage, pruner=optuna.pruners.NopPruner()),
        storage,
        backend,
    )
