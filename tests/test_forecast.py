"""`equisearch start --dry-run`: the size of the space and the time of a study, before it starts."""

import json

import pytest

from studies.config import parse
from studies.durations import duration_text
from studies.samplers.enumeration import all_candidates, count_candidates
from studies.workers import forecast
from studies.workers.launch import prepare

TEXT = """
data: {name: digits, train: 100, validation: 50}
training: {epochs: 9}
symmetry: {group: C4}
space: {backbone: "4k3, 4k3", family: [steerable, plain], group: [C2, C4], input_size: [8, 9]}
search: {trials: 10, sampler: random, rungs: [1, 3], eta: 2}
controls: auto
resources: {workers: 2}
"""


@pytest.fixture
def measured(monkeypatch):
    trained = []

    def seconds(study, candidate):
        trained.append(str(candidate))
        return 2.0

    monkeypatch.setattr(forecast, "_epoch_seconds", seconds)
    return trained


def test_time_is_that_of_the_epochs_that_rungs_let_on(tmp_path, measured):
    ready = prepare(parse(TEXT), tmp_path / "study", probe=False)
    estimate = forecast.forecast(ready)
    # all train 1 epoch, a half 2 more, a quarter 6 more
    assert estimate.epochs_per_trial == 1 + 2 / 2 + 6 / 4
    assert estimate.seconds == 10 * 3.5 * 2.0 / 2
    assert estimate.seconds_controls == 6 * 9 * 2.0 / 2
    assert len(measured) == 2 and not (tmp_path / "study").exists()
    text = estimate.text()
    assert f"space: {estimate.combinations} combinations of choices" in text
    assert "10 trials of 3.5 epochs on average (9 in full) on 2 workers: about 35 s" in text
    assert "nothing was written" in text
    json.dumps(estimate.as_dict())


def test_combinations_are_counted_and_ranges_named():
    study = parse(TEXT)
    counted = count_candidates(study, 1, 10, most=2000)
    assert counted.combinations == len(all_candidates(study, 1, 10, most=2000)) > 4
    assert counted.ranges == ()
    ranged = parse(TEXT, overrides={"space.learning_rate": {"low": 0.001, "high": 0.1}})
    assert count_candidates(ranged, 1, 10, most=2000).ranges == ("learning_rate",)
    assert all_candidates(ranged, 1, 10, most=2000) is None
    assert count_candidates(study, 1, 10, most=3).combinations is None


def test_an_epoch_is_really_trained(tmp_path):
    ready = prepare(parse(TEXT), tmp_path / "study", probe=False)
    estimate = forecast.forecast(ready)
    assert all(seconds > 0 for seconds in estimate.seconds_per_epoch.values())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2 h"), (200_000, "2.3 days")],
)
def test_durations_are_told_in_their_largest_unit(seconds, text):
    assert duration_text(seconds) == text
