"""One writer per study: an advisory lock that the operating system drops with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from studies.errors import LockedError

LOCK = "lock"
ATTEMPTS = 5        # 0.2 s: somebody may be looking (`holder`), or a killed driver's last child be ending


class StudyLock:
    """The right to write to a study's directory, held from creation to `close`. The file names the holder.

    Raises LockedError, with the holder's process id and host, if somebody else holds it. A file left by a dead process is no
    obstacle: the lock itself went with the process.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / LOCK).open("a+", encoding="utf-8")
        for attempt in range(ATTEMPTS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.05 if attempt < ATTEMPTS - 1 else 0)
        else:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise LockedError(f"{directory} is being written by another process ({holder}); wait for it, or end it first")
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        """Gives the lock back; again, it does nothing."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def holder(directory: Path) -> str | None:
    """Who drives the study now, such as `pid 4711 on host`; None if nobody does."""
    path = directory / LOCK
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip()
    return None
