"""Where trials stand at each rung: who goes on, who was stopped, and which stopped trials are
promoted later.

A decision is made with the trials that have reached the rung so far. When more and worse ones have
reached it, a stopped trial may belong to the part that goes on: it is then promoted (ASHA, Li et
al., arXiv:1810.05934), as a new trial that continues its training. A training counts once at a
rung, whatever number continues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from studies.config import Study
from studies.pareto import Point
from studies.search.halving import survivors
from trainers.seeds import derived_seed


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


def worth_continuing(study: Study, trials: Sequence[Any], waiting: Sequence[int]) -> int | None:
    """The stopped trial, of those `waiting`, that is worth more for each epoch than a new one, by
    the sampler's own measure; None where a new one is, or the sampler has no such measure.

    The rank at an early rung can be wrong; the surrogate of `ehvi` learns how much it foretells.
    """
    from studies.samplers.ehvi import ExpectedImprovement
    from studies.samplers.factory import startup_of

    search = study.search
    if search.sampler != "ehvi" or not search.second_chances or len(trials) < startup_of(study):
        return None
    rng = numpy.random.default_rng(derived_seed(search.seed, len(trials), 2))
    return ExpectedImprovement(study).to_continue(trials, waiting, rng) if waiting else None
