"""Who goes on at a rung: successive halving of the stopping type, for several scores at once.

A rung is a training length at which trials are compared. The rule is arithmetic on tuples: no
clock, storage or randomness. With one score it is the stopping variant of ASHA (Li et al.,
arXiv:1810.05934); with several, trials are ranked by non-dominated sorting and then by crowding
(Deb et al., NSGA-II, 2002), both over *values*: ranking by position in a sorted list, as MO-ASHA
implementations do, stops trials that no other dominates.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from studies.pareto import Point, crowding, fronts

TrialName = TypeVar("TrialName", bound=Hashable)


def keep(mine: Sequence[float], peers: Sequence[Sequence[float]], *, eta: float = 2) -> bool:
    """True if fewer than 1/`eta` of all trials at this rung (`peers` and `mine`) are better than
    `mine`.

    All scores are maximised. `peers` are the scores of the other trials that have reached the rung,
    in any order. Better is: on an earlier non-dominated front, or on the same front with a larger
    crowding distance. A point that no other dominates is always kept. Raises ValueError for an
    eta not above 1 or points of unequal length.
    """
    if eta <= 1:
        raise ValueError(f"eta is {eta}; it must be above 1 (2 keeps about a half at each rung)")
    mine = tuple(mine)
    points = [tuple(peer) for peer in peers]
    if any(len(point) != len(mine) for point in points):
        raise ValueError(f"all trials at a rung need the same scores; this one has {len(mine)}")
    return len(points) in survivors(dict(enumerate([*points, mine])), eta=eta)


def survivors(points: Mapping[TrialName, Point], *, eta: float = 2) -> list[TrialName]:
    """The names whose points `keep` would keep among all the others: front after front, in the
    order of `points` within one.
    """
    limit = len(points) / eta
    # of the points that are kept: the number of better ones on earlier fronts
    rank: dict[Point, int] = {}
    before = 0
    for front in fronts(list(points.values())):
        if before == 0 or before + len(front) <= limit:
            rank.update(dict.fromkeys(front, before))
        elif before < limit:  # the limit lies within this front: the crowding distance decides
            distance = crowding(front)
            least = sorted((distance[point] for point in front), reverse=True)[
                math.ceil(limit - before) - 1
            ]
            rank.update((point, before) for point in front if distance[point] >= least)
        else:
            break
        before += len(front)
    return sorted(
        (name for name, point in points.items() if point in rank),
        key=lambda name: rank[points[name]],
    )
