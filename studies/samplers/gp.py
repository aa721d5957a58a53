"""A Gaussian process that predicts the scores of trainings from features of their candidates.

The covariance of two trainings is exp(-sum of w_f d_f) over the differences d_f of their features,
times rho^|i - j| between rungs i and j, so that the early scores of a stopped training inform the
prediction for the last epoch (co-kriging of training lengths, after Kennedy and O'Hagan, Biometrika
2000). Each rung has a mean of its own, with a broad prior, so that it is estimated together with
that correlation (Rasmussen and Williams, 2006, section 2.7): trainings reach the last rung because
they were good, and the mean of those that did is too high for all others. Weights w, rho and the
noise are not fitted: settings drawn from a broad prior are weighted by their marginal likelihood
(the same, equation 2.30). This involves no optimiser that could fail, and does not overfit a few
trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from scipy.linalg import cholesky, solve_triangular

Array = numpy.ndarray

SETTINGS = 16  # of the hyperparameters
# of a feature: median of the prior, and standard deviation of the logarithm
WEIGHT = 0.3, 1.0
NOISE = 0.02, 1.0  # variance, as a share of that of the scores: the same
NEGLIGIBLE = 1e-3  # posterior weight below which a setting is left out
OFFSET = 2.0  # standard deviation of the prior of a rung's mean, in those of the scores at a rung
LEAST_VARIANCE = 1e-9  # of a prediction
LEAST_DEVIATION = 1e-3  # added to the standard deviation by which scores are scaled


class Surrogate:
    """The posterior of the scores at each rung, given `scores` (n, objectives; each 0 to 1) of
    trainings observed at `rungs` (n, from 0).

    `differences` (features, n, n) are those between the trainings, each from 0 to about 1.
    """

    def __init__(
        self,
        differences: Array,
        rungs: Array,
        scores: Array,
        rng: numpy.random.Generator,
        offset: float | None = None,
    ) -> None:
        self._rng, self._rungs = rng, rungs
        self._offset = OFFSET if offset is None else offset
        self._weights = _log_normal(rng, WEIGHT, (SETTINGS, len(differences)))
        self._rung_correlation = rng.uniform(0, 1, SETTINGS)  # rho
        self._scale(scores)
        self._noise = _log_normal(rng, NOISE, SETTINGS)
        noise = self._noise[:, None, None] * numpy.eye(len(rungs))
        covariances = self._covariance(differences, rungs) + noise
        self._factors = [
            cholesky(covariance, lower=True, check_finite=False) for covariance in covariances
        ]
        # n, objectives, for each setting
        self._whitened = [_solved(factor, self._standard) for factor in self._factors]
        log_likelihood = numpy.array(
            [
                -0.5 * (whitened**2).sum(0) - numpy.log(numpy.diagonal(factor)).sum()
                for factor, whitened in zip(self._factors, self._whitened)
            ]
        )
        likelihood = numpy.exp(log_likelihood - log_likelihood.max(0))
        self._keep_likely(likelihood / likelihood.sum(0))

    def _keep_likely(self, weights: Array) -> None:
        """Keeps the settings with posterior `weights` (settings, objectives) that matter for some
        objective.
        """
        likely = numpy.flatnonzero(weights.max(1) >= NEGLIGIBLE)
        self._weights, self._rung_correlation = (
            self._weights[likely],
            self._rung_correlation[likely],
        )
        self._noise = self._noise[likely]
        self._factors = [self._factors[i] for i in likely]
        self._whitened = [self._whitened[i] for i in likely]
        self.posterior_weights = weights[likely] / weights[likely].sum(0)

    def _scale(self, scores: Array) -> None:
        """Standardises the scores by their mean and their standard deviation within rungs."""
        within = scores.copy()
        for rung in numpy.unique(self._rungs):
            here = self._rungs == rung
            within[here] -= scores[here].mean(0)
        self._centre, self._deviation = scores.mean(0), within.std(0) + LEAST_DEVIATION
        self._standard = (scores - self._centre) / self._deviation

    def _covariance(self, differences: Array, rungs: Array) -> Array:
        """Between the trainings and others: (settings, n, others)."""
        similarity = numpy.exp(-numpy.tensordot(self._weights, differences, 1))
        apart = numpy.abs(self._rungs[:, None] - rungs)
        between = self._rung_correlation[:, None, None] ** apart
        return similarity * between + self._offset**2 * (apart == 0)

    def _posterior(self, differences: Array, rung: int) -> tuple[Array, Array]:
        """Mean (settings, k, objectives) and standard deviation (settings, k), both of standardised
        scores.
        """
        across = self._covariance(differences, numpy.full(differences.shape[2], rung))
        solved = [_solved(factor, part) for factor, part in zip(self._factors, across)]
        mean = numpy.array([part.T @ whitened for part, whitened in zip(solved, self._whitened)])
        variance = 1 + self._offset**2 - numpy.array([(part**2).sum(0) for part in solved])
        return mean, numpy.sqrt(numpy.maximum(variance, LEAST_VARIANCE))

    def mean(self, differences: Array, rung: int) -> Array:
        """Expected scores (k, objectives) at `rung` of k others, which are `differences` (features,
        n, k) from the trainings.
        """
        return self._centre + self._deviation * numpy.einsum(
            "skm,sm->km", self._posterior(differences, rung)[0], self.posterior_weights
        )

    def sample(self, differences: Array, rung: int, size: int) -> Array:
        """`size` draws (size, k, objectives) of the scores of k others at `rung`, each 0 to 1.

        Every draw uses one setting and one random number for all k, so that they are compared with
        common random numbers.
        """
        mean, deviation = self._posterior(differences, rung)
        drawn = numpy.empty((size, *mean.shape[1:]))
        for objective in range(mean.shape[2]):
            setting = self._rng.choice(len(mean), size=size, p=self.posterior_weights[:, objective])
            drawn[:, :, objective] = mean[setting, :, objective] + deviation[
                setting
            ] * self._rng.normal(size=(size, 1))
        return numpy.clip(self._centre + self._deviation * drawn, 0.0, 1.0)

    def paths(self, differences: Array, rungs: Sequence[int], draws: Sequence[int]) -> Array:
        """Draws (*draws, k, objectives) of the scores of k others at the last of `rungs`, as they
        would be measured, each 0 to 1.

        `draws[i]` scores at `rungs[i]` are drawn for each one at the rung before, given that; axis
        i is that of `rungs[i]`. Each of the first uses one setting, and all k the same random
        numbers.
        """
        mean, factor = self._jointly(differences, rungs)
        drawn = numpy.empty((*draws, mean.shape[1], mean.shape[2]))
        for objective in range(mean.shape[2]):
            weights = self.posterior_weights[:, objective]
            setting = self._rng.choice(len(mean), size=draws[0], p=weights)
            shape = (draws[0], *[1] * (len(draws) - 1), -1)
            drawn[..., objective] = mean[setting, :, objective].reshape(shape)
            for i in range(len(draws)):
                size = (*draws[: i + 1], *[1] * (len(draws) - i))
                chance = self._rng.normal(size=size)
                drawn[..., objective] += factor[setting, :, -1, i].reshape(shape) * chance
        return numpy.clip(self._centre + self._deviation * drawn, 0.0, 1.0)

    def _jointly(self, differences: Array, rungs: Sequence[int]) -> tuple[Array, Array]:
        """Mean (settings, k, objectives) of the standardised scores of k others at the last of
        `rungs`, and the factor (settings, k, rungs, rungs) of the covariance of those at all,
        noise included.
        """
        solved, count = [], differences.shape[2]
        for rung in rungs:
            across = self._covariance(differences, numpy.full(count, rung))
            solved.append(
                numpy.array([_solved(factor, part) for factor, part in zip(self._factors, across)])
            )
        mean = numpy.einsum("snk,snm->skm", solved[-1], numpy.array(self._whitened))
        apart = numpy.abs(numpy.subtract.outer(rungs, rungs))
        diagonal = self._noise[:, None, None] + self._offset**2 + LEAST_VARIANCE
        before = self._rung_correlation[:, None, None] ** apart + diagonal * (apart == 0)
        known = numpy.einsum("rsnk,qsnk->skrq", solved, solved)
        return mean, numpy.linalg.cholesky(before[:, None] - known)


def _solved(factor: Array, right: Array) -> Array:
    return solve_triangular(factor, right, lower=True, check_finite=False)


def _log_normal(
    rng: numpy.random.Generator, prior: tuple[float, float], shape: int | tuple[int, ...]
) -> Array:
    median, deviation = prior
    return numpy.exp(rng.normal(math.log(median), deviation, shape))
