"""TPE on the best and the newest trials only, so that a proposal takes as long at the thousandth
trial as at the 250th.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from studies.journal.trial import is_feasible
from studies.pareto import pareto

# finished trials that TPE learns from; of 250 it counts 25 as good, and never more than that
BEST, NEWEST = 60, 190


class BoundedTPE(optuna.samplers.TPESampler):
    """Optuna's TPE on the `BEST` complete trials by non-dominated rank, the `NEWEST` finished ones,
    and all that are running.

    Until so many trials have finished it proposes what TPE does. Each proposal has a sampler of its
    own (`studies.samplers.factory.make_sampler`).
    """

    def __init__(self, objectives: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._objectives, self._cached = tuple(objectives), None

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        """See optuna."""
        return super().infer_relative_search_space(self._view(study), trial)

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """See optuna."""
        return super().sample_relative(self._view(study), trial, search_space)

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """See optuna."""
        return super().sample_independent(self._view(study), trial, param_name, param_distribution)

    def _view(self, study: Any) -> Any:
        if self._cached is None:
            self._cached = _View(study, self._objectives)
        return self._cached


class _View:
    """A study of which some finished trials are out of sight. It stays the same for all parameters
    of a proposal.
    """

    def __init__(self, study: Any, objectives: tuple[str, ...]) -> None:
        self._study = study
        trials = study._get_trials(deepcopy=False, use_cache=False)
        self._trials = informative(trials, objectives)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Any = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def informative(
    trials: Sequence[FrozenTrial], objectives: Sequence[str], most: int = BEST, newest: int = NEWEST
) -> list[FrozenTrial]:
    """The trials that a sampler learns from, in the order of their numbers: all, until more than
    `most` and `newest` have finished; then the `most` best complete ones, the `newest` finished
    ones and all that run.
    """
    learned = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(learned) <= most + newest:
        return list(trials)
    numbers = {trial.number for trial in learned[-newest:]}
    left = [
        trial
        for trial in learned[:-newest]
        if trial.state == TrialState.COMPLETE and is_feasible(trial.user_attrs)
    ]
    best: list[FrozenTrial] = []
    while left and len(best) < most:
        best += pareto(left, objectives, lambda trial: trial.values)
        chosen = {trial.number for trial in best}
        left = [trial for trial in left if trial.number not in chosen]
    numbers |= {trial.number for trial in best[:most]}
    hidden = {trial.number for trial in learned} - numbers
    return [trial for trial in trials if trial.number not in hidden]
