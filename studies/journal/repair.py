"""`equisearch repair`: puts a damaged study directory back into a state that `resume` takes, and
says what it did.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from studies.journal.directory import TRIALS, read_study
from studies.journal.lock import StudyLock
from studies.journal.reader import JOURNAL
from trainers.files import partial_files, write_whole


def repair(directory: Path) -> list[str]:
    """What was done, one line each; empty if nothing was wrong.

    The journal is cut before its first damaged line (a copy of all that is cut is kept beside it),
    optuna's stale lock files and half-written files of trials are removed. Raises LockedError if
    somebody drives the study, StudyError if there is none.
    """
    read_study(directory)
    lock = StudyLock(directory)
    try:
        return [*_cut_journal(directory / JOURNAL), *_remove_leftovers(directory)]
    finally:
        lock.close()


def _cut_journal(path: Path) -> list[str]:
    if not path.exists():
        return [
            f"there is no {path.name}: the study was never started, or the file was moved away; "
            "nothing can be done about that here"
        ]
    content, position = path.read_bytes(), 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n") or not _is_record(line):
            rest = content[position:]
            copy = path.with_name(f"{JOURNAL}.damaged-{position}")
            write_whole(copy, rest)
            with path.open("r+b") as file:
                file.truncate(position)
                os.fsync(file.fileno())
            return [
                f"cut the journal before line {number}; the {len(rest):,} bytes behind are in "
                f"{copy.name}"
            ]
        position += len(line)
    return []


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict) and "op_code" in json.loads(line)
    except ValueError:
        return False


def _remove_leftovers(directory: Path) -> list[str]:
    done = []
    folders = [directory, *(path for path in (directory / TRIALS).glob("*") if path.is_dir())]
    unfinished = [path for folder in folders for path in partial_files(folder)]
    before = (directory / TRIALS).glob("*/*.new")  # as earlier versions named them
    for path in [*directory.glob(f"{JOURNAL}.lock*"), *unfinished, *before]:
        path.unlink(missing_ok=True)
        done.append(f"removed the leftover {path.relative_to(directory)}")
    return done
