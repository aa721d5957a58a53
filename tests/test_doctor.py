"""What `doctor` prints fits the terminal, and what the dashboard's host lets in is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from studies.cli import doctor
from studies.cli import search as commands_search
from studies.cli.main import app
from studies.output import PROSE_WIDTH, reading_width


@pytest.mark.parametrize("columns", [60, 90])
def test_doctor_fits_the_terminal(monkeypatch, columns):
    findings = [
        doctor.Finding("a Ray task runs", "bad", "word " * 60, doctor.RAY_REMEDY),
        doctor.Finding("torch", "ok", "2.11 " * 40),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(app, ["doctor"])
    assert (
        done.exit_code == 1 and done.output.count("word") == 120 and done.output.count("2.11") == 40
    )
    assert columns - 12 < max(map(len, done.output.splitlines())) <= columns


@pytest.mark.parametrize("columns", ["\u00b2", "-5", "0", "abc", "9" * 5000, "1e9"])
def test_columns_that_are_no_number_are_left_aside(monkeypatch, columns):
    def nowhere(_descriptor):
        raise OSError

    monkeypatch.setattr("os.get_terminal_size", nowhere)
    monkeypatch.setenv("COLUMNS", columns)
    assert reading_width() == PROSE_WIDTH


def test_what_lies_in_the_working_directory_is_not_imported(monkeypatch, tmp_path):
    """`start` does not import it either, so nothing of it may make a machine look bad, or run."""
    (tmp_path / "random.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    assert doctor._runs("random", "import random", "").level == "ok"


@pytest.mark.parametrize("stream, status", [("stdout", 0), ("stderr", 3)])
def test_what_a_probe_prints_need_not_be_text(stream, status):
    code = f"import sys; sys.{stream}.buffer.write(b'\\xff\\xfe here\\n'); sys.exit({status})"
    good, line = doctor._outcome(code)
    assert good == (not status) and line.endswith("here")


@pytest.mark.parametrize(
    "variable, value, what, level",
    [
        ("OMP_NUM_THREADS", "abc", "cores", "note"),
        ("OMP_NUM_THREADS", "0", "cores", "note"),
        ("OMP_NUM_THREADS", "2", "cores", "ok"),
        ("OMP_NUM_THREADS", "2,1", "cores", "ok"),
        ("EQUISEARCH_CACHE", "relative", "cache directory", "bad"),
        ("EQUISEARCH_CACHE", "/dev/null", "cache directory", "bad"),
        ("EQUISEARCH_CACHE", "/" + "x" * 300, "cache directory", "bad"),
        ("EQUISEARCH_CACHE_GB", "nan", "cache directory", "bad"),
        ("EQUISEARCH_CACHE_GB", "-1", "cache directory", "bad"),
        ("RAY_ADDRESS", "auto", "cluster", "note"),
    ],
)
def test_variables_that_matter_are_examined(monkeypatch, tmp_path, variable, value, what, level):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv(variable, value)
    look = {"cores": doctor._threads, "cache directory": doctor._cache}
    found = look[what]() if what in look else next(doctor._cluster())
    assert found.level == level and bool(found.remedy) == (level != "ok")


@pytest.mark.parametrize(
    "host, alone",
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("", False),
        ("10.0.0.1", False),
    ],
)
def test_a_dashboard_that_others_can_reach_is_known(host, alone):
    assert commands_search._loopback(host) is alone


@pytest.mark.slow
def test_doctor_calls_a_healthy_ray_healthy_under_uv_run(tmp_path):
    """Ray looks for a process `uv run` above it; the probe must start Ray as `start` does."""
    (tmp_path / "uv").symlink_to("/bin/sh")
    (tmp_path / "run").write_text('"$@"; exit $?\n')
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [tmp_path / "uv", "run", sys.executable, "-m", "studies.cli", "doctor", "--format", "json"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=240,
        env={**own, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    found = {row["what"]: row for row in json.loads(done.stdout)["findings"]}
    assert found["a Ray task runs"]["level"] == "ok", found
    assert found["Ray listens"]["level"] == "ok" and "a token is" in found["Ray listens"]["found"]
