"""Faults, each of which counts every trial afterwards: none lost, none doubled, no zombie, and an
undisturbed study's result.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from studies.config import parse
from studies.errors import StudyError
from studies.journal.reader import JOURNAL, read_trials
from studies.search.assignments import LeaveError
from studies.search.attempts import PROGRAM_DEATHS
from studies.search.driver import SearchDriver
from studies.workers.executors import Interruption, _DirectReport, run_in_process
from studies.workers.silence import AwakeClock
from studies.workers.worker import run_trial
from support import trivial
from trainers.data.datasets import load_data

DRIVE = Path(__file__).parent / "support" / "drive.py"


def start(path, executor="in_process", epoch_seconds=0.004, **overrides) -> subprocess.Popen:
    """A process that drives the study at `path`; returns once a trial has started."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    process = subprocess.Popen(
        [sys.executable, str(DRIVE), str(path), executor, *pairs],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "EPOCH_SECONDS": str(epoch_seconds)},
    )
    assert process.stdout.readline() == "driving\n", process.stderr.read()
    return process


def finish(path, executor="in_process", **overrides) -> int:
    """Drives the study to its end in a process of its own, and returns its exit status."""
    process = start(path, executor, **overrides)
    process.communicate(timeout=300)
    return process.returncode


def undisturbed(path, **overrides):
    with SearchDriver.create(path, trivial.study(**overrides)) as driver:
        run_in_process(driver, trivial.trainable)
    return trivial.ended(path)


def assert_whole(path, trials=12, repeated=0):
    count = trivial.audit(path, trials)
    assert (count["lost"], count["doubled"], count["zombies"], count["failed"]) == (0, 0, 0, 0), (
        count
    )
    assert count["repeated"] <= repeated


@pytest.mark.parametrize("sampler", ["random", "ehvi"])
def test_a_driver_killed_three_times_ends_like_an_undisturbed_one(tmp_path, sampler):
    options = {"search__sampler": sampler, "search__startup": 4}
    rng = random.Random(sampler)
    for _ in range(3):
        process = start(tmp_path / "killed", **options)
        time.sleep(rng.uniform(0.01, 0.12))
        process.kill()
        process.wait()
    process = start(tmp_path / "killed", **options)
    assert process.communicate(timeout=60)[0].endswith("trials\n") and process.returncode == 0
    assert_whole(tmp_path / "killed", repeated=3)
    assert trivial.ended(tmp_path / "killed") == undisturbed(tmp_path / "undisturbed", **options)


def test_one_signal_finishes_the_epoch_and_a_resumed_study_repeats_nothing(tmp_path):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start(tmp_path / "study", epoch_seconds=0.02)
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (out.split()[-1], err, process.returncode) == (number.name, "", status)
    states = [record.state for record in read_trials(tmp_path / "study")]
    assert states.count("waiting") <= 1  # none where the epoch was the last of its trial
    assert len(states) < 12
    assert finish(tmp_path / "study") == 0
    assert_whole(tmp_path / "study")
    assert trivial.ended(tmp_path / "study") == undisturbed(tmp_path / "undisturbed")


def test_two_signals_end_at_once(tmp_path):
    process = start(tmp_path / "study", epoch_seconds=30)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert finish(tmp_path / "study") == 0
    assert_whole(tmp_path / "study", repeated=1)


def test_a_torn_last_line_is_dropped_and_kept_aside(tmp_path):
    path = tmp_path / "study"
    with SearchDriver.create(path, trivial.study(search__trials=6)) as driver:
        run_in_process(driver, trivial.trainable)
    before = trivial.ended(path)
    whole = (path / JOURNAL).read_bytes()
    for torn in (b'{"op_code":6,"trial_id":3,"sta', b'{"op_code":6,"trial_id"\n'):
        (path / JOURNAL).write_bytes(whole + torn)
        with SearchDriver.open(path) as driver:
            assert (
                "torn" in driver.warnings[0]
                and (path / driver.warnings[0].split()[-1]).read_bytes() == torn
            )
            assert driver.finished == 6
        assert (path / JOURNAL).read_bytes() == whole and trivial.ended(path) == before


def test_a_journal_cut_anywhere_in_its_last_trial_goes_on_to_the_same_end(tmp_path):
    """As if the power had failed between any two records; within a proposal, which is one write,
    another one may follow.
    """
    path = tmp_path / "study"
    expected = undisturbed(path, search__trials=3)
    lines = (path / JOURNAL).read_bytes().splitlines(keepends=True)
    begin = max(i for i, line in enumerate(lines) if line.startswith(b'{"op_code":4'))
    proposed = max(i for i, line in enumerate(lines) if b'"user_attr":{"architecture"' in line)
    for cut in range(begin, len(lines)):
        (path / JOURNAL).write_bytes(b"".join(lines[:cut]))
        with SearchDriver.open(path) as driver:
            run_in_process(driver, trivial.trainable)
        assert_whole(path, trials=3, repeated=9)
        if cut > proposed or cut == begin:
            assert trivial.ended(path) == expected, lines[cut]
        else:
            shutil.rmtree(path / "trials" / "00002")


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=2)) as driver:
        run_in_process(driver, trivial.trainable)
    journal = tmp_path / "study" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:9], b"\x00\x00\x00\n", *lines[10:]]))
    with pytest.raises(StudyError, match="line 10 is damaged.*equisearch repair"):
        SearchDriver.open(tmp_path / "study")
    with pytest.raises(StudyError, match="line 10 is damaged"):
        read_trials(tmp_path / "study")


def test_no_space_for_the_journal_loses_nothing(tmp_path):
    """A file size limit stands in for a full disk: a write is cut short, then refused."""
    path = tmp_path / "study"
    with SearchDriver.create(path, trivial.study()) as driver:
        size = (path / JOURNAL).stat().st_size
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, old[1]))
        try:
            with pytest.raises(
                StudyError, match="no space is left.*nothing earlier is lost.*equisearch resume"
            ):
                run_in_process(driver, trivial.trainable)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, ignored)
    assert (path / JOURNAL).read_bytes().endswith(b"\n")
    with SearchDriver.open(path) as driver:
        assert driver.warnings == () and driver.finished > 0
        run_in_process(driver, trivial.trainable)
    assert_whole(path)
    assert trivial.ended(path) == undisturbed(tmp_path / "undisturbed")


def killed(path, epoch=None):
    """Hands out trial 0, notes an epoch, and closes the study without ending it, as a kill does."""
    with SearchDriver.open(path) as driver:
        assert driver.next().number == 0
        if epoch is not None:
            driver.heartbeat(0, epoch)


def test_a_driver_that_is_killed_again_and_again_costs_no_trial(tmp_path):
    """Between two rungs, with epochs gained and without: time limits and machines taken away."""
    path = tmp_path / "study"
    SearchDriver.create(path, trivial.study(search__retries=1)).close()
    for epoch in [*range(4, 9), *[None] * 5]:
        killed(path, epoch)
    with SearchDriver.open(path) as driver:
        assert driver.finished == 0 and driver.next().number == 0


def test_a_trial_that_ends_the_program_each_time_is_given_up(tmp_path):
    path = tmp_path / "study"
    SearchDriver.create(path, trivial.study()).close()
    for _ in range(PROGRAM_DEATHS):
        killed(path)
    with SearchDriver.open(path) as driver:
        assert driver.finished == 1 and driver.next().number == 1
    record = read_trials(path)[0]
    assert record.state == "failed"
    assert "program that trained it died 10 times without getting beyond epoch 0" in record.reason


@pytest.mark.parametrize("gained", [True, False])
def test_a_lost_worker_counts_unless_it_gained_an_epoch(tmp_path, gained):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__retries=2)) as driver:
        for epoch in range(4, 7):
            assert driver.next().number == 0
            driver.heartbeat(0, epoch if gained else 4)
            driver.finish(0, "lost", "its node went away")
        assert driver.next().number == (0 if gained else 1)
    record = read_trials(tmp_path / "study")[0]
    assert gained or "its worker died 3 times without getting beyond epoch 4" in record.reason


def test_the_clock_may_jump(tmp_path, monkeypatch):
    """Times of day are written, never compared."""
    hours = iter(range(0, -(10**6), -3600))
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(hours))
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__timeout=60, resources__trial_timeout=60)
    ) as driver:
        assert run_in_process(driver, trivial.trainable).reason == "trials"
    assert_whole(tmp_path / "study")


REAL = """
data: {name: digits, train: 120, validation: 60}
training: {epochs: 3, batch_size: 32}
space: {backbone: "2k3 *, 2k3", input_size: [8]}
search: {trials: 2, rungs: [1], sampler: random}
resources: {executor: in_process}
"""


def leave_after(epoch, study, assignment, report):
    """The real training, left after an epoch, as at a signal."""

    class Report:
        def __call__(self, scores):
            return report(scores)

        def heartbeat(self, done):
            if done == epoch and assignment.number == 0:
                raise LeaveError
            report.heartbeat(done)

    run_trial(study, assignment, Report())


def test_a_torn_checkpoint_goes_back_to_the_one_before_and_changes_no_result(tmp_path):
    with SearchDriver.create(tmp_path / "undisturbed", parse(REAL)) as driver:
        run_in_process(driver)
    with SearchDriver.create(tmp_path / "torn", parse(REAL)) as driver:
        assignment = driver.next()
        with pytest.raises(LeaveError):
            leave_after(
                2,
                driver.study,
                assignment,
                _DirectReport(
                    driver, assignment, Interruption(None), lambda event: None, AwakeClock()
                ),
            )
        driver.finish(0, "interrupted")
    checkpoint = tmp_path / "torn" / "trials" / "00000" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    epochs = []
    with SearchDriver.open(tmp_path / "torn") as driver:
        run_in_process(
            driver,
            listener=lambda event: (
                epochs.append((event.number, event.epoch)) if event.kind == "epoch" else None
            ),
        )
    # one epoch is repeated
    assert [epoch for number, epoch in epochs if number == 0] == [2, 3]

    def results(name):
        return {r.number: (r.state, r.values, r.architecture) for r in read_trials(tmp_path / name)}

    assert results("torn") == results("undisturbed")


def short_of_memory(study, assignment, report):
    """The first step of trial 0 does not fit on the card, whatever its batch; that of trial 1 fits
    with half of it.
    """
    if assignment.number == 0 or (assignment.number == 1 and assignment.batch_divisor == 1):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    run_trial(study, assignment, report)


def test_a_card_without_memory_gets_half_the_batch_then_gives_up_the_trial_alone(tmp_path):
    with SearchDriver.create(tmp_path / "study", parse(REAL)) as driver:
        run_in_process(driver, short_of_memory)
    first, second = read_trials(tmp_path / "study")
    assert (
        first.state == "pruned"
        and not first.feasible
        and "even with half the batch: OutOfMemoryError" in first.reason
    )
    assert (
        second.state in ("complete", "pruned")
        and second.feasible
        and second.attributes["batch_divisor"] == 2
        and second.rungs
    )


def with_little_memory(leave, study, assignment, report):
    """The real training, whose process may take 60 MB more while batches are whole (the first map
    of one takes 133); it is left after an epoch with half of them.
    """
    if assignment.batch_divisor > 1:
        return leave_after(leave, study, assignment, report)
    load_data(study.data, (96, 96))  # which imports
    status = Path("/proc/self/status").read_text()
    pages = int(status.partition("VmSize:")[2].split()[0])  # KiB
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((pages << 10) + 60 * 2**20, before[1]))
    try:
        run_trial(study, assignment, report)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def count(events, kind):
    return sum(event.kind == kind for event in events)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="takes Linux's /proc")
def test_a_processor_without_memory_gets_half_the_batch_which_a_resumed_trial_keeps(tmp_path):
    """What is raised there depends on who asked: torch's RuntimeError, or a MemoryError."""
    large = {"data.train": 300, "training.batch_size": 300, "space.input_size": 96}
    plain = {"space.family": "plain", "space.backbone": "12k3 *, 2k3", "training.device": "cpu"}
    study = parse(REAL, overrides={**large, **plain, "search.trials": 1})
    events = []
    with SearchDriver.create(tmp_path / "study", study) as driver:
        following = driver.next
        # the third time would be half batches again
        driver.next = lambda: following() if count(events, "ended") < 2 else None
        run_in_process(driver, partial(with_little_memory, 1), events.append)
    whole, half = (event for event in events if event.kind == "ended")
    assert whole.outcome == "out_of_memory", whole.reason
    assert half.outcome == "interrupted"
    (record,) = read_trials(tmp_path / "study")
    assert record.state == "waiting" and record.batch_divisor == 2
    with SearchDriver.open(tmp_path / "study") as driver:
        assignment = driver.next()
        assert assignment.number == record.number and assignment.batch_divisor == 2
        driver.finish(assignment.number, "interrupted")
