"""The files of a study's directory, apart from the journal: the study as started, the versions, the
trials' folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from searchspace.recipe import Candidate
from studies.config import Study, dump, parse, read_text
from studies.errors import ExistsError, StudyError, StudyFileError
from studies.journal import trust
from studies.journal.definition import as_stored
from studies.journal.folders import TRIALS, read_folders
from studies.journal.lock import StudyLock
from studies.journal.origin import (
    WIDENING,
    DataIdentity,
    ReadIdentity,
    require_begun,
    require_same_images,
    require_same_study,
)
from studies.journal.reader import JOURNAL
from trainers.files import (
    as_word,
    parse_json,
    read_whole,
    require_local,
    require_writable,
    write_whole,
)
from trainers.versions import library_versions

STUDY, VERSIONS, DATA = "study.yaml", "versions.json", "data.json"
ANOTHER_PLACE = "choose a place where this account may write"
ENQUEUED = "enqueued"  # in DATA: what was to be tried first, beside the study's search.first
STUDY_LIBRARIES = ("equisearch", "torch", "torchvision", "escnn", "optuna", "ray", "numpy")


class StudyPlace(NamedTuple):
    """A study's directory, locked by this process."""

    path: Path  # absolute
    study: Study
    lock: StudyLock
    warnings: list[str]
    images: DataIdentity | None = None  # those of the data now, where it was looked at


def create_directory(directory: str | Path, study: Study) -> StudyPlace:
    """The directory of a new study, locked; `publish` then makes it a study.

    Raises ExistsError if it holds a study already.
    """
    path = require_new_place(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    lock = StudyLock(path)
    try:
        _clear_unfinished_start(path)
        (path / TRIALS).mkdir(exist_ok=True)
        write_whole(path / VERSIONS, json.dumps(versions(), indent=1) + "\n")
        return StudyPlace(path, study, lock, trust.sign_study(path, study))
    except BaseException:
        lock.close()
        raise


def publish(
    directory: Path, study: Study, images: Mapping[str, Any], enqueued: Sequence[str] = ()
) -> None:
    """Writes `study.yaml`, with which the directory holds a study: the last step of a start."""
    content = {**images, **({ENQUEUED: list(enqueued)} if enqueued else {})}
    write_whole(directory / DATA, json.dumps(content, indent=1) + "\n")
    write_whole(directory / STUDY, dump(study))


def require_place(directory: str | Path) -> Path:
    """The absolute path of a study's directory. Raises StudyError for the address of a remote
    store, and for no name.
    """
    try:
        require_local(directory)
    except ValueError as error:
        raise StudyError(str(error)) from None
    if not str(directory).strip():
        raise StudyError("the study's directory has no name; give a path such as runs/first")
    return Path(directory).absolute()


def require_new_place(directory: str | Path) -> Path:
    """The absolute path of a directory in which a study could begin; nothing is made. Raises
    ExistsError for a file and a directory with a study, StudyError where this account cannot write.
    """
    path = require_writable_place(directory)
    if (path / STUDY).exists():
        raise ExistsError(
            f"{directory} already holds a study; "
            f"go on with `equisearch resume {as_word(directory)}`, or choose another directory"
        )
    return path


def require_writable_place(directory: str | Path, remedy: str = ANOTHER_PLACE) -> Path:
    """The absolute path of a directory, which may be missing, to write to; nothing is made. Raises
    ExistsError for a file, StudyError with the `remedy` where this account cannot write.
    """
    path = require_place(directory)
    if os.path.isfile(path):
        raise ExistsError(f"{directory} is a file; give a directory that is new or empty")
    try:
        require_writable(path)
    except OSError as error:
        raise _unwritable(path, error, remedy) from error
    return path


def _unwritable(path: Path, error: OSError, remedy: str = ANOTHER_PLACE) -> StudyError:
    there = "written" if os.path.isdir(path) else "created"
    return StudyError(f"the directory {path} cannot be {there} ({error.strerror}); {remedy}")


def _clear_unfinished_start(path: Path) -> None:
    """Removes what a start left that ended before its first trial. Raises ExistsError where trials
    lie there.
    """
    if not (path / JOURNAL).exists():
        return
    if read_folders(path):
        raise ExistsError(
            f"{path} holds trials and a journal but no {STUDY}: restore that file, write it "
            f"back with `equisearch repair {as_word(path)}`, or choose another directory"
        )
    (path / JOURNAL).unlink()


def open_directory(
    directory: str | Path,
    study: Study | None,
    *,
    trusted: bool = False,
    look: ReadIdentity | None = None,
    accept_data: bool = False,
) -> StudyPlace:
    """The directory of an existing study, locked; a `study` that widens the stored one replaces it.

    `look` reads the data, before anything else happens to the study. Raises UntrustedError, unless
    it is `trusted`, for a study that runs programs and was not written by this user, and StudyError
    for a study or data that changed; `accept_data` accepts other data.
    """
    path = require_place(directory)
    stored = read_study(path)
    if not trusted:
        trust.require(path, stored, study)
    used = stored if study is None else as_stored(study, stored)
    started = require_begun(path)
    images = look(used) if look is not None else None
    same = images is not None and require_same_images(path, started, images, accept_data)
    require_same_study(path, started, stored, used, same)
    lock = StudyLock(path)
    try:
        warnings = [] if trust.is_signed(path, used) else trust.sign_study(path, used)
        if used != stored:
            write_whole(path / STUDY, dump(used))
        return StudyPlace(path, used, lock, [*warnings, *changed_versions(path)], images)
    except BaseException:
        lock.close()
        raise


def read_study(directory: str | Path, *, reading: bool = False) -> Study:
    """The study of a directory, with the definition of symmetry accuracy that it was started with.

    `reading` as in `studies.config.parse`. Raises StudyError if it holds none.
    """
    require_place(directory)
    path = Path(directory) / STUDY
    lost = not path.is_file() or not path.stat().st_size
    if lost and (Path(directory) / JOURNAL).is_file() and read_folders(Path(directory)):
        there = "not a file, or empty" if os.path.lexists(path) else "lost"
        raise StudyError(
            f"{directory} holds a journal, but {STUDY} is {there}: restore it from a copy, or "
            f"write it back from the journal with `equisearch repair {as_word(directory)}`"
        )
    if not path.is_file():
        raise StudyError(
            f"{directory} holds no study (no {STUDY} in it); `equisearch start STUDY "
            f"{as_word(directory)}` begins one"
        )
    text = read_text(path, "a study file is YAML: restore it from a copy")
    try:
        return as_stored(parse(text, name=str(path), reading=reading))
    except StudyFileError as error:
        from studies.journal.stored import as_an_earlier_version

        if as_an_earlier_version(text) is None:
            raise
        raise StudyFileError(f"{error}\n{_remedy(Path(directory), str(error))}") from None


def _remedy(directory: Path, complaints: str) -> str:
    """What to do about the keys in `complaints`, whose values an earlier version accepted."""
    keys = re.findall(r", line \d+, ([\w.]+):", complaints)
    deciding = [key for key in keys if not key.startswith(WIDENING)]
    if not deciding:
        return f"an earlier version accepted that: change it in {directory / STUDY}, then resume"
    settings = " ".join(f"--set {key}=VALUE" for key in dict.fromkeys(keys))
    return (
        "an earlier version accepted that, and it decides about scores, so this study cannot go "
        f"on with other values; its trials can be read (`equisearch trials "
        f"{as_word(directory)}`), and a new study begins with `equisearch start "
        f"{as_word(directory / STUDY)} NEW_DIR {settings}`"
    )


def read_published(directory: Path) -> dict[str, Any]:
    """What `publish` wrote of the images; empty where that is absent or damaged."""
    return {name: value for name, value in _read_data(directory).items() if name != ENQUEUED}


def _read_data(directory: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_whole(directory / DATA))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_enqueued(directory: Path) -> tuple[str, ...]:
    """The architectures that the start was given with `--enqueue`, as far as that is known."""
    given = _read_data(directory).get(ENQUEUED, ())
    texts = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
    return tuple(text for text in texts if _is_candidate(text))


def _is_candidate(text: str) -> bool:
    try:
        Candidate.parse(text)
    except ValueError:
        return False
    return True


def versions() -> dict[str, str]:
    """The versions of Python, of the libraries that decide about results, and a hash of
    this code.
    """
    libraries = library_versions(STUDY_LIBRARIES)
    return {"python": platform.python_version(), **libraries, "code": code_hash()}


def code_hash() -> str:
    """Twelve digits that change with the code that builds, trains and measures."""
    top = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted([*(top / "searchspace").rglob("*.py"), *(top / "trainers").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def changed_versions(directory: Path) -> list[str]:
    """One warning that names what has changed since the study was started, or none."""
    path = directory / VERSIONS
    if not path.is_file():
        return []
    try:
        before, now = parse_json(path.read_text(encoding="utf-8")), versions()
        before.items()
    except (OSError, ValueError, AttributeError):
        return [
            f"{path} is damaged: whether versions have changed since this study was started is "
            "not known"
        ]
    changed = [
        f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if not changed:
        return []
    return [
        f"versions have changed since this study was started ({', '.join(changed)}): scores "
        "before and after may differ"
    ]
