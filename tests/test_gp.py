"""What a Gaussian process over features predicts, against scikit-learn's and against
planted structure.
"""

from __future__ import annotations

import numpy
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from studies.samplers import gp
from studies.samplers.gp import Surrogate


def apart(a, b):
    """Differences of trainings with numbers as features: (features, a, b)."""
    return numpy.abs(a.T[:, :, None] - b.T[:, None, :])


def made(x, scores, rungs=None, seed=0):
    rungs = numpy.zeros(len(x), int) if rungs is None else rungs
    return Surrogate(apart(x, x), rungs, scores, numpy.random.default_rng(seed))


def test_one_setting_is_scikit_learns_gaussian_process(monkeypatch):
    monkeypatch.setattr(gp, "SETTINGS", 1)
    monkeypatch.setattr(gp, "WEIGHT", (2.0, 0.0))
    monkeypatch.setattr(gp, "NOISE", (0.1, 0.0))
    monkeypatch.setattr(gp, "LEAST_DEVIATION", 0.0)
    monkeypatch.setattr(gp, "OFFSET", 0.0)  # theirs has one known mean
    rng = numpy.random.default_rng(1)
    x, new, y = rng.random((12, 1)), rng.random((7, 1)), rng.random((12, 1)) * 0.2 + 0.4
    theirs = GaussianProcessRegressor(
        Matern(length_scale=0.5, nu=0.5), alpha=0.1, optimizer=None, normalize_y=True
    ).fit(x, y[:, 0])
    mean, deviation = theirs.predict(new, return_std=True)
    ours = made(x, y)
    assert numpy.allclose(ours.mean(apart(x, new), 0)[:, 0], mean, atol=1e-10)
    drawn = ours.sample(apart(x, new), 0, 4000)[:, :, 0]
    assert numpy.allclose(drawn.std(0), deviation, rtol=0.08) and numpy.allclose(
        drawn.mean(0), mean, atol=0.01
    )


def test_settings_that_explain_the_scores_are_believed():
    """Only the first of four features matters: predictions follow it and ignore the others."""
    rng = numpy.random.default_rng(0)
    x = rng.integers(0, 2, (60, 4)).astype(float)
    y = numpy.stack([0.3 + 0.5 * x[:, 0], 0.8 - 0.5 * x[:, 0]], axis=1) + rng.normal(
        0, 0.02, (60, 2)
    )
    ours = made(x, y)
    new = numpy.array([[0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], float)
    assert numpy.allclose(
        ours.mean(apart(x, new), 0), [[0.3, 0.8], [0.3, 0.8], [0.8, 0.3], [0.8, 0.3]], atol=0.06
    )
    assert numpy.allclose(ours.posterior_weights.sum(0), 1)


def test_settings_are_believed_by_the_likelihood_of_the_scores(monkeypatch):
    monkeypatch.setattr(gp, "NOISE", (0.1, 0.0))
    monkeypatch.setattr(gp, "NEGLIGIBLE", 0.0)  # keeps all settings
    rng = numpy.random.default_rng(3)
    x, y = rng.random((9, 3)), rng.random((9, 2))
    ours = made(x, y)
    standard = (y - y.mean(0)) / (y.std(0) + gp.LEAST_DEVIATION)
    likelihood = numpy.array(
        [
            [
                multivariate_normal.pdf(
                    standard[:, k],
                    cov=numpy.exp(-numpy.tensordot(w, apart(x, x), 1))
                    + gp.OFFSET**2
                    + 0.1 * numpy.eye(9),
                )
                for k in range(2)
            ]
            for w in ours._weights
        ]
    )
    assert numpy.allclose(ours.posterior_weights, likelihood / likelihood.sum(0))


def test_what_was_seen_is_certain_and_the_unlike_is_not():
    x = numpy.array([[0.0], [0.1], [0.2], [0.3]])
    ours = made(x, numpy.array([[0.2], [0.4], [0.6], [0.8]]))
    near, far = ours.sample(apart(x, numpy.array([[0.1], [40.0]])), 0, 500)[:, :, 0].std(0)
    assert near < 0.5 * far and far > 0.1


@pytest.mark.parametrize("informative", [True, False])
def test_an_early_rung_says_as_much_about_the_end_as_it_did_before(informative):
    """Trainings alike in all features, 20 of them seen to the end; of two others only the early
    scores are known.
    """
    rng = numpy.random.default_rng(2)
    early = rng.random(20)
    late = 0.2 + 0.6 * early if informative else rng.permutation(0.2 + 0.6 * early)
    x = numpy.arange(22.0)[:, None] * 3  # nearly unrelated by their features
    seen = numpy.concatenate([x[:20], x[:20], x[20:]])
    rungs = numpy.array([0] * 20 + [1] * 20 + [0, 0])
    scores = numpy.concatenate([early, late, [0.05, 0.95]])[:, None]
    low, high = made(seen, scores, rungs).mean(apart(seen, x[20:]), 1)[:, 0]
    assert (high - low > 0.2) == informative


def test_a_rung_that_nobody_has_reached_is_not_an_error():
    x = numpy.array([[0.0], [1.0]])
    assert made(x, numpy.array([[0.2], [0.4]])).sample(apart(x, x), 2, 10).shape == (10, 2, 1)


def test_a_rung_that_one_training_has_reached_is_not_taken_to_be_certain():
    x = numpy.array([[0.0], [3.0], [6.0], [0.0]])
    ours = made(x, numpy.array([[0.2], [0.4], [0.6], [0.9]]), numpy.array([0, 0, 0, 1]))
    assert ours.sample(apart(x, numpy.array([[40.0]])), 1, 500).std() > 0.05


def test_scores_without_spread_are_not_an_error():
    x = numpy.array([[0.0], [1.0], [1.0]])
    drawn = made(x, numpy.full((3, 2), 0.5)).sample(apart(x, x), 0, 10)
    assert numpy.isfinite(drawn).all() and abs(drawn - 0.5).max() < 0.02


def test_the_mean_of_a_rung_that_only_good_trainings_reach_is_not_that_of_all():
    """The best eight of 32 go on and gain 0.2 each: so would all others, from where they are."""
    rng = numpy.random.default_rng(5)
    x = rng.random((32, 2))
    early = 0.2 + 0.4 * x[:, :1] + rng.normal(0, 0.01, (32, 1))
    best = numpy.argsort(-early[:, 0])[:8]
    seen = numpy.concatenate([x, x[best]])
    rungs = numpy.repeat([0, 1], [32, 8])
    ours = made(seen, numpy.concatenate([early, early[best] + 0.2]), rungs)
    stopped = numpy.setdiff1d(numpy.arange(32), best)
    predicted = ours.mean(apart(seen, x[stopped]), 1).mean()
    truth = (early[stopped] + 0.2).mean()
    assert abs(predicted - truth) < 0.5 * abs((early[best] + 0.2).mean() - truth)


def test_paths_are_draws_of_what_would_be_measured(monkeypatch):
    """Their last scores have the mean and the spread of the prediction, with noise; and given the
    first, they spread less.
    """
    monkeypatch.setattr(gp, "SETTINGS", 1)
    rng = numpy.random.default_rng(4)
    x, new = rng.random((12, 2)), numpy.array([[0.5, 0.5], [3.0, 3.0]])
    seen, rungs = numpy.concatenate([x, x]), numpy.repeat([0, 1], 12)
    scores = 0.5 + rng.normal(0, 0.03, (24, 1)) + 0.05 * numpy.repeat(x[:, :1], 2, 0)
    ours, across = made(seen, scores, rungs, seed=2), apart(seen, new)
    drawn = ours.paths(across, [0, 1], (4000, 8))[..., 0]
    assert drawn.shape == (4000, 8, 2)
    _, deviation = ours._posterior(across, 1)
    measured = numpy.sqrt(deviation[0] ** 2 + ours._noise[0]) * ours._deviation
    assert numpy.allclose(drawn.mean((0, 1)), ours.mean(across, 1)[:, 0], atol=0.004)
    assert numpy.allclose(drawn.std((0, 1)), measured, rtol=0.08)
    assert numpy.allclose(ours.paths(across, [1], (4000,)).std(0)[:, 0], measured, rtol=0.08)
    # within the draws of one first score is left what that says nothing of
    own = ours._covariance(apart(seen, seen), rungs)[0] + ours._noise[0] * numpy.eye(24)
    first, last = (ours._covariance(across, numpy.full(2, r))[0] for r in (0, 1))
    solved, offset = numpy.linalg.solve(own, first), gp.OFFSET**2
    shared = ours._rung_correlation[0] - (last * solved).sum(0)
    early = 1 + offset + ours._noise[0] - (first * solved).sum(0)
    left = numpy.sqrt(measured**2 - shared**2 / early * ours._deviation**2)
    assert numpy.allclose(numpy.sqrt(drawn.var(1, ddof=1).mean(0)), left, rtol=0.03)
    assert (left < 0.99 * measured).any()
