"""Trials on Ray: a pool of reusable worker actors, driven by the study's own loop.

Why not Ray Tune's `Tuner` with a searcher and a scheduler of ours: measured on 2 cores of a small
machine (ray 2.60, November 2026), four messages of a trial cost 5 ms here, flat over 1,000 trials,
and 28 to 42 ms under Tune with reused actors, where starting and ending the experiment added 20 s
to 300 trials; Tune writes a second record of every trial beside the journal, which cannot be
restored after a kill without zombies; and it asks its scheduler after the fact, so that a stopped
trial may have trained on. Tune's loggers work here all the same (`studies.workers.loggers`).

One exchange is one remote call: the driver sends an assignment or a decision and gets the worker's
next message; workers are told to leave in the answer to a heartbeat.

The plan for 10,000 GPUs, with constants measured (`tests/benchmarks/bench_scale.py`, 1,000
pretended workers on a busy core; the exchange itself with Ray: 800 a second): proposals break
first. With 1,000 running, `random` and `evolution` take about 20 ms, 50 new trials a second; `ehvi`
30 to 90 ms, 11 to 30. 10,000 workers are thus kept busy where a trial takes 200 s on average, 900 s
with `ehvi`. Next are exchanges: an epoch of every worker each 12 s. Then rungs, at 2 to 3 ms: 400
a second. Heartbeats (0.1 to 0.3 ms) and ends (0.5 ms; syncs are shared) follow, and last the
journal: 4 to 7 kB a trial, opened for driving in 9 s at 10,000 trials. Beyond that: `sampler:
evolution`, and one study per part of the space, each with its own driver.
"""

from __future__ import annotations

import math
import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from searchspace.geometry import counted
from studies.errors import StudyError
from studies.search.assignments import Assignment, Driver
from studies.workers.actors import Actors, Members, PoolWorker, RayOwner, Room, wanted
from studies.workers.cluster import connected
from studies.workers.executors import (
    Event,
    Failure,
    Interruption,
    Listener,
    RunEnding,
    TrainableName,
    listening,
    settle,
)
from studies.workers.local_ray import ended_server
from studies.workers.ray_worker import Heartbeat, Ready, Rung
from studies.workers.silence import FLOOR, SUSPENDED, Silence

POLL = 0.5  # seconds between looks at signals and clocks
LOOK_SECONDS = 5.0  # seconds between looks at the cluster
STARTS_IN_A_ROW = 3  # workers that die before they are ready
PATIENCE_FOR_NODES = 60.0  # seconds without any node that fits, where no autoscaler starts one
NOTICE = 15.0  # seconds without any worker until it is said what is waited for
GRACE = 15.0  # seconds that a worker without work is kept
PROPOSALS_AT_ONCE = 32  # proposals that are asked for and not yet made


def run_on_ray(
    driver: Driver, trainable: TrainableName = None, listener: Listener | None = None
) -> RunEnding:
    """Runs the study on Ray workers: on this machine, or on the cluster at `resources.address` or
    RAY_ADDRESS.

    See `studies.workers.executors.run_study`. A node that joins is used, a worker that dies is
    replaced and its trial continued from its checkpoint, one without work is given back. Ray is
    started and shut down here unless the caller has started it.
    """
    with (
        connected(driver.study.resources) as place,
        listening(driver, listener) as show,
        Interruption(driver.study.search.timeout) as interruption,
    ):
        actors = Actors(driver.study, driver.directory, trainable, place=cast(RayOwner, place))
        pool = WorkerPool(driver, actors, show, interruption)
        try:
            return pool.run()
        finally:
            pool.close()


class WorkerPool:
    """The workers of one run and the loop that serves them, one event after the other."""

    def __init__(
        self, driver: Driver, actors: Actors, show: Listener, interruption: Interruption
    ) -> None:
        self._driver, self._actors, self._show = driver, actors, show
        self._interruption = interruption
        self._members = Members()
        self._events: queue.SimpleQueue[tuple[PoolWorker | int, Future]] = queue.SimpleQueue()
        self._proposer = ThreadPoolExecutor(1, thread_name_prefix="proposer")
        self._proposing = 0  # proposals that are asked for
        self._nothing_left, self._came_back = False, 0  # how often a trial has
        self._failed_starts = 0
        self._silence = Silence(driver.study.resources.trial_timeout)
        self._warned = False
        self._grown = -math.inf
        self._fits = self._looked = self._worked = time.monotonic()
        self._said = ""

    def run(self) -> RunEnding:
        """Serves until nothing is left to do or every worker has left."""
        while True:
            if self._interruption.requested:
                if not self._members.busy and not self._proposing:
                    return self._interruption.ending()
            else:
                self._grow()
                self._propose()
                if self._nothing_left and not self._members.busy and not self._proposing:
                    return RunEnding(self._driver.ended or "trials")
            if time.monotonic() - self._looked > POLL:
                self._look_around()
            try:
                source, done = self._events.get(timeout=POLL)
            except queue.Empty:
                continue
            if isinstance(source, int):
                self._proposed(source, done)
            elif source in self._members:
                self._heard(source, done)

    def _look_around(self) -> None:
        """What is done twice a second."""
        self._require_node()
        self._replace_silent()
        if self._nothing_left:
            self._give_back()

    def _require_node(self) -> None:
        """Raises StudyError where a server of the Ray on this machine has ended."""
        ended = ended_server() if self._actors.place == "local" else None
        if ended is not None:
            self._members = Members()  # no answer comes from them, nor to what they are sent
            raise StudyError(
                f"the only node of Ray has died (its process {ended} has ended, as when a "
                "machine runs out of memory); nothing finished is lost: "
                f"{self._driver.again} goes on"
            )

    def _grow(self) -> None:
        """Asks for workers while there is work for them; looks at the cluster every few seconds,
        as nodes come and go.
        """
        if self._nothing_left or (
            time.monotonic() - self._grown < LOOK_SECONDS and len(self._members)
        ):
            return
        self._grown, members = time.monotonic(), self._members
        left = self._driver.left
        # the last trial took the last worker with it: none is left to ask for work
        if left <= 0 and not len(members):
            self._nothing_left = True
        room, changed = self._actors.look()
        if changed:
            for member in list(members.starting):
                self._end(member)
        alone = self._actors.place == "local"
        workers = self._driver.study.resources.workers
        for _ in range(wanted(workers, members, room, left, alone=alone) - len(members)):
            member = self._actors.start()
            members.move(member, members.starting)
            self._send(member, None)
        self._require_room(room)

    def _require_room(self, room: Room) -> None:
        """Says what is waited for while no worker has started. Raises StudyError where waiting is
        in vain.
        """
        now = time.monotonic()
        if room.total or room.grows:
            self._fits = now
        elif self._actors.place == "local" or now - self._fits > PATIENCE_FOR_NODES:
            raise StudyError(
                f"a trial needs {self._actors.needs_text}, and no node has that (nodes: "
                f"{room.nodes}); lower cpus_per_trial, gpus_per_trial or custom"
            )
        if self._members.ready or self._nothing_left or self._actors.place == "local":
            self._worked = now
        elif now - self._worked > NOTICE:
            self._say_waiting(room)

    def _say_waiting(self, room: Room) -> None:
        if room.free:
            why = f"{counted(len(self._members), 'worker')} to start"
        elif room.total:
            why = "what the nodes have is in use, by others or by workers that start"
        else:
            why = "no node has that"
        asked = "; the cluster's autoscaler sees the request" if room.grows else ""
        text = (
            f"no worker has started yet; a trial needs {self._actors.needs_text}, and {why} "
            f"(nodes: {room.nodes}){asked}"
        )
        if text != self._said:
            self._said = text
            self._show(Event("warning", -1, reason=text))

    def _give_back(self) -> None:
        """Ends workers for which there is nothing left to do: those that wait for room at once,
        those that are idle after a while, in which a trial may come back.
        """
        now = time.monotonic()
        for member in [
            *self._members.starting,
            *(m for m in self._members.idle if now - m.heard > GRACE),
        ]:
            self._end(member)

    def _end(self, member: PoolWorker) -> None:
        self._members.move(member, None)
        self._actors.end(member)

    def _send(self, member: PoolWorker, answer: Any) -> None:
        member.heard = time.monotonic()
        future = self._actors.exchange(member, answer)
        future.add_done_callback(lambda done: self._events.put((member, done)))

    def _propose(self) -> None:
        """Asks for as much work as there are idle workers, in a thread of its own, so that a
        sampler that thinks never keeps workers waiting for answers.
        """
        if self._nothing_left:
            return
        while self._proposing < min(PROPOSALS_AT_ONCE, len(self._members.idle)):
            self._proposing += 1
            asked = self._came_back
            self._proposer.submit(self._next).add_done_callback(
                lambda done, asked=asked: self._events.put((asked, done))
            )

    def _next(self) -> Assignment | None:
        if self._nothing_left or self._interruption.requested:
            return None
        return self._driver.next()

    def _proposed(self, asked: int, done: Future) -> None:
        self._proposing -= 1
        assignment = done.result()
        if assignment is None:
            # until a trial comes back, which one may have done since it was asked for
            self._nothing_left = asked == self._came_back and not self._interruption.requested
            return
        if not self._members.idle or self._interruption.requested:
            self._driver.finish(assignment.number, "interrupted")
            self._comes_back()
            return
        idle = next(iter(self._members.idle))
        self._members.move(idle, self._members.busy)
        idle.assignment, idle.longest = assignment, None
        self._show(Event("started", assignment.number))
        self._send(idle, assignment)

    def _heard(self, member: PoolWorker, done: Future) -> None:
        error = done.exception()
        if error is not None:
            self._died(member, error)
            return
        message, assignment = done.result(), member.assignment
        if isinstance(message, Ready) or assignment is None:
            self._started(member, message)
            return
        silence = time.monotonic() - member.heard
        self._silence = self._silence.heard_after(silence)
        member.longest = max(silence, member.longest or 0.0)
        number = assignment.number
        if isinstance(message, Heartbeat):
            self._driver.heartbeat(number, message.epoch)
            self._show(Event("epoch", number, message.epoch))
            self._send(member, "leave" if self._interruption.requested else "continue")
        elif isinstance(message, Rung):
            epoch = message.scores["epoch"]
            decision = self._driver.report(number, epoch, message.scores)
            self._send(member, decision)
            self._show(Event("rung", number, epoch, message.scores, decision))
        else:
            member.assignment, member.heard = None, time.monotonic()
            self._members.move(member, self._members.idle)
            self._comes_back()
            settle(self._driver, number, message.stopped, message.failure, self._show)

    def _started(self, member: PoolWorker, message: Ready) -> None:
        members = self._members
        members.move(member, members.idle if message.unseen is None else members.blind)
        if message.unseen is None:
            member.heard, self._failed_starts = time.monotonic(), 0
        elif len(members.blind) == len(members):
            raise StudyError(message.unseen)
        else:
            self._show(Event("warning", -1, reason=f"{message.unseen}; it gets no trials"))

    def _died(self, member: PoolWorker, error: BaseException) -> None:
        if member.assignment is not None and _short_of_memory(error):
            number, member.assignment = member.assignment.number, None
            self._comes_back()
            reason = f"its node ran low on memory: {_first_line(error)}"
            failure = Failure("out_of_memory", reason, str(error))
            settle(self._driver, number, False, failure, self._show)
        self._lost(member, f"the worker died: {_first_line(error)}")

    def _comes_back(self) -> None:
        """A trial is over or comes back: there may be something left to do."""
        self._nothing_left = False
        self._came_back += 1

    def _replace_silent(self) -> None:
        """Replaces workers that hang; time in which this process did not run does not count."""
        now = time.monotonic()
        gap, self._looked = now - self._looked, now
        for member in list(self._members.busy):
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

    def _lost(self, member: PoolWorker, reason: str) -> None:
        """Replaces a worker; its trial continues elsewhere."""
        starting = member in self._members.starting
        self._end(member)
        self._grown = -math.inf
        if member.assignment is not None:
            self._comes_back()
            try:
                self._driver.finish(member.assignment.number, "lost", reason)
            finally:
                self._show(Event("ended", member.assignment.number, outcome="lost", reason=reason))
        elif starting:
            self._failed_starts += 1
            if self._failed_starts >= STARTS_IN_A_ROW:
                raise StudyError(
                    f"Ray workers do not start: {reason}; nodes need this program's "
                    "requirements installed, "
                    "or `resources.runtime_env: {pip: [...]}`"
                )

    def close(self) -> None:
        """Ends the workers."""
        self._nothing_left = True  # proposals that were asked for are not made
        self._proposer.shutdown(wait=True, cancel_futures=True)
        for member in self._members.all():
            self._actors.end(member)


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
