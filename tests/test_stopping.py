"""What trainings promise that may be stopped at rungs, against rules for stopping tried in full."""

from __future__ import annotations

import itertools

import numpy
import pytest

from studies.samplers.stopping import promises, stages


@pytest.mark.parametrize(
    ("rungs", "epoch", "expected"),
    [
        ((9,), 0, (9,)),
        ((1, 3, 9), 0, (1, 3, 9)),
        ((1, 3, 9), 1, (3, 9)),
        ((1, 3, 9), 2, (3, 9)),  # of a study with other rungs
        ((1, 3, 9), 3, (9,)),
        ((1, 3, 9), 9, (9,)),
        ((1, 2, 4, 8, 16), 0, (1, 2, 16)),
        ((1, 2, 4, 8, 16), 4, (8, 16)),
    ],
)
def test_a_training_may_be_stopped_at_the_next_two_rungs(rungs, epoch, expected):
    assert stages(rungs, epoch) == expected


def test_what_is_trained_to_the_end_promises_its_mean_gain_for_each_epoch():
    gains = numpy.array([[0.2, 0.0, 1e-4], [0.4, 0.0, 3e-4]])
    found = promises(gains, [6])
    assert found == pytest.approx([0.05, 0.0, 2e-4 / 6], rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_rule_for_stopping_gains_more_for_each_epoch(seed):
    """Of all rules: which first scores go on, and of these which second ones, each choice tried."""
    gains, costs = numpy.random.default_rng(seed).exponential(size=(3, 2, 4)) ** 3 / 100, (1, 2, 6)
    expected, best = gains.mean(2), 0.0
    for going in itertools.product((False, True), repeat=6):
        second = numpy.reshape(going, (3, 2))
        first = second.any(1)
        gained = (expected * second).sum() / 6
        paid = costs[0] + costs[1] * first.mean() + costs[2] * second.mean()
        best = max(best, gained / paid)
    assert promises(gains[..., None], costs) == pytest.approx([best], rel=1e-4)


def test_a_training_that_its_next_score_decides_promises_more_than_one_that_it_does_not():
    """Half of the draws gain 0.4, half nothing; one epoch tells it, or only the last of nine."""
    told = numpy.repeat([[0.0], [0.4]], 2, axis=1)[..., None]
    untold = numpy.tile([0.0, 0.4], (2, 1))[..., None]
    known, unknown = (promises(gains, [1, 8])[0] for gains in (told, untold))
    assert known == pytest.approx(0.2 / (1 + 4), rel=1e-4)
    assert unknown == pytest.approx(0.2 / 9, rel=1e-4)
