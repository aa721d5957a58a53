"""The driver owns a study: it proposes, decides at rungs, keeps the records of its trials, and is
the only writer of the journal.

Order of writes: the worker's checkpoint, scores and attributes, the trial's end (the commit point).
A trial that was running when the driver died goes back to *waiting* under its own number.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.config import Study
from studies.journal.directory import StudyPlace, create_directory, open_directory, publish
from studies.journal.origin import DataIdentity, ReadIdentity, adopt, first_attributes
from studies.journal.trial import ENDED, Decision, Outcome, TrialRecord
from studies.journal.writer import Described, OpenedJournal, open_journal, writing
from studies.search.assignments import Assignment, assignment_of, note_error, with_folder
from studies.search.attempts import Died, Epochs, count_death
from studies.search.beside import Beside
from studies.search.inheritance import Child, next_child
from studies.search.patience import Progress
from studies.search.promotions import Promotions, by_rank, goes_on, worth_continuing
from studies.search.proposals import continuation, describe_proposal
from studies.search.remaining import REFUSALS_IN_A_ROW, Remaining, require_trials
from studies.search.scores import checked, ending, rung_point
from trainers.files import as_word


class SearchDriver:
    """One study in a directory, driven by this process until the end of a `with` block.

    `next` hands out work, `report` decides at a rung, `finish` ends a trial. `next` (a sampler
    thinks) may run in one thread while `report` and `finish` run in another.
    """

    def __init__(self, place: StudyPlace, *, begun: bool) -> None:
        self.directory, self.study, self._lock = place.path, place.study, place.lock
        self.again = f"`equisearch resume {as_word(self.directory)}`"
        self.warnings = tuple(place.warnings)  # such as a changed version of the code
        self.ended: str | None = None  # why nothing is proposed: trials, patience, exhausted
        self.explanation: str | None = None  # of `exhausted`, in a sentence
        self._state = threading.RLock()
        self._running: dict[int, TrialRecord] = {}
        self._waiting: deque[TrialRecord] = deque()
        self.beside = Beside(self.study)  # partners of pairs, and controls
        self._promotions = Promotions(self.study.search.eta)
        self._trainings: Counter[str] = Counter()  # by key: how often it was or is trained
        self._progress, self._epochs = Progress(self.study.objectives), Epochs()
        with self._on_failure_close():
            self._journal, opened = open_journal(self.directory, self.study.objectives)
            if begun:
                opened = adopt(self._journal, opened, self.study, place.images)
            self._restore(opened)

    @classmethod
    def create(
        cls,
        directory: str | Path,
        study: Study,
        *,
        channels: int = 1,
        classes: int = 10,
        enqueue: Sequence[str] = (),
        warm_start: str | Path | None = None,
        images: DataIdentity | None = None,
    ) -> SearchDriver:
        """A new study in `directory`, which may exist but must hold no study (ExistsError).

        `channels` and `classes` are the data's. `enqueue` are tried before `search.first`;
        `warm_start` is an earlier study over the same space, from which the sampler learns.
        """
        from studies.search.warm_start import enqueue_architectures, learn_from, require_alike

        require_alike(study, warm_start)
        driver = cls(create_directory(directory, study), begun=False)
        with driver._on_failure_close(), writing(driver.directory):
            driver._journal.describe(first := first_attributes(study, channels, classes, images))
            driver.channels, driver.classes = channels, classes
            enqueue_architectures(driver._journal.optuna, study, [*enqueue, *study.search.first])
            learn_from(driver._journal.optuna, warm_start)
            publish(driver.directory, study, first, enqueue)
        return driver

    @classmethod
    def open(
        cls,
        directory: str | Path,
        study: Study | None = None,
        *,
        trusted: bool = False,
        look: ReadIdentity | None = None,
        accept_data: bool = False,
    ) -> SearchDriver:
        """The study in `directory`, ready to go on; `study` may widen its trials and resources.

        `trusted` takes over what in it runs programs, whoever wrote it (`studies.journal.trust`);
        else that raises UntrustedError, unless this user did. `look` reads the data first;
        `accept_data` accepts changed data. Raises LockedError if another process drives the study,
        and StudyError without one, or if `study` changes more or has too few trials.
        """
        if study is not None:
            require_trials(Path(directory), study)
        place = open_directory(
            directory, study, trusted=trusted, look=look, accept_data=accept_data
        )
        return cls(place, begun=True)

    def _restore(self, opened: OpenedJournal) -> None:
        """Takes what the journal held into account."""
        self.warnings += opened.warnings
        self.channels = opened.attributes.get("channels", 1)
        self.classes = opened.attributes.get("classes", 10)
        with writing(self.directory):
            for record in opened.records:
                self._restore_trial(record)

    def _restore_trial(self, record: TrialRecord) -> None:
        """Takes a trial of the journal into account; one that was running goes back to waiting."""
        if record.state in ("refused", "earlier"):
            return None
        if record.kind != "search":
            self.beside.restore(record)
            return self._take_back(record, died="program") if record.state == "running" else None
        if record.continues is not None:
            self._promotions.promote(record.continues, record.number)
        elif record.key is not None and record.state != "failed":
            self._trainings[record.key] += 1
        if record.feasible:
            for epoch, scores in record.rungs.items():
                self._promotions.enter(epoch, record.number, rung_point(scores))
        if record.stopped_at is not None and record.whole:
            self._promotions.stop(record.stopped_at, record.number)
        if record.state in ENDED:
            self._progress.count(record)
        elif record.architecture is None:
            if record.state == "running":  # Optuna proposes again under the same number
                self._journal.move(record, "waiting")
        elif record.state == "waiting":
            self._waiting.append(record)
        else:
            self._take_back(record, died="program")

    def _take_back(self, record: TrialRecord, *, died: Died | None = None) -> None:
        """Puts a trial back to waiting.

        `died` says what died, `worker` or `program`: after too many deaths without another epoch
        the trial fails.
        """
        if died is not None:
            attempts, reason = count_death(
                record.attributes.get("attempts", {}),
                died,
                max([self._epochs.last(self._assignment(record)), *record.rungs]),
                self.study.search.retries,
            )
            record = self._journal.set(record, {"attempts": attempts})
            if reason is not None:
                return self._end(record, "failed", reason)
        self._running.pop(record.number, None)
        queue = self._waiting if record.kind == "search" else self.beside.waiting
        queue.append(self._journal.move(record, "waiting"))

    def _assignment(self, record: TrialRecord) -> Assignment:
        return assignment_of(self.directory, self.study, record)

    def next(self) -> Assignment | None:
        """The next piece of work; None: all is given out, or `ended` says why none will follow."""
        self._lock.require()
        with self._state, writing(self.directory):
            if self._waiting:
                return self._give_out(self._journal.move(self._waiting.popleft(), "running"))
            if self._stopping():
                return self._next_beside()
            if (stopped := self._promotion()) is not None:
                return self._promote(stopped)
        return self._continued() or self._propose() or self._next_beside()

    def _next_beside(self) -> Assignment | None:
        """The next trial beside the search, once that has ended; None while it has not."""
        with self._state, writing(self.directory):
            if self.ended is None or any(r.kind == "search" for r in self._running.values()):
                return None
            record = self.beside.next(self._journal, self.directory, self._size)
            return None if record is None else self._give_out(record)

    @property
    def left(self) -> int:
        """Trials that may still end, as far as they are known; those beside the search included."""
        with self._state, writing(self.directory):
            search = max(0, self.study.search.trials - self._progress.ended)
            if not search and not self._running and self._stopping():
                self.beside.plan(self._journal, self.directory, self._size)
            return search + self.beside.count(self._running)

    def _give_out(self, record: TrialRecord, *, new: bool = False) -> Assignment:
        self._running[record.number] = record
        return with_folder(self._assignment(record), new=new)

    def _promotion(self) -> int | None:
        return by_rank(self.study, self._promotions, self._exhausted)

    def _continued(self) -> Assignment | None:
        """A stopped trial, where the sampler prefers it to a new one."""
        stopped = worth_continuing(self.study, self._journal.seen(), self._promotions.waiting)
        with self._state, writing(self.directory):
            return None if stopped is None else self._promote(stopped)

    def _promote(self, stopped: int) -> Assignment:
        """The rest of the training of a stopped trial, under a new number."""
        first = self._journal.read(stopped)
        record = self._journal.continue_stopped(first, continuation(first))
        self._promotions.promote(stopped, record.number)
        return self._give_out(record, new=True)

    def _stopping(self) -> bool:
        search, ended = self.study.search, self._progress.ended
        exhausted = self._exhausted() and self._promotion() is None
        if self.ended is None:
            if search.patience is not None and self._progress.standstill >= search.patience:
                self.ended = "patience"
            elif exhausted and not self._running:  # what runs may let another be promoted
                self.ended = "exhausted"
            elif ended >= search.trials:
                self.ended = "trials"
        return self.ended is not None or exhausted or ended + len(self._running) >= search.trials

    def _propose(self) -> Assignment | None:
        from studies.samplers.factory import make_sampler, version_of

        refused: TrialRecord | None = None
        for _ in range(REFUSALS_IN_A_ROW):
            with writing(self.directory):
                after = refused.number if refused and refused.parameters else None
                sampler = make_sampler(self.study, self._journal.next_number(), after)
                child = None if refused else next_child(self.study, self._journal, self.directory)
                asked = {"after": after, "trials": self.study.search.trials}
                if (version := version_of(self.study)) is not None:
                    asked["version"] = version
                record = self._journal.propose(sampler, self._describe, child, asked)
                if record.state == "running":
                    with self._state:
                        return self._give_out(record, new=True)
                refused = record
                if self._exhausted() or self._remaining.none_left(record, self._trainings):
                    break
        assert refused is not None
        with self._state, writing(self.directory):
            if (stopped := self._promotion()) is not None:  # `ehvi`: only where nothing new is left
                return self._promote(stopped)
        if self._progress.ended + len(self._running) == 0:
            self._remaining.require_any(refused)
        if not (self._exhausted() and self._running):
            self.ended = "exhausted"
            self.explanation = self._remaining.explain(refused)
        return None

    def queue(self, child: Child) -> int:
        """The number of the new trial of `child`, which waits to be trained."""
        with self._state, writing(self.directory):
            return self._journal.queue(child.queued(self.study))

    def add_complete(self, attributes: Mapping[str, Any], values: Sequence[float]) -> int:
        """The number of a new trial that was not trained (`studies.search.softened`)."""
        with self._state, writing(self.directory):
            return self._journal.add_complete(attributes, values)

    @cached_property
    def _remaining(self) -> Remaining:
        return Remaining(self.study, self.channels, self.classes)

    @property
    def _size(self) -> tuple[int, int]:
        return self.channels, self.classes

    def _exhausted(self) -> bool:
        return self._journal.exhausted or self._remaining.exhausted

    def _describe(self, trial: Any) -> Described:
        """The attributes of what an Optuna trial proposes, and why it is refused, if it is."""
        return describe_proposal(trial, self.study, self._size, self._trainings, self._state)

    def heartbeat(self, number: int, epoch: int) -> None:
        """Notes that trial `number` has trained and saved an epoch."""
        with self._state, writing(self.directory):
            if number in self._running:
                self._epochs.note(self._assignment(self._running[number]), epoch)

    def report(self, number: int, epoch: int, scores: Mapping[str, Any]) -> Decision:
        """Whether trial `number` trains on after `epoch`, as it does after the last; a repeated
        report gets the same answer. Raises ScoresError for scores that are missing or not finite.
        """
        with self._state, writing(self.directory):
            record = self._running.get(number)
            if record is None:  # ended already: a worker that was given up still reports
                return "stop"
            if epoch not in self.study.rungs:
                return "continue"
            if epoch not in record.rungs:
                scores = checked({**scores, "epoch": epoch})
                last = epoch == self.study.rungs[-1] or record.kind != "search"
                if record.kind == "search":
                    self._promotions.enter(epoch, number, rung_point(scores))
                seen, at = self._journal.seen, (number, epoch)
                going = last or goes_on(self.study, seen, self._promotions, at, scores)
                record = self._running[number] = self._journal.set_rung(
                    record, epoch, scores, "continue" if going else "stop"
                )
            return record.decisions[epoch]

    def finish(
        self, number: int, state: Outcome, reason: str | None = None, detail: str | None = None
    ) -> None:
        """Ends trial `number`, or takes it back: interrupted and lost ones continue later, under
        the same number.

        `reason` is one line, `detail` (a traceback) goes to `error.txt`. Raises
        TooManyFailuresError after the fifth failure in a row.
        """
        if state == "failed":
            self._lock.require()  # whatever trains in a directory that is gone fails
        with self._state, writing(self.directory):
            record = self._running[number]
            if state == "interrupted":
                self._take_back(record)
            elif state == "lost":
                self._take_back(record, died="worker")
            elif state == "out_of_memory" and record.batch_divisor == 1:
                self._take_back(self._journal.set(record, {"batch_divisor": 2}))
            else:
                self._end(record, state, reason, detail)

    def _end(
        self,
        record: TrialRecord,
        outcome: Outcome,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        outcome, reason, values, excess = ending(self.study, record, outcome, reason)
        if excess != record.constraints:
            record = self._journal.set(record, {"constraints": excess})
        if reason:
            record = self._journal.set(record, {"reason": reason})
            note_error(self._assignment(record), detail or reason)
        record = self._journal.end(record, outcome, values)
        if record.stopped_at is not None and record.whole:
            self._promotions.stop(record.stopped_at, record.number)
        self._running.pop(record.number, None)
        self._epochs.forget(record.number)
        if record.kind == "search":
            self._progress.count(record)
        self._progress.judge(record)

    @contextmanager
    def _on_failure_close(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> tuple[int, ...]:
        """The numbers of the trials that are given out."""
        with self._state:
            return tuple(self._running)

    def trial(self, number: int) -> TrialRecord:
        """The record of a trial that is given out."""
        with self._state:
            return self._running[number]

    @property
    def finished(self) -> int:
        """How many trials have ended: complete, pruned or failed."""
        return self._progress.ended

    @property
    def volume(self) -> float:
        """The hypervolume of the front, 0 to 1."""
        return self._progress.volume

    def close(self) -> None:
        """Gives the study back; trials that are still running continue when it is opened again."""
        journal = getattr(self, "_journal", None)
        if journal is not None:
            journal.close()
        self._lock.close()

    def __enter__(self) -> SearchDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
