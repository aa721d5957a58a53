"""How much each dimension of the space matters for each objective: permutation importance (Breiman,
2001) under a random forest over the complete trials of a study.

Nothing here imports torch, optuna or ray; scikit-learn is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studies.config import Study
from studies.evidence.front import scored
from studies.journal.trial import TrialRecord

LEAST_TRIALS = 20  # below, a forest sees chance
LEAST_EXPLAINED = 0.1  # R^2 on trials that a tree has not seen
TREES, REPEATS = 200, 10


@dataclass(frozen=True)
class Importance:
    """Of one objective: what the dimensions explain together, and each one's share of it."""

    objective: str
    trials: int
    explained: float  # R^2 out of bag; at most 1, negative where the forest knows nothing
    shares: dict[str, float]  # dimension -> share, together 1; empty where nothing is explained


def importances(study: Study, records: Sequence[TrialRecord]) -> list[Importance]:
    """The importance of the sampled dimensions for each objective; `records` were read with their
    parameters. Empty with fewer than 20 complete trials, or where no dimension varies.
    """
    trials = [record for record in scored(records) if record.parameters]
    names = sorted({name for record in trials for name in record.parameters})
    columns = {name: _codes([record.parameters.get(name) for record in trials]) for name in names}
    varied = {name: codes for name, codes in columns.items() if len(set(codes)) > 1}
    if len(trials) < LEAST_TRIALS or not varied:
        return []
    return [
        _importance(objective, varied, [(record.values or ())[place] for record in trials])
        for place, objective in enumerate(study.objectives)
    ]


def _codes(values: Sequence[Any]) -> list[float]:
    """Numbers as they are; choices by their place in sorted order; -1 where a conditional dimension
    does not apply.
    """
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) == sum(v is not None for v in values):
        return [-1.0 if v is None else float(v) for v in values]
    choices = sorted({str(v) for v in values if v is not None})
    return [-1.0 if v is None else float(choices.index(str(v))) for v in values]


def _importance(
    objective: str, columns: dict[str, list[float]], values: Sequence[float]
) -> Importance:
    import numpy
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    features, targets = numpy.array(list(columns.values())).T, numpy.array(values)
    if len(set(values)) == 1:
        return Importance(objective, len(values), 0.0, {})
    forest = RandomForestRegressor(
        TREES, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=0
    ).fit(features, targets)
    explained = float(forest.oob_score_)
    if explained < LEAST_EXPLAINED:
        return Importance(objective, len(values), explained, {})
    permuted: Any = permutation_importance(
        forest, features, targets, n_repeats=REPEATS, random_state=0
    )
    raw = numpy.maximum(0.0, permuted.importances_mean)
    total = float(raw.sum()) or 1.0
    shares = {name: float(share) / total for name, share in zip(columns, raw)}
    return Importance(
        objective,
        len(values),
        explained,
        dict(sorted(shares.items(), key=lambda pair: -pair[1])),
    )
