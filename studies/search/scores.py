"""What a worker's scores come to: comparable points at rungs, objectives and constraints at the
end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

from studies.config import Study
from studies.errors import ScoresError
from studies.journal.trial import Outcome, TrialRecord
from studies.pareto import SCORE_OF, Point

# what rungs compare: costs are known before training
RUNG_SCORES = ("accuracy", "symmetry_accuracy")


def checked(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores as a plain dict, if they can be compared.

    Raises ScoresError if the epoch or a score that rungs compare is missing, or any number is not
    finite.
    """
    scores = dict(scores)
    if not isinstance(scores.get("epoch"), int):
        raise ScoresError(f"scores need their epoch, a whole number; got {scores.get('epoch')!r}")
    for name in RUNG_SCORES:
        if not isinstance(scores.get(name), (int, float)):
            raise ScoresError(
                f"the scores at epoch {scores['epoch']} need {name}; got {scores.get(name)!r}"
            )
    for name, value in scores.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ScoresError(
                f"{name} is {value} at epoch {scores['epoch']}; scores must be finite "
                "(a lower learning rate may help)"
            )
    return scores


def rung_point(scores: Mapping[str, Any]) -> Point:
    """The scores that rungs compare, all maximised."""
    return tuple(float(scores[name]) for name in RUNG_SCORES)


def rung_margin(scores: Mapping[str, Any], confidence: float | None) -> Point:
    """By how much the scores that rungs compare can differ from those of another training by chance
    alone, at that confidence: the half-width of the interval of a difference between two shares of
    the same number of images. Zeros where the confidence or the number of images is not given.
    """
    count = scores.get("num_images")
    if confidence is not None and scores.get("score"):  # no share of images
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        return tuple(z * math.sqrt(2) * scores[f"{name}_error"] for name in RUNG_SCORES)
    if confidence is None or not count:
        return tuple(0.0 for _ in RUNG_SCORES)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    # a share of 0 or 1 has no spread of its own: that of one image less or more
    shares = (min(1 - 1 / count, max(1 / count, float(scores[name]))) for name in RUNG_SCORES)
    return tuple(z * math.sqrt(2 * share * (1 - share) / count) for share in shares)


class TrialEnding(NamedTuple):
    """How a trial ends, as the journal writes it."""

    outcome: Outcome
    reason: str | None
    values: tuple[float, ...] | None  # of the objectives; None unless it is complete
    excess: dict[str, float]  # over each constraint, as in `constraint_excess`


def ending(study: Study, record: TrialRecord, outcome: Outcome, reason: str | None) -> TrialEnding:
    """The ending of `record` where its training ended with `outcome`: a complete one fails if its
    scores lack an objective.
    """
    if outcome == "complete":
        try:
            values = objective_values(study, record)
            return TrialEnding(outcome, reason, values, constraint_excess(study, record))
        except ScoresError as error:
            return TrialEnding("failed", str(error), None, record.constraints)
    if outcome == "out_of_memory":
        reason = f"out of memory even with half the batch: {reason}"
        return TrialEnding(outcome, reason, None, {**record.constraints, "memory": 1.0})
    return TrialEnding(outcome, reason, None, record.constraints)


def objective_values(study: Study, record: TrialRecord) -> tuple[float, ...]:
    """The study's objectives of a trial that has trained to the last epoch.

    Raises ScoresError if it has not, or if its scores lack an objective.
    """
    measured = _measured(study, record)
    names = {name: SCORE_OF.get(name, name) for name in study.objectives}
    missing = [name for name in names if not isinstance(measured.get(names[name]), (int, float))]
    if missing:
        raise ScoresError(f"the scores lack the objective {', '.join(missing)}")
    return tuple(float(measured[name]) for name in names.values())


def constraint_excess(study: Study, record: TrialRecord) -> dict[str, float]:
    """By how much such a trial exceeds each constraint that was measured, as a share of its limit;
    negative is within.
    """
    measured = _measured(study, record)
    return {
        name: measured[name] / limit - 1
        for name, limit in study.constraints.limits().items()
        if measured.get(name) is not None
    }


def _measured(study: Study, record: TrialRecord) -> dict[str, Any]:
    last = study.rungs[-1]
    if last not in record.rungs:
        raise ScoresError(f"the training ended without scores for the last epoch, {last}")
    return {**record.attributes, **record.rungs[last]}
