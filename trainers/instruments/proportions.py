"""Shares of images with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Proportion:
    """A share between 0 and 1 with its confidence interval over images."""

    value: float
    low: float
    high: float
    count: int  # images, or other trials

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}] %"

    def short(self) -> str:
        """The same in whole percent."""
        return f"{100 * self.value:.0f} % ({100 * self.low:.0f}-{100 * self.high:.0f})"

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON, without the count."""
        return {"value": self.value, "low": self.low, "high": self.high}


def proportion(value: float, num_images: int, confidence: float = 0.95) -> Proportion:
    """The share `value` of `num_images` images with its Wilson score interval (Wilson, 1927).

    For the mean of several shares of the same images (over elements) the interval is that of a
    single share: right where the images fail together, as in an exact network, too wide where they
    fail independently, never too narrow. Of no images the share is nan.
    """
    if num_images == 0:
        return Proportion(math.nan, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (value + z * z / (2 * num_images)) / (1 + z * z / num_images)
    half = (
        z
        / (1 + z * z / num_images)
        * (value * (1 - value) / num_images + z * z / (4 * num_images**2)) ** 0.5
    )
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Proportion(value, min(value, low), max(value, high), num_images)


def wilson(successes: float, count: int) -> Proportion:
    """The proportion of `successes` in `count` trials with its 95 % interval."""
    return proportion(successes / count if count else math.nan, count)


def binomial(hits: float, trials: float) -> float:
    """The exact p value of at least `hits` heads in `trials` throws of a fair coin; 1 without a
    throw.
    """
    from scipy.stats import binom

    return float(binom.sf(float(hits) - 1, float(trials), 0.5)) if trials else 1.0


def fisher(hits: float, other_hits: float, trials: float) -> float:
    """The p value of Fisher's exact test that `hits` of `trials` are no more than `other_hits` of
    as many: the share of permutations of the 2 x `trials` answers with as many hits on one side.
    """
    from scipy.stats import hypergeom

    hits, other_hits, trials = round(float(hits)), round(float(other_hits)), round(float(trials))
    return float(hypergeom.sf(hits - 1, 2 * trials, hits + other_hits, trials)) if trials else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values after Holm's step-down correction (Holm, 1979), in the given order: rejecting
    those below 0.05 rejects a true hypothesis in one of twenty families at most.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
