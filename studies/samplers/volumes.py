"""Gains in hypervolume of many points at once, over a front that is cut into boxes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy

from studies.pareto import Point, non_dominated
from studies.samplers.gp import Array


def boxes(points: Sequence[Point], objectives: int) -> tuple[Array, Array]:
    """The part of the unit cube that no point dominates, in boxes: lower and upper corners (boxes,
    objectives).

    Computed by slicing along the last objective, as the hypervolume is.
    """
    corners = list(_boxes(sorted(set(points)), objectives))
    return numpy.array([low for low, _ in corners]), numpy.array([high for _, high in corners])


def _boxes(points: Sequence[Point], objectives: int) -> Iterator[tuple[Point, Point]]:
    if objectives == 1:
        yield (max((point[0] for point in points), default=0.0),), (1.0,)
        return
    levels = sorted({0.0, 1.0, *(point[-1] for point in points)})
    for low, high in itertools.pairwise(levels):
        above = [point[:-1] for point in points if point[-1] >= high]
        for lower, upper in _boxes(sorted(non_dominated(above)), objectives - 1):
            yield (*lower, low), (*upper, high)


def improvements(points: Array, lower: Array, upper: Array) -> Array:
    """By how much each of `points` (..., objectives) would increase the hypervolume of the front
    that leaves these boxes free.
    """
    total = numpy.zeros(points.shape[:-1])
    for low, high in zip(lower, upper):
        total += numpy.prod(numpy.clip(numpy.minimum(points, high) - low, 0.0, None), axis=-1)
    return total
