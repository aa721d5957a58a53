"""The worker's side of the Ray executor: an actor that carries out assignments, and the messages
that it exchanges with the driver.
"""

from __future__ import annotations

import pickle
import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studies.config import Study
from studies.journal.trial import Decision
from studies.search.assignments import LeaveError
from studies.search.scores import checked
from studies.workers.cluster import unseen
from studies.workers.executors import Failure, resolve_trainable


@dataclass(frozen=True)
class Ready:
    """A worker has started."""

    unseen: str | None  # what it cannot see of what it needs: it is given no work


@dataclass(frozen=True)
class Heartbeat:
    """An epoch is trained and saved; the answer is to continue or to leave."""

    epoch: int


@dataclass(frozen=True)
class Rung:
    """A rung is reached; the answer is the decision."""

    scores: dict[str, Any]


@dataclass(frozen=True)
class TrialEnded:
    """The trainable has returned or raised; the answer is the next assignment."""

    stopped: bool
    failure: Failure | None


class Worker:
    """The actor: the trainable runs in a thread of its own and talks through two queues, so that
    `exchange` is one call.
    """

    def __init__(self, study: Study, trainable: bytes, directory: str, paths: list[str]) -> None:
        self._study, self._trainable, self._directory = study, trainable, directory
        sys.path.extend(path for path in paths if path not in sys.path)
        self._answers: queue.Queue[Any] = queue.Queue()
        self._messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def exchange(self, answer: Any) -> Any:
        """Passes an answer (at first None) to the trainable's thread; returns its next message."""
        if answer is None:
            return Ready(unseen(self._study, self._directory))
        self._answers.put(answer)
        return self._messages.get()

    def _work(self) -> None:
        while True:
            assignment = self._answers.get()
            report = _RemoteReport(self._messages, self._answers)
            failure = None
            try:
                # Unpickled here, so that a trainable which cannot be imported fails trials, with
                # its reason
                resolve_trainable(pickle.loads(self._trainable))(self._study, assignment, report)
            # whatever it is: the driver would wait for this thread without end
            except BaseException as error:
                failure = Failure.of(error)
            self._messages.put(TrialEnded(report.stopped, failure))


class _RemoteReport:
    """A worker's report to a driver in another process."""

    def __init__(self, messages: queue.Queue[Any], answers: queue.Queue[Any]) -> None:
        self._messages, self._answers = messages, answers
        self.stopped = False

    def __call__(self, scores: Mapping[str, Any]) -> Decision:
        self._messages.put(Rung(checked(scores)))
        decision: Decision = self._answers.get()
        self.stopped = self.stopped or decision == "stop"
        return decision

    def heartbeat(self, epoch: int) -> None:
        """Reports the epoch. Raises LeaveError if the study is being stopped."""
        self._messages.put(Heartbeat(epoch))
        if self._answers.get() == "leave":
            raise LeaveError
