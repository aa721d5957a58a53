"""How many workers a run on Ray asks for, what it gives back, and what it says while it waits."""

from __future__ import annotations

import os
import threading
import time

import pytest

from studies.errors import StudyError
from studies.journal import storage
from studies.search.assignments import Assignment, noted_epoch
from studies.search.attempts import NOTE_EVERY, Epochs
from studies.search.driver import SearchDriver
from studies.workers import ray_executor
from studies.workers.actors import Members, PoolWorker, Room, trials_per_node, wanted
from studies.workers.executors import Interruption, RunEnding, silent
from support import trivial
from support.fake_actors import FakeActors


def members(ready=0, starting=0, blind=0):
    made = Members()
    for count, kind in ((ready, made.busy), (starting, made.starting), (blind, made.blind)):
        for _ in range(count):
            made.move(PoolWorker(None), kind)
    return made


def room(total=0, free=0, grows=False):
    return Room(total, free, grows, "none")


@pytest.mark.parametrize(
    "workers, there, at, left, expected",
    [
        # a number is asked for at once, room or not, but no more than there are trials
        (8, members(), room(), 100, 8),
        (8, members(ready=8), room(), 100, 8),
        (8, members(), room(total=2, free=2), 3, 3),
        # auto takes what is free, not what others use
        ("auto", members(), room(total=16, free=5), 100, 5),
        ("auto", members(), room(total=16), 100, 1),  # and waits for room with one
        ("auto", members(starting=1), room(total=16, free=4), 100, 1),
        ("auto", members(ready=16), room(total=16), 100, 17),
        # where the cluster grows, as many again as have started
        ("auto", members(), room(grows=True), 100, 1),
        ("auto", members(ready=1), room(total=1, grows=True), 100, 2),
        ("auto", members(ready=16), room(total=16, grows=True), 100, 32),
        ("auto", members(ready=16, starting=16), room(total=16, grows=True), 100, 32),
        ("auto", members(ready=16), room(total=16, grows=True), 20, 20),
    ],
)
def test_how_many_workers_are_asked_for(workers, there, at, left, expected):
    assert wanted(workers, there, at, left, alone=False) == expected


@pytest.mark.parametrize("workers, expected", [("auto", 4), (2, 2), (9, 4)])
def test_on_this_machine_alone_as_many_as_it_holds(workers, expected):
    assert wanted(workers, members(), room(total=4, free=4), 100, alone=True) == expected


def test_a_trial_fits_where_everything_it_needs_is():
    assert trials_per_node({"CPU": 2, "GPU": 0.25}, {"CPU": 9.0, "GPU": 1.0}) == 4
    assert trials_per_node({"CPU": 1, "special": 1}, {"CPU": 9.0}) == 0
    assert trials_per_node({"CPU": 0.1}, {"CPU": 0.3}) == 3


def run(tmp_path, actors, listener=silent, **overrides):
    study = trivial.study(search__timeout=30, **overrides)
    with (
        SearchDriver.create(tmp_path / "study", study) as driver,
        Interruption(study.search.timeout) as interruption,
    ):
        pool = ray_executor.WorkerPool(driver, actors, listener, interruption)
        try:
            return pool.run()
        finally:
            pool.close()
            actors.close()


def test_a_cluster_that_grows_is_asked_for_workers_until_it_has_none_left(tmp_path, monkeypatch):
    """A head without CPUs: nothing fits at first, and room comes only for what waits."""
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.02)
    actors = FakeActors(trivial.trainable, capacity=0, grows_to=6, grows_after=0.03, seconds=0.1)
    ending = run(tmp_path, actors, resources__workers="auto", search__trials=40)
    assert ending == RunEnding("trials")
    assert actors.most == 6
    # by doubling: never more than as many again as had started
    assert all(asked <= 2 * max(1, ready) for ready, asked in actors.requests)
    assert trivial.audit(tmp_path / "study", 40)["lost"] == 0


def test_workers_without_work_are_given_back_before_the_last_trial_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "GRACE", 0.2)
    monkeypatch.setattr(ray_executor, "POLL", 0.05)

    def slow_last(study, assignment, report):
        if assignment.number == 0:
            time.sleep(1.5)
        trivial.trainable(study, assignment, report)

    actors = FakeActors(slow_last, capacity=3, threads=4)
    alive = []

    def listen(event):
        if event.kind == "ended" and event.number == 0:
            alive.append(len(actors.alive))

    overrides = {"search__rungs": [], "search__trials": 6, "resources__workers": 4}
    run(tmp_path, actors, listen, **overrides)
    # of three that worked and one that waited for room, one is left
    assert alive == [1] and actors.started == 4


def test_what_is_waited_for_is_said_once_and_what_never_comes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(ray_executor, "NOTICE", 0.1)
    monkeypatch.setattr(ray_executor, "POLL", 0.05)
    said = []
    actors = FakeActors(trivial.trainable, capacity=0, grows_to=2, grows_after=1.0)
    run(tmp_path, actors, lambda e: said.append(e) if e.kind == "warning" else None)
    event = said[0]
    assert len(said) <= 2  # again only when something changes: a node has joined
    assert "no worker has started yet; a trial needs 1 CPU, and no node has that" in event.reason
    assert event.reason.endswith("; the cluster's autoscaler sees the request")
    monkeypatch.setattr(ray_executor, "PATIENCE_FOR_NODES", 0.1)
    with pytest.raises(StudyError, match="a trial needs 1 CPU, and no node has that"):
        run(tmp_path / "other", FakeActors(trivial.trainable, capacity=0))


def test_a_trials_folder_is_told_of_epochs_now_and_then_and_the_driver_knows_the_last(
    tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assignment = Assignment(3, "-", None, 0, 9, str(tmp_path))
    epochs = Epochs()
    for epoch, at in ((1, 0.0), (2, 1.0), (3, 2.0)):
        now[0] = at
        epochs.note(assignment, epoch)
    assert noted_epoch(assignment) == 1 and epochs.last(assignment) == 3
    now[0] = NOTE_EVERY
    epochs.note(assignment, 4)
    assert noted_epoch(assignment) == 4
    epochs.forget(3)
    assert epochs.last(assignment) == 4  # what a driver that was killed left


def test_one_sync_serves_trials_that_end_at_once_and_a_closed_journal_is_synced(
    tmp_path, monkeypatch
):
    synced, real = [], os.fsync
    monkeypatch.setattr(storage, "SYNC_EVERY", 60.0)
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real(file)))
    journal = storage.SingleWriterJournal(tmp_path / "j")
    ended = {"op_code": storage.SET_STATE, "worker_id": "a", "trial_id": 0, "state": 1}
    for _ in range(5):
        journal.append_logs([{**ended, "values": None}])
    assert len(synced) == 1
    journal.close()
    assert len(synced) == 2 and len((tmp_path / "j").read_text().splitlines()) == 5


def test_a_sync_that_fails_later_is_raised_where_the_next_trial_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SYNC_EVERY", 0.02)
    journal = storage.SingleWriterJournal(tmp_path / "j")
    ended = {"op_code": storage.SET_STATE, "worker_id": "a", "trial_id": 0, "state": 1}
    journal.append_logs([ended])
    failed = threading.Event()

    def full(file):
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    journal.append_logs([ended])
    assert failed.wait(10)
    time.sleep(0.05)
    with pytest.raises(OSError, match="No space left"):
        journal.append_logs([ended])
    monkeypatch.undo()
    journal.close()
