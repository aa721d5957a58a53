"""Jobs in processes of their own that can be stopped: what is finished is told, what is queued
never starts, what runs ends.

No `ProcessPoolExecutor`: it cannot end a running job, its workers outlive a killed parent until
their job is done, and an interruption leaves semaphores behind, which Python then complains about.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from typing import Any, TypeVar

from studies.config import Study
from studies.errors import StudyError
from studies.workers.executors import Interruption
from trainers.cores import available_cores

Job = TypeVar("Job")
Result = TypeVar("Result")
POLL = 0.2  # seconds between looks at signals
GRACE = 10.0  # seconds that a stopped job has to tidy up
_slot = (0, 1)


def run_each(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    on_result: Callable[[int, Result], None] = lambda index, result: None,
) -> list[Result]:
    """The results of `work` on all jobs, in their order, `workers` at a time, each in a process of
    its own; one worker runs them here.

    `on_result(index, result)` is called here, in the order of finishing. After the first SIGINT or
    SIGTERM what is finished is told, the rest is ended, and InterruptedStudyError raised. What a
    job raises is raised here, once the running ones are done. `work` must be importable, jobs and
    results be picklable. Workers end when this process does, however it ends.
    """
    with Interruption(None) as interruption:
        if workers == 1:
            return _run_here(work, jobs, on_result, interruption)
        pool = _Pool(work, jobs, min(workers, len(jobs)), on_result)
        try:
            pool.run(interruption)
        finally:
            pool.close()
        return [pool.results[index] for index in range(len(jobs))]


def _run_here(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    on_result: Callable[[int, Result], None],
    interruption: Interruption,
) -> list[Result]:
    results: list[Result] = []
    for index, job in enumerate(jobs):
        with interruption.raising():
            results.append(work(job))
        on_result(index, results[-1])
        if interruption.requested:
            raise interruption.error(f"{len(results)} of {len(jobs)} are finished and kept")
    return results


class _Pool:
    """Worker processes, each at the other end of a pipe, and what they have in hand."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        jobs: Sequence[Any],
        workers: int,
        on_result: Callable[[int, Any], None],
    ) -> None:
        self._queue = list(enumerate(jobs))[::-1]
        self._on_result = on_result
        self._busy: dict[Connection, int] = {}  # -> index of the job
        self._processes: dict[Connection, Any] = {}
        self._error: BaseException | None = None
        self.results: dict[int, Any] = {}
        context = multiprocessing.get_context("spawn")
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, (number, workers)))
            with _uninterrupted():
                process.start()
            theirs.close()
            self._processes[ours] = process
            self._give(ours)

    def run(self, interruption: Interruption) -> None:
        """Hands out jobs until all are done. Raises InterruptedStudyError, or what a job raised."""
        while self._busy:
            stopping = interruption.requested
            ready = wait(list(self._busy), timeout=0 if stopping else POLL)
            for connection in [pipe for pipe in self._busy if pipe in ready]:
                self._receive(connection)
                if not stopping:
                    self._give(connection)
            if stopping:
                raise interruption.error(
                    f"{len(self.results)} of "
                    f"{len(self.results) + len(self._queue) + len(self._busy)} are finished and "
                    "kept"
                )
        if self._error is not None:
            raise self._error

    def _give(self, connection: Connection) -> None:
        if self._queue and self._error is None:
            index, job = self._queue.pop()
            self._busy[connection] = index
            connection.send(job)

    def _receive(self, connection: Connection) -> None:
        index = self._busy.pop(connection)
        try:
            result, error = connection.recv()
        except EOFError:
            process = self._processes[connection]
            process.join()
            result, error = (
                None,
                StudyError(
                    f"a worker process died (exit status {process.exitcode}; -9 is a lack of "
                    "memory, as a rule); "
                    "what is finished is kept: the same command goes on"
                ),
            )
        if error is not None:
            self._error = self._error or error
            return
        self.results[index] = result
        self._on_result(index, result)

    def close(self) -> None:
        """Ends the workers: idle ones see their pipe close, busy ones are told to tidy up and
        leave.
        """
        for connection, process in self._processes.items():
            if connection in self._busy:
                process.terminate()
            connection.close()
        deadline = time.monotonic() + GRACE
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()


def slot() -> tuple[int, int]:
    """(which worker of `run_each` this process is, of how many): (0, 1) in any other process."""
    return _slot


def _serve(connection: Connection, work: Callable[[Any], Any], number: tuple[int, int]) -> None:
    """The life of a worker process: one job after the other, until the pipe closes or the parent is
    gone.
    """
    global _slot
    _slot = number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            message = (work(job), None)
        except Exception as error:
            message = (None, error)
        try:
            connection.send(message)
        except (TypeError, AttributeError, ValueError) as error:  # what cannot be pickled
            connection.send((None, RuntimeError(f"{message[1] or error!r}")))


def _leave(*_: object) -> None:
    """Ends the process by an exception, so that temporary files go."""
    sys.exit(128 + signal.SIGTERM)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started here never see Ctrl-C on the terminal, which goes to the whole group: this
    process tells them.
    """
    # multiprocessing's own helper, which unblocks the signal when it is started
    ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_process(study: Study) -> None:
    """Makes this process, a worker of `run_each` or none, ready to train: threads, memory, and its
    card where there are some.
    """
    from trainers.devices import take_gpu
    from trainers.process import tune_process

    tune_process(max(1, int(study.resources.cpus_per_trial)))
    if study.trial_training.device != "cpu":
        take_gpu(*slot())


def default_workers(study: Study) -> int:
    """Trainings at the same time: one for every `cpus_per_trial` cores; on GPUs, at most
    TRIALS_PER_GPU on each.
    """
    count = max(1, int(available_cores() // max(1, study.resources.cpus_per_trial)))
    if study.trial_training.device == "cpu":
        return count
    import torch

    from studies.workers.cluster import TRIALS_PER_GPU

    return min(count, TRIALS_PER_GPU * torch.cuda.device_count() or count)
