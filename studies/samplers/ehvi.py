"""The sampler `ehvi`: proposes what is expected to add most to the front's hypervolume.

Expected hypervolume improvement (Emmerich et al. 2006; Yang et al. 2019) under a Gaussian process
over traits of architectures: their group, its restriction, layout, size, head, loss, and how much
of the declared symmetry survives them, which is known without training. In a study with constraints
it counts by the chance that the candidate keeps them (Gardner et al. 2014), under a second such
process. Candidates are random drafts and neighbours of good trials; trials that still run count
with the scores that are expected of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from searchspace.groups import Group
from studies.config import Study
from studies.journal.trial import is_feasible, recorded_rungs
from studies.pareto import Point, goodness, non_dominated
from studies.samplers.evolution import SubgroupEvolution
from studies.samplers.gp import Array, Surrogate
from studies.samplers.initial_design import Traits, traits, traits_of_text
from studies.samplers.planned import as_key, draw
from studies.samplers.tpe import informative

# drafts that are compared for a proposal; half of them are neighbours of good trials
CANDIDATES = 64
DRAWS = 64  # of the scores that a candidate may have
BEST, NEWEST = 30, 60  # trials that the surrogate is shown, once there are more
LEAST_CHANCE = 1e-3  # of keeping the constraints
# of each training that the surrogate is shown: what came before says little more
RUNGS = 2
# of the loss weight, and of the learning rate, that count as one whole difference
DECADES = 3.0, 1.0


@dataclass(frozen=True)
class Known:
    """What tells trainings apart before they are made."""

    traits: Traits
    learning_rate: float | None


@dataclass(frozen=True)
class Seen:
    """A training that was seen at a rung: its scores, each as a `goodness`."""

    known: Known
    rung: int
    point: Point
    # it may belong to the study's front: trained to the end, in this study
    on_front: bool = False


class ExpectedImprovement:
    """Plans the untried candidate with the largest expected hypervolume improvement; asked again,
    the next best one.
    """

    def __init__(self, study: Study) -> None:
        self._study, self._group = study, Group.parse(study.symmetry.group)
        self._ranked: Iterator[Mapping[str, Any]] | None = None

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of the best candidate that has not been planned yet; random ones when there is
        none.
        """
        if self._ranked is None:  # one planner is made for each proposal
            with threadpool_limits(1, "blas"):  # small matrices; the other processors train
                self._ranked = iter(self._rank(trials, rng))
        return next(self._ranked, {})

    def _rank(
        self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator
    ) -> list[dict[str, Any]]:
        shown = informative(trials, self._study.objectives, BEST, NEWEST)
        seen = self._seen(shown)
        drafts = self._candidates(trials, rng)
        if not seen or not drafts:
            return []
        candidates = [known for known, _ in drafts]
        worth = self._improvement(seen, self._pending(shown), candidates, rng) * self._feasibility(
            shown, candidates, rng
        )
        return [drafts[i][1] for i in numpy.argsort(-worth, kind="stable")]

    # ---- candidates
    # -------------------------------------------------------------------------------------------------

    def _candidates(
        self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator
    ) -> list[tuple[Known, dict[str, Any]]]:
        """Different drafts that were not tried."""
        found, tried = {}, {as_key(trial.params) for trial in trials if trial.params}
        evolution = SubgroupEvolution(self._study)
        for i in range(CANDIDATES):
            draft, candidate = draw(self._study, evolution.plan(trials, rng) if i % 2 else {}, rng)
            key = as_key(draft.params)
            if key not in tried and key not in found:
                found[key] = (
                    Known(traits(candidate, self._group), draft.params.get("learning_rate")),
                    draft.params,
                )
        return list(found.values())

    # ---- what was seen
    # ----------------------------------------------------------------------------------------------

    def _seen(self, trials: Sequence[FrozenTrial]) -> list[Seen]:
        """Scores of every training at the last `RUNGS` rungs that it has reached."""
        objectives, last = self._study.objectives, len(self._study.rungs) - 1
        continued = {trial.user_attrs.get("continues") for trial in trials}
        found = []
        for trial in trials:
            known = self._known(trial)
            if known is None or trial.number in continued or trial.state == TrialState.FAIL:
                continue
            reached = []
            for epoch, rung in sorted(recorded_rungs(trial.user_attrs).items()):
                scores = {**trial.user_attrs, **rung["scores"]}
                if epoch in self._study.rungs[:-1] and all(
                    isinstance(scores.get(name), (int, float)) for name in objectives
                ):
                    reached.append(
                        Seen(
                            known,
                            self._study.rungs.index(epoch),
                            goodness([scores[name] for name in objectives], objectives),
                        )
                    )
            if trial.state == TrialState.COMPLETE:
                reached.append(
                    Seen(
                        known,
                        last,
                        goodness(trial.values, objectives),
                        on_front=is_feasible(trial.user_attrs)
                        and "warm_start" not in trial.user_attrs,
                    )
                )
            found += reached[-RUNGS:]
        return found

    def _pending(self, trials: Sequence[FrozenTrial]) -> list[Known]:
        """Trainings that have not ended."""
        return [
            known
            for trial in trials
            if not trial.state.is_finished() and (known := self._known(trial)) is not None
        ]

    def _known(self, trial: FrozenTrial) -> Known | None:
        text = trial.user_attrs.get("architecture") or trial.user_attrs.get("enqueued")
        return (
            None
            if not text
            else Known(traits_of_text(text, self._group), trial.params.get("learning_rate"))
        )

    # ---- what they are worth
    # ----------------------------------------------------------------------------------------

    def _improvement(
        self,
        seen: list[Seen],
        pending: list[Known],
        candidates: list[Known],
        rng: numpy.random.Generator,
    ) -> Array:
        """The expected hypervolume improvement of each candidate."""
        last = len(self._study.rungs) - 1
        coded = Coding(self._study, [s.known for s in seen] + pending + candidates)
        mine, theirs, new = numpy.split(
            numpy.arange(len(seen) + len(pending) + len(candidates)),
            [len(seen), len(seen) + len(pending)],
        )
        rungs, scores = numpy.array([s.rung for s in seen]), numpy.array([s.point for s in seen])
        front = [s.point for s in seen if s.on_front]
        believed = Surrogate(coded.differences(mine, mine), rungs, scores, rng)
        if pending:
            expected = believed.mean(coded.differences(mine, theirs), last)
            rungs, scores = (
                numpy.concatenate([rungs, numpy.full(len(pending), last)]),
                numpy.concatenate([scores, expected]),
            )
            mine = numpy.concatenate([mine, theirs])
            front += [tuple(map(float, point)) for point in numpy.clip(expected, 0.0, 1.0)]
            believed = Surrogate(coded.differences(mine, mine), rungs, scores, rng)
        lower, upper = boxes(front, scores.shape[1])
        drawn = believed.sample(coded.differences(mine, new), last, DRAWS)
        return numpy.mean(added(drawn, lower, upper), axis=0)

    def _feasibility(
        self, trials: Sequence[FrozenTrial], candidates: list[Known], rng: numpy.random.Generator
    ) -> Array | float:
        """The chance of each candidate to keep the constraints, from trials that did or did not; 1
        while none broke any.
        """
        decided = [
            (known, float(is_feasible(trial.user_attrs)))
            for trial in trials
            if trial.state == TrialState.COMPLETE or not is_feasible(trial.user_attrs)
            if (known := self._known(trial)) is not None
        ]
        if all(kept for _, kept in decided):
            return 1.0
        coded = Coding(self._study, [known for known, _ in decided] + candidates)
        mine, new = numpy.split(numpy.arange(len(decided) + len(candidates)), [len(decided)])
        kept = Surrogate(
            coded.differences(mine, mine),
            numpy.zeros(len(mine), int),
            numpy.array([[kept] for _, kept in decided]),
            rng,
        )
        return numpy.clip(kept.mean(coded.differences(mine, new), 0)[:, 0], LEAST_CHANCE, 1.0)


class Coding:
    """Traits as numbers, so that many differences are taken at once."""

    def __init__(self, study: Study, known: Sequence[Known]) -> None:
        sizes = study.space.pixels
        self._choices = numpy.array(
            list(
                zip(
                    *[
                        _codes([k.traits[0][i] for k in known])
                        for i in range(len(known[0].traits[0]))
                    ]
                )
            )
        )
        self._numbers = numpy.array(
            [
                (
                    k.traits[1] / max(1, sizes[-1] - sizes[0]),
                    k.traits[2] / DECADES[0],
                    k.traits[3],
                    math.log10(k.learning_rate or study.training.learning_rate) / DECADES[1],
                )
                for k in known
            ]
        )

    def differences(self, a: Array, b: Array) -> Array:
        """How far the trainings `a` are from the trainings `b`, trait by trait: (traits, a, b).
        Choices differ by 0 or 1.
        """
        choices = self._choices[a].T[:, :, None] != self._choices[b].T[:, None, :]
        numbers = numpy.abs(self._numbers[a].T[:, :, None] - self._numbers[b].T[:, None, :])
        return numpy.concatenate([choices.astype(float), numpy.minimum(numbers, 1.0)])


def _codes(values: Sequence[Any]) -> list[int]:
    known: dict[Any, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


def boxes(points: Sequence[Point], objectives: int) -> tuple[Array, Array]:
    """The part of the unit cube that no point dominates, in boxes: lower and upper corners (boxes,
    objectives).

    Made by slicing along the last objective, as the hypervolume is.
    """
    found = list(_boxes(sorted(set(points)), objectives))
    return numpy.array([low for low, _ in found]), numpy.array([high for _, high in found])


def _boxes(points: Sequence[Point], objectives: int) -> Iterator[tuple[Point, Point]]:
    if objectives == 1:
        yield (max((point[0] for point in points), default=0.0),), (1.0,)
        return
    levels = sorted({0.0, 1.0, *(point[-1] for point in points)})
    for low, high in itertools.pairwise(levels):
        above = [point[:-1] for point in points if point[-1] >= high]
        for lower, upper in _boxes(non_dominated(above), objectives - 1):
            yield (*lower, low), (*upper, high)


def added(points: Array, lower: Array, upper: Array) -> Array:
    """What each of `points` (..., objectives) would add to the hypervolume of the front whose free
    space is in boxes.
    """
    total = numpy.zeros(points.shape[:-1])
    for low, high in zip(lower, upper):
        total += numpy.prod(numpy.clip(numpy.minimum(points, high) - low, 0.0, None), axis=-1)
    return total
