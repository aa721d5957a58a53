"""Deaths of what trains a trial, and when there were too many without another epoch; which epochs
running trials have saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

from studies.search.assignments import Assignment, note_epoch, noted_epoch

Died = Literal["worker", "program"]
# Deaths of the whole program during a trial, without another epoch, that end the trial. A machine
# that is taken away is not a fault of the trial, but a trial that ends the program each time must
# not block the study.
PROGRAM_DEATHS = 10
NOTE_EVERY = 5.0  # seconds
COUNTS: dict[Died, str] = {"worker": "count", "program": "programs"}


def count_death(
    attempts: Mapping[str, Any], died: Died, epoch: int, retries: int
) -> tuple[dict[str, Any], str | None]:
    """The attempts of a trial with one more death after `epoch` epochs, and why the trial has to
    end, if it has to. Another epoch since the last death starts the counts again.
    """
    if attempts.get("epoch") != epoch:
        attempts = {"epoch": epoch}
    deaths = attempts.get(COUNTS[died], 0) + 1
    limit = retries + 1 if died == "worker" else PROGRAM_DEATHS
    who = "its worker" if died == "worker" else "the program that trained it"
    reason = f"{who} died {deaths} times without getting beyond epoch {epoch}"
    return {**attempts, COUNTS[died]: deaths}, reason if deaths >= limit else None


class Epochs:
    """The last epochs that running trials have saved. A trial's folder is told of them every few
    seconds at most: a thousand workers would otherwise keep the driver writing.
    """

    def __init__(self) -> None:
        # number of the trial -> epoch, and when the folder was told
        self._last: dict[int, tuple[int, float]] = {}

    def note(self, assignment: Assignment, epoch: int) -> None:
        """Notes that a trial has saved an epoch."""
        _, told = self._last.get(assignment.number, (0, -math.inf))
        now = time.monotonic()
        if now - told >= NOTE_EVERY:
            note_epoch(assignment, epoch)
            told = now
        self._last[assignment.number] = epoch, told

    def last(self, assignment: Assignment) -> int:
        """The last epoch that a trial has saved, as far as is known; 0: none."""
        epoch, _ = self._last.get(assignment.number, (0, 0.0))
        return max(epoch, noted_epoch(assignment))

    def forget(self, number: int) -> None:
        """The trial has ended."""
        self._last.pop(number, None)
