"""The share of sampled mutants that the tests kill, and a list of those that survive.

    uv run --with cosmic-ray python tests/mutation.py --sample 300 --seed 0 [--paths studies/search]
                                                      [--json FILE] [--seconds 240]

A mutant is one change of the source by an operator of cosmic-ray (another comparison, another
number, `not` left out, `break` for `continue` ...) in the packages whose wrong decisions only
tests would notice. Each is applied to a copy of the tree, where the test files that import the
mutated module run, the one of the same name first, until one fails. Annotations are left out: they
are not evaluated; so are mutants that do not compile. One that runs into the time limit counts as
`timeout`, not as killed: it may hang, or the machine may be busy. 300 mutants take hours
on two cores, so this is run by hand.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("searchspace", "trainers", "studies")
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
# Slow for what they see of these packages: they start Ray.
LEFT_OUT = ("test_ray_faults.py", "test_ray_security.py", "test_cluster.py", "test_chaos.py")


@dataclass(frozen=True)
class Mutant:
    """One change of one module: an operator of cosmic-ray at its n-th place."""

    module: str  # path from the top
    operator: str
    occurrence: int  # from 0
    line: int  # from 1


@dataclass(frozen=True)
class Result:
    """How the tests met a mutant."""

    mutant: Mutant
    ending: str  # killed | survived | timeout | untested
    change: str  # the changed lines


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


def tests_of(module: str) -> list[Path]:
    """The test files that import a module, that of the same name first, then those that import a
    module which imports it.
    """
    files = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if p.name not in LEFT_OUT]
    name = module.removesuffix(".py").replace("/", ".")
    direct = [path for path in files if name in _imported(path)]
    around = _importers(name)
    further = [path for path in files if path not in direct and around & _imported(path)]
    same = f"test_{Path(module).stem}.py"
    return sorted(direct, key=lambda path: path.name != same) + further


def _imported(path: Path) -> set[str]:
    """The modules and names that a file imports, dotted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    if "support" in " ".join(names) and path.parent.name == "tests":
        for helper in (ROOT / "tests" / "support").glob("*.py"):
            if f"support.{helper.stem}" in names:
                names |= _imported(helper)
    return names


def _importers(name: str) -> set[str]:
    """The modules of the packages that import a module."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if name in _imported(path)
    }


def judged(mutant: Mutant, tree: Path, seconds: float) -> Result | None:
    """How the tests meet a mutant, applied to the copy in `tree` and taken back afterwards; None
    for one that does not compile.
    """
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    path = tree / mutant.module
    before = path.read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    assert after is not None, mutant
    try:
        compile(after, mutant.module, "exec")
    except SyntaxError:
        return None
    change = "\n".join(
        line
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    )
    files = tests_of(mutant.module)
    if not files:
        return Result(mutant, "untested", change)
    path.write_text(after, encoding="utf-8")
    try:
        return Result(mutant, _run(files, tree, seconds), change)
    finally:
        path.write_text(before, encoding="utf-8")


def _run(files: Sequence[Path], tree: Path, seconds: float) -> str:
    """`killed`, `survived` or `timeout` of the tests in a tree."""
    names = [str(path.relative_to(ROOT)) for path in files]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *names,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return "survived" if process.wait(seconds) == 0 else "killed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return "timeout"


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


def main() -> int:
    """Runs the sample and prints the share; returns the exit status, 0 from 90 % on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="+", default=TARGETS, help="files and folders to mutate")
    parser.add_argument("--seconds", type=float, default=240, help="limit of one mutant's tests")
    parser.add_argument("--json", type=Path, help="file for the results, written after each mutant")
    arguments = parser.parse_args()
    paths = [
        file
        for name in arguments.paths
        for file in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
        if file.name != "__init__.py"
    ]
    mutants = [mutant for path in paths for mutant in mutants_of(path)]
    random.Random(arguments.seed).shuffle(mutants)
    print(f"{arguments.sample} of {len(mutants)} mutants of {len(paths)} modules")
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        for mutant in mutants:
            if len(results) == arguments.sample:
                break
            result = judged(mutant, tree, arguments.seconds)
            if result is not None:
                results.append(result)
                _report(results, arguments.json)
    endings = Counter(result.ending for result in results)
    share = endings["killed"] / len(results)
    print(f"{share:.1%} of {len(results)} mutants killed ({dict(endings)})")
    return 0 if share >= 0.9 else 1


def _report(results: Sequence[Result], file: Path | None) -> None:
    """Prints the latest result if it survived, and writes all to a file."""
    last = results[-1]
    if last.ending != "killed":
        where = f"{last.mutant.module}:{last.mutant.line}"
        print(f"{last.ending} {where} {last.mutant.operator}\n{last.change}", flush=True)
    if file is not None:
        file.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    sys.exit(main())
