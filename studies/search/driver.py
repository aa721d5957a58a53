"""The driver owns a study: it proposes, decides at rungs, remembers, and is the only writer of the
journal.

A study is a directory: `study.yaml`, `versions.json`, `optuna.journal` and `trials/00017/`. Order
of writes: the worker's checkpoint, then scores and attributes, then `tell`, which is the commit
point. A trial that was running when the driver died goes back to *waiting* under its own number and
in its own folder, and continues from its checkpoint; so no trial is there twice, none is lost, and
a resumed study proposes what an undisturbed one would.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.config import Study
from studies.errors import ScoresError, StudyError
from studies.journal.directory import create_directory, open_directory
from studies.journal.lock import StudyLock
from studies.journal.reader import Outcome, Record, recorded_rungs
from studies.journal.writer import Before, open_ledger, writing
from studies.search.assignments import (
    Assignment,
    Decision,
    assignment_of,
    checked,
    compared,
    with_folder,
)
from studies.search.progress import Tally
from studies.search.promotions import Standings
from studies.search.proposals import attributes_of, continued, facts, proposed

REFUSALS_IN_A_ROW = 200


@dataclass
class _Running:
    """A trial in the hands of a worker."""

    trial_id: int
    assignment: Assignment
    attributes: dict[str, Any]
    # epoch -> {"scores", "decision"}
    rungs: dict[int, dict[str, Any]] = field(default_factory=dict)


class SearchDriver:
    """One study in a directory, driven by this process; a context manager that gives the study back
    at the end.

    `next` hands out work, `report` decides at a rung, `finish` ends a trial. `next` may be slow (a
    sampler thinks) and may run in one thread while `report` and `finish` run in another.
    """

    def __init__(
        self, directory: Path, study: Study, lock: StudyLock, warnings: Sequence[str]
    ) -> None:
        self.directory, self.study = directory, study
        # for the user, such as a changed version of the code
        self.warnings = tuple(warnings)
        # why nothing new is proposed: trials, patience, exhausted
        self.ended: str | None = None
        self._lock = lock
        self._state = threading.RLock()
        self._running: dict[int, _Running] = {}
        self._interrupted: deque[_Running] = deque()
        self._standings = Standings(study.search.eta)
        # canonical architecture -> how often it was or is being trained
        self._trainings: Counter[str] = Counter()
        self._tally = Tally(study.objectives)
        with self._on_failure_close():
            self._ledger, before = open_ledger(directory, study.objectives)
            self._remember(before)

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
    ) -> SearchDriver:
        """A new study in `directory`, which may exist but must hold no study (ExistsError).

        `channels` and `classes` are those of the data. `enqueue` are architectures to try first;
        `warm_start` is the directory of an earlier study over the same space, whose results the
        sampler learns from.
        """
        from studies.search.warm_start import enqueue_architectures, learn_from

        directory, lock, warnings = create_directory(directory, study)
        driver = cls(directory, study, lock, warnings)
        with driver._on_failure_close(), writing(driver.directory):
            driver._ledger.describe(
                {"channels": channels, "classes": classes, "objectives": list(study.objectives)}
            )
            driver.channels, driver.classes = channels, classes
            enqueue_architectures(driver._ledger.optuna, enqueue)
            if warm_start is not None:
                learn_from(driver._ledger.optuna, study, Path(warm_start))
        return driver

    @classmethod
    def open(
        cls, directory: str | Path, study: Study | None = None, *, trusted: bool = False
    ) -> SearchDriver:
        """The study in `directory`, ready to go on; `study` may widen its trials, timeout, patience
        and resources.

        `trusted` takes over what in it runs programs, whoever wrote it (`studies.journal.trust`);
        else that raises UntrustedError, unless this user wrote it. Raises LockedError if somebody
        else drives it, and StudyError if there is no study or `study` changes more than that.
        """
        directory, stored, lock, warnings = open_directory(directory, study, trusted=trusted)
        return cls(directory, stored, lock, warnings)

    # ---- memory
    # -----------------------------------------------------------------------------------------------------

    def _remember(self, before: Before) -> None:
        """Takes what the journal held into account."""
        if before.torn is not None:
            self.warnings += (
                "the journal's last line was torn and has been dropped; a copy is in "
                f"{before.torn.name}",
            )
        self.channels, self.classes = (
            before.attributes.get("channels", 1),
            before.attributes.get("classes", 10),
        )
        with writing(self.directory):
            for record in before.records:
                self._recall(record)

    def _recall(self, record: Record) -> None:
        """Takes a trial of the journal into account; one that was running goes back to waiting."""
        if record.state in ("refused", "earlier"):
            return
        if "continues" in record.attributes:
            self._standings.continues(record.number, record.attributes["continues"])
        for epoch, scores in record.rungs.items():
            if record.feasible:
                self._standings.enter(epoch, record.number, compared(scores))
        self._standings.end(record.number, record.state, recorded_rungs(record.attributes))
        if (
            "canonical" in record.attributes
            and record.state != "failed"
            and "continues" not in record.attributes
        ):
            self._trainings[record.attributes["canonical"]] += 1
        if record.state in ("complete", "pruned", "failed"):
            self._tally.count(
                record.values if record.state == "complete" and record.feasible else None
            )
        elif record.architecture is not None:
            self._take_back(
                _Running(
                    self._ledger.trial_id(record.number),
                    assignment_of(self.directory, self.study, record.number, record.attributes),
                    dict(record.attributes),
                    recorded_rungs(record.attributes),
                ),
                lost=record.state == "running",
                waiting=record.state == "waiting",
            )
        elif (
            record.state == "running"
        ):  # asked for, not wholly proposed: optuna asks again under the same number
            self._ledger.move(self._ledger.trial_id(record.number), "WAITING")

    def _take_back(self, running: _Running, *, lost: bool, waiting: bool = False) -> None:
        """Puts a trial back to waiting, or fails it after too many attempts that brought it no
        further.
        """
        number = running.assignment.number
        if lost:
            before = running.attributes.get("attempts", {"count": 0, "rungs": 0})
            count = before["count"] + 1 if before["rungs"] == len(running.rungs) else 1
            running.attributes["attempts"] = {"count": count, "rungs": len(running.rungs)}
            self._ledger.set(running.trial_id, "attempts", running.attributes["attempts"])
            if count > self.study.search.retries:
                self._running[number] = running
                return self._tell(
                    running, "failed", f"its worker died {count} times without getting any further"
                )
        if not waiting:
            self._ledger.move(running.trial_id, "WAITING")
        self._interrupted.append(running)

    # ---- next
    # -------------------------------------------------------------------------------------------------------

    def next(self) -> Assignment | None:
        """The next piece of work, or None: all trials are given out, or `ended` says why none will
        follow.
        """
        with self._state, writing(self.directory):
            if self._interrupted:
                running = self._interrupted.popleft()
                self._ledger.move(running.trial_id, "RUNNING")
                self._running[running.assignment.number] = running
                return with_folder(running.assignment)
            if self._stopping():
                return None
            if (chance := self._chance()) is not None:
                return self._continue(chance)
        return self._propose()

    def _chance(self) -> int | None:
        return self._standings.second_chance() if self.study.search.second_chances else None

    def _continue(self, number: int) -> Assignment:
        """The rest of the training of a stopped trial, under a new number."""
        attributes = continued(number, self._ledger.attributes(number))
        trial_id, new = self._ledger.again(number, attributes)
        self._standings.continues(new, number)
        self._running[new] = _Running(
            trial_id,
            assignment_of(self.directory, self.study, new, attributes),
            attributes,
            recorded_rungs(attributes),
        )
        return with_folder(self._running[new].assignment)

    def _stopping(self) -> bool:
        search = self.study.search
        if (
            self.ended is None
            and search.patience is not None
            and self._tally.standstill >= search.patience
        ):
            self.ended = "patience"
        exhausted = self._ledger.exhausted and self._chance() is None
        # what still runs may give another a second chance
        if self.ended is None and exhausted and not self._running:
            self.ended = "exhausted"
        if self.ended is None and self._tally.ended >= search.trials:
            self.ended = "trials"
        return (
            self.ended is not None
            or exhausted
            or self._tally.ended + len(self._running) >= search.trials
        )

    def _propose(self) -> Assignment | None:
        from studies.samplers.factory import make_sampler

        reason, trial = "", None
        for _ in range(REFUSALS_IN_A_ROW):
            with writing(self.directory):
                sampler = make_sampler(self.study, self._ledger.next_number(), trial)
                trial, (assignment, reason) = self._ledger.ask(sampler, self._register)
                if assignment is not None:
                    return with_folder(assignment)
                if self._ledger.exhausted:
                    break
        if self._tally.ended + len(self._running) == 0:
            raise StudyError(
                f"no architecture of the space can be trained; the last one was refused: {reason}"
            )
        if not (self._ledger.exhausted and self._running):
            self.ended = "exhausted"
        return None

    def _register(self, trial: Any) -> tuple[Assignment | None, str]:
        """Writes down what was proposed and returns the work, or refuses it and returns the reason."""
        try:
            proposal = proposed(trial, self.study, self.channels, self.classes)
            known = facts(proposal.architecture, self.study, self.channels, self.classes)
        except ValueError as error:
            return None, self._refuse(trial, str(error))
        with self._state:
            key = proposal.key
            repeats = self._trainings[key]
            attributes = attributes_of(proposal, known, key, repeats, self.study.search.seed)
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            if known.broken:
                return None, self._refuse(trial, known.broken, learn=True)
            if repeats >= self.study.search.repeats:
                return None, self._refuse(
                    trial, f"the same architecture was trained {repeats} times already"
                )
            assignment = assignment_of(self.directory, self.study, trial.number, attributes)
            self._trainings[key] += 1
            self._running[trial.number] = _Running(trial._trial_id, assignment, attributes)
        return assignment, ""

    def _refuse(self, trial: Any, reason: str, *, learn: bool = False) -> str:
        trial.set_user_attr("refused", True)
        trial.set_user_attr("reason", reason)
        # TPE learns from pruned trials that break a constraint, and takes no notice of failed ones
        self._ledger.commit(trial.number, "pruned" if learn else "failed")
        return reason

    # ---- report
    # -----------------------------------------------------------------------------------------------------

    def report(self, number: int, epoch: int, scores: Mapping[str, Any]) -> Decision:
        """Whether trial `number` trains on after `epoch`; asked again, the answer is the same.

        At the last epoch it is always to continue. Raises ScoresError for scores that are missing
        or not finite.
        """
        with self._state, writing(self.directory):
            running = self._running.get(number)
            if running is None:
                # told already: somebody who was given up still speaks
                return "stop"
            if epoch not in self.study.rungs:
                return "continue"
            if epoch not in running.rungs:
                scores = checked({**scores, "epoch": epoch})
                self._standings.enter(epoch, number, compared(scores))
                kept = epoch == self.study.rungs[-1] or self._standings.goes_on(epoch, number)
                running.rungs[epoch] = {
                    "scores": scores,
                    "decision": "continue" if kept else "stop",
                }
                self._ledger.set(running.trial_id, f"rung {epoch}", running.rungs[epoch])
            return running.rungs[epoch]["decision"]

    # ---- finish
    # -----------------------------------------------------------------------------------------------------

    def finish(
        self, number: int, state: Outcome, reason: str | None = None, detail: str | None = None
    ) -> None:
        """Ends trial `number`, or takes it back: interrupted and lost ones continue later, under
        the same number.

        `reason` is one line, `detail` (a traceback) goes to `error.txt`. Raises
        TooManyFailuresError when this was the fifth failure in a row, after it has been told.
        """
        with self._state, writing(self.directory):
            running = self._running[number]
            if state in ("interrupted", "lost"):
                del self._running[number]
                self._take_back(running, lost=state == "lost")
            elif state == "out_of_memory" and running.assignment.batch_divisor == 1:
                del self._running[number]
                self._ledger.set(running.trial_id, "batch_divisor", 2)
                running.attributes["batch_divisor"] = 2
                running.assignment = assignment_of(
                    self.directory, self.study, number, running.attributes
                )
                self._take_back(running, lost=False)
            else:
                self._tell(running, state, reason, detail)

    def _tell(
        self,
        running: _Running,
        state: Outcome,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        values = None
        if state == "complete":
            try:
                values = self._values(running)
            except ScoresError as error:
                state, reason = "failed", str(error)
        if state == "out_of_memory":
            reason = f"out of memory even with half the batch: {reason}"
            self._constrain(running, {**running.attributes.get("constraints", {}), "memory": 1.0})
        if reason:
            self._ledger.set(running.trial_id, "reason", reason)
            Path(running.assignment.directory).mkdir(parents=True, exist_ok=True)
            (Path(running.assignment.directory) / "error.txt").write_text(
                f"{detail or reason}\n", encoding="utf-8"
            )
        self._ledger.commit(running.assignment.number, state, values)
        self._standings.end(running.assignment.number, state, running.rungs)
        del self._running[running.assignment.number]
        feasible = all(excess <= 0 for excess in running.attributes.get("constraints", {}).values())
        self._tally.count(values if feasible else None)
        self._tally.judge(state == "failed", reason)

    def _values(self, running: _Running) -> list[float]:
        last = running.rungs.get(self.study.rungs[-1])
        if last is None:
            raise ScoresError(
                f"the training ended without scores for the last epoch, {self.study.rungs[-1]}"
            )
        known = {**running.attributes, **last["scores"]}
        missing = [
            name for name in self.study.objectives if not isinstance(known.get(name), (int, float))
        ]
        if missing:
            raise ScoresError(f"the scores lack the objective {', '.join(missing)}")
        excess = {
            name: known[name] / limit - 1
            for name, limit in self.study.constraints.limits().items()
            if known.get(name) is not None
        }
        if excess != running.attributes.get("constraints", {}):
            self._constrain(running, excess)
        return [float(known[name]) for name in self.study.objectives]

    def _constrain(self, running: _Running, excess: dict[str, float]) -> None:
        running.attributes["constraints"] = excess
        self._ledger.set(running.trial_id, "constraints", excess)

    # ---- the study as a whole
    # ---------------------------------------------------------------------------------------

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

    def attributes(self, number: int) -> dict[str, Any]:
        """What is known of a trial that is given out: its architecture, parameters, seed and so on."""
        with self._state:
            return dict(self._running[number].attributes)

    @property
    def finished(self) -> int:
        """How many trials have ended: complete, pruned or failed."""
        return self._tally.ended

    @property
    def volume(self) -> float:
        """The hypervolume of the front, 0 to 1."""
        return self._tally.volume

    def close(self) -> None:
        """Gives the study back; trials that are still running continue when it is opened again."""
        ledger = getattr(self, "_ledger", None)
        if ledger is not None:
            ledger.close()
        self._lock.close()

    def __enter__(self) -> SearchDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
