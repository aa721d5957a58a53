"""Evolution that knows subgroups: a child is a good trial with one choice moved to its neighbour.

The parent is one of the better completed trials (a tournament of two over non-dominated rank and crowding, as in
NSGA-II). A mutation moves one edge in the lattice of the space's groups, one place along a range or a list of sizes and stages, or to
another layout, head or loss. Values go through the trial's own distributions, so a child never leaves the space: a choice that
its mutation has brought about (a group's own restriction, a layout's own sizes) is taken from the parent where it still exists there,
else drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from searchspace.groups import Group
from studies.front import signed
from studies.rungs import Point, crowding, fronts

PARENTS = 10        # trials that may become parents: the best ones
CROSSOVER = 0.3     # share of children that take about half of their choices from a second parent
STEP = 0.15         # of a mutated real number, as a share of its range, standard deviation
FURTHER = 0.3       # chance of each further mutation


class SubgroupEvolution(optuna.samplers.BaseSampler):
    """Proposes neighbours of good trials after `startup` random ones; made anew, with its own seed, for every trial."""

    def __init__(self, objectives: Sequence[str], seed: int, startup: int) -> None:
        self._objectives, self._startup = tuple(objectives), startup
        self._rng = numpy.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed)
        self._plan: dict[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: choices are made one by one, since which ones there are depends on earlier ones."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing; plans the child."""
        if trial.number >= self._startup:
            known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            parents = self._parents([t for t in known if t.params and all(x <= 0 for x in t.user_attrs.get("constraints", {}).values())])
            self._plan = self._child(parents) if parents else {}
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """The planned value if this distribution has it, else a random one."""
        value = self._plan.get(param_name, self._plan.get(_base(param_name)))
        if value is not None and param_distribution._contains(_internal(param_distribution, value)):
            return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _parents(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The best trials, best first."""
        points: dict[int, Point] = {t.number: signed(t.values, self._objectives) for t in trials}
        order = []
        for front in fronts(list(points.values())):
            room = crowding(front)
            order += sorted((n for n, p in points.items() if p in room and n not in order), key=lambda n: (-room[points[n]], n))
        by_number = {t.number: t for t in trials}
        return [by_number[n] for n in order[:PARENTS]]

    def _choose(self, parents: Sequence[FrozenTrial]) -> FrozenTrial:
        return parents[min(self._rng.integers(len(parents), size=2))]

    def _child(self, parents: Sequence[FrozenTrial]) -> dict[str, Any]:
        parent = self._choose(parents)
        plan, distributions = dict(parent.params), dict(parent.distributions)
        if self._rng.random() < CROSSOVER:
            other = self._choose(parents)
            for name in other.params:
                if self._rng.random() < 0.5:
                    plan[name], distributions[name] = other.params[name], other.distributions[name]
        movable = [name for name in plan if not distributions[name].single()]
        while movable:
            name = movable.pop(self._rng.integers(len(movable)))
            plan[name] = self._neighbour(name, plan[name], distributions[name])
            if self._rng.random() > FURTHER:
                break
        return {**{_base(name): value for name, value in plan.items()}, **plan}

    def _neighbour(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        """A value next to `value`."""
        if isinstance(distribution, FloatDistribution):
            return self._near(value, distribution)
        if isinstance(distribution, IntDistribution):
            reach = 1 if self._rng.random() < 0.7 else 2
            near = [value + sign * step * distribution.step for sign in (-1, 1) for step in range(1, reach + 1)]
            return int(self._rng.choice([n for n in near if distribution.low <= n <= distribution.high]))
        assert isinstance(distribution, CategoricalDistribution)
        choices = [c for c in distribution.choices if c != value]
        if _base(name) in ("group", "restrict_to"):
            choices = lattice_neighbours(str(value), [str(c) for c in distribution.choices]) or choices
        elif isinstance(value, int) and all(isinstance(c, int) for c in choices):
            ordered = sorted([*choices, value])
            place = ordered.index(value)
            choices = ordered[max(0, place - 1):place] + ordered[place + 1:place + 2]
        return choices[self._rng.integers(len(choices))]

    def _near(self, value: float, distribution: FloatDistribution) -> float:
        low, high = distribution.low, distribution.high
        if distribution.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        moved = min(high, max(low, value + self._rng.normal() * STEP * (high - low)))
        return min(distribution.high, max(distribution.low, math.exp(moved) if distribution.log else moved))


def lattice_neighbours(group: str, choices: Sequence[str]) -> list[str]:
    """The choices one edge away from `group` in the subgroup lattice of the choices: no other choice lies strictly between."""
    groups = [Group.parse(choice) for choice in choices]
    mine = Group.parse(group)
    found = []
    for other in groups:
        low, high = (other, mine) if other <= mine else (mine, other)
        if other != mine and low <= high and not any(low <= g <= high and g not in (low, high) for g in groups):
            found.append(str(other))
    return found


def _base(name: str) -> str:
    """The choice that a conditional parameter stands for: `input_size/max2/2` is an input size."""
    return name.partition("/")[0]


def _internal(distribution: BaseDistribution, value: Any) -> float:
    try:
        return distribution.to_internal_repr(value)
    except ValueError:
        return float("nan")
