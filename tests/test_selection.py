"""What selection made of the scores: differences between test and search, with their intervals."""

import math

import pytest
from scipy.stats import t as student

from studies.results.retrain import MeanStd
from studies.results.selection import (
    _compared,
    change_from_search,
    mean_over_seeds,
    over_images,
    selection_lines,
)


def test_a_difference_of_shares_lies_between_minus_one_and_one():
    found = change_from_search(0.8, 17, MeanStd(0.7, 0.13, 2), 21)
    assert (found.low, found.high) == (-1, 1)


def half_widths(ranged):
    return ranged.value - ranged.low, ranged.high - ranged.value


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_without_seeds_a_difference_has_the_chance_of_both_sets_of_images(share):
    """The lower bound holds low tests and high searches, the upper the reverse."""
    one = over_images(share, 400)
    below, above = half_widths(one)
    found = change_from_search(share, 400, MeanStd(share, 0.0, 1), 400)
    assert found.value == 0
    assert half_widths(found) == pytest.approx((math.hypot(below, above),) * 2)
    alone = mean_over_seeds(MeanStd(share, 0.0, 1), 400)
    assert (alone.low, alone.high) == pytest.approx((one.low, one.high))


def test_a_difference_is_test_minus_search_and_shrinks_with_images_and_grows_with_seeds_spread():
    few, many = (change_from_search(0.9, n, MeanStd(0.8, 0.0, 3), n) for n in (100, 10_000))
    assert few.value == pytest.approx(-0.1) and few.low < many.low < many.high < few.high
    # three seeds: the t quantile of 2 degrees of freedom, of one mean of three and one training
    spread = change_from_search(0.9, 10**9, MeanStd(0.8, 0.01, 3), 10**9)
    wide = student.ppf(0.975, 2) * 0.01 * math.sqrt(1 + 1 / 3)
    assert half_widths(spread) == pytest.approx((wide, wide), rel=0.01)


def row(*changes, n=1):
    """Of a trial: the difference of its accuracy, with an interval of a point on either side."""
    (value,) = changes
    found = {"value": value, "low": value - 0.01, "high": value + 0.01}
    selection = {"accuracy": {"difference": found}}
    return {"n": n, "num_validation": 10, "num_test": 20, "trained_on": "train"} | {
        "selection": selection
    }


@pytest.mark.parametrize(
    "values, says",
    [
        ((-0.02, -0.04), "3.00 points below search scores on average over 2 trials; 2 clearly"),
        ((0.02, 0.03), "2.50 points above search scores on average over 2 trials; 0 clearly"),
        ((-1e-9,), "level with search scores on average over 1 trial; 0 clearly below"),
        ((-0.005,), "0.50 points below search scores on average over 1 trial; 0 clearly below"),
    ],
)
def test_the_sentence_says_the_mean_difference_its_sign_and_how_many_are_clear(values, says):
    lines = selection_lines([row(value) for value in values])
    assert len(lines) == 2 and f"accuracy: test scores are {says}" in lines[1]


def test_a_search_score_of_several_folds_is_one_of_all_their_images():
    score = MeanStd(0.7, 0.05, 3)
    tested = {"n": 3, "num_validation": 17, "num_test": 21, "accuracy": score}
    tested["symmetry_accuracy"] = score
    scores = {"accuracy": 0.7, "symmetry_accuracy": 0.7, "num_images": 84}
    found = _compared(tested, scores)
    assert found["num_validation"] == 84
    assert found["selection"]["accuracy"]["search"]["low"] == over_images(0.7, 84).low
    earlier = {name: scores[name] for name in ("accuracy", "symmetry_accuracy")}
    assert _compared(tested, earlier)["num_validation"] == 17
