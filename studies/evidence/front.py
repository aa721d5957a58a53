"""The trials of a study that its front is drawn from, and the front: those of the search, and what
they become without training, and models from outside. Trials that answer a question beside the
search (`TrialRecord.kind`) are not among them.
"""

from __future__ import annotations

from collections.abc import Sequence

from studies.config import Study
from studies.journal.trial import ON_FRONT, TrialRecord
from studies.pareto import knee, pareto


def scored(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The complete trials that the front is drawn from, and that keep the constraints."""
    return [
        r
        for r in records
        if r.state == "complete" and r.values and r.feasible and r.kind in ON_FRONT
    ]


def front_members(study: Study, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The Pareto front: complete, feasible trials that no other dominates, best first objective
    first.
    """
    return pareto(scored(records), study.objectives, lambda record: record.values or ())


def values_of(records: Sequence[TrialRecord]) -> list[tuple[float, ...]]:
    """The objectives of complete trials, in their order."""
    return [record.values for record in records if record.values is not None]


def best_compromise(study: Study, front: Sequence[TrialRecord]) -> TrialRecord | None:
    """The member of a front with the best compromise (`studies.pareto.knee`); None for none."""
    place = knee(values_of(front), study.objectives)
    return None if place is None else front[place]
