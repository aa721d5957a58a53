"""The cache folder, which others may write to: its path, whose files in it are trusted, and locks.

What another user wrote is not used: a file is opened once, its descriptor is checked (`open_own`),
and all that follows reads that descriptor, whatever its name stands for by then. Waiting for a lock
ends (`acquire`). Where the folder cannot be used, callers go on without it and say so once.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

log = logging.getLogger(__name__)


class UnusableError(OSError):
    """There is no cache folder; the message says why and what to set."""


def directory() -> Path:
    """The folder of all cached files: `EQUISEARCH_CACHE` (`~` is expanded; unset or empty: the
    user's cache folder).

    Raises UnusableError, an OSError, where that is not an absolute path or the home folder is
    unknown.
    """
    chosen = os.environ.get("EQUISEARCH_CACHE")
    try:
        folder = Path(chosen).expanduser() if chosen else _users()
    except RuntimeError as error:  # no such user, or no home
        raise UnusableError(
            f"there is no cache folder ({error}); set EQUISEARCH_CACHE to an absolute path"
        ) from None
    # it would be another folder in every worker's working directory
    if not folder.is_absolute():
        raise UnusableError(
            f"EQUISEARCH_CACHE is '{chosen}', a relative path; "
            "it must be an absolute path or begin with ~"
        )
    return folder


def _users() -> Path:
    """`equisearch` in the user's cache folder, by the rules of the operating system."""
    home = Path.home()
    if os.name == "nt":
        return (
            Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
            / "equisearch"
            / "Cache"
        )
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "equisearch"
    named = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    return (named if named.is_absolute() else home / ".cache") / "equisearch"


def make_folder(path: Path) -> None:
    """Makes the folder and those above it that are missing, for this user only (mode 0700). Raises
    OSError.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(0o700, exist_ok=True)


@cache
def say_once(message: str) -> None:
    """Logs a warning, the first time in this process."""
    log.warning(message)


def open_own(path: Path) -> BinaryIO | None:
    """A cached file, open for reading, if only this user or root can have written it; None for any
    other, which is logged once.

    What is checked is the opened file: not a link, a regular file with one name, of this user or
    root, and not writable by group or others. Nothing that happens to its name afterwards matters
    to who reads what is returned.
    """
    flags = os.O_RDONLY | sum(
        getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    )
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = (
            "that are symbolic links"
            if error.errno == errno.ELOOP
            else f"that cannot be opened ({error.strerror})"
        )
    else:
        reason = _distrust(os.fstat(descriptor))
        if not reason:
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    say_once(
        f"cached files in {path.parent} {reason} are not used; what they should hold is "
        "computed again. "
        "Set EQUISEARCH_CACHE to a folder that only you can write"
    )
    return None


def _distrust(about: os.stat_result) -> str:
    """Why a file may hold what another user wrote; '' if it cannot."""
    if not stat.S_ISREG(about.st_mode):
        return "that are not regular files"
    if _foreign(about):
        return f"that belong to user {about.st_uid}"
    if hasattr(os, "geteuid") and about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "that other users can write"
    return "that have several names" if about.st_nlink > 1 else ""


def _foreign(about: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and about.st_uid not in (os.geteuid(), 0)


_given_up: set[str] = set()  # locks for which this process has waited in vain


def acquire(path: Path, wait: float) -> FileLock:
    """The lock beside a cached file, to be released; others cannot open it. Raises OSError if it is
    not free after `wait` seconds.

    There is no waiting for a lock file of another user, whose result would not be used, nor twice
    for the same one.
    """
    name = f"{path}.lock"
    with suppress(FileNotFoundError):
        if name in _given_up or _foreign(os.lstat(name)):
            wait = 0.0
    lock = FileLock(name, timeout=wait, mode=0o600)
    try:
        lock.acquire()
    except TimeoutError:
        _given_up.add(name)
        raise TimeoutError(f"another process holds {name}") from None
    except NotImplementedError as error:  # a file system without locks
        raise OSError(f"{name} cannot be locked: {error}") from None
    _given_up.discard(name)
    return lock
