"""Files that appear whole or not at all."""

import errno
import os
import resource
import signal
import stat

import pytest

from studies.config import dump, load_study
from studies.errors import StudyError
from studies.journal.repair import repair
from studies.journal.writer import writing
from trainers.files import PARTIAL, partial_files, read_whole, system_reason, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "scores.jsonl"
    write_whole(path, b"\x00before")
    write_whole(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode() and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    path = tmp_path / "study.yaml"
    write_whole(path, "before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, moment, full)
        write_whole(path, "after")
    assert path.read_text() == "before" and os.listdir(tmp_path) == [path.name]


def test_one_of_two_names_is_whole_at_every_moment(tmp_path, monkeypatch):
    """A kill between the two moves leaves the content of before under the other name."""
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    write_whole(path, "1", previous=previous)
    assert not previous.exists()
    write_whole(path, "2", previous=previous)
    assert (path.read_text(), previous.read_text()) == ("2", "1")
    moves = []

    def observed(source, target, move=os.replace):
        move(source, target)
        moves.append([name.read_text() for name in (path, previous) if name.exists()])

    monkeypatch.setattr(os, "replace", observed)
    write_whole(path, "3", previous=previous)
    assert moves == [["2"], ["3", "2"]]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_the_mode_is_the_umasks_or_the_users_alone(tmp_path, private, mode):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "x", private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_what_a_killed_process_left_is_listed(tmp_path, monkeypatch):
    write_whole(tmp_path / "whole", "x")

    def killed(source, target):
        os.rename(source, tmp_path / f"left{PARTIAL}")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "cut", "x")
    assert partial_files(tmp_path) == [tmp_path / f"left{PARTIAL}"]


def test_a_write_that_the_disk_refuses_names_its_file_and_says_why_in_words(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            write_whole(tmp_path / "file", b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused.value.filename == str(tmp_path / "file") and not list(tmp_path.iterdir())
    assert system_reason(refused.value) == "File too large"
    assert system_reason(OSError("the bundle is whole")) == "the bundle is whole"


@pytest.mark.parametrize("name", ["data.json", "trials/00000/scores.jsonl", "optuna.journal"])
def test_a_pipe_in_place_of_a_file_of_a_study_is_not_waited_for(tmp_path, name):
    (tmp_path / "study.yaml").write_text(dump(load_study("quickstart")))
    (tmp_path / "trials" / "00000").mkdir(parents=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        read_whole(tmp_path / name)
    assert repair(tmp_path)
    assert read_whole(tmp_path / "study.yaml")


def test_a_full_disk_is_said_with_what_to_do():
    from studies.cli.main import _lacking, _said

    said = _lacking(OSError(errno.EFBIG, "File too large"))
    assert said.startswith("no space is left for a file (File too large): free some space")
    torchs = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
    torchs.__context__ = OSError(errno.ENOSPC, "No space left on device", "model.pt")
    assert _lacking(torchs).startswith("no space is left for model.pt (No space left on device)")
    assert _lacking(ValueError("shapes")) is None
    assert "--debug" in _said(OSError(errno.EIO, "Input/output error"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        SystemError("error return without exception set"),
    ],
)
def test_memory_that_does_not_suffice_is_no_fault_of_the_program(error, monkeypatch, capsys):
    from studies.cli import main

    def fails(arguments):
        raise error

    monkeypatch.setattr(main, "application", fails)
    assert main._status(debug=False) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: memory did not suffice (") and "training.batch_size" in said


@pytest.mark.parametrize("begun", [True, False])
def test_after_a_full_disk_resume_is_named_where_a_study_has_begun(tmp_path, begun):
    if begun:
        (tmp_path / "study.yaml").touch()
    with pytest.raises(StudyError) as refused, writing(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ("equisearch resume" in str(refused.value)) == begun
    assert ("the same command" in str(refused.value)) != begun
