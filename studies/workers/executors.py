"""Carrying out a study: what every executor shares, and the one that runs trials in this process,
one after the other.

An executor asks the driver for work, lets a trainable do it, passes on what that reports, and tells
how it ended. It holds to:
- every assignment that is handed out ends in exactly one `finish`, or the study is left as a killed
driver leaves it;
- the first SIGINT or SIGTERM lets running trials finish their epoch and puts them back, the second
ends the process at once;
- a trainable that raises fails its trial (`ScoresError` and others), one that runs out of memory is
tried once more with half the
  batch, and one that runs out of disk ends the study without failing the trial.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, cast

from studies.errors import StudyError, lacks_memory, lacks_space
from studies.journal.trial import Decision, Outcome
from studies.search.assignments import Assignment, Driver, LeaveError, Trainable
from studies.sections import Resources
from studies.workers.silence import AwakeClock
from trainers.cores import available_cores

if TYPE_CHECKING:
    from studies.search.driver import SearchDriver

DEFAULT_TRAINABLE = "studies.workers.worker:run_trial"


@dataclass(frozen=True)
class Event:
    """Something to show: a trial started, finished an epoch, was compared at a rung, or ended; or a
    warning, of no trial.
    """

    kind: Literal["started", "epoch", "rung", "ended", "warning"]
    number: int
    epoch: int = 0
    scores: Mapping[str, Any] | None = None  # at a rung
    outcome: str | None = None  # of an ended trial; at a rung, the decision
    reason: str | None = None


ENDINGS = {
    "trials": "all trials are done",
    "patience": "the front has not grown for as many trials as search.patience says",
    "exhausted": "nothing is left to try",
    "timeout": "search.timeout is over",
}


@dataclass(frozen=True)
class RunEnding:
    """Why a run ended: trials, patience, exhausted, timeout, or the name of a signal; and the exit
    status that says so.
    """

    reason: str
    exit_status: int = 0

    @property
    def text(self) -> str:
        """The reason in words; the name of a signal as it is."""
        return ENDINGS.get(self.reason, self.reason)


Listener = Callable[[Event], None]

TrainableName = Trainable | str | None
"""A function, `module:function`, or None: what carries out an assignment; None trains."""


def run_study(
    driver: Driver, trainable: TrainableName = None, listener: Listener | None = None
) -> RunEnding:
    """Runs the study to its end, or until it is interrupted, and returns why it ended.

    None as `trainable` trains and measures (`studies.workers.worker:run_trial`). Trials run in this
    process where the study asks for one worker, else on Ray. Raises StudyError when the study
    cannot go on.
    """
    if not on_ray(driver.study.resources):
        return run_in_process(driver, trainable, listener)
    from studies.workers.ray_executor import run_on_ray

    return run_on_ray(driver, trainable, listener)


def on_ray(resources: Resources) -> bool:
    """Whether a study runs on Ray: if it says so, names a cluster, or has more than one worker."""
    alone = resources.workers == 1 or (
        resources.workers == "auto" and available_cores() < 2 * max(1, resources.cpus_per_trial)
    )
    address = resources.address or os.environ.get("RAY_ADDRESS")
    return resources.executor == "ray" or (
        resources.executor == "auto" and bool(address or not alone)
    )


def require_cluster(resources: Resources) -> None:
    """Raises StudyError if a study is to run on a Ray cluster that does not answer, or does not let
    this process in.
    """
    if on_ray(resources):
        from studies.workers.cluster import address_of, require_answer

        address = address_of(resources)
        if address is not None:
            require_answer(address)


def run_in_process(
    driver: Driver, trainable: TrainableName = None, listener: Listener | None = None
) -> RunEnding:
    """Runs the study here, one trial at a time: for debugging, for one device, and for machines
    without Ray. See `run_study`.
    """
    with (
        listening(driver, listener) as show,
        Interruption(driver.study.search.timeout) as interruption,
        AwakeClock() as clock,
    ):
        while not interruption.requested:
            assignment = driver.next()
            if assignment is None:
                return RunEnding(driver.ended or "trials")
            show(Event("started", assignment.number))
            report = _DirectReport(driver, assignment, interruption, show, clock)
            error: BaseException | None = None
            try:
                resolve_trainable(trainable)(driver.study, assignment, report)
            except (Exception, LeaveError) as raised:
                error = raised
            settle(driver, assignment.number, report.stopped, Failure.of(error), show)
    return interruption.ending()


def resolve_trainable(trainable: TrainableName) -> Trainable:
    """The function that carries out an assignment. Raises what importing it raises."""
    if callable(trainable):
        return trainable
    module, _, name = (trainable or DEFAULT_TRAINABLE).partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def listening(driver: Driver, listener: Listener | None) -> Iterator[Listener]:
    """The listener and the loggers that the study's file switches on, as one listener."""
    show = unfailing(listener or silent)
    asked = driver.study.loggers
    if not (asked.tensorboard or asked.mlflow is not None or asked.wandb is not None):
        yield show
        return
    from studies.workers.loggers import TuneLoggers

    loggers = TuneLoggers(cast("SearchDriver", driver))  # only a search has loggers

    def warn(why: str) -> None:
        show(
            Event(
                "warning",
                -1,
                reason=f"the loggers failed ({why}) and log nothing more; the study goes on",
            )
        )

    log = unfailing(loggers, warn)

    def both(event: Event) -> None:
        show(event)
        log(event)

    try:
        yield both
    finally:
        unfailing(lambda event: loggers.close(), warn)(Event("warning", -1))


def unfailing(listener: Listener, tell: Callable[[str], None] = lambda why: None) -> Listener:
    """A listener that touches no trial: after its first exception, which `tell` is told of in one
    line, it listens no more.
    """
    failed = False

    def listen(event: Event) -> None:
        nonlocal failed
        if failed:
            return
        try:
            listener(event)
        except Exception as error:
            failed = True
            tell(f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200])

    return listen


def silent(event: Event) -> None:
    """A listener that shows nothing."""


class _DirectReport:
    """A worker's report to a driver in the same process."""

    def __init__(
        self,
        driver: Driver,
        assignment: Assignment,
        interruption: Interruption,
        show: Listener,
        clock: AwakeClock,
    ) -> None:
        self._driver, self._number = driver, assignment.number
        self._interruption, self._show, self._clock = interruption, show, clock
        self.stopped = False
        self._heard = clock.seconds()

    def __call__(self, scores: Mapping[str, Any]) -> Decision:
        decision = self._driver.report(self._number, scores["epoch"], scores)
        self.stopped = self.stopped or decision == "stop"
        self._show(Event("rung", self._number, scores["epoch"], scores, decision))
        return decision

    def heartbeat(self, epoch: int) -> None:
        """Reports the epoch. Raises LeaveError if the study is being stopped, and TimeoutError for
        an epoch that took too long (a suspended machine does not count).
        """
        self._driver.heartbeat(self._number, epoch)
        self._show(Event("epoch", self._number, epoch))
        limit, now = self._driver.study.resources.trial_timeout, self._clock.seconds()
        if limit is not None and now - self._heard > limit:
            raise TimeoutError(
                f"epoch {epoch} took {now - self._heard:.0f} s, and resources.trial_timeout is "
                f"{limit:g} s"
            )
        self._heard = now
        if self._interruption.requested:
            raise LeaveError


FailureKind = Literal["left", "failed", "out_of_memory", "no_space", "study"]


@dataclass(frozen=True)
class Failure:
    """How a trainable ended other than by returning, in plain values that can be pickled."""

    kind: FailureKind
    reason: str  # one line
    detail: str  # the traceback

    @classmethod
    def of(cls, error: BaseException | None) -> Failure | None:
        """The failure that an exception means; None for None."""
        if error is None:
            return None
        reason = ": ".join(filter(None, (type(error).__name__, str(error).strip())))
        reason = reason.splitlines()[0][:500]
        detail = "".join(traceback.format_exception(error))
        return cls(_kind(error), reason, detail)


OUTCOMES: dict[FailureKind, Outcome] = {
    "left": "interrupted",
    "no_space": "interrupted",
    "study": "interrupted",
    "out_of_memory": "out_of_memory",
    "failed": "failed",
}


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, LeaveError):
        return "left"
    if isinstance(error, StudyError):
        return "study"
    if lacks_space(error):
        return "no_space"
    if lacks_memory(error):
        return "out_of_memory"
    return "failed"


def settle(
    driver: Driver, number: int, stopped: bool, failure: Failure | None, show: Listener
) -> None:
    """Tells the driver how a trial ended. Raises StudyError if that ends the study too."""
    outcome: Outcome = "pruned" if stopped else "complete"
    if failure is not None:
        outcome = OUTCOMES[failure.kind]
    # that the study is being stopped is not a reason of the trial's
    reason = failure.reason if failure and failure.kind != "left" else None
    try:
        driver.finish(number, outcome, reason, failure.detail if failure else None)
    finally:
        show(Event("ended", number, outcome=outcome, reason=reason))
    if failure is not None and failure.kind == "no_space":
        raise StudyError(
            f"no space is left on the device for trial {number} ({reason}); nothing earlier is "
            f"lost: free some space, then {driver.again}"
        )
    if failure is not None and failure.kind == "study":
        raise StudyError(failure.reason.partition(": ")[2])


class Interruption:
    """Notices SIGINT, SIGTERM and the end of the time allowed, for the duration of a `with` block.

    The first signal sets `requested`; the second ends the process at once, as signals do by
    default. In a thread other than the main one, only the time is watched.
    """

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                s: signal.signal(s, self._notice) for s in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = signal.Signals(number)

    @property
    def requested(self) -> bool:
        """True once running trials should finish their epoch and leave."""
        return self._signal is not None or (
            self._deadline is not None and time.monotonic() >= self._deadline
        )

    def ending(self) -> RunEnding:
        """Why it was requested."""
        return (
            RunEnding("timeout")
            if self._signal is None
            else RunEnding(self._signal.name, 128 + self._signal)
        )
