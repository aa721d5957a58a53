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
    assert "35 s, 1.5 min if no trial stops at a rung" in text
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


def test_the_second_epoch_is_what_is_measured_not_both(tmp_path, monkeypatch):
    from trainers.training import train

    trained = []

    def advance(architecture, config, folder, until_epoch, on_epoch):
        trained.append(until_epoch)
        for epoch, seconds in ((1, 5.0), (2, 7.0))[:until_epoch]:  # since the training began
            on_epoch(epoch, {"epoch": epoch, "seconds": seconds})

    monkeypatch.setattr(train, "advance", advance)
    ready = prepare(parse(TEXT), tmp_path / "study", probe=False)
    assert set(forecast.forecast(ready).seconds_per_epoch.values()) == {2.0}
    short = parse(TEXT, overrides={"training.epochs": 1, "search.rungs": []})
    ready = prepare(short, tmp_path / "study", probe=False)
    assert set(forecast.forecast(ready).seconds_per_epoch.values()) == {5.0}
    assert trained == [2, 2, 1, 1]


def test_folds_are_counted_and_named(tmp_path, measured):
    folded = parse(TEXT.replace("validation: 50", "folds: 3"))
    estimate = forecast.forecast(prepare(folded, tmp_path / "study", probe=False))
    assert estimate.seconds_at_most == 10 * 9 * 3 * 2.0 / 2
    assert "of one fold:" in estimate.text() and "in each of 3 folds" in estimate.text()


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
