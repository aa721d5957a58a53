"""A cache folder that other users can write to: what they put there is not used, and they cannot
make us wait.
"""

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from searchspace.groups import Group
from studies.cli import doctor
from studies.errors import StudyError
from studies.journal.lock import StudyLock, holder
from trainers import cache, cached_arrays
from trainers.data.datasets import load_data
from trainers.networks import bases
from trainers.networks.kernels import compiled
from trainers.settings import Data

DIGITS = Data(name="digits")
OTHER = 65534  # a user who is neither this one nor root
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_given_up", set())
    cache.say_once.cache_clear()
    return tmp_path / "cache"


def give_away(path):
    os.chown(path, OTHER, OTHER)


def open_to_all(path):
    path.chmod(0o666)


def behind_a_link(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def with_another_name(path):
    os.link(path, path.with_suffix(".linked"))


FOREIGN = [pytest.param(give_away, marks=as_root), open_to_all, behind_a_link, with_another_name]


# images


def poison(path):
    """The file with every label 0, as another user would write it."""
    content = path.read_bytes()
    length = int.from_bytes(
        content[-len(cached_arrays.MARK) - 8 : -len(cached_arrays.MARK)], "little"
    )
    start = len(content) - len(cached_arrays.MARK) - 8 - length
    about = json.loads(content[start : start + length])
    about["content"]["labels"] = [0] * len(about["content"]["labels"])
    text = json.dumps(about).encode()
    path.write_bytes(content[:start] + text + len(text).to_bytes(8, "little") + cached_arrays.MARK)


def test_the_poison_works_on_a_file_of_ones_own(folder):
    load_data(DIGITS)
    [path] = folder.glob("*.npy")
    poison(path)
    assert not load_data(DIGITS).train.labels.any()


@pytest.mark.parametrize("make_foreign", FOREIGN)
def test_labels_that_others_could_have_written_are_not_used(folder, caplog, make_foreign):
    labels = load_data(DIGITS).train.labels
    [path] = folder.glob("*.npy")
    poison(path)
    make_foreign(path)
    assert torch.equal(load_data(DIGITS).train.labels, labels) and labels.any()
    assert caplog.text.count("are not used") == 1 and "EQUISEARCH_CACHE" in caplog.text
    assert cached_arrays.read_array(path) is not None  # our own file took its place


def test_one_file_of_ours_under_the_name_of_another_is_not_used(folder):
    expected = load_data(DIGITS).train.pixels.clone()
    [first] = folder.glob("*.npy")
    load_data(Data(name="digits", seed=1))
    [second] = set(folder.glob("*.npy")) - {first}
    os.replace(second, first)
    assert torch.equal(load_data(DIGITS).train.pixels, expected)


def test_what_is_read_is_the_file_that_was_checked(folder, monkeypatch):
    labels = load_data(DIGITS).train.labels
    [_path] = folder.glob("*.npy")
    checked = cache.open_own

    def replaced_after_the_check(path):
        file = checked(path)
        evil = path.with_suffix(".evil")
        shutil.copy(path, evil)
        poison(evil)
        os.replace(evil, path)
        return file

    monkeypatch.setattr(cached_arrays, "open_own", replaced_after_the_check)
    assert torch.equal(load_data(DIGITS).train.labels, labels)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(folder):
    labels = load_data(DIGITS).train.labels
    [path] = folder.glob("*.npy")
    path.unlink()
    os.mkfifo(path)
    assert torch.equal(load_data(DIGITS).train.labels, labels)


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("ending", ["whole file", "behind the images"])
def test_nothing_of_a_cached_file_is_unpickled(folder, tmp_path, ending):
    """Not even of a file that is this user's own."""
    labels = load_data(DIGITS).train.labels
    [path] = folder.glob("*.npy")
    objects = np.array([Trap(tmp_path / "run")], dtype=object)
    content = io.BytesIO()
    np.save(content, objects, allow_pickle=True)
    before = path.read_bytes()
    kept = b"" if ending == "whole file" else before[cached_arrays.HEADER :]
    path.write_bytes(content.getvalue() + kept)
    assert torch.equal(load_data(DIGITS).train.labels, labels)
    assert not (tmp_path / "run").exists() and path.read_bytes() == before
    np.load(io.BytesIO(content.getvalue()), allow_pickle=True)
    assert (tmp_path / "run").exists()  # the trap works


@as_root
def test_a_name_that_cannot_be_replaced_costs_the_file_only(folder, monkeypatch, caplog):
    """In a folder like /tmp, others' files stay: what was built is used all the same, and built
    once.
    """
    labels = load_data(DIGITS).train.labels
    [path] = folder.glob("*.npy")
    poison(path)
    give_away(path)

    def sticky(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "replace", sticky)
    assert torch.equal(load_data(DIGITS).train.labels, labels)
    assert "cannot be kept" in caplog.text and not list(folder.glob("*.part"))


# locks

HOLD = (
    "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
    "print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def held():
    """Lets another process hold locks until the test ends."""
    holders = []

    def hold(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holders.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert holders[-1].stdout.readline() == b"held\n"

    yield hold
    for process in holders:
        process.communicate()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that each lock would be waited for; none is."""
    asked, lock = [], cache.FileLock
    monkeypatch.setattr(
        cache,
        "FileLock",
        lambda name, timeout, **options: (
            asked.append(timeout) or lock(name, timeout=0.0, **options)
        ),
    )
    return asked


def build(allocate):
    allocate((4, 3))[:] = 7
    return None, {"labels": [1]}


def test_waiting_for_the_images_of_another_process_ends(folder, held, monkeypatch):
    held(folder / "array.npy.lock")
    monkeypatch.setattr(cached_arrays, "DECODING_WAIT", 0.2)
    with pytest.warns(UserWarning, match="another process holds .*array.npy.lock"):
        pixels, content = cached_arrays.cached("array", build)
    assert (pixels == 7).all() and content == {"labels": [1]}


@pytest.mark.filterwarnings("ignore:images are decoded")
def test_a_lock_is_waited_for_once(folder, held, waits):
    held(folder / "array.npy.lock")
    for _ in range(2):
        assert (cached_arrays.cached("array", build)[0] == 7).all()
    assert waits == [cached_arrays.DECODING_WAIT, 0.0] and 0 < cached_arrays.DECODING_WAIT <= 3600


@as_root
def test_another_users_lock_is_not_waited_for(folder, held, waits):
    held(folder / "array.npy.lock")
    give_away(folder / "array.npy.lock")
    with pytest.warns(UserWarning, match="another process holds"):
        assert (cached_arrays.cached("array", build)[0] == 7).all()
    assert waits == [0.0]


def test_a_lock_that_cannot_be_opened_does_not_break_us(folder):
    (folder / "array.npy.lock").mkdir(parents=True)
    with pytest.warns(UserWarning, match="decoded in memory"):
        assert (cached_arrays.cached("array", build)[0] == 7).all()


def test_others_cannot_open_our_locks(folder):
    cached_arrays.cached("array", build)
    assert (folder / "array.npy.lock").stat().st_mode & 0o777 == 0o600


# compiled code


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def libraries(folder):
    return list((folder / "compiled").glob("*.so"))


def evil_library(tmp_path, name):
    """A library that answers 13, under any name."""
    source = tmp_path / "evil.c"
    source.write_text("int answer(void) { return 13; }\n")
    path = tmp_path / "made" / name
    path.parent.mkdir(exist_ok=True)
    compiled._compile(source, compiled.compiler(), path)
    path.chmod(0o600)
    return path


@needs_compiler
@pytest.mark.parametrize("make_foreign", FOREIGN)
def test_code_that_others_could_have_written_is_not_run(
    folder, source, tmp_path, caplog, make_foreign
):
    compiled.load_library(source)
    [path] = libraries(folder)
    os.replace(evil_library(tmp_path, path.name), path)
    make_foreign(path)
    assert compiled.load_library(source).answer() == 42
    assert "are not used" in caplog.text


@needs_compiler
@pytest.mark.parametrize("descriptors", [compiled.DESCRIPTORS, Path("/nonexistent")])
def test_the_code_that_runs_is_the_file_that_was_checked(
    folder, source, tmp_path, monkeypatch, descriptors
):
    compiled.load_library(source)
    [_path] = libraries(folder)
    own, checked = [], compiled.open_own

    def replaced_after_the_check(path):
        file = checked(path)
        os.replace(evil_library(tmp_path, path.name), path)
        return own.append(file) or file

    monkeypatch.setattr(compiled, "DESCRIPTORS", descriptors)
    monkeypatch.setattr(compiled, "open_own", replaced_after_the_check)
    assert compiled.load_library(source).answer() == 42 and own[0] is not None
    monkeypatch.undo()


@needs_compiler
def test_what_was_compiled_is_not_taken_from_the_shared_folder(
    folder, source, tmp_path, monkeypatch
):
    """Others exchange the file as soon as it has its name."""
    keep = compiled._keep

    def exchanged(content, path):
        keep(content, path)
        os.replace(evil_library(tmp_path, path.name), path)

    monkeypatch.setattr(compiled, "_keep", exchanged)
    assert compiled.load_library(source).answer() == 42


@needs_compiler
def test_code_under_the_name_of_other_code_is_not_used(folder, source, tmp_path):
    compiled.load_library(source)
    [path] = libraries(folder)
    os.replace(evil_library(tmp_path, "evil-0.so"), path)
    assert compiled.load_library(source).answer() == 42


@needs_compiler
def test_the_second_process_compiles_nothing(folder, source, monkeypatch):
    compiled.load_library(source)

    def compile_again(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiled, "_compile", compile_again)
    assert (
        isinstance(compiled.load_library(source), ctypes.CDLL)
        and compiled.load_library(source).answer() == 42
    )


@needs_compiler
def test_waiting_for_another_processs_compiler_ends(folder, source, held, monkeypatch, caplog):
    name = f"{source.stem}-{compiled._key(source, compiled.compiler())}.so.lock"
    held(folder / "compiled" / name)
    monkeypatch.setattr(compiled, "COMPILER_WAIT", 0.2)
    assert compiled.load_library(source).answer() == 42
    assert "another process holds" in caplog.text and not libraries(folder)


# bases

ARRAYS = {
    "scalar": np.ones((1, 4, 1, 3, 3)),
    "scalar_std": np.ones(1),
    "regular": np.ones((1, 4, 4, 3, 3)),
    "regular_std": np.ones(1),
}


@pytest.mark.parametrize("make_foreign", FOREIGN)
def test_bases_that_others_could_have_written_are_not_used(caplog, make_foreign):
    path = bases._file(Group.parse("C4"), 3)
    bases._keep(path, ARRAYS)
    assert bases._read(path) is not None
    make_foreign(path)
    assert bases._read(path) is None and "are not used" in caplog.text


def test_a_basis_under_the_name_of_another_is_not_used():
    path, other = (bases._file(Group.parse(name), 3) for name in ("C4", "D2"))
    bases._keep(path, ARRAYS)
    os.replace(path, other)
    assert bases._read(other) is None


# the folder


def test_all_that_is_cached_lies_in_one_folder_and_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EQUISEARCH_CACHE", "~/mine")
    assert cache.directory() == tmp_path / "mine"
    assert bases._file(Group.parse("C4"), 3).is_relative_to(tmp_path / "mine")


def test_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EQUISEARCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by XDG's specification
    assert cache.directory() == tmp_path / ".cache" / "equisearch"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "equisearch"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.directory() == tmp_path / "Library" / "Caches" / "equisearch"


@pytest.mark.parametrize(
    "value, message",
    [("here/cache", "relative path"), ("~no_such_user_here/cache", "absolute path")],
)
def test_a_folder_that_cannot_be_is_done_without(
    tmp_path, monkeypatch, caplog, source, value, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUISEARCH_CACHE", value)
    with pytest.warns(UserWarning, match=message):
        assert (cached_arrays.cached("array", build)[0] == 7).all()
    if compiled.compiler():
        assert compiled.load_library(source).answer() == 42 and message in caplog.text
    monkeypatch.setattr(bases, "_memory", {})
    bases.load_bases([(Group.parse("C1"), 1)])
    assert message in caplog.text and bases._memory
    found = doctor._cache()
    assert found.level == "bad" and message in found.found
    assert not (tmp_path / "here").exists()


def test_new_folders_are_for_this_user_only(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "new" / "cache"))
    bases._keep(bases._file(Group.parse("C4"), 3), ARRAYS)
    made = [tmp_path / "new", tmp_path / "new" / "cache", bases._file(Group.parse("C4"), 3).parent]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3


def test_looking_at_the_folder_writes_through_no_link(tmp_path, folder):
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (folder / f".probe-{os.getpid()}").symlink_to(precious)
    assert doctor._cache().level == "ok" and precious.read_text() == "mine"


# the lock of a study


def test_a_link_in_the_place_of_a_studys_lock_is_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(StudyError, match="not a regular file"):
        StudyLock(tmp_path)
    assert precious.read_text() == "mine" and holder(tmp_path).startswith("unknown")


def test_a_pipe_in_the_place_of_a_studys_lock_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "lock")
    assert holder(tmp_path).startswith("unknown")
    with pytest.raises(StudyError, match="not a regular file"):
        StudyLock(tmp_path)


def test_a_studys_lock_that_only_others_may_write_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("studies.journal.lock.os.open", refuse)
    with pytest.raises(
        StudyError,
        match="lock cannot be locked .Permission denied.; it must be a file that you can write",
    ):
        StudyLock(tmp_path)
