"""The share of sampled mutants that the tests kill, and a list of those that survive.

    uv run --with cosmic-ray python tests/mutation.py --sample 300 --seed 0 [--paths studies/search]
                                                      [--json FILE] [--jobs 2] [--seconds 60]

A mutant is one change of the source by an operator of cosmic-ray (another comparison, another
number, `not` left out, `break` for `continue` ...) in the packages whose wrong decisions only
tests would notice. Annotations are left out: they are not evaluated; so are mutants that do not
compile.

First each test file runs once under a tracer (`mutation_trace.py`); what it saw is kept in the
temporary folder until the packages or the file change. Then each mutant is written to a copy of the
tree, where forks of this process (`mutation_forks.py`) run the tests that run its line, the quick
ones first, until one fails: up to `--seconds` of CPU time of tests, as they took with no mutant. Of
a line that runs at import, those are the tests that run its function or a line that uses its name;
at last come tests that start processes, in files that import the module. A mutant with which tests
use more than `LIMIT` times the CPU seconds they need hangs: `timeout`, which every suite would
notice. One that only waits counts as `waits`, and not as killed: the machine may be busy.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy is imported: a fork has one thread
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from mutation_forks import (
    Collected,
    Fork,
    all_of,
    collect,
    fork,
    libraries,
    run_tests,
    say,
    warm_up,
)
from mutation_judge import SETTLED, Choice, Judge, Mutant, Result, imported_names
from mutation_swap import Functions
from mutation_trace import PACKAGES, Trace

ROOT = Path(__file__).resolve().parents[1]
TARGETS = (
    "searchspace",
    "studies/journal",
    "studies/search",
    "studies/samplers",
    "studies/replays",
    "studies/results",
)
# Operators that want arguments of their own.
PARAMETRISED = ("core/VariableInserter", "core/VariableReplacer")
# They start Ray or a browser, or read documents and the form of the code.
LEFT_OUT = (
    "test_ray_faults.py",
    "test_ray_security.py",
    "test_cluster.py",
    "test_chaos.py",
    "test_report_browser.py",
    "test_documents.py",
    "test_rules.py",
)
TRACED = 40.0  # CPU seconds of a test file under the tracer; later tests of it are not used


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a module outside of its annotations."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    annotated = _annotation_lines(path)
    tree = get_ast_from_path(path)
    nodes = list(ast_nodes(tree))
    found = []
    for name in sorted(set(operator_names()) - set(PARAMETRISED)):
        operator, occurrence = get_operator(name)(), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if start not in annotated:
                    module = str(path.relative_to(ROOT))
                    found.append(Mutant(module, name, occurrence, start[0]))
                occurrence += 1
    return found


def _annotation_lines(path: Path) -> set[tuple[int, int]]:
    """The (line, column) of every position inside an annotation."""
    text = path.read_text(encoding="utf-8")
    places: set[tuple[int, int]] = set()
    for node in ast.walk(ast.parse(text)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                places |= set(_positions(part, text.splitlines()))
    return places


def _positions(node: ast.AST, lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Every (line, column) from the start of an expression to its end."""
    first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    for line in range(first, last + 1):
        start = node.col_offset if line == first else 0  # type: ignore[attr-defined]
        # every node here has a place
        end = node.end_col_offset if line == last else len(lines[line - 1])  # type: ignore
        for column in range(start, end + 1):
            yield line, column


def mutated(mutant: Mutant) -> Result | None:
    """A mutant's text and change; None for one that does not compile."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    before = (ROOT / mutant.module).read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    assert after is not None, mutant
    try:
        compile(after, mutant.module, "exec")
    except SyntaxError:
        return None
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    kept = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return Result(mutant, "\n".join(kept), after)


def copied(folder: Path) -> Path:
    """A copy of the tree that may be mutated, with the shared data beside it."""
    tree = folder / "tree"
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return tree


def traced(
    collected: Collected,
    tree: Path,
    kept: Path,
    arguments: argparse.Namespace,
    mutants: Sequence[Mutant],
) -> Trace:
    """What every test file runs; of files that have changed since it was kept, anew while there is
    time, those first that meet most mutants.
    """
    files = [p for p in sorted((tree / "tests").glob("test_*.py")) if p.name not in LEFT_OUT]
    common = [path for package in PACKAGES for path in sorted((tree / package).rglob("*.py"))]
    common += [*sorted((tree / "tests" / "support").glob("*.py")), tree / "tests" / "conftest.py"]
    folder = kept / _hash(common)
    folder.mkdir(parents=True, exist_ok=True)
    records = {path: folder / f"{path.stem}-{_hash([path])}.jsonl" for path in files}
    missing = [path for path in files if not records[path].exists()]
    names = Counter(mutant.module.removesuffix(".py").replace("/", ".") for mutant in mutants)
    missing.sort(key=lambda path: -_mutants_seen(path, names))
    end = time.monotonic() + 60 * arguments.trace_minutes

    def task(path: Path) -> Fork:
        partial = records[path].with_suffix(".partial")
        partial.unlink(missing_ok=True)
        name = f"tests/{path.name}"
        return fork(tree, TRACED, lambda: collected.record(name, partial))

    def done(number: int, ending: str) -> None:
        path = missing[number]
        partial = records[path].with_suffix(".partial")
        partial.touch()
        partial.rename(records[path])
        say(f"traced {number + 1}/{len(missing)} {path.name}: {ending}")

    tasks = [lambda _, path=path: task(path) for path in missing]
    all_of(tasks, [tree] * arguments.jobs, done, end)
    trace = Trace(imported=collected.imported)
    for path in files:
        if records[path].exists():
            trace.read(records[path], collected.items)
    return trace


def _mutants_seen(path: Path, names: Counter[str]) -> int:
    """About how many mutants a test file meets: those of the modules that it imports, and more for
    the one that it is named after.
    """
    found = sum(names[name] for name in imported_names(path))
    return found + 5 * sum(names[name] for name in names if f".{path.stem[5:]}" in f".{name}")


def _hash(paths: Sequence[Path]) -> str:
    parts = [path.name.encode() + path.read_bytes() for path in paths]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def sampled(arguments: argparse.Namespace, kept: Path) -> list[Result]:
    """Random mutants that compile."""
    paths = [
        file
        for name in arguments.paths
        for file in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
        if file.name != "__init__.py"
    ]
    file = kept / f"sample-{_hash(paths)}-{arguments.seed}-{arguments.sample}.json"
    if file.exists():
        entries = json.loads(file.read_text())
        return [Result(Mutant(**entry.pop("mutant")), **entry) for entry in entries]
    mutants = [mutant for path in paths for mutant in mutants_of(path)]
    random.Random(arguments.seed).shuffle(mutants)
    say(f"{arguments.sample} of {len(mutants)} mutants of {len(paths)} modules")
    found: list[Result] = []
    for mutant in mutants:
        if len(found) == arguments.sample:
            break
        if (result := mutated(mutant)) is not None:
            found.append(result)
    file.write_text(json.dumps([asdict(result) for result in found]))
    return found


def main() -> int:
    """Runs the sample and prints the share; returns the exit status, 0 from 90 % on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="+", default=TARGETS, help="files and folders to mutate")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, default=60, help="CPU, of the tests of a mutant")
    parser.add_argument("--json", type=Path, help="results; those killed in it are not run again")
    parser.add_argument("--trace-minutes", type=float, default=inf, help="0: only traces kept")
    parser.add_argument("--control", action="store_true", help="change nothing: all must survive")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    kept = Path(tempfile.gettempdir()) / f"equisearch-mutation-{os.getuid()}"
    os.environ.setdefault("EQUISEARCH_CACHE", str(kept / "cache"))
    Path(os.environ["EQUISEARCH_CACHE"]).mkdir(parents=True, exist_ok=True)
    judge = Judge(sampled(arguments, kept), arguments.seconds, arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "0")
        names = quick(judge, tree, kept, arguments)
        say(f"{len(judge.waiting)} left after {(time.monotonic() - start) / 60:.1f} minutes")
        if judge.waiting:
            warm_up(names)
            others = [Path(folder) / str(number) / "tree" for number in range(1, arguments.jobs)]
            for other in others:
                shutil.copytree(tree.parent, other.parent, symlinks=True)
            judge.run(list(judge.waiting), imported_anew(judge, arguments.control), [tree, *others])
    for result in judge.results:
        if result.ending == "untested":
            judge.report(result)
    endings = Counter(result.ending for result in judge.results)
    share = (endings["killed"] + endings["timeout"]) / len(judge.results)
    say(f"{share:.1%} of {len(judge.results)} mutants killed, those that hang among them")
    say(f"{dict(endings)}, {(time.monotonic() - start) / 60:.1f} minutes")
    return 0 if share >= 0.9 else 1


def quick(judge: Judge, tree: Path, kept: Path, arguments: argparse.Namespace) -> list[str]:
    """Judges the mutants in functions, in forks of a process that has collected the tests; returns
    the names of the libraries that it has imported. The others wait.
    """
    state = tree.parent / "state.pickle"

    def work(collected: Collected) -> None:
        left = [result.mutant for result in judge.results if result.ending not in SETTLED]
        choice = Choice(traced(collected, tree, kept, arguments, left), tree)
        judge.choose(choice)
        functions, changes = Functions(tree), {}
        for number in judge.waiting:
            mutant, after = judge.results[number].mutant, judge.results[number].after
            before = (tree / mutant.module).read_text(encoding="utf-8")
            pairs = functions.pairs(mutant.module, before, after)
            if pairs:
                changes[number] = pairs
                judge.put_off(number, choice)
        say(f"{len(changes)} mutants in functions, {len(judge.waiting) - len(changes)} others")
        gc.freeze()  # forks share the pages of what is there

        def task(number: int, tests: Sequence[str], limit: float, tree: Path) -> Fork:
            def run() -> int:
                for function, code in () if arguments.control else changes[number]:
                    function.__code__ = code
                return collected.run(tests)

            return fork(tree, limit, run)

        judge.run(list(changes), task, [tree] * arguments.jobs)
        judge.go_on()
        state.write_bytes(pickle.dumps((judge, libraries())))

    all_of([lambda _: fork(tree, inf, collect(work, LEFT_OUT))], [tree], lambda *_: None)
    if not state.exists():
        outputs = [path.read_text() for path in tree.parent.glob("*/output.txt")]
        raise SystemExit("the tests could not be collected:\n" + "\n".join(outputs))
    there, names = pickle.loads(state.read_bytes())
    vars(judge).update(vars(there))
    return names


def imported_anew(judge: Judge, control: bool):
    """What starts the tests of a mutant in a process that has imported libraries alone."""

    def task(number: int, tests: Sequence[str], limit: float, tree: Path) -> Fork:
        module, after = judge.results[number].mutant.module, judge.results[number].after
        write(tree, module, (ROOT / module).read_text() if control else after)
        return fork(tree, limit, run_tests(tests))

    return task


def write(tree: Path, module: str, text: str) -> None:
    """Puts a mutant into a tree, in place of the one before."""
    path, before = tree / module, tree / "before"
    if before.exists():
        shutil.copy2(before, tree / (tree / "module").read_text())
    shutil.copy2(path, before)
    (tree / "module").write_text(module)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (0, 0))  # no byte code is of that time


if __name__ == "__main__":
    sys.exit(main())
