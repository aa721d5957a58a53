"""Which tests can see a mutant, and how they end."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mutation_forks import Fork, all_of, say
from mutation_trace import Source, Trace

LIMIT = 4.0  # times the CPU seconds of the tests without a mutant, and at least
LEAST = 30.0  # CPU seconds
FIRST = 4.0  # CPU seconds of tests that run before all others
SETTLED = ("killed", "timeout")


@dataclass(frozen=True)
class Mutant:
    """One change of one module: an operator of cosmic-ray at its n-th place."""

    module: str  # path from the top
    operator: str
    occurrence: int  # from 0
    line: int  # from 1


@dataclass
class Result:
    """How the tests met a mutant."""

    mutant: Mutant
    change: str  # the changed lines
    after: str = field(repr=False)  # the module's text
    ending: str = "untested"  # killed | survived | timeout | waits | untested
    tests: int = 0  # that were to run


def imported_names(path: Path) -> set[str]:
    """The modules and names that a file imports, dotted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    if "support" in " ".join(names) and path.parent.name == "tests":
        for helper in (path.parent / "support").glob("*.py"):
            if f"support.{helper.stem}" in names:
                names |= imported_names(helper)
    return names


class Choice:
    """The tests that can see a mutant."""

    def __init__(self, trace: Trace, tree: Path):
        self._trace, self._source = trace, Source(tree)
        self._imports = {
            f"tests/{path.name}": imported_names(path)
            for path in (tree / "tests").glob("test_*.py")
        }

    def tests(self, mutant: Mutant, seconds: float) -> list[list[str]]:
        """Parts that run one after the other, of together up to `seconds` of CPU time."""
        chosen: list[str] = []
        spent, paid = 0.0, set()
        for tests in self._in_turn(mutant):
            for test in sorted(tests - set(chosen), key=lambda test: self._place(mutant, test)):
                shared = self._trace.shared[test]
                price = self._trace.seconds[test]
                price += sum(shared[key] for key in shared.keys() - paid)
                if spent + price <= seconds:
                    spent, paid = spent + price, paid | shared.keys()
                    chosen.append(test)
        first = [t for t, total in zip(chosen, self._totals(chosen)) if total <= FIRST]
        return [self._by_file(part) for part in (first, chosen[len(first) :]) if part]

    def cost(self, tests: Sequence[str]) -> float:
        """CPU seconds of tests that run in one process."""
        return max(self._totals(tests), default=0.0)

    def at_import(self, mutant: Mutant) -> bool:
        """Whether a mutant's line runs when its module is imported."""
        lines, _ = self._source.statement(mutant.module, mutant.line)
        return not set(self._trace.imported.get(mutant.module, ())).isdisjoint(lines)

    def starts_process(self, test: str) -> bool:
        return test in self._trace.starting

    def _in_turn(self, mutant: Mutant) -> Iterator[set[str]]:
        lines, names = self._source.statement(mutant.module, mutant.line)
        yield self._trace.of_lines(mutant.module, lines)
        if self.at_import(mutant):
            yield self._trace.of_lines(mutant.module, self._source.body(mutant.module, mutant.line))
            uses = self._source.uses(names)
            yield set().union(*(self._trace.tests.get(place, ()) for place in uses))
            yield self._trace.modules.get(mutant.module, set())
        name = mutant.module.removesuffix(".py").replace("/", ".")
        files = {file for file, imports in self._imports.items() if name in imports}
        yield {test for test in self._trace.starting if test.split("::")[0] in files}

    def _place(self, mutant: Mutant, test: str) -> tuple[bool, float]:
        shared = sum(self._trace.shared[test].values())
        same = test.startswith(f"tests/test_{Path(mutant.module).stem}.py")
        return not same, self._trace.seconds[test] + shared

    def _totals(self, tests: Sequence[str]) -> list[float]:
        """CPU seconds of the first 1, 2, ... tests."""
        spent, paid, totals = 0.0, set(), []
        for test in tests:
            shared = self._trace.shared[test]
            spent += self._trace.seconds[test]
            spent += sum(shared[key] for key in shared.keys() - paid)
            paid |= shared.keys()
            totals.append(spent)
        return totals

    def _by_file(self, tests: Sequence[str]) -> list[str]:
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        return sorted(tests, key=lambda test: files.index(test.split("::")[0]))


class Judge:
    """Runs the tests of mutants and notes how they end."""

    def __init__(self, results: Sequence[Result], seconds: float, file: Path | None):
        self.results, self._seconds, self._file = results, seconds, file
        self.waiting: dict[int, list[list[str]]] = {}  # of a result: parts of its tests, to run
        self._costs: dict[int, list[float]] = {}  # of the parts, in CPU seconds
        self._later: dict[int, tuple[list[str], float]] = {}  # the part that starts processes
        if file is not None and file.exists():
            self._take(json.loads(file.read_text()))

    def _take(self, entries: Sequence[dict]) -> None:
        """Takes over what was killed before."""
        killed = {
            (*e["mutant"].values(), e["change"]): e["ending"]
            for e in entries
            if e["ending"] in SETTLED
        }
        for result in self.results:
            key = (*asdict(result.mutant).values(), result.change)
            result.ending = killed.get(key, result.ending)

    def choose(self, choice: Choice) -> None:
        """Chooses the tests of every mutant that is not settled."""
        for number, result in enumerate(self.results):
            if result.ending not in SETTLED:
                parts = choice.tests(result.mutant, self._seconds)
                result.tests, result.ending = sum(map(len, parts)), "untested"
                if parts:
                    self.waiting[number] = parts
                    self._costs[number] = [choice.cost(part) for part in parts]

    def put_off(self, number: int, choice: Choice) -> None:
        """Leaves the tests of a mutant that start processes for `go_on`, and runs them all again
        then if its function runs at import, too.
        """
        tests = [test for part in self.waiting[number] for test in part]
        starting = [test for test in tests if choice.starts_process(test)]
        later = tests if choice.at_import(self.results[number].mutant) else starting
        parts = [[t for t in part if t not in starting] for part in self.waiting[number]]
        self.waiting[number] = [part for part in parts if part]
        self._costs[number] = [choice.cost(part) for part in self.waiting[number]]
        if later:
            self._later[number] = (later, choice.cost(later))

    def go_on(self) -> None:
        """Takes up the tests that were put off, of mutants that are not settled."""
        for number, (tests, cost) in self._later.items():
            if self.results[number].ending not in SETTLED:
                self.waiting[number], self._costs[number] = [tests], [cost]
        self._later = {}

    def run(self, numbers: Sequence[int], task, trees: Sequence[Path]) -> None:
        """Runs the parts that wait: `task(number, tests, limit, tree)` starts one."""
        while turn := [number for number in numbers if self.waiting.get(number)]:

            def start(number: int, tree: Path) -> Fork:
                limit = max(LEAST, LIMIT * self._costs[number].pop(0))
                return task(number, self.waiting[number].pop(0), limit, tree)

            def done(place: int, ending: str, turn: Sequence[int] = turn) -> None:
                self._note(turn[place], ending)

            all_of([lambda tree, n=n: start(n, tree) for n in turn], trees, done)

    def _note(self, number: int, ending: str) -> None:
        result = self.results[number]
        names = {"failed": "killed", "limit": "timeout", "passed": "survived"}
        result.ending = names.get(ending, ending)
        if ending != "passed" or not self.waiting[number]:
            self.waiting.pop(number)
        if result.ending in SETTLED or not (self.waiting.get(number) or number in self._later):
            self.report(result)

    def report(self, result: Result) -> None:
        """Prints a result unless the mutant was killed, and writes all to a file."""
        if result.ending != "killed":
            where = f"{result.mutant.module}:{result.mutant.line} {result.mutant.operator}"
            say(f"{result.ending} {where} ({result.tests} tests)\n{result.change}")
        if self._file is not None:
            kept = [{**asdict(result), "after": ""} for result in self.results]
            self._file.write_text(json.dumps(kept, indent=1))
