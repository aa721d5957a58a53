"""Proposals planned whole, for samplers that compare architectures instead of single parameters.

Optuna samples one parameter after the other and learns the architecture only at the end. A draft
runs through the search space first, in less than a millisecond, so that a sampler can compare
several whole architectures by features known without training, and proposes none twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study

DRAFT_ATTEMPTS = 40  # drafts until one is new; then a repeat is proposed after all
# keys of the parameters of ended trials, by number
_ENDED: WeakKeyDictionary[optuna.Study, dict[int, frozenset]] = WeakKeyDictionary()


class Draft:
    """A trial outside of any study: follows a plan where the space allows it, draws the rest, and
    keeps all choices in `params`.

    A choice that the plan has under another condition (`input_size/25-33/2` for `input_size`) is
    taken where it exists.
    """

    def __init__(self, plan: Mapping[str, Any], rng: numpy.random.Generator) -> None:
        self._plan = {**{base_name(name): value for name, value in plan.items()}, **plan}
        self._rng = rng
        self.params: dict[str, Any] = {}

    def _planned(self, name: str) -> Any:
        return self._plan.get(name, self._plan.get(base_name(name)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The planned choice, or one drawn at random."""
        value = self._planned(name)
        if value is None or value not in choices:
            value = choices[int(self._rng.integers(len(choices)))]
        return self.params.setdefault(name, value)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """The planned number, or one drawn at random."""
        value = self._planned(name)
        if not isinstance(value, int) or not low <= value <= high or (value - low) % step:
            value = low + step * int(self._rng.integers((high - low) // step + 1))
        return self.params.setdefault(name, value)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The planned number, or one drawn at random, evenly in the logarithm with `log`."""
        value = self._planned(name)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            share = self._rng.random()
            value = low * (high / low) ** share if log else low + (high - low) * share
        return self.params.setdefault(name, float(min(high, max(low, value))))


class Planner(Protocol):
    """Decides on a proposal: parameters that need not be complete, since a draft completes them."""

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of the next proposal, given every trial so far."""
        ...


class PlannedSampler(optuna.samplers.BaseSampler):
    """Proposes what its planner plans, and repeats a proposal only if no new one is found.

    Each proposal has a sampler of its own, with its own seed.
    """

    def __init__(self, study: Study, planner: Planner, seed: int) -> None:
        self._study, self._planner = study, planner
        self._rng = numpy.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed)
        self._params: dict[str, Any] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: parameters are sampled one by one, since earlier ones decide on others."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing; plans the proposal."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        tried = _tried(study, trials)
        best: tuple[int, dict[str, Any]] | None = None
        for _ in range(DRAFT_ATTEMPTS):
            draft = draw_planned(self._study, self._planner.plan(trials, self._rng), self._rng)[0]
            repeats = tried[as_key(draft.params)]
            if best is None or repeats < best[0]:
                best = repeats, draft.params
            if not repeats:
                break
        assert best is not None
        self._params = best[1]
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The planned value; a random one where the space asks for something that the draft did not
        meet.
        """
        value = self._params.get(param_name)
        if value is not None and (
            not isinstance(param_distribution, CategoricalDistribution)
            or value in param_distribution.choices
        ):
            return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _tried(study: optuna.Study, trials: Sequence[FrozenTrial]) -> Counter[frozenset]:
    """How often each choice of parameters was proposed; the keys of ended trials are cached."""
    cached = _ENDED.setdefault(study, {})
    keys = []
    for trial in trials:
        key = cached.get(trial.number)
        if key is None and trial.params:
            key = as_key(trial.params)
            if trial.state.is_finished():
                cached[trial.number] = key
        if key is not None:
            keys.append(key)
    return Counter(keys)


def draw_planned(
    study: Study, plan: Mapping[str, Any], rng: numpy.random.Generator
) -> tuple[Draft, Candidate]:
    """A draft that follows `plan`, and its candidate before widths are matched, which is what
    takes time.
    """
    draft = Draft(plan, rng)
    space = study.space.model_copy(update={"width": None})
    return draft, space.sample(draft, declared=Group.parse(study.symmetry.group))


def as_key(params: Mapping[str, Any]) -> frozenset:
    """Equal for equal parameters, whatever their order."""
    return frozenset(params.items())


def base_name(name: str) -> str:
    """The choice that a conditional parameter stands for: `input_size/25-33/2` is an input size."""
    return name.partition("/")[0]
