"""Who goes on at a rung: successive halving of the stopping type, for several scores at once.

A rung is a training length at which trials are compared. The rule is arithmetic on tuples: no clock, storage or randomness.
With one score it is the stopping variant of ASHA (Li et al., arXiv:1810.05934); with several, trials are ranked by
non-dominated sorting and then by crowding (Deb et al., NSGA-II, 2002), both over *values*: ranking by position in a sorted
list, as MO-ASHA implementations do, stops trials that nobody beats.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Point = tuple[float, ...]
Name = TypeVar("Name", bound=Hashable)


def keep(mine: Sequence[float], peers: Sequence[Sequence[float]], *, eta: float = 2) -> bool:
    """True if fewer than 1/`eta` of everybody at this rung (`peers` and `mine`) are better than `mine`.

    All scores are maximised. `peers` are the scores of the other trials that have reached the rung, in any order. Better
    is: on an earlier non-dominated front, or on the same front with more room around it (`crowding`). A point that nobody
    dominates is always kept. Raises ValueError for an eta not above 1 or points of unequal length.
    """
    if eta <= 1:
        raise ValueError(f"eta is {eta}; it must be above 1 (2 keeps about a half at each rung)")
    mine = tuple(mine)
    points = [tuple(peer) for peer in peers]
    if any(len(point) != len(mine) for point in points):
        raise ValueError(f"all trials at a rung need the same scores; this one has {len(mine)}")
    return len(points) in survivors(dict(enumerate([*points, mine])), eta=eta)


def survivors(points: Mapping[Name, Point], *, eta: float = 2) -> list[Name]:
    """The names whose points `keep` would keep among all the others: front after front, in the order of `points` within one."""
    limit = len(points) / eta
    rank: dict[Point, int] = {}         # of the points that are kept: the number of better ones on earlier fronts
    before = 0
    for front in fronts(list(points.values())):
        if before == 0 or before + len(front) <= limit:
            rank.update(dict.fromkeys(front, before))
        elif before < limit:            # the limit lies within this front: room decides
            room = crowding(front)
            least = sorted((room[point] for point in front), reverse=True)[math.ceil(limit - before) - 1]
            rank.update((point, before) for point in front if room[point] >= least)
        else:
            break
        before += len(front)
    return sorted((name for name, point in points.items() if point in rank), key=lambda name: rank[points[name]])


def fronts(points: Sequence[Point]) -> list[list[Point]]:
    """The points in non-dominated fronts, best first; equal points share a front. All coordinates are maximised.

    Points are visited in descending lexicographic order, so that a point can only be dominated by earlier ones; it joins
    the first front that does not dominate it, found by bisection (efficient non-dominated sort, Zhang et al. 2015). With
    one or two coordinates the latest member of a front dominates whenever any member does, which gives n log n.
    """
    found: list[list[Point]] = []
    latest: list[float] = []            # minus the last coordinate of each front's latest member: ascending, with one or two coordinates
    ordered = sorted(points, reverse=True)
    simple = not ordered or len(ordered[0]) <= 2
    before, place = None, 0
    for point in ordered:
        if point != before:
            place = bisect_right(latest, -point[-1]) if simple else bisect_left(found, True, key=lambda front: not _dominated(front, point))
        if place == len(found):
            found.append([])
            latest.append(0.0)
        found[place].append(point)
        before, latest[place] = point, -point[-1]
    return found


def _dominated(front: Sequence[Point], point: Point) -> bool:
    """True if a member of the front dominates `point`, which comes after all of them in descending order."""
    return any(dominates(other, point) for other in reversed(front))


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """True if `a` is at least as good as `b` everywhere and better somewhere. All coordinates are maximised."""
    return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b))


def crowding(front: Sequence[Point]) -> dict[Point, float]:
    """Room around each point of one front: the sum over coordinates of the gap between its neighbours, as a share of the range.

    The extremes of every coordinate get infinity. Equal points count once, so the result does not depend on their order.
    """
    unique = set(front)
    room = dict.fromkeys(unique, 0.0)
    for axis in range(len(front[0])):
        values = sorted({point[axis] for point in unique})
        span = values[-1] - values[0]
        place = {value: i for i, value in enumerate(values)}
        for point in unique:
            i = place[point[axis]]
            if i in (0, len(values) - 1):
                room[point] = float("inf")
            else:
                room[point] += (values[i + 1] - values[i - 1]) / span
    return room
