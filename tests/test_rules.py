"""Rules that matter are tests: layers, edges between rooms, light imports, docstrings, lengths.
What READMEs say is in `test_documents.py`, how messages are worded in `test_messages.py`.
"""

import ast
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("searchspace", "trainers", "studies")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "searchspace": {"torch", "torchvision", "escnn", "optuna", "ray", "trainers", "studies"},
    "trainers": {"optuna", "ray", "studies"},
    "studies": set(),
}
TOP = {
    "pyproject.toml",
    "searchspace",
    "trainers",
    "tests",
    "studies",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    package = path.relative_to(ROOT).parts[0]
    assert not set(imported(ast.parse(path.read_text()))) & FORBIDDEN[package]


@pytest.mark.parametrize(
    "module",
    [
        "searchspace.space",
        "searchspace.exactness",
        "studies.config",
        "studies.cli.main",
        "studies.results.opened",
        "trainers.settings",
    ],
)
def test_light_modules_import_nothing_heavy(module):
    heavy = ("torch", "torchvision", "escnn", "optuna", "ray")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_commands_that_read_import_nothing_heavy_and_search_for_no_plugins():
    study = str(ROOT / "tests/assets/study")
    lines = [["--help"], *([name, study] for name in ("front", "trials", "status"))]
    lines += [["check", "28px: 8k3@C4 max2/2, 8k3"]]
    code = f"""
import importlib.metadata, sys
from studies.cli.main import main
importlib.metadata.distributions = lambda **options: sys.exit("pydantic searched for plugins")
heavy = {{"torch", "escnn", "optuna", "ray", "numpy", "pandas", "sklearn", "scipy", "matplotlib"}}
branch = {{"studies.evidence.conditions", "studies.workers.declaration"}}
endings = []
for line in {lines}:
    if line[0] == "status":  # it shows the declaration
        branch.remove("studies.workers.declaration")
    sys.argv = ["equisearch", *line]
    try:
        main()
    except SystemExit as ended:
        endings.append(ended.code or sorted((heavy | branch) & {{*sys.modules}}))
print(endings, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == str([[]] * len(lines))


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.name != "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module says what it is for"
    missing = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(node.name)
            if isinstance(node, ast.ClassDef):
                missing += [
                    f"{node.name}.{inner.name}"
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef)
                    and not ast.get_docstring(inner)
                    and not inner.name.startswith("_")
                    and inner.name not in ("forward", "extra_repr")
                ]
    assert not missing


def rooms():
    """Every folder of the packages and its modules."""
    found = {}
    for path in MODULES:
        if path.name != "__init__.py":
            found.setdefault(path.parent.relative_to(ROOT), []).append(path)
    return found


def test_a_room_holds_at_most_sixteen_modules():
    assert not {str(room): len(paths) for room, paths in rooms().items() if len(paths) > 16}


MOST_LINES, MOST_FUNCTION_LINES, MOST_COLUMNS = 400, 50, 100


def functions(tree):
    return (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def columns(line):
    """As a terminal or an editor shows the line."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in line
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short_and_lines_narrow(path):
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES, "which second noun is in this file?"
    assert not {
        node.name
        for node in functions(ast.parse(text))
        if node.end_lineno - node.lineno >= MOST_FUNCTION_LINES
    }
    assert not [line for line in lines if columns(line) > MOST_COLUMNS]


# A room may import those before it in its package, what lies beside the rooms, and other packages
# as the layers allow.
ORDER = {
    "trainers": ("data", "networks", "instruments", "training", "bundles"),
    "studies": (
        "journal",
        "evidence",
        "samplers",
        "search",
        "workers",
        "results",
        "estimator",
        "replays",
        "cli",
    ),
}


def modules_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("package", ORDER)
def test_edges_between_rooms_point_downwards(package):
    order, upward = ORDER[package], []
    assert {
        room.parts[1] for room in rooms() if room.parts[0] == package and len(room.parts) > 1
    } == set(order)
    for room, paths in rooms().items():
        if room.parts[0] == package:
            # -1: beside the rooms, below them all
            mine = order.index(room.parts[1]) if len(room.parts) > 1 else -1
            for path in paths:
                theirs = [name.split(".") for name in modules_imported(path)]
                upward += [
                    (str(path.relative_to(ROOT)), ".".join(name))
                    for name in theirs
                    if name[0] == package
                    and len(name) > 2
                    and name[1] in order
                    and order.index(name[1]) > mine
                ]
    assert not upward


def tracked():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    return listed.stdout.splitlines()


def test_the_top_level_is_what_was_agreed():
    assert {name.split("/")[0] for name in tracked() if not name.startswith(".")} <= TOP


def test_nothing_names_a_host_or_a_path_of_one_machine():
    pattern = re.compile(
        r"(^|[^A-Za-z0-9_.-])/(work|farm|root|home/[a-z]+)/|pypi\.org|pythonhosted"
    )
    for name in tracked():
        if (
            name.endswith((".py", ".md", ".toml", ".yaml", ".yml"))
            and name != "tests/test_rules.py"
        ):
            hits = [line for line in (ROOT / name).read_text().splitlines() if pattern.search(line)]
            assert not hits, (name, hits[:3])
