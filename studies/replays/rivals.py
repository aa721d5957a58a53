"""Searches that are not ours on a recorded table: Optuna's samplers and MO-ASHA.

Each is given what a careful user would give it: an architecture that it proposes again costs
nothing, the known architectures come first (`studies.replays.replay.known`), NSGA-II has a
population that fits the budget, and the Gaussian process of Optuna, which sees no conditional
choices, sees all choices at every proposal. TPE and NSGA-II repeat themselves often, which is free
in epochs but takes minutes on the larger tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.replays.record import RecordedTable
from studies.replays.steps import WORST_SCORES, Paid, SearchStep, changed, known
from studies.samplers.inversion import parameters_of
from studies.samplers.planned import Draft
from studies.search.halving import survivors

# for each architecture of the space: a search proposes again what it had before
PROPOSALS = 100
REPEATS = 100  # in a row, after which an architecture is drawn that was not tried
POPULATION = 10  # of NSGA-II: with Optuna's 50, its first 450 epochs are random
DRAFTS = 500  # from which the choices of a space are collected
ASHA = 3  # MO-ASHA's eta: rungs at 1, 3, 9, ... epochs
NEARLY_ALL = 1.0001  # the eta under which everything goes on


def optuna_steps(table: RecordedTable, sampler: str, seed: int) -> Iterator[SearchStep]:
    """Optuna, asked for pixels, with every trial trained to the end: `random`, `tpe` (its
    default), `tpe_group` (multivariate, with groups of conditional choices), `nsga2` or `gp`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and arguments that newer versions drop
        made = _sampler(sampler, seed)
        asked = optuna.create_study(directions=["maximize", "maximize"], sampler=made)
        space = _Pixels(table)
        for candidate in known(table):
            parameters = parameters_of(space.study, candidate)
            if parameters is not None:
                asked.enqueue_trial(parameters)
        paid, epochs = Paid(table), table.study.training.epochs
        left = list(numpy.random.default_rng(seed).permutation(list(table.by_key)))
        repeats = 0
        for _ in range(PROPOSALS * table.total):
            trial, proposal = space.ask(asked, flat=sampler == "gp")
            entry = table.by_key.get(proposal.key)
            asked.tell(trial, WORST_SCORES if entry is None else entry.epochs[-1])
            step = paid.until(entry, epochs)
            yield step
            repeats = 0 if step.epochs else repeats + 1
            if repeats >= REPEATS:
                left = [key for key in left if not paid.has(key)]
                drawn = [Candidate.parse(table.by_key[key].architecture) for key in left[:1]]
                for parameters in (parameters_of(space.study, each) for each in drawn):
                    asked.enqueue_trial(parameters or {})


def _sampler(name: str, seed: int) -> Any:
    from optuna import samplers

    return {
        "random": lambda: samplers.RandomSampler(seed=seed),
        "tpe": lambda: samplers.TPESampler(seed=seed),
        "tpe_group": lambda: samplers.TPESampler(
            seed=seed, multivariate=True, group=True, warn_independent_sampling=False
        ),
        "nsga2": lambda: samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
        "gp": lambda: samplers.GPSampler(seed=seed),
    }[name]()


class _Pixels:
    """A table's space with sizes in pixels, as one would write it for Optuna."""

    def __init__(self, table: RecordedTable) -> None:
        self.study: Study = changed(table.study, {"space.size_by": "pixels"})
        self._size = {"channels": table.channels, "classes": table.classes}
        self._declared = Group.parse(table.study.symmetry.group)
        self._choices: dict[str, Any] | None = None

    def ask(self, asked: Any, *, flat: bool) -> tuple[Any, Candidate]:
        """A trial and what it proposes; `flat` asks for every choice, whether it applies or not."""
        if not flat:
            trial = asked.ask()
            return trial, self._sample(trial)
        if self._choices is None:
            self._choices = self._collected()
        trial = asked.ask(self._choices)
        return trial, self._sample(Draft(trial.params, numpy.random.default_rng(trial.number)))

    def _sample(self, trial: Any) -> Candidate:
        return self.study.space.sample(trial, declared=self._declared, **self._size)

    def _collected(self) -> dict[str, Any]:
        rng, choices = numpy.random.default_rng(0), {}
        space = self.study.space.model_copy(update={"width": None})
        for _ in range(DRAFTS):
            space.sample(_Noting(rng, choices), declared=self._declared)
        return dict(sorted(choices.items()))


class _Noting(Draft):
    """A draft that notes the choices it meets."""

    def __init__(self, rng: numpy.random.Generator, choices: dict[str, Any]) -> None:
        super().__init__({}, rng)
        self._choices = choices

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See `Draft`."""
        from optuna.distributions import CategoricalDistribution

        self._choices[name] = CategoricalDistribution(tuple(choices))
        return super().suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """See `Draft`."""
        from optuna.distributions import IntDistribution

        self._choices[name] = IntDistribution(low, high, step=step)
        return super().suggest_int(name, low, high, step=step)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """See `Draft`."""
        from optuna.distributions import FloatDistribution

        self._choices[name] = FloatDistribution(low, high, log=log)
        return super().suggest_float(name, low, high, log=log)


def asha_steps(table: RecordedTable, name: str, seed: int) -> Iterator[SearchStep]:
    """MO-ASHA (Schmucker et al., arXiv:2106.12639) with random proposals: a training of the best
    third of a rung is promoted before a new one begins. Ranks are those of non-dominated sorting
    and crowding, over values.
    """
    rng = numpy.random.default_rng(seed)
    entries, paid = list(table.entries), Paid(table)
    first = [entry for c in known(table) if (entry := table.by_key.get(c.key)) is not None]
    order = [*first, *(entries[i] for i in rng.permutation(len(entries)))]
    waiting = iter(dict.fromkeys(order))
    rungs = [ASHA**k for k in range(20) if ASHA**k < table.study.training.epochs]
    rungs.append(table.study.training.epochs)
    reached: dict[str, int] = {}  # key -> place of the rung
    eta = float(ASHA)
    while len(reached) < len(entries) or min(reached.values()) < len(rungs) - 1:
        for place in reversed(range(len(rungs) - 1)):
            points = {
                k: table.by_key[k].epochs[rungs[place] - 1]
                for k, p in reached.items()
                if p >= place
            }
            best = [key for key in survivors(points, eta=eta) if reached[key] == place]
            if best and len(points) >= eta:
                entry = table.by_key[best[0]]
                break
        else:
            entry, place = next(waiting, None), -1
            if entry is None:  # all of a finite space was begun: the best of those that stopped
                eta = NEARLY_ALL
                continue
        reached[entry.key] = place + 1
        yield paid.until(entry, rungs[place + 1])


RIVALS: dict[str, tuple[str, Callable[[RecordedTable, str, int], Iterator[SearchStep]]]] = {
    "Optuna random": ("random", optuna_steps),
    "Optuna TPE": ("tpe", optuna_steps),
    "Optuna TPE, multivariate": ("tpe_group", optuna_steps),
    "Optuna NSGA-II": ("nsga2", optuna_steps),
    "Optuna GP": ("gp", optuna_steps),
    "MO-ASHA": ("asha", asha_steps),
}
