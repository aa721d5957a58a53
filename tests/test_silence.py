"""How long a worker may be silent, and that a suspended machine costs no trial."""

import time

import pytest

from studies.journal.reader import read_trials
from studies.search.assignments import LeaveError
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from studies.workers.silence import FLOOR, MULTIPLE, Silence
from support import trivial


def test_the_limit_is_the_studys_or_follows_from_the_longest_silence():
    assert Silence(60.0).heard_after(1e4).limit(1e4) == 60
    assert Silence(None).limit() is None
    short = Silence(None).heard_after(2.0).heard_after(1.0)
    assert short.longest == 2 and short.limit() == FLOOR
    assert short.heard_after(100.0).limit() == 100 * MULTIPLE > FLOOR


def test_a_trials_own_epochs_count_as_soon_as_there_is_one():
    heard = Silence(None).heard_after(500.0)
    assert heard.limit() == 500 * MULTIPLE and heard.limit(40.0) == 40 * MULTIPLE
    assert heard.limit(1.0) == FLOOR
    assert "the longest silence before was 40 s" in heard.reason(900, 40.0)


def test_the_reason_names_the_option():
    assert "trial_timeout is 60 s" in Silence(60.0).reason(70)
    derived = Silence(None).heard_after(5.0).reason(700)
    assert "silent for 700 s" in derived and "was 5 s; set resources.trial_timeout" in derived


@pytest.fixture
def leap(monkeypatch):
    """Lets the clock leap by seconds, as after a suspension."""
    leaps, real = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + sum(leaps))
    return leaps.append


@pytest.mark.parametrize("seconds, state", [(10_000, "complete"), (20, "failed")])
def test_a_suspended_machine_costs_no_trial_and_a_slow_epoch_does(tmp_path, leap, seconds, state):
    def trainable(study, assignment, report):
        leap(seconds)
        trivial.trainable(study, assignment, report)

    study = trivial.study(search__trials=1, search__rungs=[], resources__trial_timeout=10)
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_in_process(driver, trainable)
    (record,) = read_trials(tmp_path / "study")
    assert record.state == state, record.reason


def test_a_trial_that_leaves_shows_no_reason(tmp_path):
    events = []

    def leaves_once(study, assignment, report):
        if not events_of("interrupted"):
            raise LeaveError
        trivial.trainable(study, assignment, report)

    def events_of(outcome):
        return [event for event in events if event.outcome == outcome]

    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=1)) as driver:
        run_in_process(driver, leaves_once, events.append)
    assert [event.reason for event in events_of("interrupted")] == [None]
