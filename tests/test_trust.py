"""A study directory that this user did not start runs none of its programs, unless told to; the
user's own do, wherever they lie.
"""

import json
import os
import shutil
import stat
import sys

import pytest
import yaml

from studies.cli import main as cli
from studies.errors import UntrustedError
from studies.journal import trust
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

HOSTILE = {"py_executable": "touch /tmp/pwned; python", "env_vars": {"LD_PRELOAD": "/tmp/x.so"}}


def started(directory, **overrides):
    """A study with one trial done, started by this user."""
    with SearchDriver.create(
        directory, trivial.study(search__trials=1, resources__workers=1, **overrides)
    ) as driver:
        run_in_process(driver, trivial.trainable)
    return directory


def edited(directory, section, key, value):
    path = directory / "study.yaml"
    content = yaml.safe_load(path.read_text())
    content[section][key] = value
    path.write_text(yaml.safe_dump(content))
    return directory


@pytest.fixture
def resume(monkeypatch, capsys):
    """Runs `equisearch resume`; returns exit status and stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["equisearch", "resume", "--quiet", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    "section, key, value, named",
    [
        (
            "resources",
            "runtime_env",
            HOSTILE,
            "resources.runtime_env.py_executable, resources.runtime_env.env_vars.LD_PRELOAD",
        ),
        ("resources", "address", "203.0.113.7:6379", "resources.address"),
        (
            "loggers",
            "mlflow",
            {"tracking_uri": "http://203.0.113.7"},
            "loggers.mlflow.tracking_uri",
        ),
        ("loggers", "wandb", {"api_key_file": "~/.ssh/id_rsa"}, "loggers.wandb.api_key_file"),
    ],
)
def test_what_a_foreign_study_would_run_is_named_and_refused(
    tmp_path, resume, section, key, value, named
):
    directory = edited(started(tmp_path / "study"), section, key, value)
    before = sorted(tmp_path.rglob("*"))
    status, said = resume(directory)
    assert (
        status == 1
        and all(name in said for name in named.split(", "))
        and "--trust" in said
        and "Traceback" not in said
    )
    assert len(said.splitlines()) == 1 and sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UntrustedError):
        SearchDriver.open(directory)


def test_trust_takes_it_over_for_good(tmp_path, resume):
    directory = edited(started(tmp_path / "study"), "resources", "runtime_env", HOSTILE)
    assert resume(directory, "--trust")[0] == 0
    assert resume(directory)[0] == 0


def test_without_what_runs_programs_no_trust_is_needed(tmp_path, resume):
    directory = edited(
        edited(started(tmp_path / "study"), "resources", "runtime_env", HOSTILE),
        "resources",
        "address",
        "203.0.113.7:6379",
    )
    said = resume(directory)[1]
    assert "--set resources.runtime_env={} --set resources.address=local" in said
    assert (
        resume(
            directory,
            "--set",
            "resources.runtime_env={}",
            "--set",
            "resources.address=local",
            "--set",
            "resources.executor=in_process",
        )[0]
        == 0
    )
    assert resume(directory)[0] == 0


def test_setting_one_part_does_not_take_over_the_rest(tmp_path, resume):
    directory = edited(started(tmp_path / "study"), "resources", "runtime_env", HOSTILE)
    status, said = resume(directory, "--set", "resources.runtime_env.py_executable=python")
    assert status == 1 and "LD_PRELOAD" in said and "py_executable" not in said


def test_what_the_user_started_stays_trusted_where_it_is_moved_and_not_once_it_is_edited(
    tmp_path, resume
):
    directory = started(tmp_path / "study", resources__runtime_env={"env_vars": {"A": "1"}})
    moved = shutil.move(directory, tmp_path / "elsewhere")
    assert resume(moved)[0] == 0
    edited(moved, "resources", "runtime_env", {"env_vars": {"A": "2"}})
    assert resume(moved)[0] == 1


def test_a_signature_of_another_user_or_of_nobody_counts_for_nothing(tmp_path, monkeypatch):
    directory = started(tmp_path / "study", resources__runtime_env={"env_vars": {"A": "1"}})
    study = SearchDriver.open(directory)
    study.close()
    monkeypatch.setenv("EQUISEARCH_STATE", str(tmp_path / "other"))
    with pytest.raises(UntrustedError):
        SearchDriver.open(directory)
    for content in ("", "[]", json.dumps({"signature": None}), json.dumps({"signature": "é"})):
        (directory / trust.SIGNATURE).write_text(content)
        with pytest.raises(UntrustedError):
            SearchDriver.open(directory)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_the_key_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_STATE", str(tmp_path / "state"))
    directory = started(tmp_path / "study", resources__runtime_env={"env_vars": {"A": "1"}})
    key = tmp_path / "state" / trust.KEY
    assert (
        stat.S_IMODE(key.stat().st_mode) == 0o600
        and stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    )
    assert key.read_bytes() not in (directory / trust.SIGNATURE).read_bytes()
    key.chmod(0o644)  # somebody else may have read it
    with pytest.raises(UntrustedError):
        SearchDriver.open(directory)


@pytest.mark.parametrize(
    "platform, place",
    [("darwin", "Library/Application Support/equisearch"), ("linux", ".local/state/equisearch")],
)
def test_the_key_lies_where_the_system_keeps_state(tmp_path, monkeypatch, platform, place):
    for name in ("EQUISEARCH_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", platform)
    assert trust.state_directory() == tmp_path / place


def test_a_state_folder_that_cannot_be_written_is_said_and_starts_all_the_same(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EQUISEARCH_STATE", str(tmp_path / "file" / "state"))
    with SearchDriver.create(
        tmp_path / "study", trivial.study(resources__runtime_env={"env_vars": {"A": "1"}})
    ) as driver:
        assert "--trust" in driver.warnings[0] and "EQUISEARCH_STATE" in driver.warnings[0]


def test_a_study_that_runs_nothing_leaves_no_signature(tmp_path):
    directory = tmp_path / "study"
    SearchDriver.create(
        directory, trivial.study(resources__address="local", loggers__mlflow={})
    ).close()
    SearchDriver.open(directory).close()
    assert not (directory / trust.SIGNATURE).exists()
