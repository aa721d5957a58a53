"""One contract for both executors: the same tests run in this process and on Ray."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from studies.errors import StudyError, TooManyFailuresError
from studies.journal.reader import read_trials
from studies.search.driver import SearchDriver
from studies.sections import Resources
from studies.workers.executors import RunEnding, run_in_process, run_study
from studies.workers.launch import require_room
from studies.workers.ray_executor import run_on_ray
from support import trivial


def raises(error, study, assignment, report):
    raise error


def raises_once(error, study, assignment, report):
    mark = Path(assignment.directory) / "mark"
    if not mark.exists():
        mark.touch()
        raise error
    trivial.trainable(study, assignment, report)


def nan_at_first(study, assignment, report):
    if assignment.number == 0:
        report({**trivial.scores(assignment.architecture, 1), "accuracy": float("nan")})
    trivial.trainable(study, assignment, report)


def silent(study, assignment, report):
    """Returns without a word."""


def notes_batches(study, assignment, report):
    with (Path(assignment.directory) / "divisors").open("a") as file:
        file.write(f"{assignment.batch_divisor}\n")
    if assignment.batch_divisor == 1 and assignment.number == 0:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if assignment.number == 1:
        raise MemoryError("too large")
    trivial.trainable(study, assignment, report)


class Contract:
    """What every executor holds to; `self.execute(driver, trainable, listener)` runs it."""

    @pytest.fixture
    def begin(self, tmp_path):
        drivers = []

        def _begin(**overrides):
            drivers.append(SearchDriver.create(tmp_path / "study", trivial.study(**overrides)))
            return drivers[-1]

        yield _begin
        for driver in drivers:
            driver.close()

    def test_runs_every_trial_to_its_end_once(self, begin, tmp_path):
        driver = begin()
        assert self.execute(driver, trivial.trainable) == RunEnding("trials")
        count = trivial.audit(tmp_path / "study", 12)
        assert count["complete"] + count["pruned"] == 12
        assert count["complete"] >= 1 and count["pruned"] >= 1
        assert not any(count[fault] for fault in ("lost", "doubled", "zombies", "repeated"))

    def test_a_stopped_trial_trains_no_further(self, begin, tmp_path):
        self.execute(begin(), trivial.trainable)
        for record in read_trials(tmp_path / "study"):
            if record.state == "pruned":
                epochs = (
                    (tmp_path / "study" / "trials" / f"{record.number:05d}" / "epochs.txt")
                    .read_text()
                    .split()
                )
                assert int(epochs[-1]) == max(record.rungs) < 9

    def test_events_tell_the_whole_story(self, begin):
        events = []
        self.execute(begin(search__trials=3), trivial.trainable, events.append)
        started = [e.number for e in events if e.kind == "started"]
        ended = {e.number: e.outcome for e in events if e.kind == "ended"}
        assert sorted(started) == sorted(ended) and len(ended) == 3
        for number in ended:
            assert [e.kind for e in events if e.number == number][:3] == [
                "started",
                "epoch",
                "rung",
            ]

    def test_nan_fails_its_trial_and_the_study_goes_on(self, begin, tmp_path):
        self.execute(begin(search__trials=4), nan_at_first)
        states = {r.number: (r.state, r.reason) for r in read_trials(tmp_path / "study")}
        assert states[0][0] == "failed" and "accuracy is nan at epoch 1" in states[0][1]
        assert all(state != "failed" for number, (state, _) in states.items() if number)
        assert "ScoresError" in (tmp_path / "study" / "trials" / "00000" / "error.txt").read_text()

    def test_five_failures_in_a_row_end_the_study_with_the_last_error(self, begin, tmp_path):
        with pytest.raises(
            TooManyFailuresError, match="5 trials in a row failed.*ValueError: boom"
        ) as caught:
            self.execute(begin(resources__workers=1), partial(raises, ValueError("boom")))
        assert caught.value.exit_status == 4
        assert [r.state for r in read_trials(tmp_path / "study")][:5] == ["failed"] * 5

    def test_a_trainable_that_cannot_be_imported_ends_the_study(self, begin):
        with pytest.raises(TooManyFailuresError, match="No module named 'studies.absent'"):
            self.execute(begin(), "studies.absent:run_trial")

    def test_a_trial_without_last_scores_fails(self, begin, tmp_path):
        with pytest.raises(
            TooManyFailuresError, match="ended without scores for the last epoch, 9"
        ):
            self.execute(begin(), silent)

    def test_no_space_for_a_checkpoint_loses_nothing(self, begin, tmp_path):
        driver = begin(search__trials=3, resources__workers=1)
        with pytest.raises(StudyError, match="no space is left.*equisearch resume"):
            self.execute(driver, partial(raises_once, OSError(28, "No space left on device")))
        driver.close()
        for _ in range(2):  # the disk fills up again for each of the others
            with SearchDriver.open(tmp_path / "study") as driver, pytest.raises(StudyError):
                self.execute(driver, partial(raises_once, OSError(28, "No space left on device")))
        with SearchDriver.open(tmp_path / "study") as driver:
            self.execute(driver, trivial.trainable)
        count = trivial.audit(tmp_path / "study", 3)
        assert count["complete"] + count["pruned"] == 3 and not count["failed"]

    def test_out_of_memory_is_tried_once_more_with_half_the_batch(self, begin, tmp_path):
        self.execute(begin(search__trials=4), notes_batches)
        records = {r.number: r for r in read_trials(tmp_path / "study") if r.state != "refused"}
        assert records[0].state in ("complete", "pruned")
        assert (tmp_path / "study" / "trials" / "00000" / "divisors").read_text().split() == [
            "1",
            "2",
        ]
        assert (
            records[1].state == "pruned"
            and not records[1].feasible
            and "even with half the batch" in records[1].reason
        )
        assert (tmp_path / "study" / "trials" / "00001" / "divisors").read_text().split() == [
            "1",
            "2",
        ]

    def test_time_is_up(self, begin, tmp_path):
        driver = begin(search__timeout=0.2)
        assert self.execute(driver, slow) == RunEnding("timeout")
        driver.close()
        with SearchDriver.open(tmp_path / "study", trivial.study()) as driver:
            assert self.execute(driver, trivial.trainable) == RunEnding("trials")
        count = trivial.audit(tmp_path / "study", 12)
        assert not any(count[fault] for fault in ("lost", "doubled", "zombies", "repeated"))

    def test_a_continued_study_only_adds(self, begin, tmp_path):
        driver = begin(search__trials=4)
        self.execute(driver, trivial.trainable)
        driver.close()
        before = trivial.ended(tmp_path / "study")
        with SearchDriver.open(tmp_path / "study", trivial.study(search__trials=8)) as driver:
            self.execute(driver, trivial.trainable)
        after = trivial.ended(tmp_path / "study")
        assert before.items() <= after.items() and trivial.audit(tmp_path / "study", 8)["lost"] == 0


def slow(study, assignment, report):
    time.sleep(0.3)
    trivial.trainable(study, assignment, report)


class TestInProcess(Contract):
    def execute(self, driver, trainable, listener=None):
        return run_in_process(driver, trainable, listener)


@pytest.mark.usefixtures("connected")
class TestOnRay(Contract):
    def execute(self, driver, trainable, listener=None):
        return run_on_ray(driver, trainable, listener)


def test_a_study_for_one_worker_runs_in_this_process(tmp_path):
    with SearchDriver.create(
        tmp_path / "study", trivial.study(resources__workers=1, search__trials=2)
    ) as driver:
        pids = set()
        run_study(
            driver,
            lambda study, assignment, report: (
                pids.add(os.getpid()),
                trivial.trainable(study, assignment, report),
            ),
        )
    assert pids == {os.getpid()}


@pytest.mark.usefixtures("connected")
def test_a_trial_that_fits_no_node_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.workers.ray_executor.PATIENCE_FOR_NODES", 0)
    with SearchDriver.create(
        tmp_path / "study", trivial.study(resources__cpus_per_trial=64)
    ) as driver:
        with pytest.raises(StudyError, match="a trial needs 64 CPU, and no node has that"):
            run_on_ray(driver, trivial.trainable)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("memory,at_once", [(0.001, 2), (1e6, 1)])
def test_workers_are_as_many_as_memory_holds_and_at_least_one(tmp_path, memory, at_once):
    running, most = set(), 0

    def watch(event):
        nonlocal most
        {"started": running.add, "ended": running.discard}.get(event.kind, lambda number: None)(
            event.number
        )
        most = max(most, len(running))

    study = trivial.study(
        resources__workers="auto", resources__memory_per_trial=memory, search__trials=8
    )
    with SearchDriver.create(tmp_path / "study", study) as driver:
        assert run_on_ray(driver, slow, watch) == RunEnding("trials")
    assert most == at_once


@pytest.mark.parametrize("asked", [{"workers": 10**9}, {"workers": 1, "cpus_per_trial": 1e6}])
def test_more_workers_or_cores_than_a_machine_could_start_are_refused(asked, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StudyError, match="lower resources.workers or resources.cpus_per_trial"):
        require_room(Resources.model_validate(asked))
    require_room(Resources.model_validate({**asked, "address": "10.0.0.1:6379"}))
    require_room(Resources.model_validate({"workers": 64}))
