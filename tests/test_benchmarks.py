"""A benchmark without its images, its table or an optional package ends with one sentence and exit
status 2, before anything is trained; no import hides a function of a benchmark.
"""

import ast
import runpy
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "benchmarks"
WITHOUT_IMAGES = (
    ["bench_around.py", "coordinates"],
    ["bench_fidelity.py"],
    ["bench_fronts.py", "folder"],
    ["bench_fronts.py", "sixes"],
    ["bench_gamma.py", "rotated"],
    ["bench_ien.py"],
    ["bench_latent.py"],
    ["bench_merging.py"],
    ["bench_scores.py", "estimator"],
    ["bench_systems.py"],
    ["bench_trial.py"],
)
WITHOUT_TABLE = (
    "bench_bound.py",
    "bench_continuum.py",
    "bench_search.py",
    "bench_seconds.py",
)


def ended(arguments, monkeypatch, capsys):
    """The exit status of a program in `PROGRAMS`, run in this process, and its last words."""
    monkeypatch.setattr(sys, "argv", [str(PROGRAMS / arguments[0]), *arguments[1:]])
    monkeypatch.syspath_prepend(str(PROGRAMS))
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(PROGRAMS / arguments[0]), run_name="__main__")
    return exit_info.value.code, capsys.readouterr().err


@pytest.mark.parametrize("arguments", WITHOUT_IMAGES, ids=" ".join)
def test_a_benchmark_without_its_images_says_so(arguments, monkeypatch, capsys, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    status, said = ended([*arguments, "--root", nowhere], monkeypatch, capsys)
    assert status == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and nowhere in said


@pytest.mark.parametrize("program", WITHOUT_TABLE)
def test_a_benchmark_without_its_table_says_so(program, monkeypatch, capsys, tmp_path):
    nowhere = str(tmp_path / "nowhere.json.gz")
    status, said = ended([program, nowhere], monkeypatch, capsys)
    assert status == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and nowhere in said


def test_a_benchmark_without_an_optional_package_says_so(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    from benchmark_data import run

    monkeypatch.setitem(sys.modules, "botorch", None)
    with pytest.raises(SystemExit) as exit_info:
        run(lambda: __import__("botorch"))
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("bench_*.py")), ids=lambda p: p.name)
def test_no_import_hides_a_function_of_a_benchmark(program):
    tree = ast.parse(program.read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    imported = {name.asname or name.name for node in imports for name in node.names}
    assert not defined & imported
