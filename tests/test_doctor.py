"""What `doctor` prints fits the terminal, and what the dashboard's host lets in is told."""

import pytest
from typer.testing import CliRunner

from studies.cli import doctor
from studies.cli import search as commands_search
from studies.cli.main import app


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
