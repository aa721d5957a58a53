"""Widths that make a comparison fair: networks of different groups and layouts with as many
parameters, MACs or fields.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal

from searchspace.architecture import Architecture
from searchspace.cost import cost

Match = Literal["params", "macs", "fields"]


@lru_cache(maxsize=65536)
def widened(
    architecture: Architecture, match: Match, to: int, channels: int = 1, classes: int = 10
) -> Architecture:
    """`architecture` with all fields scaled alike until its params, macs or the fields of its first
    stage come closest to `to`.

    Without residual stages, single stages then gain a field where that comes closer still: scaling
    all of them at once leaves steps of 10 % at 25,000 parameters. (Residual stages of unequal
    fields would need projections.)
    """
    first = architecture.stages[0].fields

    def distance(candidate: Architecture) -> float:
        return abs(getattr(cost(candidate, channels, classes), match) - to)

    def scaled(factor: float) -> Architecture:
        stages = tuple(
            replace(stage, fields=max(1, round(stage.fields * factor)))
            for stage in architecture.stages
        )
        return replace(architecture, stages=stages)

    if match == "fields":
        return scaled(to / first)
    low, high = 0.0, 1.0
    while getattr(cost(scaled(high), channels, classes), match) < to:
        high *= 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if getattr(cost(scaled(middle), channels, classes), match) < to
            else (low, middle)
        )
    if any(stage.residual for stage in architecture.stages):
        return min(scaled(low), scaled(high), key=distance)
    best = scaled(low)
    for number in reversed(range(len(best.stages))):
        stage = best.stages[number]
        wider = (
            best.stages[:number]
            + (replace(stage, fields=stage.fields + 1),)
            + best.stages[number + 1 :]
        )
        best = min(best, replace(best, stages=wider), key=distance)
    return best
