"""One writer per study: an advisory lock that the operating system drops with its process, however
that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from studies.errors import READ_ONLY, LockedError, StudyError

LOCK = "lock"
# 0.2 s: another process may be looking (`holder`), or a killed driver's last child be ending
LOCK_ATTEMPTS = 5
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another process has the lock


class NotRegularError(OSError):
    """A link, pipe or folder stands where the lock file should be."""


def _open(path: Path, mode: str) -> IO[Any]:
    """The lock file, not what a link in its place names (it is truncated), nor a pipe (opening one
    waits).
    """

    def opener(name: str, flags: int) -> int:
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise NotRegularError(error.errno, "not a regular file", name) from None
            raise
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", name)

    return open(path, mode, encoding="utf-8", opener=opener)


class StudyLock:
    """The right to write to a study's directory, held from creation to `close`. The file names the
    holder. `name` is that of the lock file, and `what` is locked, where that is not the directory.

    Raises LockedError, with the holder's process id and host, if another process holds it, and
    StudyError if the file is another user's or not a regular file. A file left by a dead process is
    no obstacle: the lock itself went with the process.
    """

    def __init__(self, directory: Path, name: str = LOCK, what: Path | None = None) -> None:
        self._path = directory / name
        try:
            self._file = _open(self._path, "a+")
        except OSError as error:
            if not isinstance(error, NotRegularError) and error.errno not in READ_ONLY:
                raise
            remedy = (
                "move it away"
                if isinstance(error, NotRegularError)
                else "use an account that may write to this directory, or a copy of it"
            )
            raise StudyError(
                f"{self._path} cannot be locked ({error.strerror}); it must be a file "
                f"that you can write: {remedy}"
            ) from None
        for attempt in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in TAKEN:
                    self._file.close()
                    raise StudyError(
                        f"the file system of {directory} cannot lock files ({error.strerror}): "
                        "keep it on a local disk, or on a share that supports flock"
                    ) from None
                time.sleep(0.05 if attempt < LOCK_ATTEMPTS - 1 else 0)
        else:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise LockedError(
                f"{what or directory} is being written by another process ({holder}); wait for "
                "it, or end it first"
            )
        self._name_holder()

    def _name_holder(self) -> None:
        """Writes who holds the lock. Raises OSError, and gives the lock back, where nothing can be
        written.
        """
        try:
            self._file.truncate(0)
            self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                self._file.close()  # which tries to write again
            error.filename = str(self._path)
            raise

    def require(self) -> None:
        """Raises StudyError where the directory or its lock file was moved or deleted since: what
        is written now would be lost, or beside another writer.
        """
        try:
            there = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            there = False
        if not there:
            raise StudyError(
                f"{self._path} was moved or deleted while this process drove the study; what had "
                "ended is in the journal: put the directory in place, then resume"
            )

    def close(self) -> None:
        """Gives the lock back; again, it does nothing."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def holder(directory: Path) -> str | None:
    """Who drives the study now, such as `pid 4711 on host`; None if no process does.

    A text that begins with `unknown` where this user cannot tell.
    """
    try:
        file = _open(directory / LOCK, "r")
    except FileNotFoundError:
        return None
    except (PermissionError, NotRegularError) as error:
        return f"unknown (the file {LOCK} cannot be read: {error.strerror})"
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN:
                return f"unknown (the file system cannot lock: {error.strerror})"
            return file.read().strip()
    return None
