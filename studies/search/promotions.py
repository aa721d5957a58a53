"""Where trials stand at each rung: who goes on, who was stopped, and which stopped trials are
promoted later.

A decision is made with the trials that have reached the rung so far. When more and worse ones have
reached it, a stopped trial may belong to the part that goes on: it is then promoted (ASHA, Li et
al., arXiv:1810.05934), as a new trial that continues its training. A training counts once at a
rung, whatever number continues it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from studies.config import Study
from studies.journal.trial import RUNG
from studies.pareto import Point
from studies.search.halving import survivors
from studies.search.scores import rung_margin
from trainers.seeds import derived_seed

# first trials that train to the end in a study of fewer than `SHORT` times as many trials as its
# sampler starts with: so that it has a front
FULL_TRIALS = 2
SHORT = 4
MANY = 64  # trials that run, beyond which halving decides: a surrogate takes a tenth of a second


class Promotions:
    """The points of a study's trials at its rungs, all scores maximised.

    Trainings go by the number of their first trial, their origin.
    """

    def __init__(self, eta: float) -> None:
        self._eta = eta
        self._points: dict[int, dict[int, Point]] = {}  # epoch -> origin -> point
        # epoch -> origin -> number of the trial that was stopped there
        self._stopped: dict[int, dict[int, int]] = {}
        # epoch -> origins that go on, best first; computed when needed
        self._survivors: dict[int, list[int]] = {}
        # number -> origin, of trials that continue one
        self._origins: dict[int, int] = {}

    def enter(self, epoch: int, number: int, point: Point) -> None:
        """Enters the point of trial `number` at the rung of `epoch`."""
        self._points.setdefault(epoch, {})[self._origin(number)] = point
        self._survivors.pop(epoch, None)

    def goes_on(self, epoch: int, number: int, margin: Point = ()) -> bool:
        """Whether a trial that has been entered is in the part that goes on
        (`studies.search.halving.keep`), or would be with scores better by `margin`: what its images
        cannot tell from a trial that goes on.
        """
        origin = self._origin(number)
        if origin in self._best(epoch) or not any(margin):
            return origin in self._best(epoch)
        points = self._points[epoch]
        better = tuple(score + more for score, more in zip(points[origin], margin, strict=True))
        return origin in survivors({**points, origin: better}, eta=self._eta)

    def stop(self, epoch: int, number: int) -> None:
        """Notes that trial `number` ended at the rung of `epoch` and may be promoted."""
        self._stopped.setdefault(epoch, {})[self._origin(number)] = number

    def next(self) -> int | None:
        """The stopped trial to promote now: of the latest rung that has one that would go on, the
        best; None if no rung has one.
        """
        for epoch in sorted(self._stopped, reverse=True):
            stopped = self._stopped[epoch]
            if stopped:  # the survivors are computed only where one may be promoted
                for origin in self._best(epoch):
                    if origin in stopped:
                        return stopped[origin]
        return None

    @property
    def waiting(self) -> list[int]:
        """The numbers of the stopped trials that were not promoted; other threads may stop more."""
        return sorted(n for rung in list(self._stopped.values()) for n in list(rung.values()))

    def promote(self, stopped: int, number: int) -> None:
        """Notes that trial `number` continues the trial `stopped`."""
        self._origins[number] = self._origin(stopped)
        for at_rung in self._stopped.values():
            at_rung.pop(self._origin(number), None)

    def _origin(self, number: int) -> int:
        return self._origins.get(number, number)

    def _best(self, epoch: int) -> list[int]:
        if epoch not in self._survivors:
            self._survivors[epoch] = survivors(self._points.get(epoch, {}), eta=self._eta)
        return self._survivors[epoch]


def by_rank(study: Study, promotions: Promotions, exhausted: Callable[[], bool]) -> int | None:
    """The stopped trial to promote by its rank; None without `search.second_chances`, and where
    the sampler weighs stopped trials itself, until there is nothing new to propose.
    """
    if not study.search.second_chances or (_by_worth(study) and not exhausted()):
        return None
    return promotions.next()


def worth_continuing(study: Study, trials: Sequence[Any], waiting: Sequence[int]) -> int | None:
    """The stopped trial, of those `waiting`, that is worth more for each epoch than a new one, by
    the sampler's own measure; None where a new one is, or the sampler has no such measure.

    The rank at an early rung can be wrong; the surrogate of `ehvi` learns how much it foretells.
    """
    if not _weighs(study, trials) or not waiting:
        return None
    return _sampler(study).to_continue(trials, waiting, _rng(study, len(trials), 2))


def goes_on(
    study: Study,
    seen: Callable[[], Sequence[Any]],
    promotions: Promotions,
    at: tuple[int, int],
    scores: Mapping[str, Any],
) -> bool:
    """Whether a trial trains on after a rung at which it has `scores`; `at` are its number and the
    epoch, `seen` gives the trials.

    The surrogate of `ehvi` decides once it has learned: whether nothing else is worth more for
    each epoch. Before, trials wait at the first rung for that, but for the first ones of a short
    study. Where more than `MANY` trials run, with `search.confidence`, and under other samplers,
    halving decides (`Promotions.goes_on`).
    """
    from studies.samplers.factory import startup_of

    number, epoch = at
    if _by_worth(study):
        trials = seen()
        # among those that samplers see: what is trained beside the search changes no decision
        place = sum(trial.number < number for trial in trials)
        if not _weighs(study, trials):
            return place < FULL_TRIALS and study.search.trials < SHORT * startup_of(study)
        if sum(not trial.state.is_finished() for trial in trials) > MANY:
            return promotions.goes_on(epoch, number, rung_margin(scores, study.search.confidence))
        rung = {f"{RUNG}{epoch}": {"scores": dict(scores), "decision": "stop"}}
        rng = _rng(study, place, 3 + epoch)
        return _sampler(study).goes_on(trials, number, rung, promotions.waiting, rng)
    margin = rung_margin(scores, study.search.confidence)
    return promotions.goes_on(epoch, number, margin)


def _by_worth(study: Study) -> bool:
    """Whether the sampler decides at rungs."""
    search = study.search
    return search.sampler == "ehvi" and search.second_chances and search.confidence is None


def _weighs(study: Study, trials: Sequence[Any]) -> bool:
    """Whether the sampler says what a training is worth, and has learned enough to."""
    from studies.samplers.factory import startup_of

    search = study.search
    return search.sampler == "ehvi" and search.second_chances and len(trials) >= startup_of(study)


def _sampler(study: Study) -> Any:
    from studies.samplers.ehvi import ExpectedImprovement

    return ExpectedImprovement(study)


def _rng(study: Study, *of: int) -> numpy.random.Generator:
    return numpy.random.default_rng(derived_seed(study.search.seed, *of))
