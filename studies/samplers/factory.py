"""Who proposes: optuna's samplers, set up for spaces with conditional choices, several objectives
and constraints.

Each proposal has a sampler of its own, seeded from the study's seed and the trial's number: a
study that was killed and resumed proposes what an undisturbed one would, and never repeats its
first suggestions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from studies.config import Study
from studies.samplers.ehvi import VERSION, ExpectedImprovement
from studies.samplers.evolution import Neighbour, SubgroupEvolution
from studies.samplers.initial_design import InitialDesign
from studies.samplers.planned import PlannedSampler
from studies.samplers.tpe import BoundedTPE
from trainers.seeds import derived_seed

# Proposals before a sampler learns, unless the study says; with 3, `evolution` needs 123 and 160
# epochs in place of 107 and 140, `ehvi` 75 and 107 in place of 77 and 111 (as in `evolution`).
STARTUP = 8
# of `ehvi`, which weighs its first trainings from their first rung on: with 5, 6, 7 and 8 a
# simulation on the recorded tables needs 61, 58, 65 and 64 epochs (geometric mean of medians)
STARTUP_EHVI = 6
# nsga's first generation is its own
LEARNING = ("tpe", "ehvi", "gp", "evolution", "nsga2", "nsga3")


def make_sampler(
    study: Study, number: int, refused: int | None = None, version: int | None = None
) -> optuna.samplers.BaseSampler:
    """The study's sampler for the proposal of trial `number`.

    A sampler that learns from trials would propose the same again after trial `refused`: a
    neighbour of it that was not tried is proposed instead. `version` is that of the sampler which
    made an earlier proposal (`version_of`); the present one if it is None.
    """
    seed = derived_seed(study.search.seed, number)
    if study.search.sampler in LEARNING:
        if (
            number < startup_of(study)
            and study.search.start == "spread"
            and not study.search.sampler.startswith("nsga")
        ):
            return PlannedSampler(study, InitialDesign(study), seed)
        if refused is not None:
            return PlannedSampler(study, Neighbour(refused), seed)
    if version is not None and version_of(study) is not None:
        return PlannedSampler(study, ExpectedImprovement(study, version), seed)
    with warnings.catch_warnings():
        # experimental samplers, and arguments that newer versions of optuna no longer need but
        # older ones do
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return SAMPLERS[study.search.sampler](study, seed)


def version_of(study: Study) -> int | None:
    """The version by which the study's sampler proposes, for the journal; None where there is but
    one.
    """
    return VERSION if study.search.sampler == "ehvi" else None


def startup_of(study: Study) -> int:
    """Proposals before the sampler learns."""
    if study.search.startup is not None:
        return study.search.startup
    return STARTUP_EHVI if study.search.sampler == "ehvi" else STARTUP


def constraints(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    """By how much the trial exceeds each limit, as a share of it; negative is within."""
    return tuple(trial.user_attrs.get("constraints", {}).values())


def constraints_of(study: Study) -> Callable[[optuna.trial.FrozenTrial], Sequence[float]] | None:
    """What optuna's samplers call to learn of constraints; None for a study without."""
    return constraints if study.constraints.limits() else None


def _population(study: Study) -> int:
    # optuna's 50 would leave a study of 60 trials with one random generation
    return study.search.startup or max(8, min(50, study.search.trials // 6))


def _tpe(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return BoundedTPE(
        study.objectives,
        n_startup_trials=startup_of(study),
        multivariate=True,
        group=True,
        constant_liar=True,
        warn_independent_sampling=False,
        seed=seed,
        constraints_func=constraints_of(study),
    )


def _nsga2(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(
        population_size=_population(study), seed=seed, constraints_func=constraints_of(study)
    )


def _nsga3(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIIISampler(
        population_size=_population(study), seed=seed, constraints_func=constraints_of(study)
    )


def _gp(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed,
        n_startup_trials=startup_of(study),
        independent_sampler=optuna.samplers.RandomSampler(seed),
        warn_independent_sampling=False,
        constraints_func=constraints_of(study),
    )


def _random(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed)


def _qmc(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    # One sequence for the whole study: its place in it is kept in the journal, so its own seed must
    # not change.
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=study.search.seed,
        independent_sampler=optuna.samplers.RandomSampler(seed),
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    )


class Enumeration(optuna.samplers.BruteForceSampler):
    """Every combination of choices once, conditional ones included, in a random order; `exhausted`
    afterwards.
    """

    exhausted = False

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Notes that nothing is left: optuna would stop a loop of its own, which there is none of
        here.
        """
        try:
            super().after_trial(study, trial, state, values)
        except RuntimeError:
            self.exhausted = True


def _grid(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return Enumeration(seed=seed)


def _evolution(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return PlannedSampler(study, SubgroupEvolution(study), seed)


def _ehvi(study: Study, seed: int) -> optuna.samplers.BaseSampler:
    return PlannedSampler(study, ExpectedImprovement(study), seed)


SAMPLERS: dict[str, Callable[[Study, int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "gp": _gp,
    "ehvi": _ehvi,
    "evolution": _evolution,
    "random": _random,
    "grid": _grid,
    "qmc": _qmc,
}
