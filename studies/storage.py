"""Optuna's journal storage for a single writer: the same file format, one write per record, synced at commit points.

optuna's own file backend takes a lock file and syncs for each of the about 25 records of a trial, and leaves its lock behind when
it is killed (the next writer waits 30 s). Here the study's lock (`studies.locks`) already makes the writer unique.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from studies.journal import SET_STATE


class SingleWriterJournal(BaseJournalBackend):
    """Appends to and reads one journal file. Records survive a killed process at once, and a power cut from each `tell` on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._read = (0, 0)                 # number of records read, and the offset behind them

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from number `log_number_from` on. Others (a dashboard's notes) may have appended too."""
        number, offset = self._read if log_number_from >= self._read[0] else (0, 0)
        size = os.fstat(self._file.fileno()).st_size
        if offset == size:
            return
        content = os.pread(self._file.fileno(), size - offset, offset)
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            number, offset = number + 1, offset + len(line)
            self._read = max(self._read, (number, offset))
            if number > log_number_from:
                yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends the records whole or not at all: on a full disk what was begun is cut off again, and OSError raised."""
        lines = "".join(json.dumps(log, separators=(",", ":"), allow_nan=False) + "\n" for log in logs).encode()
        descriptor = self._file.fileno()
        before = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, lines)
            while written < len(lines):
                written += os.write(descriptor, lines[written:])
            if any(log["op_code"] == SET_STATE for log in logs):
                os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def open_storage(path: Path) -> tuple[JournalStorage, SingleWriterJournal]:
    """Optuna's storage over the journal at `path`, which is created if absent, and the backend to close."""
    backend = SingleWriterJournal(path)
    return JournalStorage(backend), backend
