"""Processes that run tests of a copied tree.

Forks of one process that has collected the tests run some of them at once; forks of one that has
imported libraries alone import the packages and test files anew. A fork may use a number of CPU
seconds, of its own and of each process that it starts; what the machine does besides does not
count. A limit on the wall clock, far above, ends forks that wait for ever.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest
from mutation_trace import PACKAGES, Lines, Recorder, Tracer

OPTIONS = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
# a plugin that the warm process has imported is not rewritten again
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-W", "ignore::SyntaxWarning"]
MEMORY = 8 * 2**30  # bytes of address space: a mutant may collect without end
RAISED = 70  # exit status of a task that raises
WALL = 20.0  # times the limit of CPU seconds


class Order:
    """A pytest plugin: of what is collected, the tests named, in their order."""

    def __init__(self, tests: Sequence[str]):
        self._places = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self._places]
        items[:] = sorted(kept, key=lambda item: self._places[item.nodeid])


@dataclass
class Fork:
    """A running fork."""

    pid: int
    tree: Path
    limit: float  # CPU seconds
    started: float
    scratch: Path  # its temporary files

    def ended(self) -> str | None:
        """`passed`, `failed`, `limit` (of CPU seconds), `waits` (of the wall clock), `error`, or
        None.
        """
        waits = time.monotonic() - self.started > max(60.0, WALL * self.limit)
        if waits:
            _kill_group(self.pid)
        pid, status, _ = os.wait4(self.pid, 0 if waits else os.WNOHANG)
        if pid == 0:
            return None
        _kill_group(self.pid)  # what it started
        if self.limit < inf:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if waits:
            return "waits"
        if os.WIFSIGNALED(status):
            limit = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
            return "limit" if limit else "failed"
        return {0: "passed", RAISED: "error"}.get(os.WEXITSTATUS(status), "failed")


PROGRESS = os.fdopen(os.dup(1), "w", buffering=1)


def say(text: str) -> None:
    """Prints where the user looks, from every process."""
    print(text, file=PROGRESS, flush=True)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def fork(tree: Path, limit: float, task: Callable[[], int]) -> Fork:
    """Starts a task in a tree; it fails unless the task returns 0. One that raises is an error of
    this program.
    """
    scratch = Path(tempfile.mkdtemp(dir=tree.parent))
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Fork(pid, tree, limit, time.monotonic(), scratch)
    status = RAISED
    try:
        os.setsid()
        if limit < inf:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            seconds = max(1, round(limit))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _enter(tree, scratch)
        status = int(task())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _enter(tree: Path, scratch: Path) -> None:
    """Makes a tree the place that the packages are imported from, in this process."""
    with (scratch / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(tree)
    sys.path[:] = [str(tree), *sys.path]
    os.environ["PYTHONPATH"] = str(tree)
    shutil.rmtree(tree / ".hypothesis", ignore_errors=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.tempdir


def _own_cache() -> None:
    """Links of the cached files, in a folder of this fork: what a mutant writes stays there."""
    shared, own = Path(os.environ["EQUISEARCH_CACHE"]), Path(os.environ["TMPDIR"]) / "cache"
    shutil.copytree(shared, own, copy_function=os.link)
    os.environ["EQUISEARCH_CACHE"] = str(own)


def run_tests(tests: Sequence[str]) -> Callable[[], int]:
    """A task: runs tests in their order until one fails."""
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))

    def task() -> int:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        _own_cache()
        return pytest.main([*OPTIONS, *files], plugins=[Order(tests)])

    return task


def _write_byte_code() -> None:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class Collected:
    """A pytest plugin that, in place of the tests, runs work which may fork them."""

    def __init__(self, work: Callable[[Collected], None], tracer: Tracer):
        self._work, self._tracer = work, tracer
        self.items: dict[str, pytest.Item] = {}
        self.imported: Lines = {}  # lines that ran meanwhile

    def pytest_sessionstart(self) -> None:
        self._outer = self._tracer.start()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        for name in sorted(_all_modules()):
            importlib.import_module(name)
        self.imported = self._tracer.stop(self._outer)
        self.items = {item.nodeid: item for item in session.items}
        self._work(self)
        return True

    def run(self, tests: Sequence[str]) -> int:
        """Runs tests in this process until one fails; 0 if none does."""
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        _own_cache()
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None]):
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            except (pytest.exit.Exception, KeyboardInterrupt):
                return 1
            if item.session.testsfailed:
                return 1
        return 0

    def record(self, file: str, records: Path) -> int:
        """Runs a file's tests and writes which lines they run."""
        items = [item for name, item in self.items.items() if name.split("::")[0] == file]
        for item, following in zip(items, [*items[1:], None]):
            if not item.config.pluginmanager.has_plugin("recorder"):
                recorder = Recorder(Path.cwd(), records)
                item.config.pluginmanager.register(recorder, "recorder")
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        sys.settrace(None)
        return 0


def _all_modules() -> Iterator[str]:
    for package in PACKAGES:
        for path in Path(package).rglob("*.py"):
            if path.name != "__main__.py":
                yield ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def collect(work: Callable[[Collected], None], left_out: Sequence[str]) -> Callable[[], int]:
    """A task: collects all tests and does work with them."""

    def task() -> int:
        _write_byte_code()
        options = [option for option in OPTIONS if option != "-x"]
        options += ["-s", "--continue-on-collection-errors"]
        options += [f"--ignore=tests/{name}" for name in left_out]
        plugin = Collected(work, Tracer(Path.cwd()))
        return int(pytest.main([*options, "tests"], plugins=[plugin]))

    return task


def libraries() -> list[str]:
    """The names of all imported modules but ours."""
    return [name for name, module in list(sys.modules.items()) if _is_library(name, module)]


def _is_library(name: str, module: object) -> bool:
    file = getattr(module, "__file__", None)
    first = name.split(".")[0]
    return bool(file) and first not in (*PACKAGES, "__main__") and str(Path.cwd()) not in str(file)


def warm_up(names: Sequence[str]) -> None:
    """Imports libraries in this process; one that cannot be imported alone is left to the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)


def all_of(
    tasks: Sequence[Callable[[Path], Fork]],
    trees: Sequence[Path],
    done: Callable[[int, str], None],
    end: float = inf,
) -> None:
    """Runs tasks, one at each place in `trees` at a time; `done` is told each number and ending.
    None starts after `end` of the monotonic clock.
    """
    waiting = list(enumerate(tasks))[::-1]
    running: dict[int, tuple[int, Fork]] = {}
    try:
        while running or (waiting and time.monotonic() < end):
            for place, tree in enumerate(trees):
                if place in running and (ending := running[place][1].ended()):
                    done(running.pop(place)[0], ending)
                if place not in running and waiting and time.monotonic() < end:
                    number, task = waiting.pop()
                    running[place] = (number, task(tree))
            time.sleep(0.02)
    finally:
        for _, process in running.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # the one that forks ends its own
