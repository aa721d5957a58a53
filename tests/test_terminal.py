"""What reaches the terminal: nothing that a file could make it do, whatever its encoding, and no
trial ends because it is gone.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from studies import terminal
from studies.cli import main as cli
from studies.cli.live import LiveView, bar
from studies.errors import JournalWarning
from studies.journal.reader import JOURNAL, read_trials
from studies.results import tables
from studies.search.driver import SearchDriver
from studies.workers.executors import Event, run_in_process
from support import trivial
from support.commands import run  # noqa: F401

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b]0;pwn\x07\x9b2J [bold]red[/bold] \u202egnp\x7f\r\nforged: line"
START = [sys.executable, "-m", "studies.cli", "start", "quickstart"]
TINY = [
    "--set",
    "controls=none",
    "--set",
    "data.train=60",
    "--set",
    "data.validation=40",
    "--epochs",
    "1",
    "--trials",
    "2",
    "--workers",
    "1",
    "--set",
    "space.input_size=8",
    "--set",
    "space.backbone=2k3, 2k3",
    "--set",
    "space.layout=max2/2",
    "--set",
    "space.width=null",
    "--set",
    "space.restrict={}",
    "--set",
    "search.first=[]",
    "--set",
    "search.sampler=random",
    "--set",
    "space.family=plain",
]


def fails(study, assignment, report):
    if assignment.number == 1:
        raise RuntimeError(HOSTILE)
    trivial.trainable(study, assignment, report)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A study whose journal, study file and file names hold control characters and markup."""
    directory = tmp_path_factory.mktemp("x") / "study\x1b[31m[bold]"
    with SearchDriver.create(
        directory, trivial.study(search__trials=4, search__rungs=[9])
    ) as driver:
        run_in_process(driver, fails)
    journal = directory / JOURNAL
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    for line in lines:
        attributes = line.get("user_attr", {})
        if "surviving" in attributes and line.get("trial_id") == 0:
            attributes["surviving"] = [HOSTILE]
        if "reason" in attributes:
            attributes["reason"] = HOSTILE
    journal.write_text(
        "".join(
            json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines
        ),
        encoding="utf-8",
    )
    (directory / "trials" / "00000" / "file\x1b[2J\x9b").write_text("")
    return directory


def harmless(text):
    return not any(c in text for c in "\x1b\x07\x9b\x7f\r\u202e")


@pytest.mark.parametrize(
    "words",
    [
        ["trials"],
        ["trials", "--format", "csv"],
        ["trials", "--format", "json"],
        ["front"],
        ["show", 0],
        ["show", 1],
        ["status"],
        ["report"],
        ["resume", "--trials", 4],
        ["show", 99],
        ["retrain", "--trial", 99],
        ["resume", "--set", f"data.name={HOSTILE}"],
    ],
)
def test_nothing_in_a_study_reaches_the_terminal_as_a_command(run, hostile, words):
    status, out, err = run(words[0], hostile, *words[1:])
    assert harmless(out + err) and "fault of the program" not in err, err
    if words == ["show", 1] or words == ["trials"]:
        assert "[bold]red[/bold]" in out and "\\x1b]0;pwn\\x07" in out and "\nforged" not in out
    assert status == (2 if "--set" in words else 1 if 99 in words else 0)


def test_what_a_journal_holds_in_place_of_a_number_is_told_as_plain_text(hostile, tmp_path):
    copied = tmp_path / "study"
    shutil.copytree(hostile, copied)
    lines = (copied / JOURNAL).read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        if "params" in entry.get("user_attr", {}):
            entry["user_attr"]["params"] = HOSTILE
    written = "".join(json.dumps(e, separators=(",", ":")) + "\n" for e in entries)
    (copied / JOURNAL).write_text(written)
    with pytest.warns(JournalWarning, match="params is") as told:
        tables.trial_rows(copied)
    assert all(harmless(cli._warning(t.message, t.category, "x.py", 1)) for t in told)


def test_warnings_and_tracebacks_are_plain_too(run, hostile, monkeypatch):
    _status, _out, err = run("show", hostile, 99, "--debug")
    assert "Traceback" in err and harmless(err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "words",
    [
        ["check", "lenet"],
        ["check", "28px: 10k3@C4, 10k3 max2/2"],
        ["show", "DIR", "0"],
        ["trials", "DIR"],
        ["front", "DIR"],
        ["--help"],
    ],
)
def test_every_encoding_gets_a_drawing(hostile, encoding, words):
    words = [str(hostile) if word == "DIR" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "studies.cli", *words],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    text = done.stdout.decode(encoding)
    assert done.returncode == (1 if words == ["check", "lenet"] else 0), done.stderr
    assert b"UnicodeEncodeError" not in done.stderr and (text or done.returncode)
    if words[0] == "check" and text:
        assert ("████" if encoding == "utf-8" else "####") in text


def test_similar_characters_stand_in_for_those_that_cannot_be_shown():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=terminal.LOOKALIKE)
    assert (
        terminal.encodable("97 ± 1, 90°, é, 漢, \udc80 █", stream) == "97 +- 1, 90 deg, e, ?, ? #"
    )


class Gone(io.StringIO):
    """A stream whose reader went away."""

    def __init__(self, error, terminal):
        super().__init__()
        self.error, self.terminal = error, terminal

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(32, "Broken pipe"),
        ValueError("I/O operation on closed file"),
        OSError(5, "Input/output error"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_no_trial_fails_because_nobody_listens(tmp_path, monkeypatch, error, terminal):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=5)) as driver:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", Gone(error, terminal))
            with LiveView(driver) as progress:
                run_in_process(driver, trivial.trainable, progress)
    states = [
        record.state for record in read_trials(tmp_path / "study") if record.state != "refused"
    ]
    assert len(states) == 5 and set(states) <= {"complete", "pruned"}


def test_the_live_table_shows_what_runs_and_the_last_trials_that_ended(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=8)) as driver:
        view = LiveView(driver, quiet=True)
        run_in_process(driver, trivial.trainable, view)
        view(Event("started", 8))
        view(Event("epoch", 8, 3))
        text = io.StringIO()
        Console(file=text, width=120).print(view._table())
    numbers = [int(n) for n in re.findall(r"^ *(\d+) +[█░]", text.getvalue(), re.MULTILINE)]
    assert numbers == [2, 3, 4, 5, 6, 7, 8]
    assert "█" * 18 + " 8 of 8 trials" in text.getvalue()
    assert "█" * 6 + "░" * 12 + " 3/9" in text.getvalue() and "running" in text.getvalue()


def test_trials_beside_the_search_are_not_counted_as_its_own(tmp_path, capsys):
    study = trivial.study(controls="auto", search__trials=4, search__eta=9)
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_in_process(driver, trivial.trainable, LiveView(driver))
    lines = capsys.readouterr().err.splitlines()
    assert sum("4 of 4 done, hypervolume" in line for line in lines) == 1
    beside = [line for line in lines if "left beside the search" in line]
    controls = sum("(control of trial" in line for line in lines)
    assert len(beside) == controls > 1 and "; 0 left beside the search" in beside[-1]
    last = [line for line in lines if "epoch 9 of 9" in line]
    assert last and all(line.endswith(": scored") for line in last)


def test_a_bar_is_as_full_as_what_is_done():
    assert bar(0, 9) == "░" * 18 and bar(9, 9) == bar(12, 9) == "█" * 18
    assert bar(3, 9) == "█" * 6 + "░" * 12 and bar(0, 0) == "░" * 18


def test_a_listener_that_raises_is_heard_no_more_and_touches_no_trial(tmp_path):
    heard = []

    def listener(event):
        heard.append(event)
        raise RuntimeError("no table")

    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=3)) as driver:
        assert run_in_process(driver, trivial.trainable, listener).reason == "trials"
    assert len(heard) == 1 and not [
        r for r in read_trials(tmp_path / "study") if r.state == "failed"
    ]


def test_loggers_that_fail_are_told_of_once_and_touch_no_trial(tmp_path, monkeypatch):
    class Fails:
        def __init__(self, driver):
            pass

        def __call__(self, event):
            raise ConnectionError("no server")

        def close(self):
            pass

    monkeypatch.setattr("studies.workers.loggers.TuneLoggers", Fails)
    told = []
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=3, loggers__tensorboard=True)
    ) as driver:
        run_in_process(
            driver,
            trivial.trainable,
            lambda event: told.append(event.reason) if event.kind == "warning" else None,
        )
    assert len(told) == 1 and "ConnectionError: no server" in told[0]
    assert not [r for r in read_trials(tmp_path / "study") if r.state == "failed"]


@pytest.mark.parametrize(
    "shell", ["2>&1 | head -n 1", ">&- 2>&-", "2>&-", "2>/dev/full", "</dev/null >&-"]
)
def test_a_study_ends_well_where_its_output_goes_nowhere(tmp_path, shell):
    command = " ".join(["'" + word + "'" for word in [*START, str(tmp_path / "study"), *TINY]])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {shell}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and "Error" not in done.stderr, done.stdout + done.stderr
    states = [
        record.state for record in read_trials(tmp_path / "study") if record.state != "refused"
    ]
    assert len(states) == 2 and set(states) <= {"complete", "pruned"}


def test_results_that_do_not_fit_on_a_disk_are_an_error(hostile):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "studies.cli", "trials", str(hostile)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and "No space left" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_a_warning_of_the_program_is_one_plain_line_without_its_place():
    assert cli._warning("left out: a\x1b[31m.png\nand b", UserWarning, "x.py", 4) == (
        "warning: left out: a\\x1b[31m.png and b\n"
    )


def test_a_message_that_quotes_without_end_shows_beginning_and_end(run):
    _, _, err = run("check", "28px: 4k3 " + "x" * 100_000)
    assert len(err) < 2_200 and "stage 1: 'xxx" in err and "characters left out" in err
    assert err.rstrip().endswith("in full") or "write one like" in err
