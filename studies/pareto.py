"""The Pareto front of a study, its hypervolume and its knee. Nothing here imports optuna, ray or
numpy.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

Objective = Literal[
    "accuracy",
    "symmetry_accuracy",
    "worst_symmetry_accuracy",
    "balanced_accuracy",
    "auroc",
    "worst_class",
    "symmetry_balanced_accuracy",
    "symmetry_auroc",
    "symmetry_worst_class",
    "equivariance_error",
    "params",
    "macs",
    "latency",
]
Direction = Literal["maximize", "minimize"]

DIRECTIONS: dict[str, Direction] = {
    "accuracy": "maximize",  # share of validation images, 0 to 1
    # the same, mean over transformations that training has not seen
    "symmetry_accuracy": "maximize",
    "worst_symmetry_accuracy": "maximize",  # the same, of the worst transformation
    "balanced_accuracy": "maximize",  # mean over classes of the share of its images
    "auroc": "maximize",  # area under the ROC curve, one class against the others, mean
    "worst_class": "maximize",  # share of its images of the class that has the lowest
    # the last three under the declared group: means over its elements but the identity
    "symmetry_balanced_accuracy": "maximize",
    "symmetry_auroc": "maximize",
    "symmetry_worst_class": "maximize",
    "equivariance_error": "minimize",  # of the logits; 0 is exact
    "params": "minimize",
    "macs": "minimize",  # multiply-accumulates per image
    "latency": "minimize",  # milliseconds per image
}

# The worst cost that still counts, as a power of ten; a hypervolume needs a reference that never
# moves.
WORST_EXPONENT = {"params": 10, "macs": 14, "latency": 7}

# objectives whose score has another name among those of a training
SCORE_OF = {"worst_symmetry_accuracy": "symmetry_accuracy_worst"}

# objectives that are shares of images or areas, 0 to 1: tables show them in per cent
SHARES = tuple(name for name, direction in DIRECTIONS.items() if direction == "maximize")
# objectives that are means over classes, so that each class needs a validation image
OVER_CLASSES = tuple(
    name for name in SHARES if name.endswith(("balanced_accuracy", "auroc", "worst_class"))
)

Point = tuple[float, ...]
T = TypeVar("T")


def larger_is_better(values: Sequence[float], objectives: Sequence[str]) -> Point:
    """The values with minimised objectives negated, so that more is better everywhere."""
    return tuple(
        v if DIRECTIONS[name] == "maximize" else -v
        for v, name in zip(values, objectives, strict=True)
    )


def utilities(values: Sequence[float], objectives: Sequence[str]) -> Point:
    """The values mapped monotonically to 0 (worst) to 1 (best), the same way in every study.

    Accuracies stay, an equivariance error e becomes 1 / (1 + e), and costs count by their decimal
    logarithm: 1 parameter is 1, 10^10 or more are 0.
    """
    return tuple(_utility(value, name) for value, name in zip(values, objectives, strict=True))


def _utility(value: float, name: str) -> float:
    if name == "equivariance_error":
        return 1 / (1 + value)
    if name in WORST_EXPONENT:
        return min(1.0, max(0.0, 1 - math.log10(max(value, 1e-12)) / WORST_EXPONENT[name]))
    return min(1.0, max(0.0, value))


def pareto(
    items: Sequence[T], objectives: Sequence[str], values: Callable[[T], Sequence[float]]
) -> list[T]:
    """The items that no other item dominates, best first objective first; items with equal values
    are all kept.
    """
    points = [larger_is_better(values(item), objectives) for item in items]
    if not points:
        return []
    best = set(fronts(points)[0]) if len(objectives) <= 2 else non_dominated(points)
    chosen = [i for i, point in enumerate(points) if point in best]
    return [items[i] for i in sorted(chosen, key=lambda i: points[i], reverse=True)]


def non_dominated(points: Sequence[Point]) -> set[Point]:
    """The points that no other point dominates; all coordinates are maximised."""
    front: list[Point] = []
    for point in sorted(set(points), reverse=True):  # only earlier points can dominate
        if not any(dominates(other, point) for other in front):
            front.append(point)
    return set(front)


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """The volume that the points dominate above the origin; each coordinate is a utility, 0 to 1
    (`utilities`).

    Exact, by slicing along the last coordinate: two objectives cost n log n, each further one a
    factor of n.
    """
    return _volume([tuple(point) for point in points if min(point, default=0) > 0])


def _volume(points: list[Point]) -> float:
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return max(points)[0]
    volume = 0.0
    ordered = sorted(points, key=lambda point: -point[-1])
    if len(points[0]) == 2:  # a staircase
        width = 0.0
        for i, (x, y) in enumerate(ordered):
            width = max(width, x)
            lower = ordered[i + 1][1] if i + 1 < len(ordered) else 0.0
            volume += width * (y - lower)
        return volume
    for i, point in enumerate(ordered):
        lower = ordered[i + 1][-1] if i + 1 < len(ordered) else 0.0
        if point[-1] > lower:
            slab = [p[:-1] for p in ordered[: i + 1]]
            volume += _volume(list(non_dominated(slab))) * (point[-1] - lower)
    return volume


def front_volume(values: Sequence[Sequence[float]], objectives: Sequence[str]) -> float:
    """Hypervolume of trials with these objective values, 0 to 1, with a reference that is the same
    in every study.
    """
    points = {utilities(value, objectives) for value in values}
    return hypervolume(list(non_dominated(list(points)))) if points else 0.0


def knee(values: Sequence[Sequence[float]], objectives: Sequence[str]) -> int | None:
    """Index of the front member with the best compromise, or None for an empty front.

    The member that alone has the largest hypervolume, the product of its utilities. Scaling each
    objective to the front instead makes all members of a front of two equal: 98 % and 23 % would be
    as good as 94 % and 94 %.
    """
    if not values:
        return None
    return max(range(len(values)), key=lambda i: math.prod(utilities(values[i], objectives)))


def fronts(points: Sequence[Point]) -> list[list[Point]]:
    """The points in non-dominated fronts, best first; equal points share a front. All coordinates
    are maximised.

    Points are visited in descending lexicographic order, so that a point can only be dominated by
    earlier ones; it joins the first front that does not dominate it, found by bisection (efficient
    non-dominated sort, Zhang et al. 2015). With one or two coordinates the latest member of a front
    dominates whenever any member does, which gives n log n.
    """
    layers: list[list[Point]] = []
    # minus the last coordinate of each front's latest member: ascending, with one or two
    # coordinates
    latest: list[float] = []
    ordered = sorted(points, reverse=True)
    simple = not ordered or len(ordered[0]) <= 2
    before, place = None, 0
    for point in ordered:
        if point != before:
            place = (
                bisect_right(latest, -point[-1])
                if simple
                else bisect_left(layers, True, key=lambda front: not _dominated(front, point))
            )
        if place == len(layers):
            layers.append([])
            latest.append(0.0)
        layers[place].append(point)
        before, latest[place] = point, -point[-1]
    return layers


def _dominated(front: Sequence[Point], point: Point) -> bool:
    """True if a member of the front dominates `point`, which comes after all of them in descending
    order.
    """
    return any(dominates(other, point) for other in reversed(front))


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """True if `a` is at least as good as `b` everywhere and better somewhere. All coordinates are
    maximised.
    """
    return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b))


def crowding(front: Sequence[Point]) -> dict[Point, float]:
    """The crowding distance of each point of one front (NSGA-II): the sum over coordinates of the
    gap between its neighbours, as a share of the range.

    The extremes of every coordinate get infinity. Equal points count once, so the result does not
    depend on their order.
    """
    unique = set(front)
    distance = dict.fromkeys(unique, 0.0)
    for axis in range(len(front[0])):
        values = sorted({point[axis] for point in unique})
        span = values[-1] - values[0]
        place = {value: i for i, value in enumerate(values)}
        for point in unique:
            i = place[point[axis]]
            if i in (0, len(values) - 1):
                distance[point] = float("inf")
            else:
                distance[point] += (values[i + 1] - values[i - 1]) / span
    return distance
