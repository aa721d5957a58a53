"""Trials on Ray: a pool of reusable worker actors, driven by the study's own loop.

Why not Ray Tune's `Tuner` with a searcher and a scheduler of ours: measured on 2 cores of a small
machine (ray 2.60, November 2026), four messages of a trial cost 5 ms here, flat over 1,000 trials,
and 28 to 42 ms under Tune with reused actors, where starting and ending the experiment added 20 s
to 300 trials; Tune writes a second record of every trial beside the journal, which cannot be
restored after a kill without zombies; and it asks its scheduler after the fact, so that a stopped
trial may have trained on. Tune's loggers work here all the same (`studies.workers.loggers`).

One exchange is one remote call: the driver sends an assignment or a decision and gets the worker's
next message; workers are told to leave in the answer to a heartbeat. At 10,000 GPUs, with the
constants measured (1,000 trials of three reports: 11 ms a trial with everything, 7 to 10 ms of that
on the driver's core; memory grows by 8 MB): the driver handles about 800 exchanges a second, so
10,000 workers may each finish an epoch every 12 s. The sampler saturates first: `ehvi` takes 30 to
60 ms a proposal (a model of 90 trials at most; 1,000 trials of it cost 74 ms each with everything,
89 the last hundred), which is 11 to 20 new trials a second; TPE 30 ms at 50 trials and 60 ms at
300, and no more beyond 250 (`studies.samplers.tpe`); random proposals 5 ms at any size,
evolutionary ones 6 us more for each earlier trial. Then the journal: 4 kB and one sync a trial,
opened for driving in 9 s at 10,000 trials. Beyond that: heartbeats every few epochs, `sampler:
evolution`, and one study per part of the space, each with its own driver.
"""

from __future__ import annotations

import math
import queue
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from shlex import quote
from typing import Any

from studies.errors import StudyError
from studies.search.assignments import Assignment, Driver
from studies.workers.cluster import connected, gpus_of_trial, living_nodes
from studies.workers.executors import (
    Ending,
    Event,
    Failure,
    Interruption,
    Listener,
    TrainableName,
    listening,
    settle,
)
from studies.workers.local_ray import ended_server
from studies.workers.ray_worker import Heartbeat, Ready, Rung, Worker
from studies.workers.silence import FLOOR, SUSPENDED, Silence

POLL = 0.5  # seconds between looks at signals, clocks and new nodes
STARTS_IN_A_ROW = 3  # workers that die before they are ready
PATIENCE_FOR_NODES = 60.0  # seconds without any node that fits, on a cluster that may grow


def run_on_ray(
    driver: Driver, trainable: TrainableName = None, listener: Listener | None = None
) -> Ending:
    """Runs the study on Ray workers: on this machine, or on the cluster at `resources.address` or
    RAY_ADDRESS.

    See `studies.workers.executors.run`. A node that joins is used, a worker that dies is replaced
    and its trial continued from its checkpoint. Ray is started and shut down here unless the caller
    has started it.
    """
    with (
        connected(driver.study.resources) as started,
        listening(driver, listener) as show,
        Interruption(driver.study.search.timeout) as interruption,
    ):
        pool = _WorkerPool(driver, trainable, show, interruption, place=started)
        try:
            return pool.run()
        finally:
            pool.close()


class _PoolWorker:
    """A worker of the pool: its actor, what it is doing, and when it was last heard."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.ready = False
        # it keeps its place on a node where it cannot work, so that no other starts there
        self.blind = False
        self.assignment: Assignment | None = None
        self.heard = time.monotonic()
        self.longest: float | None = None  # silence of its trial, seconds


class _WorkerPool:
    """The workers of one run and the loop that serves them, one event after the other."""

    def __init__(
        self,
        driver: Driver,
        trainable: TrainableName,
        show: Listener,
        interruption: Interruption,
        *,
        place: str,
    ) -> None:
        import ray
        from ray import cloudpickle

        self._ray, self._driver, self._show = ray, driver, show
        self._interruption, self._place = interruption, place
        resources = driver.study.resources
        self._memory = self._memory_of_trial()
        self._gpus = gpus_of_trial(driver.study, living_nodes(driver.directory))
        # Ray sets OMP_NUM_THREADS to num_cpus before a worker imports anything; a runtime_env would
        # cost 4 s at the start
        self._actor = ray.remote(Worker).options(
            num_cpus=resources.cpus_per_trial,
            num_gpus=self._gpus,
            memory=self._memory or None,
            resources=resources.custom or None,
            max_restarts=0,
            **(
                {"runtime_env": resources.runtime_env}
                if resources.runtime_env and place == "caller"
                else {}
            ),
        )
        self._study = ray.put(
            driver.study.model_copy(
                update={"resources": resources.model_copy(update={"gpus_per_trial": self._gpus})}
            )
        )
        self._trainable = cloudpickle.dumps(trainable)  # pyright: ignore[reportPrivateImportUsage]
        self._members: set[_PoolWorker] = set()
        self._events: queue.Queue[tuple[_PoolWorker | None, Future]] = queue.Queue()
        self._proposer = ThreadPoolExecutor(1, thread_name_prefix="proposer")
        self._proposing = self._nothing_left = self._came_back = False
        self._failed_starts = 0
        self._silence, self._warned = Silence(resources.trial_timeout), False
        self._grown = -math.inf
        self._fits = self._looked = time.monotonic()

    def run(self) -> Ending:
        """Serves until nothing is left to do or everybody has left."""
        while True:
            self._require_node()
            if self._interruption.requested:
                if not self._busy() and not self._proposing:
                    return self._interruption.ending()
            else:
                self._grow()
                self._propose()
                if self._nothing_left and not self._busy() and not self._proposing:
                    return Ending(self._driver.ended or "trials")
            if time.monotonic() - self._looked > POLL:
                self._replace_silent()
            try:
                member, done = self._events.get(timeout=POLL)
            except queue.Empty:
                continue
            if member is None:
                self._proposed(done)
            elif member in self._members:
                self._heard(member, done)

    def _require_node(self) -> None:
        """Raises StudyError where a server of the Ray on this machine has ended."""
        ended = ended_server() if self._place == "local" else None
        if ended is not None:
            self._members.clear()  # no answer comes from them, nor to what they are sent
            raise StudyError(
                f"the only node of Ray has died (its process {ended} has ended, as when a "
                "machine runs out of memory); nothing finished is lost: "
                f"`equisearch resume {quote(str(self._driver.directory))}` goes on"
            )

    def _busy(self) -> bool:
        return any(member.assignment for member in self._members)

    def _grow(self) -> None:
        """Starts workers while there is room for them; looks at the cluster every few seconds, as
        nodes come and go.
        """
        if (time.monotonic() - self._grown < 5 and len(self._members) >= 1) or self._nothing_left:
            return
        self._grown = time.monotonic()
        left = self._driver.left
        wanted = min(self._capacity(), left)
        # the last trial took the last worker with it: nobody is left to ask for work
        if left <= 0 and not self._members:
            self._nothing_left = True
        for _ in range(wanted - len(self._members)):
            member = _PoolWorker(
                self._actor.remote(
                    self._study, self._trainable, str(self._driver.directory), sys.path
                )
            )
            self._members.add(member)
            self._send(member, None)

    def _memory_of_trial(self) -> int:
        """Bytes that a trial reserves where the number of workers is ours to choose; one trial may
        run on the smallest machine.
        """
        resources = self._driver.study.resources
        if resources.workers != "auto":
            return 0
        return int(
            min(
                1e9 * resources.memory_per_trial,
                max(
                    (node.get("memory", 0) for node in living_nodes(self._driver.directory)),
                    default=math.inf,
                ),
            )
        )

    def _capacity(self) -> int:
        resources = self._driver.study.resources
        needs = {
            "CPU": resources.cpus_per_trial,
            "GPU": self._gpus,
            "memory": self._memory,
            **resources.custom,
        }
        nodes = living_nodes(self._driver.directory)
        needs = {name: amount for name, amount in needs.items() if amount > 0}
        fitting = sum(
            min(
                (int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items()),
                default=1,
            )
            for node in nodes
        )
        if fitting:
            self._fits = time.monotonic()
        elif self._place == "local" or time.monotonic() - self._fits > PATIENCE_FOR_NODES:
            wanted = ", ".join(
                f"{amount:g} {name}" for name, amount in needs.items() if name != "memory"
            )
            there = (
                ", ".join(
                    f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes
                )
                or "none"
            )
            raise StudyError(
                f"a trial needs {wanted}, and no node has that (nodes: {there}); lower "
                "cpus_per_trial, gpus_per_trial or custom"
            )
        return fitting if resources.workers == "auto" else min(fitting, resources.workers)

    def _send(self, member: _PoolWorker, answer: Any) -> None:
        member.heard = time.monotonic()
        future = member.actor.exchange.remote(answer).future()
        future.add_done_callback(lambda done: self._events.put((member, done)))

    def _propose(self) -> None:
        """Asks for work in a thread of its own, so that a sampler that thinks never keeps workers
        waiting for answers.
        """
        if (
            self._proposing
            or self._nothing_left
            or not any(m.ready and m.assignment is None for m in self._members)
        ):
            return
        self._proposing, self._came_back = True, False
        self._proposer.submit(self._driver.next).add_done_callback(
            lambda done: self._events.put((None, done))
        )

    def _proposed(self, done: Future) -> None:
        self._proposing = False
        assignment = done.result()
        if assignment is None:
            # until a trial comes back, which one may have done since it was asked for
            self._nothing_left = not self._came_back
            return
        idle = next((m for m in self._members if m.ready and m.assignment is None), None)
        if idle is None or self._interruption.requested:
            self._driver.finish(assignment.number, "interrupted")
            return
        idle.assignment, idle.longest = assignment, None
        self._show(Event("started", assignment.number))
        self._send(idle, assignment)

    def _heard(self, member: _PoolWorker, done: Future) -> None:
        error = done.exception()
        if error is not None:
            self._died(member, error)
            return
        if member.assignment is not None:
            silence = time.monotonic() - member.heard
            self._silence = self._silence.heard_after(silence)
            member.longest = max(silence, member.longest or 0.0)
        message, number = done.result(), member.assignment.number if member.assignment else -1
        if isinstance(message, Ready):
            self._started(member, message)
        elif isinstance(message, Heartbeat):
            self._driver.heartbeat(number, message.epoch)
            self._show(Event("epoch", number, message.epoch))
            self._send(member, "leave" if self._interruption.requested else "continue")
        elif isinstance(message, Rung):
            epoch = message.scores["epoch"]
            decision = self._driver.report(number, epoch, message.scores)
            self._send(member, decision)
            self._show(Event("rung", number, epoch, message.scores, decision))
        else:
            member.assignment = None
            self._comes_back()
            settle(self._driver, number, message.stopped, message.failure, self._show)

    def _started(self, member: _PoolWorker, message: Ready) -> None:
        member.ready, member.blind = message.unseen is None, message.unseen is not None
        if message.unseen is None:
            self._failed_starts = 0
        elif all(other.blind for other in self._members):
            raise StudyError(message.unseen)
        else:
            self._show(Event("warning", -1, reason=f"{message.unseen}; it gets no trials"))

    def _died(self, member: _PoolWorker, error: BaseException) -> None:
        if member.assignment is not None and _short_of_memory(error):
            number, member.assignment = member.assignment.number, None
            self._comes_back()
            settle(
                self._driver,
                number,
                False,
                Failure(
                    "out_of_memory", f"its node ran low on memory: {_first_line(error)}", str(error)
                ),
                self._show,
            )
        self._lost(member, f"the worker died: {_first_line(error)}")

    def _comes_back(self) -> None:
        """A trial is over or comes back: there may be something left to do."""
        self._nothing_left, self._came_back = False, True

    def _replace_silent(self) -> None:
        """Replaces workers that hang; time in which this process did not run does not count."""
        now = time.monotonic()
        gap, self._looked = now - self._looked, now
        for member in list(self._members):
            if gap > SUSPENDED:
                member.heard += gap
            silence, limit = now - member.heard, self._silence.limit(member.longest)
            if member.assignment is None:
                continue
            if limit is not None and silence > limit:
                self._lost(member, self._silence.reason(silence, member.longest))
            elif limit is None and silence > FLOOR and not self._warned:
                self._warned = True
                text = (
                    f"trial {member.assignment.number} has not finished its first epoch in "
                    f"{silence:.0f} s; to have a worker that hangs replaced, interrupt the study "
                    "and resume it with `--set resources.trial_timeout=30m`"
                )
                self._show(Event("warning", -1, reason=text))

    def _lost(self, member: _PoolWorker, reason: str) -> None:
        """Replaces a worker; its trial continues elsewhere."""
        self._members.discard(member)
        self._ray.kill(member.actor)
        self._grown = -math.inf
        if member.assignment is not None:
            self._comes_back()
            try:
                self._driver.finish(member.assignment.number, "lost", reason)
            finally:
                self._show(Event("ended", member.assignment.number, outcome="lost", reason=reason))
        elif not member.ready and not member.blind:
            self._failed_starts += 1
            if self._failed_starts >= STARTS_IN_A_ROW:
                raise StudyError(
                    f"Ray workers do not start: {reason}; nodes need this program's "
                    "requirements installed, "
                    "or `resources.runtime_env: {pip: [...]}`"
                )

    def close(self) -> None:
        """Ends the workers."""
        self._proposer.shutdown(wait=True, cancel_futures=True)
        for member in self._members:
            self._ray.kill(member.actor)


def _short_of_memory(error: BaseException) -> bool:
    """Whether Ray ended the worker because its node ran low on memory; what the kernel ends is a
    death like others.
    """
    return type(error).__name__ == "OutOfMemoryError" or "low on memory" in str(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # an error in a worker's creation comes with its traceback, which ends with the cause
    line = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"{type(error).__name__}: {line}"[:300]
