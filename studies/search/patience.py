"""How long a study goes on: the trials that have ended, the front's hypervolume, for how long it
has not grown (`search.patience`), and failures in a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from studies.errors import TooManyFailuresError
from studies.journal.trial import TrialRecord
from studies.pareto import front_volume, pareto

FAILURES_IN_A_ROW = 5


class Progress:
    """The progress of a study over its ended trials, counted in the order in which they ended."""

    def __init__(self, objectives: Sequence[str]) -> None:
        self._objectives = tuple(objectives)
        self._front: list[tuple[float, ...]] = []
        self._grown_at = 0  # trials ended when the front last grew
        self._failures = 0  # in a row
        self.ended = 0  # complete, pruned or failed
        self.volume = 0.0  # of the front, 0 to 1

    def count(self, record: TrialRecord) -> None:
        """Counts a trial that has ended."""
        self.ended += 1
        if record.state != "complete" or record.values is None or not record.feasible:
            return
        self._front.append(record.values)
        volume = front_volume(self._front, self._objectives)
        self._front = pareto(self._front, self._objectives, lambda value: value)
        if volume > self.volume + 1e-12:
            self.volume, self._grown_at = volume, self.ended

    @property
    def standstill(self) -> int:
        """For how many ended trials the front has not grown; 0 while there is no front."""
        return self.ended - self._grown_at if self._front else 0

    def judge(self, record: TrialRecord) -> None:
        """Counts failures in a row. Raises TooManyFailuresError at the fifth, with its reason."""
        self._failures = self._failures + 1 if record.state == "failed" else 0
        if self._failures >= FAILURES_IN_A_ROW:
            raise TooManyFailuresError(
                f"{self._failures} trials in a row failed, so the study stops; the last error "
                f"was: {record.reason}"
            )
