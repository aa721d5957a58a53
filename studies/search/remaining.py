"""What is left to do in a study: candidates of a small space that may still be trained, and trials
that may still end.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from searchspace.geometry import counted
from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import read_study
from studies.journal.reader import JOURNAL, read_trials
from studies.journal.trial import ENDED, TrialRecord
from studies.search.proposals import architecture_facts

REFUSALS_IN_A_ROW = 200


class Remaining:
    """The candidates of a study's space, if it has no more combinations than proposals are made in
    a row.
    """

    def __init__(self, study: Study, channels: int, classes: int) -> None:
        self._study, self._channels, self._classes = study, channels, classes
        self.exhausted = False

    def none_left(self, refused: TrialRecord, trainings: Mapping[str, int]) -> bool:
        """Whether every candidate has its trainings, after the proposal `refused`."""
        repeats = self._study.search.repeats
        if refused.key is not None and trainings.get(refused.key, 0) >= repeats:
            keys = self._keys
            self.exhausted = keys is not None and all(trainings.get(k, 0) >= repeats for k in keys)
        return self.exhausted

    @cached_property
    def _keys(self) -> frozenset[str] | None:
        """The keys of the candidates that keep the constraints; None for a larger space."""
        from studies.samplers.enumeration import all_candidates

        candidates = all_candidates(
            self._study, self._channels, self._classes, most=REFUSALS_IN_A_ROW
        )
        if candidates is None:
            return None
        size = self._channels, self._classes
        return frozenset(
            candidate.key
            for candidate in candidates
            if not architecture_facts(candidate.architecture, self._study, *size).broken
        )

    def require_any(self, refused: TrialRecord) -> None:
        """Raises StudyError: no proposal was ever trained, and the last one was `refused`."""
        raise StudyError(
            f"no architecture of the space can be trained; the last one was refused: "
            f"{refused.reason}; change `space` or `constraints`"
        )

    def explain(self, refused: TrialRecord) -> str:
        """Why nothing is proposed any more, in a sentence."""
        times = self._study.search.repeats
        if self.exhausted:
            return (
                f"every architecture of the space was trained {counted(times, 'time')} "
                "(search.repeats); a new study with a wider space, or with more repeats, goes on"
            )
        return f"no proposal can be trained any more; the last one was refused: {refused.reason}"


def require_trials(directory: Path, study: Study) -> None:
    """Raises StudyError if `study` allows fewer trials than have ended in the directory's study."""
    if study.search.trials >= read_study(directory).search.trials:
        return
    if (directory / JOURNAL).exists():
        ended = sum(
            record.state in ENDED and record.kind == "search" for record in read_trials(directory)
        )
        if study.search.trials < ended:
            raise StudyError(
                f"search.trials is {study.search.trials}, but in {directory} "
                f"{counted(ended, 'trial')} ended; give at least {ended}, or more to go on"
            )
