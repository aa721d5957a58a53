"""A trial that was stopped goes on when it would be kept among those that came later: once, from
where it stood, whatever happens.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from test_faults import assert_whole, finish, start

from studies.errors import StudyError
from studies.journal.reader import read_trials
from studies.results.tables import show_lines, trial_rows
from studies.samplers import ehvi
from studies.search.driver import SearchDriver
from studies.search.promotions import Promotions, worth_continuing
from studies.workers.executors import run_in_process
from support import trivial

# of trials 0, 1 and 2 at the first rung: with eta 2, trial 1 is stopped among two and kept among
# three
POINTS = (0.9, 0.5, 0.4)


def create(path, **overrides):
    return SearchDriver.create(
        path,
        trivial.study(
            **{"search__rungs": [2], "search__eta": 2, "search__trials": 10, **overrides}
        ),
    )


def stopped_at_two(driver, score):
    """Hands out a trial that reaches the rung of epoch 2 with that score, and ends it there or at
    the end.
    """
    assignment = driver.next()
    Path(assignment.directory, "checkpoint").write_text(
        json.dumps({"epoch": 2, "of": assignment.number})
    )
    scores = {"epoch": 2, "accuracy": score, "symmetry_accuracy": score}
    if driver.report(assignment.number, 2, scores) == "stop":
        driver.finish(assignment.number, "pruned")
    else:
        driver.report(assignment.number, 9, {**scores, "epoch": 9})
        driver.finish(assignment.number, "complete")
    return assignment


def test_a_stopped_trial_goes_on_from_its_checkpoint_with_its_choices_and_scores(tmp_path):
    with create(tmp_path / "study") as driver:
        first = [stopped_at_two(driver, score) for score in POINTS[:2]][1]
        assert driver.next().continues is None  # among two, trial 1 would still be stopped
        driver.finish(2, "failed", "no matter")
        stopped_at_two(driver, POINTS[2])
        again = driver.next()
        assert (again.number, again.continues) == (4, 1)
        assert (again.architecture, again.seed, again.learning_rate) == (
            first.architecture,
            first.seed,
            first.learning_rate,
        )
        assert json.loads(Path(again.directory, "checkpoint").read_text()) == {"epoch": 2, "of": 1}
        # decided already
        assert (
            driver.report(4, 2, {"epoch": 2, "accuracy": 0.0, "symmetry_accuracy": 0.0})
            == "continue"
        )
        driver.report(4, 9, {"epoch": 9, "accuracy": 0.95, "symmetry_accuracy": 0.95})
        driver.finish(4, "complete")
        assert driver.next().continues is None  # there is no third chance
    rows, _, cells = trial_rows(tmp_path / "study")
    assert [row["continues"] for row in rows[:5]] == [None] * 4 + [
        1
    ] and "[continues trial 1]" in cells[4][-1]
    records = read_trials(tmp_path / "study", parameters=True)
    assert "  continues the training of trial 1, which was stopped at a rung" in show_lines(
        tmp_path / "study", rows[4], records[4].rungs
    )
    assert [r.state for r in records[:5]] == ["complete", "pruned", "failed", "pruned", "complete"]
    assert (
        records[4].values == (0.95, 0.95)
        and records[4].attributes["continues"] == 1
        and records[4].parameters == records[1].parameters
    )
    assert (
        records[4].rungs[2]["accuracy"] == POINTS[1]
        and records[1].attributes["rung 2"]["decision"] == "stop"
    )


def test_without_second_chances_a_stop_is_final(tmp_path):
    with create(tmp_path / "study", search__second_chances=False) as driver:
        assert [stopped_at_two(driver, score).continues for score in (*POINTS, 0.3, 0.2, 0.1)] == [
            None
        ] * 6


@pytest.mark.parametrize(
    "moment", ["before it is asked for", "after it was handed out", "after its folder was lost"]
)
def test_a_killed_driver_gives_the_same_chance(tmp_path, moment):
    path = tmp_path / "study"
    driver = create(path)
    for score in POINTS:
        stopped_at_two(driver, score)
    if moment != "before it is asked for":
        again = driver.next()
        assert again.continues == 1
        # killed between the journal's line and the copy
        if moment == "after its folder was lost":
            Path(again.directory).rename(f"{again.directory}.part")
    driver._journal.close()  # as a kill leaves it: the trial is running in the journal
    driver._lock.close()
    with SearchDriver.open(path) as driver:
        again = driver.next()
        assert (again.number, again.continues) == (3, 1)
        assert json.loads(Path(again.directory, "checkpoint").read_text())["of"] == 1
        driver.report(3, 9, {"epoch": 9, "accuracy": 0.5, "symmetry_accuracy": 0.5})
        driver.finish(3, "complete")
        assert driver.next().continues is None
    with SearchDriver.open(path) as driver:
        assert driver.next().continues is None
    count = Counter(record.state for record in read_trials(path))
    assert (count["complete"], count["pruned"], count["running"] + count["waiting"]) == (2, 2, 1)


def test_a_disk_that_is_full_when_the_checkpoint_is_copied_loses_nothing(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with create(tmp_path / "study") as driver:
        for score in POINTS:
            stopped_at_two(driver, score)
        with (
            monkeypatch.context() as patched,
            pytest.raises(
                StudyError, match="00001 could not be copied for trial 3.*No space left.*make room"
            ),
        ):
            patched.setattr(shutil, "copyfile", full)
            driver.next()
    with SearchDriver.open(tmp_path / "study") as driver:
        again = driver.next()
        assert (again.number, again.continues) == (3, 1) and json.loads(
            Path(again.directory, "checkpoint").read_text()
        )["of"] == 1
    assert not list((tmp_path / "study" / "trials").glob("*.part"))


@pytest.mark.parametrize("opened_again", [False, True])
def test_a_second_chance_is_no_repeat(tmp_path, opened_again):
    same = "28px: 3k3@C4, 3k3 max2/2, 3k3"
    known = ["28px: 2k3@C4, 3k3 max2/2, 3k3", same, "28px: 4k3@C4, 3k3 max2/2, 3k3", same]
    driver = SearchDriver.create(
        tmp_path / "study", trivial.study(search__rungs=[2], search__eta=2), enqueue=known
    )
    for score in POINTS:
        stopped_at_two(driver, score)
    again = driver.next()
    # 3 waits, with the same architecture
    assert (again.number, again.continues, again.architecture) == (4, 1, same)
    driver.report(4, 9, {"epoch": 9, "accuracy": 0.5, "symmetry_accuracy": 0.5})
    driver.finish(4, "complete")
    if opened_again:
        driver.close()
        driver = SearchDriver.open(tmp_path / "study")
    with driver:
        repeat = driver.next()
        assert (repeat.number, repeat.architecture, repeat.seed) == (3, same, again.seed + 1)


def test_a_space_is_not_exhausted_while_what_runs_may_give_a_second_chance(tmp_path):
    overrides = {
        "search__sampler": "grid",
        "space__group": ["C4"],
        "space__family": ["steerable"],
        "space__layout": ["max2/2"],
        "space__input_size": [26, 28, 30],
        "space__equivariance_loss": {"kind": ["none"]},
        "search__repeats": 1,
    }
    with create(tmp_path / "study", **overrides) as driver:
        stopped_at_two(driver, POINTS[0])
        stopped, running = driver.next(), driver.next()
        for assignment, score in ((stopped, POINTS[1]), (running, POINTS[2])):
            assert (
                driver.report(
                    assignment.number,
                    2,
                    {"epoch": 2, "accuracy": score, "symmetry_accuracy": score},
                )
                == "stop"
            )
            driver.finish(assignment.number, "pruned")
            if assignment is stopped:
                assert driver.next() is None and driver.ended is None
        again = driver.next()
        assert again.continues == stopped.number
        driver.finish(again.number, "failed", "no matter")
        assert driver.next() is None and driver.ended == "exhausted"


def test_ehvi_trains_the_best_of_a_space_smaller_than_its_start_to_the_end(tmp_path):
    """All of them wait at the rung, and the space has nothing else to propose."""
    overrides = {
        "search__sampler": "ehvi",
        "search__trials": 60,
        "space__group": ["C4"],
        "space__family": ["steerable"],
        "space__layout": ["max2/2"],
        "space__input_size": [26, 28, 30],
        "space__equivariance_loss": {"kind": ["none"]},
        "search__repeats": 1,
    }
    with create(tmp_path / "study", **overrides) as driver:
        for score in POINTS:
            stopped_at_two(driver, score)
        again = driver.next()
        assert again.continues == POINTS.index(max(POINTS))
        driver.report(again.number, 9, {"epoch": 9, "accuracy": 0.5, "symmetry_accuracy": 0.5})
        driver.finish(again.number, "complete")
        assert driver.volume == 0.25


def test_a_training_counts_once_at_a_rung_whatever_number_continues_it():
    promotions = Promotions(eta=2)
    for number, value in enumerate(POINTS):
        promotions.enter(2, number, (value,))
        if number:
            promotions.stop(2, number)
    assert promotions.next() == 1
    promotions.promote(1, 4)
    # as the journal says it when the study is opened again
    promotions.enter(2, 4, (POINTS[1],))
    assert promotions.next() is None
    # of four (not five), 0.9 and 0.5 are better: not less than 4 / 2
    promotions.enter(2, 5, (0.45,))
    assert not promotions.goes_on(2, 5) and promotions.goes_on(2, 4)
    assert not promotions.goes_on(2, 2)
    promotions.enter(6, 4, (0.1,))
    promotions.stop(6, 4)
    # alone at the next rung, it is kept, under its new number
    assert promotions.next() == 4


def test_the_latest_rung_is_promoted_first():
    promotions = Promotions(eta=2)
    for epoch, numbers in ((2, (0, 1, 2)), (6, (3, 4, 5))):
        for number, value in zip(numbers, POINTS):
            promotions.enter(epoch, number, (value,))
        promotions.stop(epoch, numbers[1])
    assert promotions.next() == 4
    promotions.promote(4, 6)
    assert promotions.next() == 1


def test_a_promoted_trial_is_not_promoted_again_when_it_still_would_go_on():
    promotions = Promotions(eta=2)
    for number, value in enumerate(POINTS):
        promotions.enter(2, number, (value,))
    promotions.stop(2, 1)
    promotions.promote(1, 3)
    assert promotions.goes_on(2, 3) and promotions.next() is None


def test_a_study_spends_fewer_epochs_on_a_second_chance(tmp_path):
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=40, search__eta=3)
    ) as driver:
        run_in_process(driver, trivial.trainable)
    # no epoch twice: what continues begins as a copy
    assert_whole(tmp_path / "study", trials=40)
    assert any("continues" in record.attributes for record in read_trials(tmp_path / "study"))


def test_a_study_of_second_chances_killed_three_times_ends_like_an_undisturbed_one(tmp_path):
    overrides = {"search.trials": 40}
    with SearchDriver.create(tmp_path / "calm", trivial.study(search__trials=40)) as driver:
        run_in_process(driver, trivial.trainable)
    for seconds in (0.7, 0.5, 0.6):  # of some three
        process = start(tmp_path / "study", epoch_seconds=0.02, **overrides)
        time.sleep(seconds)
        process.kill()
        process.wait()
    assert finish(tmp_path / "study", **overrides) == 0
    assert_whole(tmp_path / "study", trials=40, repeated=3)
    assert trivial.ended(tmp_path / "study") == trivial.ended(tmp_path / "calm")
    assert any("continues" in record.attributes for record in read_trials(tmp_path / "calm"))


class Eager:
    """A sampler that would continue whatever it is asked about."""

    def __init__(self, study):
        pass

    def to_continue(self, trials, waiting, rng):
        return waiting[0]


@pytest.mark.parametrize(
    "changes, trials, continued",
    [
        ({}, 4, 1),
        ({}, 2, None),  # it has not begun to learn
        ({"search__second_chances": False}, 4, None),
        ({"search__sampler": "tpe"}, 4, None),
    ],
)
def test_only_a_search_that_learns_and_may_continue_trials_does(
    monkeypatch, changes, trials, continued
):
    monkeypatch.setattr(ehvi, "ExpectedImprovement", Eager)
    study = trivial.study(**{"search__sampler": "ehvi", "search__startup": 3, **changes})
    assert worth_continuing(study, [None] * trials, [1]) == continued
