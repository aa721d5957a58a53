"""Trials that are trained beside the search, to compare others with: partners of pairs and
controls (`studies.evidence`).

They wait in the journal as trials of their own kind. Samplers do not see them
(`studies.journal.storage`), rungs do not stop them, they count towards no number of trials and no
patience, and the front leaves them out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from searchspace.recipe import Candidate
from studies.config import Study
from studies.errors import DamagedError
from studies.evidence.controls import missing_controls
from studies.evidence.front import best_compromise, front_members
from studies.evidence.pairs import missing_partners
from studies.journal.reader import read_trials
from studies.journal.trial import KIND, TrialKind, TrialRecord
from studies.journal.writer import JournalWriter
from studies.search.proposals import architecture_facts, attributes_of

log = logging.getLogger(__name__)


class Beside:
    """The trials beside a search that wait, and what is still to be planned."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.waiting: deque[TrialRecord] = deque()
        self.partners = 0  # of pairs, to be planned when the search has ended
        self._planned = False

    def restore(self, record: TrialRecord) -> None:
        """Takes in a trial of the journal that waits."""
        if record.state == "waiting":
            self.waiting.append(record)

    def count(self, running: Mapping[int, TrialRecord]) -> int:
        """How many trials beside the search wait or run."""
        return len(self.waiting) + sum(record.kind != "search" for record in running.values())

    def next(
        self, journal: JournalWriter, directory: Path, size: tuple[int, int]
    ) -> TrialRecord | None:
        """The next trial beside the search, running, after `plan`; None if there is none."""
        self.plan(journal, directory, size)
        return journal.move(self.waiting.popleft(), "running") if self.waiting else None

    def plan(self, journal: JournalWriter, directory: Path, size: tuple[int, int]) -> None:
        """Queues the partners that were asked for, then the controls of the front's best that no
        trial is: once, when the search has ended. `size` are channels and classes.
        """
        if self._planned:
            return
        self._planned = True
        study = self._study
        try:
            records = read_trials(directory)
        except DamagedError as error:  # another program wrote to it
            log.warning("controls and partners are planned when the study goes on: %s", error)
            return
        partners = missing_partners(study, records, *size, self.partners) if self.partners else []
        new = [self._attributes("pair", p.candidate, p.of, p.factor, size) for p in partners]
        winner = best_compromise(study, front_members(study, records))
        if study.controls == "auto" and winner is not None:
            new += [
                self._attributes("control", c.candidate, winner.number, c.name, size)
                | self._seeded(winner)
                for c in missing_controls(study, winner, records, *size)
            ]
        self.waiting.extend(journal.queue_beside(new))

    def _seeded(self, winner: TrialRecord) -> dict[str, Any]:
        """The seed of the trial that a control is compared with."""
        return {"seed": winner.seed, "repeat": winner.seed - self._study.search.seed}

    def _attributes(
        self, kind: TrialKind, candidate: Candidate, of: int, role: str, size: tuple[int, int]
    ) -> dict[str, Any]:
        known = architecture_facts(candidate.architecture, self._study, *size)
        seed = self._study.search.seed
        return {
            KIND: kind,
            "of": of,
            "role": role,
            **attributes_of(candidate, known, candidate.key, 0, seed),
        }
