"""A benchmark without its images, its table or an optional package ends with one sentence and exit
status 2, before anything is trained; no import hides a function of a benchmark.
"""

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest

from studies.output import Format
from studies.replays.replay import Replayed

PROGRAMS = Path(__file__).parent / "benchmarks"
WITHOUT_IMAGES = (
    ["bench_around.py", "coordinates"],
    ["bench_fidelity.py"],
    ["bench_fronts.py", "folder"],
    ["bench_fronts.py", "mnist"],
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


def test_searches_are_compared_in_seconds_where_these_are_known(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    from bench_search import printed

    rows = [
        Replayed("ours", (4, 6), 2, (1.0, 2.0), True, (1.0, 3.0)),
        Replayed("rival", (8, 8), 2, (4.0, 4.0), False, (8.0, 8.0)),
        Replayed("saved before", (7, 7), 2, (5.0, 5.0)),
    ]
    printed(Path("x_table.json.gz"), rows, Format.json)
    lines = json.loads(capsys.readouterr().out)
    found = {(line["in"], line["search"]): line for line in lines}
    assert len(found) == len(lines) == 8 and ("seconds", "saved before") not in found
    assert found["epochs", "ours"]["of the best rival"] == pytest.approx(5 / 7)
    assert found["seconds", "ours"]["of the best rival"] == pytest.approx(2 / 8)
    assert found["seconds", "rival"]["p"] is not None


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("bench_*.py")), ids=lambda p: p.name)
def test_no_import_hides_a_function_of_a_benchmark(program):
    tree = ast.parse(program.read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    imported = {name.asname or name.name for node in imports for name in node.names}
    assert not defined & imported
