"""Inputs that outsiders gave: directories that cannot be written, remote addresses, bundles and
tables of odd content. Each works, or ends with one sentence that names the path and what to do.
"""

import errno
import os
import shutil

import pytest

from studies.config import parse
from studies.journal.repair import repair
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from studies.workers.local_ray import _private_folder
from support.commands import run  # noqa: F401

TINY = """
data: {name: digits, train: 40, validation: 20}
training: {epochs: 1, batch_size: 20, precision: float32}
space:
  {backbone: "4k3, 4k3 *, 4k3", family: [steerable], group: [C4], input_size: [8]}
search: {trials: 2, rungs: [], sampler: random}
resources: {executor: in_process, gpus_per_trial: 0}
"""


def assert_one_message(result, *words):
    """One line on stderr that says what was given and what to do, without a traceback."""
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.status in (1, 2, 3) and len(lines) == 1, result.err
    assert "Traceback" not in result.err and "fault of the program" not in result.err
    for word in words:
        assert str(word) in lines[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A tiny real study that has ended."""
    path = tmp_path_factory.mktemp("odd") / "study"
    with SearchDriver.create(path, parse(TINY)) as driver:
        run_in_process(driver)
    return path


@pytest.fixture
def read_only(study, monkeypatch):
    """The study as on a read-only file system: nothing below it is opened for writing or made."""

    def refuse(action):
        def tried(path, *options, **named):
            flags = options[0] if action == "open" else os.O_WRONLY
            inside = str(path).startswith(str(study))
            if inside and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return original[action](path, *options, **named)

        return tried

    original = {action: getattr(os, action) for action in ("open", "mkdir")}
    for action in original:
        monkeypatch.setattr(os, action, refuse(action))
    return study


@pytest.mark.parametrize("words", ["status", "front", "trials", "show 0", "rederive"])
def test_commands_that_look_work_on_a_read_only_study(run, read_only, words):
    command, *more = words.split()
    result = run(command, read_only, *more)
    assert result.status == 0 and result.out and "error" not in result.err


@pytest.mark.parametrize(
    "words, said",
    [
        ("resume --trials 3", "use an account that may write to this directory, or a copy of it"),
        ("repair", "use an account that may write to this directory, or a copy of it"),
        ("report", "give another place with --out"),
        ("export 0", "give another folder with --out"),
        ("retrain --trial 0 --seeds 1 --workers 1", "use an account that may"),
    ],
)
def test_commands_that_write_say_what_to_do_about_a_read_only_study(run, read_only, words, said):
    command, *more = words.split()
    assert_one_message(run(command, read_only, *more), read_only, "Read-only file system", said)


def test_repair_does_not_replace_a_study_file_that_may_not_be_read(study, tmp_path, monkeypatch):
    copied = shutil.copytree(study, tmp_path / "copied")
    before = (copied / "study.yaml").read_bytes()
    original = os.open

    def refuse(path, *options, **named):
        if str(path) == str(copied / "study.yaml"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *options, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(PermissionError):
            repair(copied)
    assert (copied / "study.yaml").read_bytes() == before
    assert not (copied / "study.yaml.damaged").exists()


def test_ray_needs_no_folder_of_temporary_files_that_can_be_found(monkeypatch):
    def absent():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", absent)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    _private_folder().rmdir()


@pytest.mark.parametrize(
    "words",
    [
        "verify s3://bucket/x",
        "verify STUDY --trusted s3://bucket/x",
        "predict s3://bucket/x a.png",
        "predict STUDY s3://bucket/x",
        "measure s3://bucket/x",
        "measure s3://bucket/x:1",
        "measure STUDY:0 --control s3://bucket/x:1",
        "replay s3://bucket/x",
        "check s3://bucket/x.onnx --size 28",
        "check file.py:model --size 28 --repair s3://bucket/x",
        "start s3://bucket/x NEW",
        "start quickstart s3://bucket/x",
        "start quickstart NEW --enqueue s3://bucket/x",
        "start quickstart NEW --warm-start s3://bucket/x",
        "start quickstart NEW --set data.root=s3://bucket/x",
        "start quickstart NEW --set data.folder=s3://bucket/x",
        "start quickstart NEW --set data.files=s3://bucket/x",
        "reproduce NEW --root s3://bucket/x",
        "export STUDY 0 --out s3://bucket/x",
        "export STUDY 0 --sign s3://bucket/x",
        "soften s3://bucket/x 0",
        "front s3://bucket/x",
        "record quickstart s3://bucket/x",
        "probe s3://bucket/x",
        "train s3://bucket/x P4CNN",
    ],
)
def test_the_address_of_a_remote_store_is_refused_wherever_a_path_is_meant(
    run, study, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    words = words.replace("STUDY", str(study)).replace("NEW", str(tmp_path / "new")).split()
    result = run(*words)
    assert_one_message(result, "bucket/x", "is the address of a remote store", "mount the store")
    assert list(tmp_path.iterdir()) == []
