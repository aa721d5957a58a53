"""Where trials stand at each rung: who goes on, who was stopped, and who of those would be kept if
it came now.

A decision is made with the trials that have come so far. When more and worse ones have come, a
stopped trial may belong to the part that goes on: it then gets a second chance, as a trial that
continues its training (the promotions of ASHA, Li et al., arXiv:1810.05934, made of stops). A
training counts once at a rung, whatever number continues it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studies.pareto import Point
from studies.search.halving import survivors


class Standings:
    """The points of a study's trials at its rungs, all scores maximised; trainings go by the number
    of their first trial, their origin.
    """

    def __init__(self, eta: float) -> None:
        self._eta = eta
        self._points: dict[int, dict[int, Point]] = {}  # epoch -> origin -> point
        # epoch -> origin -> number of the trial that was stopped there
        self._stopped: dict[int, dict[int, int]] = {}
        # epoch -> origins that go on, best first; made when asked for
        self._kept: dict[int, list[int]] = {}
        # number -> origin, of trials that continue one
        self._origins: dict[int, int] = {}

    def enter(self, epoch: int, number: int, point: Point) -> None:
        """Puts down the point of trial `number` at the rung of `epoch`."""
        self._points.setdefault(epoch, {})[self._origin(number)] = point
        self._kept.pop(epoch, None)

    def goes_on(self, epoch: int, number: int) -> bool:
        """Whether a trial that has been entered is in the part that goes on
        (`studies.search.halving.keep`).
        """
        return self._origin(number) in self._best(epoch)

    def end(self, number: int, state: str, rungs: Mapping[int, Mapping[str, Any]]) -> None:
        """Notes how a trial has ended, whose `rungs` have a decision each: one that was stopped may
        get a second chance from now on.
        """
        if state == "pruned" and rungs and rungs[max(rungs)]["decision"] == "stop":
            self._stopped.setdefault(max(rungs), {})[self._origin(number)] = number

    def second_chance(self) -> int | None:
        """The best stopped trial that would go on now, of the latest rung that has one; None if
        there is none.
        """
        for epoch in sorted(self._stopped, reverse=True):
            stopped = self._stopped[epoch]
            found = (
                next((stopped[origin] for origin in self._best(epoch) if origin in stopped), None)
                if stopped
                else None
            )
            if found is not None:
                return found
        return None

    def continues(self, number: int, stopped: int) -> None:
        """Notes that trial `number` continues the trial `stopped`."""
        self._origins[number] = self._origin(stopped)
        for at_rung in self._stopped.values():
            at_rung.pop(self._origin(number), None)

    def _origin(self, number: int) -> int:
        return self._origins.get(number, number)

    def _best(self, epoch: int) -> list[int]:
        if epoch not in self._kept:
            self._kept[epoch] = survivors(self._points.get(epoch, {}), eta=self._eta)
        return self._kept[epoch]
