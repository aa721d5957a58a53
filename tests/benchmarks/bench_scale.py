"""What a driver holds: a study of trivial trials with a thousand pretended workers, so that all of
the time is the driver's.

`python tests/benchmarks/bench_scale.py [--workers 1000] [--trials 2000] [--samplers ehvi,...]`
prints, for each sampler, milliseconds of each call of the driver while that many trials run, what
that comes to for each thousand ended trials, and memory; then how many messages of workers the
event loop of `studies.workers.ray_executor` handles.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from studies.search.driver import SearchDriver
from studies.workers.actors import PoolWorker, Room
from studies.workers.executors import Interruption, silent
from studies.workers.ray_executor import WorkerPool
from studies.workers.ray_worker import Heartbeat, Ready, Rung, TrialEnded
from support import trivial

SAMPLERS = "ehvi,evolution,tpe,random"
LAST = 100  # calls that the milliseconds are a median of, those with the most trials


class Times:
    """Seconds of each kind of call."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.of[name].append(time.process_time() - began)

    def last(self, name: str) -> float:
        """Median milliseconds of the last calls."""
        return 1e3 * median(self.of[name][-LAST:] or [0.0])


def drive(sampler: str, workers: int, trials: int, directory: Path) -> dict[str, float]:
    """Drives a study of `trials` with `workers` running at once, each ended by the next in turn."""
    study = trivial.study(
        search__sampler=sampler, search__trials=trials, resources__workers=workers
    )
    times, order = Times(), random.Random(0)
    before = _megabytes()
    with SearchDriver.create(directory, study) as driver:
        began, running = time.process_time(), []
        while len(running) < min(workers, trials):
            with times("next"):
                running.append(driver.next())
        filled = time.process_time() - began
        while running:
            assignment = running.pop(order.randrange(len(running)))
            done = max(driver.trial(assignment.number).rungs, default=0)
            for epoch in range(done + 1, assignment.until_epoch + 1):
                with times("heartbeat"):
                    driver.heartbeat(assignment.number, epoch)
                if epoch in study.rungs:
                    with times("report"):
                        scores = trivial.scores(assignment.architecture, epoch)
                        decision = driver.report(assignment.number, epoch, scores)
                    if decision == "stop":
                        break
            with times("finish"):
                driver.finish(assignment.number, "pruned" if decision == "stop" else "complete")
            left = driver.finished + len(running) < trials
            with times("next" if left else "none"):
                following = driver.next()
            if following is not None:
                running.append(following)
        seconds = time.process_time() - began
        ended = driver.finished
    return {
        "filled": filled,
        "first": 1e3 * median(times.of["next"][:LAST]),
        **{name: times.last(name) for name in ("next", "heartbeat", "report", "finish")},
        "thousand": 1e3 * (seconds - filled) / ended,
        "memory": _megabytes() - before,
        "journal": (directory / "optuna.journal").stat().st_size / 1e6,
    }


class InstantActors:
    """Workers whose messages are there at once: a heartbeat for each epoch, scores at rungs."""

    place, needs_text = "cluster", "1 CPU"

    def __init__(self, workers: int, rungs: tuple[int, ...]) -> None:
        self._workers, self._rungs = workers, rungs
        self._at: dict[PoolWorker, tuple[int, bool]] = {}  # epoch, and whether it was reported
        self.messages = 0

    def look(self) -> tuple[Room, bool]:
        """Room for all."""
        return Room(self._workers, self._workers, False, "none"), False

    def start(self) -> PoolWorker:
        """A worker."""
        return PoolWorker(None)

    def exchange(self, member: PoolWorker, answer: object) -> Future:
        """The next message."""
        future: Future = Future()
        self.messages += 1
        future.set_result(self._next(member, answer))
        return future

    def _next(self, member: PoolWorker, answer: object) -> object:
        if answer is None:
            return Ready(None)
        if not isinstance(answer, str):
            self._at[member] = (1, False)
            return Heartbeat(1)
        epoch, reported = self._at[member]
        assert member.assignment is not None
        if epoch in self._rungs and not reported:
            self._at[member] = (epoch, True)
            return Rung(trivial.scores(member.assignment.architecture, epoch))
        if answer == "stop" or epoch == self._rungs[-1]:
            return TrialEnded(answer == "stop", None)
        self._at[member] = (epoch + 1, False)
        return Heartbeat(epoch + 1)

    def end(self, member: PoolWorker) -> None:
        """Nothing."""


def loop(workers: int, trials: int, directory: Path) -> dict[str, float]:
    """Messages a second of the event loop, with random proposals."""
    study = trivial.study(search__trials=trials, resources__workers=workers)
    actors = InstantActors(workers, study.rungs)
    with SearchDriver.create(directory, study) as driver, Interruption(None) as interruption:
        pool = WorkerPool(driver, actors, silent, interruption)
        began = time.process_time()
        pool.run()
        seconds = time.process_time() - began
        pool.close()
    return {"messages": actors.messages / seconds, "trials": trials / seconds}


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--samplers", default=SAMPLERS)
    given = parser.parse_args()
    print(f"{given.workers} workers, {given.trials} trials; milliseconds of a call")
    columns = ("first", "next", "heartbeat", "report", "finish", "thousand", "memory", "journal")
    print(f"{'sampler':10}", *(f"{name:>10}" for name in columns))
    for sampler in given.samplers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = drive(sampler, given.workers, given.trials, Path(folder) / "study")
        print(f"{sampler:10}", *(f"{row[name]:10.2f}" for name in columns), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        row = loop(given.workers, given.trials, Path(folder) / "study")
    print(f"event loop: {row['messages']:,.0f} messages/s, {row['trials']:.1f} trials/s")
    print("thousand: seconds for 1,000 ended trials; memory, journal: MB")


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
