"""A list of jobs on the same workers as a search: in this process, on Ray on this machine, or on a
cluster. What is done stays done, whatever ends a run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from studies.config import Study
from studies.errors import InterruptedStudyError, LockedError, StudyError
from studies.journal.trial import Decision, Outcome
from studies.search.assignments import Assignment, Trainable, note_error
from studies.sections import Loggers
from studies.workers.executors import Event, Listener, run_study, silent


class JobDriver:
    """Hands out assignments, each once, and those of `after` only when others are done; a job that
    fails ends the handing out. `number` of an assignment is its place in the list.
    """

    def __init__(
        self,
        study: Study,
        directory: Path,
        assignments: Sequence[Assignment],
        *,
        done: Collection[int] = (),
        after: Mapping[int, Collection[int]] | None = None,
        on_done: Callable[[int], None] = lambda number: None,
    ) -> None:
        search = study.search.model_copy(update={"trials": len(assignments), "timeout": None})
        self.study = study.model_copy(update={"search": search, "loggers": Loggers()})
        self.directory = directory
        self.ended: str | None = None
        self.again = "the same command"
        self.failure: tuple[int, str] | None = None  # (number, reason)
        self._assignments = list(assignments)
        self._done = set(done)
        self._waiting = [n for n in range(len(assignments)) if n not in self._done]
        self._after, self._on_done = after or {}, on_done
        self._deaths: Counter[int] = Counter()
        self._state = threading.RLock()

    @property
    def finished(self) -> int:
        """How many jobs are done."""
        return len(self._done)

    @property
    def left(self) -> int:
        """How many are not."""
        return self.study.search.trials - len(self._done)

    def next(self) -> Assignment | None:
        """The first job that waits for no other; None: nothing is left, what runs must end first,
        or a job has failed.
        """
        with self._state:
            for number in self._waiting if self.failure is None else ():
                if self._done.issuperset(self._after.get(number, ())):
                    self._waiting.remove(number)
                    return self._assignments[number]
            return None

    def heartbeat(self, number: int, epoch: int) -> None:
        """Nothing: checkpoints say how far a job is."""

    def report(self, number: int, epoch: int, scores: Mapping[str, object]) -> Decision:
        """Always to continue: jobs are not compared."""
        return "continue"

    def finish(
        self, number: int, state: Outcome, reason: str | None = None, detail: str | None = None
    ) -> None:
        """Counts a job as done or failed, or takes it back: what was interrupted, lost with its
        worker, or ran out of memory once, continues from its checkpoint. Raises LockedError where
        another process does the job.
        """
        with self._state:
            job = self._assignments[number]
            self._deaths[number] += state == "lost"
            if state == "out_of_memory" and job.batch_divisor == 1:
                self._assignments[number] = replace(job, batch_divisor=2)
            elif state in ("out_of_memory", "failed") or (
                self._deaths[number] > self.study.search.retries
            ):
                note_error(job, detail or reason or state)
                self.failure = self.failure or (number, _said(state, reason))
                return None
            elif state == "complete":
                self._done.add(number)
                return self._on_done(number)
            self._waiting.insert(0, number)
            kind, _, said = (reason or "").partition(": ")
            if kind == LockedError.__name__:
                raise LockedError(said)


def _said(state: Outcome, reason: str | None) -> str:
    """Why a job ended, in words."""
    if state != "out_of_memory":
        return reason or state
    return (
        f"out of memory even with half the batch: {reason or state}; end other programs, or let "
        "fewer trainings run at the same time (--workers)"
    )


def run_assignments(
    driver: JobDriver,
    work: Trainable,
    label: Callable[[int], str],
    listener: Listener | None = None,
) -> None:
    """Carries out every assignment of the driver by `work`, on the workers that its study names.

    The first SIGINT or SIGTERM lets running epochs finish, then raises InterruptedStudyError, and
    the same call goes on. Raises StudyError, with `label(number)`, once what runs has ended, where
    a job has failed.
    """
    total = driver.study.search.trials
    if driver.finished == total:
        return
    ending = run_study(driver, work, listener or _warnings_only)
    state = f"{driver.finished} of {total} are finished and kept; the same command goes on"
    if ending.exit_status:
        raise InterruptedStudyError(
            f"interrupted ({ending.reason}): {state}", ending.exit_status - 128
        )
    if driver.failure is not None:
        number, reason = driver.failure
        raise StudyError(f"{label(number)}: {reason}; {state}")


def _warnings_only(event: Event) -> None:
    from studies.output import note

    if event.kind == "warning":
        note(f"warning: {event.reason}")
    else:
        silent(event)
