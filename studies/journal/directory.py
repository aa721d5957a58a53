"""The files of a study's directory, apart from the journal: the study as started, the versions, the
trials' folders.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from studies.config import Study, differences, dump, parse
from studies.errors import ExistsError, StudyError
from studies.journal import trust
from studies.journal.folders import TRIALS
from studies.journal.lock import StudyLock
from trainers.files import write_whole

STUDY, VERSIONS, DATA = "study.yaml", "versions.json", "data.json"
LIBRARIES = ("equisearch", "torch", "torchvision", "escnn", "optuna", "ray", "numpy")
WIDENING = (
    "search.trials",
    "search.timeout",
    "search.patience",
    "search.retries",
    "resources.",
    "loggers.",
    "training.device",
    "training.cuda_graphs",
)


def create_directory(directory: str | Path, study: Study) -> tuple[Path, StudyLock, list[str]]:
    """The absolute path of the new study's directory, with its files written, the lock on it, and
    warnings.

    Raises ExistsError if it holds a study already.
    """
    path = Path(directory).absolute()
    if path.exists() and not path.is_dir():
        raise ExistsError(f"{directory} is a file; give a directory that is new or empty")
    if (path / STUDY).exists():
        raise ExistsError(
            f"{directory} already holds a study; go on with `equisearch resume {directory}`, or "
            "choose another directory"
        )
    path.mkdir(parents=True, exist_ok=True)
    lock = StudyLock(path)
    try:
        (path / TRIALS).mkdir(exist_ok=True)
        write_whole(path / VERSIONS, json.dumps(versions(), indent=1) + "\n")
        warnings = trust.sign(path, study)
        write_whole(path / STUDY, dump(study))
    except BaseException:
        lock.close()
        raise
    return path, lock, warnings


def open_directory(
    directory: str | Path, study: Study | None, *, trusted: bool = False
) -> tuple[Path, Study, StudyLock, list[str]]:
    """Path, study, lock and warnings of an existing study; a `study` that widens the stored one
    replaces it.

    Raises UntrustedError, unless it is `trusted`, for a study that runs programs and was not
    written by this user.
    """
    path = Path(directory).absolute()
    stored = read_study(path)
    if study is not None and study != stored:
        refused = [d for d in differences(stored, study) if not d.startswith(WIDENING)]
        if refused:
            raise StudyError(
                f"the study has changed since {directory} was started ({'; '.join(refused)}); "
                "start it in a new directory, or undo that (trials, timeout, patience and "
                "resources may change)"
            )
    if not trusted:
        trust.require(path, stored, study)
    lock = StudyLock(path)
    try:
        used = study or stored
        warnings = [] if trust.signed(path, used) else trust.sign(path, used)
        if used != stored:
            write_whole(path / STUDY, dump(used))
        return path, used, lock, [*warnings, *changed_versions(path)]
    except BaseException:
        lock.close()
        raise


def read_study(directory: str | Path) -> Study:
    """The study of a directory. Raises StudyError if it holds none."""
    path = Path(directory) / STUDY
    if not path.is_file():
        raise StudyError(
            f"{directory} holds no study (no {STUDY} in it); `equisearch start STUDY "
            f"{directory}` begins one"
        )
    return parse(path.read_text(encoding="utf-8"), name=str(path))


def write_data(directory: Path, facts: Mapping[str, Any]) -> None:
    """Writes down what the study is told of its images (channels, classes) beside the journal."""
    write_whole(directory / DATA, json.dumps(dict(facts), indent=1) + "\n")


def read_data(directory: Path) -> dict[str, Any]:
    """What `write_data` wrote; empty where that is absent or damaged."""
    try:
        content = json.loads((directory / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def versions() -> dict[str, str]:
    """The versions of Python, of the libraries that decide about results, and a hash of this code."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "code": code_hash()}


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
    before, now = json.loads(path.read_text(encoding="utf-8")), versions()
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
