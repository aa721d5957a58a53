"""Controls of a study's winner: what a plain network, augmentation, orbit averaging or another
symmetry of the same size would have reached in its place.

The winner is the front's best compromise. Its controls, of which those are left out that are the
winner itself or cannot be built:

- the plain twin: the same stages without a group, and without an equivariance loss, at equal
  parameters, and at equal MACs (a group costs MACs, so at equal parameters the twin computes less);
- the twin at equal parameters with augmentation over the declared group, with its logits averaged
  over the group, and with both;
- the same network under a wrong group of the same order: mirrors for rotations (D2 for C4, D1 for
  C2, D4 for C8), rotations for mirrors (C2 for D1, C4 for D2, C8 for D4, in escnn's basis, as C8
  has no free filters). It tells symmetry from the size of a group and the width that comes with it.

A twin has the learning rate of the best plain trial where the space searches rates: the best rate
of a constrained network is not that of a plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from searchspace.cost import cost
from searchspace.groups import TRIVIAL, Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.evidence import variants
from studies.evidence.front import best_compromise, front_members, scored
from studies.evidence.intervals import Evidence
from studies.evidence.pairs import candidate_of
from studies.journal.trial import TrialRecord
from studies.pareto import SCORE_OF

LOSS_OPTIONS = ("loss", "loss_weight", "gamma")


@dataclass(frozen=True)
class Control:
    """A candidate that the winner is compared with."""

    name: str
    candidate: Candidate


def controls(
    study: Study,
    winner: TrialRecord,
    records: Sequence[TrialRecord],
    channels: int,
    classes: int,
) -> list[Control]:
    """The controls of a trial, none under a trivial declared symmetry or of a model from outside,
    which has no architecture.
    """
    declared = Group.parse(study.symmetry.group)
    if declared == TRIVIAL or winner.architecture is None:
        return []
    base = candidate_of(winner)
    candidates: list[Control] = []
    for name, make in _makers(study, base, records, (channels, classes), declared):
        try:
            candidate = make()
        except ValueError:
            continue
        if candidate.key not in {base.key, *(control.candidate.key for control in candidates)}:
            candidates.append(Control(name, candidate))
    return candidates


def missing_controls(
    study: Study,
    winner: TrialRecord,
    records: Sequence[TrialRecord],
    channels: int,
    classes: int,
) -> list[Control]:
    """The controls of `winner` that no trial is yet, whatever became of it."""
    there = {record.attributes.get("role") for record in controls_of(winner, records)}
    return [c for c in controls(study, winner, records, channels, classes) if c.name not in there]


def controls_of(winner: TrialRecord, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that are controls of `winner`."""
    return [
        record
        for record in records
        if record.kind == "control"
        and record.state != "earlier"
        and record.attributes.get("of") == winner.number
    ]


def _makers(
    study: Study,
    base: Candidate,
    records: Sequence[TrialRecord],
    size: tuple[int, int],
    declared: Group,
) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    def twin(match: Any) -> Candidate:
        return _twin(base, match, _plain_rate(base, records), size)

    def averaged(**options: str) -> Candidate:
        return variants.with_options(twin("params"), **options)

    orbit = str(declared.grid)
    yield "plain, equal parameters", lambda: twin("params")
    yield "plain, equal MACs", lambda: twin("macs")
    yield f"plain, augmented over {declared}", lambda: averaged(augment="group")
    if declared.grid != TRIVIAL:
        yield f"plain, averaged over {orbit}", lambda: averaged(orbit=orbit)
        yield (
            f"plain, augmented over {declared}, averaged over {orbit}",
            lambda: averaged(augment="group", orbit=orbit),
        )
    if base.architecture.stages[0].group != TRIVIAL:
        wrong = variants.wrong_group(base.architecture.stages[0].group)
        yield f"wrong group {wrong}", lambda: _wrong(base, size)


def _twin(base: Candidate, match: Any, rate: float | None, size: tuple[int, int]) -> Candidate:
    """The plain twin of a candidate: without groups, orbit and equivariance losses."""
    plain = variants.with_group(base.architecture, TRIVIAL)
    to = getattr(cost(base.architecture, *size), match)
    wide = variants.matched(plain, match, to, *size)
    without: dict[str, str | None] = dict.fromkeys((*LOSS_OPTIONS, "orbit"))
    twin = variants.with_options(variants.with_architecture(base, wide), **without)
    return twin.with_learning_rate(rate)


def _plain_rate(base: Candidate, records: Sequence[TrialRecord]) -> float | None:
    """The learning rate of the most accurate plain trial; the candidate's own without one."""
    plain = [
        r
        for r in scored(records)
        if r.kind == "search" and r.attributes.get("family") == "plain" and r.scores
    ]
    if base.recipe.learning_rate is None or not plain:
        return base.recipe.learning_rate
    best = max(plain, key=lambda r: (r.scores or {}).get("accuracy", 0.0))
    return best.learning_rate or base.recipe.learning_rate


def _wrong(base: Candidate, size: tuple[int, int]) -> Candidate:
    """The candidate under other groups of the same orders, at equal parameters."""
    other = variants.with_wrong_groups(base.architecture)
    params = cost(base.architecture, *size).params
    return variants.with_architecture(base, variants.matched(other, "params", params, *size))


def comparison(study: Study, records: Sequence[TrialRecord], evidence: Evidence) -> dict[str, Any]:
    """The winner against each of its controls: differences in both scores and in the objectives
    that are scores, and which of them it beats; `winner` is None without a front.

    The winner beats a control where it is better in one score and worse in none, by 95 % intervals.
    """
    winner = best_compromise(study, front_members(study, records))
    if winner is None:
        return {"winner": None, "controls": [], "of_others": 0}
    names = dict.fromkeys(("accuracy", "symmetry_accuracy", *study.objectives))
    rows = []
    for record in controls_of(winner, records):
        differences = {
            name: between
            for name in names
            if record.state == "complete"
            and (between := evidence.difference(winner, record, name)) is not None
        }
        rows.append(
            {
                "trial": record.number,
                "control": record.attributes.get("role"),
                "state": record.state,
                "reason": record.reason,
                "architecture": record.architecture,
                "params": record.attributes.get("params"),
                "macs": record.attributes.get("macs"),
                "scores": {
                    name: (record.scores or {}).get(SCORE_OF.get(name, name)) for name in names
                },
                "differences": {name: d.as_dict() for name, d in differences.items()},
                "texts": {name: d.points() for name, d in differences.items()},
                "outcome": outcome([(d.low, d.high) for d in differences.values()]),
            }
        )
    others = sum(r.kind == "control" and r.attributes.get("of") != winner.number for r in records)
    return {"winner": winner.number, "controls": rows, "of_others": others}


def outcome(intervals: Sequence[tuple[float, float]]) -> str:
    """What a rival is, from the 95 % intervals of the winner's differences from it: beaten, tied,
    better (than the winner), trade-off, or unknown without an interval.
    """
    if not intervals:
        return "unknown"
    better = any(low > 0 for low, _ in intervals)
    worse = any(high < 0 for _, high in intervals)
    if better and worse:
        return "trade-off"
    return "beaten" if better else "better" if worse else "tied"
