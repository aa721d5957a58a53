"""The sampler `ehvi`: expected hypervolume improvement under a Gaussian process on features of
candidates.

The acquisition (Emmerich et al. 2006; Yang et al. 2019) uses groups, restriction, layout, size,
head, loss, learning rate and the share of the declared symmetry that survives, all known without
training. In a study with constraints it is multiplied by the probability that the candidate keeps
them (Gardner et al. 2014), under a second process. Candidates are all of a small space, else random
drafts and neighbours of good trials; running trials count with their predicted scores.

At a rung a training goes on where it promises more for each epoch than any stopped one, or a new
candidate, does: all may be stopped again (`studies.samplers.stopping`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.journal.trial import is_feasible, recorded_rungs
from studies.pareto import Point, utilities
from studies.samplers.enumeration import all_drafts
from studies.samplers.evolution import SubgroupEvolution
from studies.samplers.gp import OFFSET, Array, Surrogate
from studies.samplers.initial_design import ALL, Features, features_of, features_of_text
from studies.samplers.planned import as_key, draw_planned
from studies.samplers.stopping import DRAWS, WEIGHED, promises, stages
from studies.samplers.tpe import informative
from studies.samplers.volumes import boxes, improvements

# drafts that are compared for a proposal; half of them are neighbours of good trials
PROPOSAL_DRAFTS = 64
SCORE_DRAWS = 64  # of the scores of a candidate
BEST, NEWEST = 30, 60  # trials that the surrogate learns from, once there are more
RUNNING = 64  # trials that run, of which the newest count
LEAST_PROBABILITY = 1e-3  # of keeping the constraints
RUNGS = 2  # the last ones of each training; earlier scores add little
# of a proposal, noted in the journal, so that it can be derived again; 1: by the gain for each
# epoch to the end, whatever is seen before, of scores without their noise
VERSION = 2
OFFSETS = {1: 3.0, VERSION: OFFSET}  # `Surrogate`'s
# of the loss weight, and of the learning rate, that count as one whole difference
FEATURE_DECADES = 3.0, 1.0
# scores that are the accuracy itself where the logits are invariant under every declared element
EQUAL_IF_EXACT = ("symmetry_accuracy", "worst_symmetry_accuracy")


@dataclass(frozen=True)
class Observation:
    """The scores of a training at a rung, as utilities."""

    features: Features
    rung: int
    point: Point
    # it may belong to the study's front: trained to the end, in this study
    on_front: bool = False


class ExpectedImprovement:
    """Plans the untried candidate with the largest acquisition; each further call, the next."""

    def __init__(self, study: Study, version: int = VERSION) -> None:
        self._study, self._group = study, Group.parse(study.symmetry.group)
        self._version = version
        self._ranked: Iterator[Mapping[str, Any]] | None = None

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of the best candidate that has not been planned yet; empty, hence random, when
        there is none.
        """
        if self._ranked is None:  # each proposal has a planner of its own
            with threadpool_limits(1, "blas"):  # small matrices; the other processors train
                self._ranked = iter(self._rank(trials, rng))
        return next(self._ranked, {})

    def _rank(
        self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator
    ) -> list[dict[str, Any]]:
        learned = informative(trials, self._study.objectives, BEST, NEWEST)
        observations = self._observations(learned)
        drafts = self._candidates(trials, rng)
        if not observations or not drafts:
            return []
        candidates = [(features, 0) for features, _ in drafts]
        acquisition = self._promises(learned, observations, candidates, rng)
        return [drafts[i][1] for i in numpy.argsort(-acquisition, kind="stable")]

    def to_continue(
        self, trials: Sequence[FrozenTrial], stopped: Sequence[int], rng: numpy.random.Generator
    ) -> int | None:
        """Which of the `stopped` trials promises more for each epoch than any other and than a new
        candidate; None where a new candidate does.
        """
        learned = informative(trials, self._study.objectives, BEST, NEWEST)
        observations, drafts = self._observations(learned), self._candidates(trials, rng)
        waiting = [
            (trial.number, max(recorded_rungs(trial.user_attrs), default=0), features)
            for trial in trials
            if trial.number in set(stopped) and (features := self._features(trial)) is not None
        ]
        if not observations or not waiting:
            return None
        candidates = [(features, 0) for features, _ in drafts]
        candidates += [(features, epoch) for _, epoch, features in waiting]
        with threadpool_limits(1, "blas"):
            best = int(numpy.argmax(self._promises(learned, observations, candidates, rng)))
        return None if best < len(drafts) else waiting[best - len(drafts)][0]

    def goes_on(
        self,
        trials: Sequence[FrozenTrial],
        number: int,
        rung: Mapping[str, Any],
        stopped: Sequence[int],
        rng: numpy.random.Generator,
    ) -> bool:
        """Whether trial `number`, which is at a rung, is what `to_continue` would choose among it
        and the `stopped`. `rung` is what the journal will hold of it there, by name.
        """
        seen = [_at_rung(trial, rung) if trial.number == number else trial for trial in trials]
        return self.to_continue(seen, [*stopped, number], rng) == number

    def _candidates(
        self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator
    ) -> list[tuple[Features, dict[str, Any]]]:
        """Features and parameters of different drafts that were not tried."""
        tried = {as_key(trial.params) for trial in trials if trial.params}
        drafts: dict[frozenset, tuple[Features, dict[str, Any]]] = {}
        for params, candidate in self._drafts(trials, rng):
            key = as_key(params)
            if key not in tried and key not in drafts:
                features = replace(
                    features_of(candidate, self._group), learning_rate=params.get("learning_rate")
                )
                drafts[key] = features, dict(params)
        return list(drafts.values())

    def _drafts(
        self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator
    ) -> Iterator[tuple[Mapping[str, Any], Candidate]]:
        """Parameters and candidates: all of a small space, else random ones and neighbours."""
        space = self._study.space  # frozen, so it hashes
        everything = all_drafts(space, self._group, ALL)  # pyright: ignore[reportArgumentType]
        if everything is not None:
            yield from everything
            return
        evolution = SubgroupEvolution(self._study)
        for i in range(PROPOSAL_DRAFTS):
            plan = evolution.plan(trials, rng) if i % 2 else {}
            draft, candidate = draw_planned(self._study, plan, rng)
            yield draft.params, candidate

    def _observations(self, trials: Sequence[FrozenTrial]) -> list[Observation]:
        """The scores of every training at the last `RUNGS` rungs that it has reached."""
        continued = {trial.user_attrs.get("continues") for trial in trials}
        return [
            observation
            for trial in trials
            if trial.number not in continued and trial.state != TrialState.FAIL
            if (features := self._features(trial)) is not None
            for observation in self._observed(trial, features)[-RUNGS:]
        ]

    def _observed(self, trial: FrozenTrial, features: Features) -> list[Observation]:
        """The scores of one training at all its rungs."""
        objectives, rungs = self._study.objectives, self._study.rungs
        observations = []
        for epoch, rung in recorded_rungs(trial.user_attrs).items():
            scores = {**trial.user_attrs, **rung["scores"]}
            if epoch in rungs[:-1] and all(
                isinstance(scores.get(name), (int, float)) for name in objectives
            ):
                point = utilities([scores[name] for name in objectives], objectives)
                observations.append(Observation(features, rungs.index(epoch), point))
        if trial.state == TrialState.COMPLETE:
            own = "warm_start" not in trial.user_attrs
            observations.append(
                Observation(
                    features,
                    len(rungs) - 1,
                    utilities(trial.values, objectives),
                    on_front=own and is_feasible(trial.user_attrs),
                )
            )
        return observations

    def _pending(self, trials: Sequence[FrozenTrial]) -> list[Features]:
        """The newest trainings that have not ended."""
        running = [trial for trial in trials if not trial.state.is_finished()][-RUNNING:]
        return [f for trial in running if (f := self._features(trial)) is not None]

    def _features(self, trial: FrozenTrial) -> Features | None:
        text = trial.user_attrs.get("architecture") or trial.user_attrs.get("enqueued")
        if not text:
            return None
        return replace(
            features_of_text(text, self._group), learning_rate=trial.params.get("learning_rate")
        )

    def _promises(
        self,
        learned: Sequence[FrozenTrial],
        observations: list[Observation],
        candidates: Sequence[tuple[Features, int]],
        rng: numpy.random.Generator,
    ) -> Array:
        """What each candidate, with the epoch that it has reached, promises for each epoch; that of
        all but the best by expected gain is as if it were never stopped again.
        """
        rungs, features = self._study.rungs, [features for features, _ in candidates]
        prospects = self._prospects(observations, self._pending(learned), features, rng)
        if self._version == 1:
            gain = prospects.gain_before(len(rungs) - 1)
        else:
            gain = prospects.gains(numpy.arange(len(features)), [len(rungs) - 1], (SCORE_DRAWS,))
            gain = gain.mean(0)
        gain = gain * (chance := self._feasibility(learned, features, rng))
        promised = gain / [max(1, rungs[-1] - epoch) for _, epoch in candidates]
        if self._version == 1:
            return promised
        compared = numpy.argsort(-promised, kind="stable")[:WEIGHED]
        chance = numpy.broadcast_to(chance, len(features))
        for ahead, group in _grouped(compared, [stages(rungs, e) for _, e in candidates]):
            gains = prospects.gains(group, [rungs.index(e) for e in ahead], DRAWS[len(ahead)])
            for epoch in {candidates[i][1] for i in group}:
                here = numpy.array([candidates[i][1] == epoch for i in group])
                costs = numpy.maximum(1, numpy.diff([epoch, *ahead])).tolist()
                promised[group[here]] = promises(gains[..., here], costs) * chance[group[here]]
        return promised

    def _prospects(
        self,
        observations: list[Observation],
        pending: list[Features],
        candidates: list[Features],
        rng: numpy.random.Generator,
    ) -> _Prospects:
        """What the surrogate says of the candidates, given what was seen and what runs."""
        last, offset = len(self._study.rungs) - 1, OFFSETS[self._version]
        observed = [observation.features for observation in observations]
        coded = FeatureCoding(self._study, observed + pending + candidates)
        evaluated, running, new = numpy.split(
            numpy.arange(len(observed) + len(pending) + len(candidates)),
            [len(observed), len(observed) + len(pending)],
        )
        rungs = numpy.array([observation.rung for observation in observations])
        scores = numpy.array([observation.point for observation in observations])
        front = [observation.point for observation in observations if observation.on_front]
        surrogate = Surrogate(coded.differences(evaluated, evaluated), rungs, scores, rng, offset)
        if pending:
            predicted = surrogate.mean(coded.differences(evaluated, running), last)
            rungs = numpy.concatenate([rungs, numpy.full(len(pending), last)])
            scores = numpy.concatenate([scores, predicted])
            evaluated = numpy.concatenate([evaluated, running])
            front += [tuple(map(float, point)) for point in numpy.clip(predicted, 0.0, 1.0)]
            own = coded.differences(evaluated, evaluated)
            surrogate = Surrogate(own, rungs, scores, rng, offset)
        lower, upper = boxes(front, scores.shape[1])
        across = coded.differences(evaluated, new)
        return _Prospects(surrogate, across, lower, upper, candidates, self._couple)

    def _couple(self, drawn: Array, candidates: list[Features]) -> None:
        """Gives candidates that are exact under the whole declared symmetry what follows from it:
        each accuracy under its elements is the accuracy itself, and the equivariance error is 0.

        `drawn` (..., candidates, objectives) is changed in place.
        """
        objectives = self._study.objectives
        exact = numpy.array([features.surviving == 1 for features in candidates])
        for place, name in enumerate(objectives):
            if name == "equivariance_error":
                drawn[..., exact, place] = 1.0
            elif name in EQUAL_IF_EXACT and "accuracy" in objectives:
                drawn[..., exact, place] = drawn[..., exact, objectives.index("accuracy")]

    def _feasibility(
        self, trials: Sequence[FrozenTrial], candidates: list[Features], rng: numpy.random.Generator
    ) -> Array | float:
        """The probability that each candidate keeps the constraints; 1 while no trial broke any."""
        decided = [
            (features, float(is_feasible(trial.user_attrs)))
            for trial in trials
            if trial.state == TrialState.COMPLETE or not is_feasible(trial.user_attrs)
            if (features := self._features(trial)) is not None
        ]
        if all(feasible for _, feasible in decided):
            return 1.0
        coded = FeatureCoding(self._study, [features for features, _ in decided] + candidates)
        evaluated, new = numpy.split(numpy.arange(len(decided) + len(candidates)), [len(decided)])
        surrogate = Surrogate(
            coded.differences(evaluated, evaluated),
            numpy.zeros(len(evaluated), int),
            numpy.array([[feasible] for _, feasible in decided]),
            rng,
            OFFSETS[self._version],
        )
        probability = surrogate.mean(coded.differences(evaluated, new), 0)[:, 0]
        return numpy.clip(probability, LEAST_PROBABILITY, 1.0)


@dataclass(frozen=True)
class _Prospects:
    """What the surrogate says of candidates, which are `across` (features, n, candidates) from the
    trainings that it knows, above the front that leaves the boxes from `lower` to `upper` free.
    """

    surrogate: Surrogate
    across: Array
    lower: Array
    upper: Array
    candidates: list[Features]
    couple: Callable[[Array, list[Features]], None]

    def gains(self, which: Array, rungs: Sequence[int], draws: Sequence[int]) -> Array:
        """Drawn hypervolume improvements (*draws, which) of some at the last of `rungs`."""
        drawn = self.surrogate.paths(self.across[:, :, which], rungs, draws)
        self.couple(drawn, [self.candidates[i] for i in which])
        return improvements(drawn, self.lower, self.upper)

    def gain_before(self, rung: int) -> Array:
        """The expected improvement of each at `rung`, as version 1 drew it."""
        drawn = self.surrogate.sample(self.across, rung, SCORE_DRAWS)
        self.couple(drawn, self.candidates)
        return numpy.mean(improvements(drawn, self.lower, self.upper), axis=0)


def _grouped(
    which: Array, ahead: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Those of `which` with the same stages ahead, and these."""
    for kind in sorted({ahead[i] for i in which}):
        yield kind, numpy.array([i for i in which if ahead[i] == kind])


def _at_rung(trial: FrozenTrial, rung: Mapping[str, Any]) -> FrozenTrial:
    """`trial` as if it had stopped at a rung, of which the journal holds `rung`."""
    stopped = copy(trial)
    stopped.state = TrialState.PRUNED
    stopped.user_attrs = {**trial.user_attrs, **rung}
    return stopped


class FeatureCoding:
    """Features as arrays, for many differences at once."""

    def __init__(self, study: Study, features: Sequence[Features]) -> None:
        sizes = study.space.pixels
        span = max(1, sizes[-1] - sizes[0])
        # no columns of what no training has: weights are drawn for each
        dropped = any(f.dropout for f in features)
        relaxed = any(f.weight_distance for f in features)
        columns = [*zip(*[(*f.choices, *((f.dropout,) if dropped else ())) for f in features])]
        columns += [c for c in zip(*[f.optional for f in features]) if len(set(c)) > 1]
        self._choices = numpy.array(list(zip(*[_codes(column) for column in columns])))
        self._numbers = numpy.array(
            [
                (
                    f.size / span,
                    f.loss_weight / FEATURE_DECADES[0],
                    f.surviving,
                    math.log10(f.learning_rate or study.training.learning_rate)
                    / FEATURE_DECADES[1],
                    *((f.dropout_rate,) if dropped else ()),
                    *((f.weight_distance,) if relaxed else ()),
                )
                for f in features
            ]
        )

    def differences(self, a: Array, b: Array) -> Array:
        """The differences of the trainings `a` and `b`: (features, a, b), each 0 to 1. Choices
        differ by 0 or 1.
        """
        choices = self._choices[a].T[:, :, None] != self._choices[b].T[:, None, :]
        numbers = numpy.abs(self._numbers[a].T[:, :, None] - self._numbers[b].T[:, None, :])
        return numpy.concatenate([choices.astype(float), numpy.minimum(numbers, 1.0)])


def _codes(values: Sequence[Any]) -> list[int]:
    codes: dict[Any, int] = {}
    return [codes.setdefault(value, len(codes)) for value in values]
