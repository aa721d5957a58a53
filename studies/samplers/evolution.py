"""Evolution along the subgroup lattice: a child is a good trial with one choice moved to its
neighbour.

The parent is one of the better completed trials: a tournament of two over what the front's
hypervolume would lose without them, as in SMS-EMOA (Beume et al. 2007). A mutation moves one edge
in the lattice of the space's groups, one place along a range or a list of sizes and stages, or to
another layout, head or loss. Values go through the trial's own distributions, so a child never
leaves the space: a choice that exists only after the mutation (a group's own restriction, a
layout's own sizes) is taken from the parent where it still exists there, else drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.weights.governor import DEFAULT_GOVERNOR, Governor
from searchspace.weights.relaxed import relaxed
from studies.config import Study
from studies.journal.trial import inherited_key, is_feasible
from studies.pareto import hypervolume, pareto, utilities
from studies.samplers.planned import base_name
from trainers.seeds import derived_seed

# Median epochs of `evolution` until 95 % of the best front, 40 seeds on mnist_table and
# mnist_d4_table (`studies.replays`), with these values: 107 and 140.
PARENTS = 4  # the best trials, which may become parents; 400, which is all of them: 155 and 163
# weight of the volume that a trial dominates alone, beside what the front would lose without it;
# 0: 113 and 145
ALONE = 0.05
# share of children that take about half of their choices from a second parent; 0: 116 and 141,
# and with `ehvi`, whose candidates are such children, 85 and 116 in place of 77 and 111
CROSSOVER = 0.3
STEP = 0.15  # of a mutated real number, as a share of its range, standard deviation
FURTHER = 0.3  # chance of each further mutation
RELAXED = 0.5  # share of proposals that relax a parent, with `search.inherit`


class SubgroupEvolution:
    """Plans a neighbour of a good trial; a random proposal while no trial is complete."""

    def __init__(self, study: Study) -> None:
        self._objectives = study.objectives
        self._best: list[FrozenTrial] | None = None

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of the child, of which the draft keeps those that exist in its own part of the
        space.
        """
        if self._best is None:  # each proposal has a planner of its own
            complete = [t for t in trials if t.state == TrialState.COMPLETE and t.params]
            self._best = self.parents([t for t in complete if is_feasible(t.user_attrs)])
        return Mutation(rng).child(self._best) if self._best else {}

    def parents(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The best trials: by what the front would lose without them, then by the volume that each
        has alone.
        """
        points = [utilities(trial.values, self._objectives) for trial in trials]
        front = {
            utilities(trial.values, self._objectives)
            for trial in pareto(trials, self._objectives, lambda t: t.values)
        }
        whole = hypervolume(list(front))
        contribution = [
            (whole - hypervolume([p for p in front if p != point]) if point in front else 0.0)
            + ALONE * math.prod(point)
            for point in points
        ]
        order = sorted(range(len(trials)), key=lambda i: -contribution[i])
        return [trials[i] for i in order[:PARENTS]]


class Relaxing:
    """Makes children that begin with their parents' weights: a parent with its stages from one on
    relaxed by one edge of the lattice (EquiNAS's evolutionary search, Maile et al.,
    arXiv:2210.05484), or given one of the space's residual pathways.
    """

    def __init__(self, study: Study, has_weights: Callable[[int], bool]) -> None:
        """`has_weights` says of a trial's number whether its weights are kept."""
        self._study, self._has_weights = study, has_weights
        space = study.space
        plain = ["C1"] if "plain" in space.family else []
        self._groups = sorted({*map(str, space.groups), *space.restrict.to, *plain})
        self._pathways = [text[1:] for text in space.relaxation if text.startswith("+")]
        governors = map(Governor.parse, space.gamma)
        # a triangle has passed its middle where a child begins
        self._governors = [g for g in governors if g.kind != "triangle"]

    def move(self, trials: Sequence[FrozenTrial], number: int) -> tuple[Candidate, int] | None:
        """(the child, its parent's number) as proposal `number`; None where something else is
        proposed. The same for the same trials and number.
        """
        rng = numpy.random.default_rng(derived_seed(self._study.search.seed, number, 1))
        if rng.random() >= RELAXED:
            return None
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        feasible = [t for t in complete if is_feasible(t.user_attrs)]
        parents = SubgroupEvolution(self._study).parents(
            [
                t
                for t in feasible
                if "warm_start" not in t.user_attrs and self._has_weights(t.number)
            ]
        )
        tried = {t.user_attrs.get("canonical") for t in trials}
        for place in _tournament(len(parents), rng):
            parent = parents[place]
            children = [
                child
                for child in self._children(parent)
                if inherited_key(child.key, parent.number) not in tried
            ]
            if children:
                return children[rng.integers(len(children))], parent.number
        return None

    def _children(self, parent: FrozenTrial) -> Iterator[Candidate]:
        rate = parent.user_attrs.get("learning_rate")
        candidate = Candidate.parse(parent.user_attrs["architecture"]).with_learning_rate(rate)
        for stage, layer in enumerate(candidate.architecture.stages, start=1):
            # sorted, since the order in a set differs between processes
            choices = sorted({*self._groups, str(layer.group)})
            for name in lattice_neighbours(str(layer.group), choices):
                with suppress(ValueError):  # of what cannot keep the function, and larger groups
                    child = relaxed(candidate.architecture, stage, Group.parse(name))
                    yield Candidate(child, candidate.recipe)
            for name in self._pathways:
                with suppress(ValueError):
                    group = Group.parse(name)
                    child = relaxed(candidate.architecture, stage, group, pathway=True)
                    for governor in self._governors:
                        gamma = None if governor == DEFAULT_GOVERNOR else governor
                        yield Candidate(child, replace(candidate.recipe, gamma=gamma))


def _tournament(parents: int, rng: numpy.random.Generator) -> list[int]:
    """The places of all parents: the better of two first, then the others, the best first."""
    if parents == 0:
        return []
    first = int(min(rng.integers(parents, size=2)))
    return [first, *(place for place in range(parents) if place != first)]


class Neighbour:
    """Plans a neighbour of one trial, such as one that was refused because its architecture had
    been trained before.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of a neighbour."""
        trial = next(trial for trial in trials if trial.number == self._number)
        return Mutation(rng).moved(trial.params, trial.distributions)


class Mutation:
    """Children by moving choices to their neighbours."""

    def __init__(self, rng: numpy.random.Generator) -> None:
        self._rng = rng

    def _choose(self, parents: Sequence[FrozenTrial]) -> FrozenTrial:
        return parents[min(self._rng.integers(len(parents), size=2))]

    def child(self, parents: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Parameters of a child of the better of two parents, or of two crossed, moved to a
        neighbour.
        """
        parent = self._choose(parents)
        plan, distributions = dict(parent.params), dict(parent.distributions)
        if self._rng.random() < CROSSOVER:
            other = self._choose(parents)
            for name in other.params:
                if self._rng.random() < 0.5:
                    plan[name], distributions[name] = other.params[name], other.distributions[name]
        return self.moved(plan, distributions)

    def moved(
        self, plan: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The plan with one choice, sometimes more, moved to a neighbour."""
        plan = dict(plan)
        movable = [name for name in plan if not distributions[name].single()]
        while movable:
            name = movable.pop(self._rng.integers(len(movable)))
            plan[name] = self._neighbour(name, plan[name], distributions[name])
            if self._rng.random() > FURTHER:
                break
        return plan

    def _neighbour(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        """A value next to `value`."""
        if isinstance(distribution, FloatDistribution):
            return self._near(value, distribution)
        if isinstance(distribution, IntDistribution):
            reach = 1 if self._rng.random() < 0.7 else 2
            near = [
                value + sign * step * distribution.step
                for sign in (-1, 1)
                for step in range(1, reach + 1)
            ]
            return int(
                self._rng.choice([n for n in near if distribution.low <= n <= distribution.high])
            )
        assert isinstance(distribution, CategoricalDistribution)
        choices = [c for c in distribution.choices if c != value]
        if base_name(name) in ("group", "restrict_to"):
            choices = (
                lattice_neighbours(str(value), [str(c) for c in distribution.choices]) or choices
            )
        elif isinstance(value, (int, float)) and all(isinstance(c, (int, float)) for c in choices):
            ordered = sorted(c for c in distribution.choices if isinstance(c, (int, float)))
            place = ordered.index(value)
            choices = ordered[max(0, place - 1) : place] + ordered[place + 1 : place + 2]
        return choices[self._rng.integers(len(choices))]

    def _near(self, value: float, distribution: FloatDistribution) -> float:
        low, high = distribution.low, distribution.high
        if distribution.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        moved = min(high, max(low, value + self._rng.normal() * STEP * (high - low)))
        return min(
            distribution.high, max(distribution.low, math.exp(moved) if distribution.log else moved)
        )


def lattice_neighbours(group: str, choices: Sequence[str]) -> list[str]:
    """The choices one edge away from `group` in the subgroup lattice of the choices: no other
    choice lies strictly between.
    """
    groups = [Group.parse(choice) for choice in choices]
    mine = Group.parse(group)
    neighbours = []
    for other in groups:
        low, high = (other, mine) if other <= mine else (mine, other)
        if (
            other != mine
            and low <= high
            and not any(low <= g <= high and g not in (low, high) for g in groups)
        ):
            neighbours.append(str(other))
    return neighbours
