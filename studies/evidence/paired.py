"""Differences between two networks' scores, with 95 % intervals: paired over images where it is
stored which images each classified correctly, unpaired otherwise. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist, mean, stdev
from typing import Any

from trainers.instruments.correctness import Correctness
from trainers.instruments.proportions import proportion


@dataclass(frozen=True)
class Difference:
    """A difference of two shares, the first minus the second, and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int  # images; where `over` is seeds or pairs, those
    over: str  # images | images, unpaired | seeds | pairs
    # of "no difference": McNemar's exact test where the scores are single shares of images
    p: float | None = None

    @property
    def distinct(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    def points(self) -> str:
        """The difference in percentage points with its interval, such as `+1.20 [+0.3, +2.1]`."""
        if not math.isfinite(self.half):
            return f"{100 * self.value:+.2f}"
        return f"{100 * self.value:+.2f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a bound that is not finite is None."""
        bounds = {
            name: bound if math.isfinite(bound) else None
            for name, bound in (("low", self.low), ("high", self.high))
        }
        return {
            "value": self.value,
            **bounds,
            "n": self.count,
            "over": self.over,
            "p": self.p,
            "distinct": self.distinct,
        }


def paired_difference(a: Correctness, b: Correctness, score: str) -> Difference | None:
    """The difference of a score between two networks on the same images; None for a score that is
    not a mean over images, or where the images or elements differ.

    An image's value is the share of the elements under which it is classified correctly, so that
    the images, not images times elements, are what is counted: a network's errors on one image
    under several elements are not independent. The interval is Wald's with one image more on
    either side, whose difference is 1 and -1 (Agresti and Min, 2005, for single shares), which
    keeps its coverage where hardly any image differs.
    """
    ours, theirs = a.columns(score), b.columns(score)
    if not a.comparable(b) or ours is None or theirs is None:
        return None
    total, square = moments(ours, theirs)
    count = a.images
    low, high = _wald(total, square + 2, count + 2)
    value = total / count
    p = None
    if len(ours) == 1 and len(theirs) == 1:
        p = mcnemar((ours[0] & ~theirs[0]).bit_count(), (theirs[0] & ~ours[0]).bit_count())
    return Difference(value, min(low, value), max(high, value), count, "images", p)


def moments(a: Sequence[int], b: Sequence[int]) -> tuple[float, float]:
    """The sum and the sum of squares over images of the difference between two means over columns
    of bits, exact by counting bits.
    """
    ka, kb = len(a), len(b)
    total = sum(x.bit_count() for x in a) / ka - sum(x.bit_count() for x in b) / kb
    both = {
        (i, j): sum((x & y).bit_count() for x, y in product(first, second)) / scale
        for i, first, j, second, scale in (
            (0, a, 0, a, ka * ka),
            (0, a, 1, b, ka * kb),
            (1, b, 1, b, kb * kb),
        )
    }
    return total, both[0, 0] - 2 * both[0, 1] + both[1, 1]


def _wald(total: float, square: float, count: int) -> tuple[float, float]:
    centre = total / count
    variance = max(0.0, square / count - centre**2)
    half = Z * math.sqrt(variance / count)
    return centre - half, centre + half


Z = NormalDist().inv_cdf(0.975)


def mcnemar(first: int, second: int) -> float:
    """McNemar's exact p-value: of `first` images that only one network classifies correctly and
    `second` that only the other does, two-sided.
    """
    count, fewer = first + second, min(first, second)
    if count == 0:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * sum(math.exp(log - count * math.log(2)) for log in logs))


def unpaired(a: float, b: float, count: int, other: int | None = None) -> Difference:
    """The difference of two shares of `count` images (`other` for the second), from the Wilson
    intervals of each (Newcombe, 1998): wider than a paired one where both fail on the same images.
    """
    first, second = proportion(a, count), proportion(b, count if other is None else other)
    value = a - b
    low = value - math.hypot(a - first.low, second.high - b)
    high = value + math.hypot(first.high - a, b - second.low)
    return Difference(value, low, high, count, "images, unpaired")


def over_values(values: Sequence[float], over: str) -> Difference:
    """The mean of differences between independent pairs (or of one score between seeds), with
    Student's interval; of one value the interval is unbounded.
    """
    value = mean(values)
    if len(values) < 2:
        return Difference(value, -math.inf, math.inf, len(values), over)
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Difference(value, value - half, value + half, len(values), over)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with that many degrees of freedom."""
    if freedom <= len(T975):
        return T975[freedom - 1]
    # Cornish-Fisher (Abramowitz and Stegun, 26.7.5): 1e-4 from 11 degrees on
    z, n = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


# scipy.stats.t.ppf(0.975, n), n = 1 to 10; importing scipy takes a second of every command
T975 = (
    12.706204736,
    4.302652730,
    3.182446305,
    2.776445105,
    2.570581836,
    2.446911851,
    2.364624252,
    2.306004135,
    2.262157163,
    2.228138852,
)
