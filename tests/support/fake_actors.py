"""Workers of a pool without Ray: each trainable runs in this process, and what a cluster does (has
room, grows, loses workers) is pretended.
"""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from studies.search.scores import checked
from studies.workers.actors import PoolWorker, Room
from studies.workers.executors import Failure
from studies.workers.ray_worker import Heartbeat, Ready, Rung, TrialEnded


class FakeActors:
    """What `WorkerPool` needs of `studies.workers.actors.Actors`, without Ray.

    `capacity` workers have room; where `grows_to` is larger, room for each worker that waits comes
    `grows_after` seconds after it was asked for. A trial takes `seconds` at least.
    """

    place, needs_text = "cluster", "1 CPU"

    def __init__(
        self,
        trainable: Any,
        *,
        capacity: int,
        grows_to: int = 0,
        grows_after: float = 0.0,
        seconds: float = 0.0,
        threads: int = 8,
    ) -> None:
        self._trainable, self._capacity = trainable, capacity
        self._grows_to, self._grows_after, self._seconds = grows_to, grows_after, seconds
        self._threads = ThreadPoolExecutor(threads)
        self.alive: set[PoolWorker] = set()
        self._placed: set[PoolWorker] = set()
        self._queues: dict[PoolWorker, tuple[queue.Queue, queue.Queue]] = {}
        self._waiting: dict[PoolWorker, tuple[float, Future]] = {}
        self.started = self.most = 0
        self.requests: list[tuple[int, int]] = []  # (placed, asked for) at each look
        self._study: Any = None

    def look(self) -> tuple[Room, bool]:
        """The room there is; workers that wait are placed."""
        now = time.monotonic()
        for member, (asked, future) in list(self._waiting.items()):
            if len(self._placed) < self._capacity or (
                len(self._placed) < self._grows_to and now - asked >= self._grows_after
            ):
                del self._waiting[member]
                self._place(member, future)
        total = max(self._capacity, len(self._placed))
        self.requests.append((len(self._placed), len(self.alive)))
        free = max(0, self._capacity - len(self._placed))
        return Room(total, free, self._grows_to > 0, "none"), False

    def _place(self, member: PoolWorker, future: Future) -> None:
        self._placed.add(member)
        self.most = max(self.most, len(self._placed))
        future.set_result(Ready(None))

    def start(self) -> PoolWorker:
        """A worker that waits for room."""
        member = PoolWorker(None)
        self.alive.add(member)
        self.started += 1
        return member

    def exchange(self, member: PoolWorker, answer: Any) -> Future:
        """One exchange of messages with the trainable's thread."""
        future: Future = Future()
        if answer is None:
            if len(self._placed) < self._capacity:
                self._place(member, future)
            else:
                self._waiting[member] = (time.monotonic(), future)
        elif isinstance(answer, str):
            self._queues[member][0].put((answer, future))
        else:
            self._queues[member] = (queue.Queue(), queue.Queue())
            self._threads.submit(self._work, member, answer, future)
        return future

    def _work(self, member: PoolWorker, assignment: Any, future: Future) -> None:
        answers = self._queues[member][0]

        class Report:
            stopped = False

            def _say(self, message: Any) -> str:
                nonlocal future
                future.set_result(message)
                answer, future = answers.get()
                return answer

            def __call__(self, scores: Any) -> str:
                decision = self._say(Rung(checked(scores)))
                self.stopped = self.stopped or decision == "stop"
                return decision

            def heartbeat(self, epoch: int) -> None:
                self._say(Heartbeat(epoch))

        report, failure = Report(), None
        time.sleep(self._seconds)
        try:
            self._trainable(self._study or _study_of(assignment), assignment, report)
        except Exception as error:
            failure = Failure.of(error)
        future.set_result(TrialEnded(report.stopped, failure))

    def end(self, member: PoolWorker) -> None:
        """Ends a worker, or withdraws the demand for it."""
        self.alive.discard(member)
        self._placed.discard(member)
        self._waiting.pop(member, None)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=True)


def _study_of(assignment: Any) -> Any:
    """The study of an assignment, from its directory."""
    from pathlib import Path

    from studies.journal.directory import read_study

    return read_study(Path(assignment.directory).parents[1])
