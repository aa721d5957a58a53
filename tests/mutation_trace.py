"""Which tests run which lines: what `mutation.py` chooses a mutant's tests by.

A tracer notes, test by test, the lines of the three packages that run. Lines of a fixture that
several tests share count for each of them, and caches of functions are emptied before each test, so
that the first test of a file is not the only one that is seen to use them.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

PACKAGES = ("searchspace", "trainers", "studies")
SLOWEST = 6.0  # CPU seconds of a test that may see mutants
Lines = dict[str, list[int]]  # of a module's path


class Tracer:
    """The lines of the packages in `top` that run while it is the trace function."""

    def __init__(self, top: Path):
        self._roots = tuple(f"{top / package}{os.sep}" for package in PACKAGES)
        self._skip = len(str(top)) + 1
        self._codes: dict[int, tuple[CodeType, str | None, frozenset[int]]] = {}
        self._left: dict[int, set[int]] = {}  # lines of a code object that have not run

    def start(self) -> dict[int, set[int]]:
        """Begins a part of the run; returns what `stop` takes to go on with the part before."""
        outer, self._left = self._left, {}
        threading.settrace(self)
        sys.settrace(self)
        return outer

    def stop(self, outer: dict[int, set[int]]) -> Lines:
        """The lines that ran since `start`."""
        found: dict[str, set[int]] = defaultdict(set)
        for key, left in list(self._left.items()):
            _, module, lines = self._codes[key]
            found[str(module)] |= lines - left
        self._left = outer
        return {module: sorted(lines) for module, lines in found.items() if lines}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The trace function: of a call, the function that sees its lines while some are left."""
        code = frame.f_code
        known = self._codes.get(id(code))
        if known is None:
            inside = code.co_filename.startswith(self._roots)
            module = code.co_filename[self._skip :] if inside else None
            lines = {line for *_, line in code.co_lines() if line} if inside else ()
            known = self._codes[id(code)] = (code, module, frozenset(lines))
        if known[1] is None:
            return None
        left = self._left.get(id(code))
        if left is None:
            left = self._left[id(code)] = set(known[2])
        left.discard(frame.f_lineno)
        return self._line if left else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and (left := self._left.get(id(frame.f_code))) is not None:
            left.discard(frame.f_lineno)
        return self._line


class Recorder:
    """A pytest plugin that appends to a file, test by test, the lines that ran."""

    def __init__(self, top: Path, file: Path):
        self._tracer, self._file = Tracer(top), file
        self._fixtures: dict[str, tuple[Lines, float]] = {}  # lines and CPU seconds
        self._setting_up = 0.0  # CPU seconds of the shared fixtures that the test sets up
        self._passed: set[str] = set()
        self._processes = 0
        self._slow: set[str] = set()  # functions, so that a slow test does not run for each value
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: Any) -> None:
        self._processes += event in ("subprocess.Popen", "os.fork", "os.posix_spawn")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.nodeid.split("[")[0] in self._slow:
            pytest.skip("slow")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Ends a test that is too slow to be of use."""

        def end(*_: Any) -> None:
            self._slow.add(item.nodeid.split("[")[0])
            raise TimeoutError("slow")

        signal.signal(signal.SIGPROF, end)
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        _empty_caches()
        before, processes, self._setting_up = cpu_seconds(), self._processes, 0.0
        outer = self._tracer.start()
        answer = yield
        sys.settrace(None)
        lines = self._tracer.stop(outer)
        definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        keys = [key for d in definitions if (key := _key(d[-1])) in self._fixtures]
        record = {
            "test": item.nodeid,
            "passed": item.nodeid in self._passed,
            "seconds": round(cpu_seconds() - before - self._setting_up, 4),
            "shared": {key: round(self._fixtures[key][1], 4) for key in keys},
            "processes": self._processes > processes,
            "lines": _merged([lines, *(self._fixtures[key][0] for key in keys)]),
        }
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        return answer

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        before, outer = cpu_seconds(), self._tracer.start()
        try:
            return (yield)
        finally:
            seconds = cpu_seconds() - before
            self._setting_up += seconds
            self._fixtures[_key(fixturedef)] = (self._tracer.stop(outer), seconds)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        elif report.failed:
            self._passed.discard(report.nodeid)


def _merged(parts: Sequence[Lines]) -> Lines:
    merged: dict[str, set[int]] = defaultdict(set)
    for part in parts:
        for module, lines in part.items():
            merged[module].update(lines)
    return {module: sorted(lines) for module, lines in merged.items()}


def _key(fixturedef: Any) -> str:
    return f"{fixturedef.baseid}::{fixturedef.argname}"


def cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _empty_caches() -> None:
    """Empties the caches of the packages' functions."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in PACKAGES:
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


@dataclass
class Trace:
    """What tests run, read from the files of `Recorder`."""

    seconds: dict[str, float] = field(default_factory=dict)  # CPU, of a test alone
    shared: dict[str, dict[str, float]] = field(default_factory=dict)  # and of its fixtures
    starting: set[str] = field(default_factory=set)  # tests that start processes
    tests: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    modules: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    imported: Lines = field(default_factory=dict)  # lines that run at import

    def read(self, file: Path, known: Container[str]) -> None:
        """Adds one file's records of known tests. One that does not pass sees nothing."""
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            test = record["test"]
            if not record["passed"] or test not in known:
                continue
            self.seconds[test], self.shared[test] = record["seconds"], record["shared"]
            if record["processes"]:
                self.starting.add(test)
            for module, lines in record["lines"].items():
                self.modules[module].add(test)
                for number in lines:
                    self.tests[module, number].add(test)

    def of_lines(self, module: str, lines: Sequence[int]) -> set[str]:
        """The tests that run any of these lines."""
        return set().union(*(self.tests.get((module, line), ()) for line in lines))


class Source:
    """Where names of a tree's packages are used: for mutants of lines that run at import."""

    def __init__(self, top: Path):
        self.top = top
        self._trees: dict[str, ast.Module] = {}
        self._uses: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for package in PACKAGES:
            for path in sorted((top / package).rglob("*.py")):
                module = str(path.relative_to(top))
                self._trees[module] = ast.parse(path.read_text(encoding="utf-8"))
                self._note(module)

    def _note(self, module: str) -> None:
        for node in ast.walk(self._trees[module]):
            if isinstance(node, (ast.Name, ast.Attribute)):
                name = node.id if isinstance(node, ast.Name) else node.attr
                self._uses[name].add((module, node.lineno))
            elif isinstance(node, ast.keyword) and node.arg:
                self._uses[node.arg].add((module, node.value.lineno))

    def statement(self, module: str, line: int) -> tuple[range, list[str]]:
        """Of the innermost statement at a line: its lines (of one with a body, those of its head),
        and the names that it, and what it lies in, define.
        """
        chain: list[ast.AST] = []
        body: Sequence[ast.AST] = self._trees[module].body
        while inner := [node for node in body if _first(node) <= line <= _last(node)]:
            chain.append(inner[-1])
            body = _parts(inner[-1])
        if not chain:
            return range(line, line + 1), []
        node = chain[-1]
        parts = _parts(node)
        last = min(map(_first, parts)) - 1 if parts else _last(node)
        lines = range(_first(node), max(last, line) + 1)
        return lines, [name for n in chain for name in _defined(n)]

    def body(self, module: str, line: int) -> range:
        """The lines of the function whose head is at a line; none for other statements."""
        for node in ast.walk(self._trees[module]):
            if isinstance(node, ast.FunctionDef) and _first(node) <= line < node.body[0].lineno:
                return range(node.body[0].lineno, _last(node) + 1)
        return range(0)

    def uses(self, names: Sequence[str]) -> set[tuple[str, int]]:
        """The (module, line) where any of the names is read or passed."""
        return set().union(*(self._uses.get(name, ()) for name in names))


def _parts(node: ast.AST) -> list[ast.AST]:
    """The statements, handlers and cases right inside a statement."""
    names = ("body", "handlers", "orelse", "finalbody", "cases")
    lists = [part for name in names if isinstance(part := getattr(node, name, None), list)]
    return [node for part in lists for node in part]


def _first(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", [])
    around = getattr(node, "pattern", node)  # of a case, which has no place of its own
    return min(n.lineno for n in (around, *decorators))  # type: ignore[attr-defined]


def _last(node: ast.AST) -> int:
    last = node.body[-1] if isinstance(node, ast.match_case) else node
    return last.end_lineno  # type: ignore[attr-defined]


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]
