"""What is expected of a training before it is made: a Gaussian process over what is known of its
architecture.

Two trainings are as alike as exp(-sum of w_f d_f) over their traits' differences d_f, times rho^|i
- j| between rungs i and j, so that what a stopped training scored early says something about the
end (a co-kriging of training lengths, after Kennedy and O'Hagan, Biometrika 2000). Weights w, rho
and the noise are not fitted: settings drawn from a broad prior count by their marginal likelihood
(Rasmussen and Williams, 2006, equation 2.30). No optimiser can fail, and a few trainings are not
taken for more than they are.
"""

from __future__ import annotations

import math

import numpy
from scipy.linalg import cholesky, solve_triangular

Array = numpy.ndarray

SETTINGS = 16  # of the hyperparameters
# of a trait: median of the prior, and its spread as a standard deviation of the logarithm
WEIGHT = 0.3, 1.0
NOISE = 0.02, 1.0  # variance, as a share of that of the scores: the same
NEGLIGIBLE = 1e-3  # belief below which a setting is left out
FEW = 3  # scores of a rung from which their spread is taken
LEAST_SPREAD = 1e-3  # standard deviation by which scores are scaled at least


class Surrogate:
    """Beliefs about scores at each rung, given `scores` (n, objectives; each 0 to 1) of trainings
    seen at `rungs` (n, from 0).

    `differences` (traits, n, n) holds how far apart the trainings are, each trait from 0 to about
    1.
    """

    def __init__(
        self, differences: Array, rungs: Array, scores: Array, rng: numpy.random.Generator
    ) -> None:
        traits = len(differences)
        self._rng, self._rungs = rng, rungs
        self._weights = _log_normal(rng, WEIGHT, (SETTINGS, traits))
        self._memory = rng.uniform(0, 1, SETTINGS)  # rho
        self._scale(scores)
        noise = _log_normal(rng, NOISE, SETTINGS)[:, None, None] * numpy.eye(len(rungs))
        covariances = self._covariance(differences, rungs) + noise
        self._factors = [
            cholesky(covariance, lower=True, check_finite=False) for covariance in covariances
        ]
        # n, objectives, for each setting
        self._white = [_solved(factor, self._standard) for factor in self._factors]
        log_likelihood = numpy.array(
            [
                -0.5 * (white**2).sum(0) - numpy.log(numpy.diagonal(factor)).sum()
                for factor, white in zip(self._factors, self._white)
            ]
        )
        likelihood = numpy.exp(log_likelihood - log_likelihood.max(0))
        self._believe(likelihood / likelihood.sum(0))

    def _believe(self, belief: Array) -> None:
        """Keeps the settings that are believed for some objective, and how much: (settings,
        objectives).
        """
        kept = numpy.flatnonzero(belief.max(1) >= NEGLIGIBLE)
        self._weights, self._memory = self._weights[kept], self._memory[kept]
        self._factors, self._white = (
            [self._factors[i] for i in kept],
            [self._white[i] for i in kept],
        )
        self.belief = belief[kept] / belief[kept].sum(0)

    def _scale(self, scores: Array) -> None:
        """Scores with mean 0 and variance 1 at every rung; a rung that few have reached is taken to
        vary as all scores do.
        """
        self._standard = numpy.empty_like(scores)
        self._moments: dict[int, tuple[Array, Array]] = {}
        for rung in numpy.unique(self._rungs):
            here = scores[self._rungs == rung]
            mean, spread = (
                here.mean(0),
                (here if len(here) >= FEW else scores).std(0) + LEAST_SPREAD,
            )
            self._moments[int(rung)] = mean, spread
            self._standard[self._rungs == rung] = (here - mean) / spread
        self._anywhere = scores.mean(0), scores.std(0) + LEAST_SPREAD

    def _covariance(self, differences: Array, rungs: Array) -> Array:
        """Between the trainings and others: (settings, n, others)."""
        alike = numpy.exp(-numpy.tensordot(self._weights, differences, 1))
        return alike * self._memory[:, None, None] ** numpy.abs(self._rungs[:, None] - rungs)

    def _posterior(self, differences: Array, rung: int) -> tuple[Array, Array]:
        """Mean (settings, k, objectives) and standard deviation (settings, k), both of standardised
        scores.
        """
        across = self._covariance(differences, numpy.full(differences.shape[2], rung))
        solved = [_solved(factor, part) for factor, part in zip(self._factors, across)]
        mean = numpy.array([part.T @ white for part, white in zip(solved, self._white)])
        variance = 1 - numpy.array([(part**2).sum(0) for part in solved])
        return mean, numpy.sqrt(numpy.maximum(variance, 1e-9))

    def mean(self, differences: Array, rung: int) -> Array:
        """Expected scores (k, objectives) at `rung` of k others, which are `differences` (traits,
        n, k) from the trainings.
        """
        centre, spread = self._moments.get(rung, self._anywhere)
        return centre + spread * numpy.einsum(
            "skm,sm->km", self._posterior(differences, rung)[0], self.belief
        )

    def sample(self, differences: Array, rung: int, size: int) -> Array:
        """`size` draws (size, k, objectives) of what k others may score at `rung`, each 0 to 1.

        Every draw has a setting and one random number for all others, so that these are compared
        without chance between them.
        """
        mean, deviation = self._posterior(differences, rung)
        centre, spread = self._moments.get(rung, self._anywhere)
        drawn = numpy.empty((size, *mean.shape[1:]))
        for objective in range(mean.shape[2]):
            setting = self._rng.choice(len(mean), size=size, p=self.belief[:, objective])
            drawn[:, :, objective] = mean[setting, :, objective] + deviation[
                setting
            ] * self._rng.normal(size=(size, 1))
        return numpy.clip(centre + spread * drawn, 0.0, 1.0)


def _solved(factor: Array, right: Array) -> Array:
    return solve_triangular(factor, right, lower=True, check_finite=False)


def _log_normal(
    rng: numpy.random.Generator, prior: tuple[float, float], shape: int | tuple[int, ...]
) -> Array:
    median, spread = prior
    return numpy.exp(rng.normal(math.log(median), spread, shape))
