"""Faults on Ray: workers, nodes and drivers that die or hang. Every trial is counted afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from test_faults import assert_whole, finish, start

from studies.errors import StudyError
from studies.journal.reader import read_trials
from studies.search.driver import SearchDriver
from studies.workers.executors import RunEnding
from studies.workers.local_ray import guarded_by_token
from studies.workers.ray_executor import run_on_ray
from support import trivial


def once(mark: str, fault, study, assignment, report):
    """The fault in the middle of the third epoch of trial 1, the first time; else a trivial
    training.
    """

    class Report:
        def __call__(self, scores):
            return report(scores)

        def heartbeat(self, epoch):
            if assignment.number == 1 and epoch == 3 and not Path(mark).exists():
                Path(mark).touch()
                Path(f"{mark}.pid").write_text(str(os.getpid()))
                fault()
            report.heartbeat(epoch)

    trivial.trainable(study, assignment, Report())


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    "fault,said,timeout",
    [(kill_me, "the worker died", 120), (hang, "the worker was silent for", 30)],
)
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_trial_continued(
    tmp_path, fault, said, timeout
):
    events = []
    # every trial is kept at its rungs, so that trial 1 surely gets to its third epoch
    with SearchDriver.create(
        tmp_path / "study",
        trivial.study(search__trials=4, search__rungs=[], resources__trial_timeout=timeout),
    ) as driver:
        run_on_ray(driver, partial(once, str(tmp_path / "mark"), fault), events.append)
    assert_whole(tmp_path / "study", trials=4, repeated=1)
    lost = [e for e in events if e.outcome == "lost"]
    assert len(lost) == 1 and lost[0].number == 1 and said in lost[0].reason
    assert [e.kind for e in events if e.number == 1].count("started") == 2
    assert "attempts" in read_trials(tmp_path / "study")[1].attributes


def stop_me():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow  # the limit is far above what a busy machine takes for an epoch
@pytest.mark.usefixtures("connected")
def test_a_stopped_worker_is_replaced_where_no_timeout_is_set(tmp_path, monkeypatch):
    """By what its trial's own epochs took; SIGSTOP also stops what would let it die."""
    monkeypatch.setattr("studies.workers.silence.FLOOR", 20.0)
    monkeypatch.setattr("studies.workers.silence.MULTIPLE", 1)  # the first epoch takes seconds
    monkeypatch.setenv("EPOCH_SECONDS", "0.01")
    events = []
    study = trivial.study(search__trials=4, search__rungs=[])
    assert study.resources.trial_timeout is None
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_on_ray(driver, partial(once, str(tmp_path / "mark"), stop_me), events.append)
    assert_whole(tmp_path / "study", trials=4, repeated=1)
    (lost,) = [event for event in events if event.outcome == "lost"]
    assert lost.number == 1 and "set resources.trial_timeout" in lost.reason
    stopped = int((tmp_path / "mark.pid").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{stopped}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{stopped}").exists(), "the stopped worker holds its memory for ever"


def die_after(mark: str):
    while not Path(mark).exists():
        time.sleep(0.02)
    kill_me()


@pytest.mark.usefixtures("connected")
def test_a_worker_that_dies_while_the_driver_finds_nothing_left_to_do(tmp_path):
    """What was found out before its trial came back must not end the study."""
    asked = tmp_path / "asked"
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=2, search__rungs=[])
    ) as driver:
        following = driver.next

        def slow():
            assignment = following()
            if assignment is None and not asked.exists():
                asked.touch()
                time.sleep(3)
            return assignment

        driver.next = slow
        assert run_on_ray(
            driver, partial(once, str(tmp_path / "mark"), partial(die_after, str(asked)))
        ) == RunEnding("trials")
    assert_whole(tmp_path / "study", trials=2, repeated=1)


# versions 1 and 2
GROUPS = (
    (
        "/sys/fs/cgroup/memory",
        {"memory.limit_in_bytes": 100 * 2**20, "memory.swappiness": 0},
        "memory.oom_control",
    ),
    ("/sys/fs/cgroup", {"memory.max": 100 * 2**20, "memory.swap.max": 0}, "memory.events"),
)


@pytest.fixture
def memory_group():
    """A control group of the kernel with 100 MB and no swap: its file for processes, and how many
    the kernel has ended in it.

    Making one takes Linux and the right to: where either is missing, the kernel cannot be asked,
    and only the tests with signals speak.
    """
    root, limits, events = next(
        (found for found in GROUPS if Path(found[0], "cgroup.procs").exists()), GROUPS[1]
    )
    group = Path(root, f"equisearch-test-{os.getpid()}")
    try:
        group.mkdir()
        for name, value in limits.items():
            (group / name).write_text(str(value))
        with subprocess.Popen(["sleep", "60"]) as probe:
            try:
                (group / "cgroup.procs").write_text(str(probe.pid))
            finally:
                probe.kill()
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group for memory can be made here: {error}")
    yield (
        group / "cgroup.procs",
        lambda: int((group / events).read_text().rpartition("oom_kill ")[2].split()[0]),
    )
    for _ in range(50):
        try:
            return group.rmdir()
        except OSError:  # what was ended is still being taken apart
            time.sleep(0.1)


def take_memory(processes: Path):
    processes.write_text(str(os.getpid()))
    kept = bytearray(2**30)
    kept[::4096] = b"1" * len(kept[::4096])


@pytest.mark.usefixtures("connected")
def test_a_worker_that_the_kernel_ends_for_lack_of_memory_is_replaced_and_its_trial_continued(
    tmp_path, memory_group
):
    processes, ended = memory_group
    events = []
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=3, search__rungs=[])
    ) as driver:
        run_on_ray(
            driver,
            partial(once, str(tmp_path / "mark"), partial(take_memory, processes)),
            events.append,
        )
    assert ended() == 1
    assert_whole(tmp_path / "study", trials=3, repeated=1)
    assert [(e.number, "the worker died" in e.reason) for e in events if e.outcome == "lost"] == [
        (1, True)
    ]


@pytest.mark.usefixtures("connected")
def test_a_trial_that_always_kills_its_worker_fails_alone(tmp_path):
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=3, search__retries=1)
    ) as driver:
        run_on_ray(driver, deadly_first)
    records = read_trials(tmp_path / "study")
    assert (
        records[0].state == "failed"
        and "died 2 times without getting beyond epoch 0" in records[0].reason
    )
    assert {r.state for r in records[1:]} <= {"complete", "pruned"} and len(records) == 3


@pytest.mark.usefixtures("connected")
def test_a_last_trial_that_takes_the_last_worker_with_it_ends_the_study(tmp_path):
    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=1, search__retries=1, resources__workers=1)
    ) as driver:
        assert run_on_ray(driver, deadly_first) == RunEnding("trials")
    assert [record.state for record in read_trials(tmp_path / "study")] == ["failed"]


@pytest.mark.usefixtures("connected")
def test_a_study_whose_cluster_loses_its_head_ends_and_goes_on_later(tmp_path, monkeypatch):
    import ray

    from studies.workers import cluster

    nodes, asked = ray.nodes, []

    def silent_after_the_first_time():
        asked.append(1)
        if len(asked) > 1:
            time.sleep(1000)
        return nodes()

    monkeypatch.setattr(ray, "nodes", silent_after_the_first_time)
    monkeypatch.setattr(cluster, "CLUSTER_PATIENCE", 0.5)
    directory, study = tmp_path / "study", trivial.study(search__trials=6, search__rungs=[])
    with (
        SearchDriver.create(directory, study) as driver,
        pytest.raises(StudyError, match="head of the Ray cluster has not answered .* resume"),
    ):
        # a worker dies, and the head is asked for room
        run_on_ray(driver, partial(once, str(tmp_path / "mark"), kill_me))
    monkeypatch.setattr(ray, "nodes", nodes)
    with SearchDriver.open(directory) as driver:
        assert run_on_ray(driver, trivial.trainable) == RunEnding("trials")
    assert_whole(directory, trials=6, repeated=3)


@pytest.mark.slow  # on a busy machine Ray ends this process, and the other tests with it, first
def test_a_ray_on_this_machine_that_dies_ends_the_study_with_one_sentence(tmp_path, capfd):
    """Ray itself would print its logs, and end this process half a minute later."""
    from ray._private import worker

    killed = []

    def listen(event):
        if event.kind == "epoch" and not killed:
            (started,) = worker._global_node.all_processes["raylet"]
            killed.append(started.process.pid)
            os.kill(started.process.pid, signal.SIGKILL)

    study = trivial.study(search__trials=40, search__rungs=[], resources__workers=1)
    with (
        SearchDriver.create(tmp_path / "study", study) as driver,
        pytest.raises(StudyError, match="node of Ray has died .*raylet.*`equisearch resume"),
    ):
        run_on_ray(driver, partial(lingering, 0.3), listen)
    assert killed and "Raylet is terminated" not in "".join(capfd.readouterr())


def lingering(seconds, study, assignment, report):
    class Report:
        def __call__(self, scores):
            return report(scores)

        def heartbeat(self, epoch):
            time.sleep(seconds)
            report.heartbeat(epoch)

    trivial.trainable(study, assignment, Report())


def deadly_first(study, assignment, report):
    if assignment.number == 0:
        kill_me()
    trivial.trainable(study, assignment, report)


@pytest.mark.usefixtures("connected")
def test_a_worker_that_ray_ends_for_lack_of_memory_gets_half_the_batch(tmp_path, monkeypatch):
    from ray.exceptions import OutOfMemoryError

    from studies.workers import ray_executor

    assert ray_executor._short_of_memory(
        OutOfMemoryError("Task was killed due to the node running low on memory.")
    )
    assert not ray_executor._short_of_memory(
        RuntimeError("The actor is dead because its worker process has died.")
    )
    # Ray's own monitor looks at the whole machine
    monkeypatch.setattr(ray_executor, "_short_of_memory", lambda error: True)
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=3)) as driver:
        run_on_ray(driver, deadly_with_whole_batches)
    records = read_trials(tmp_path / "study")
    assert records[0].attributes["batch_divisor"] == 2 and records[0].state in (
        "complete",
        "pruned",
    )
    assert (
        not records[1].feasible
        and "even with half the batch: its node ran low on memory" in records[1].reason
    )
    assert records[2].state in ("complete", "pruned") and len(records) == 3


def deadly_with_whole_batches(study, assignment, report):
    if assignment.number == 1 or (assignment.number == 0 and assignment.batch_divisor == 1):
        kill_me()
    trivial.trainable(study, assignment, report)


@pytest.mark.slow
def test_a_driver_on_ray_killed_three_times(tmp_path):
    for seconds in (0.1, 0.3, 0.2):
        process = start(tmp_path / "study", "ray", epoch_seconds=0.02)
        time.sleep(seconds)
        process.kill()
        process.wait()
    assert finish(tmp_path / "study", "ray") == 0
    assert_whole(tmp_path / "study", repeated=6)  # two workers, three kills


@pytest.mark.slow
def test_one_signal_on_ray_lets_workers_finish_their_epoch(tmp_path):
    process = start(tmp_path / "study", "ray", epoch_seconds=0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal does: everybody gets it
    out, err = process.communicate(timeout=60)
    assert (out.split()[-1], err, process.returncode) == ("SIGINT", "", 130)
    assert finish(tmp_path / "study", "ray") == 0
    assert_whole(tmp_path / "study", repeated=0)


@pytest.mark.slow
def test_a_node_that_joins_is_used_and_one_that_leaves_costs_an_epoch(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with guarded_by_token() as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": folder})
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            nodes, events = {}, []

            def listen(event):
                events.append(event)
                ended = sum(e.kind == "ended" for e in events)
                if ended == 2 and "joined" not in nodes:
                    nodes["joined"] = cluster.add_node(num_cpus=2)
                if ended >= 12 and "left" not in nodes and event.kind == "epoch":
                    nodes["left"] = True
                    cluster.remove_node(nodes["joined"])

            os.environ["EPOCH_SECONDS"] = "0.1"
            study = trivial.study(search__trials=40, resources__workers="auto", search__eta=1.5)
            with SearchDriver.create(tmp_path / "study", study) as driver:
                run_on_ray(driver, slowly, listen)
        finally:
            os.environ.pop("EPOCH_SECONDS", None)
            ray.shutdown()
            cluster.shutdown()
    assert_whole(tmp_path / "study", trials=40, repeated=2)
    assert len({e.number for e in events if e.outcome == "lost"}) >= 1
    at_once = running = 0
    for event in events:
        running += (event.kind == "started") - (event.kind == "ended")
        at_once = max(at_once, running)
    assert at_once == 3


def slowly(study, assignment, report):
    os.environ["EPOCH_SECONDS"] = "0.1"
    trivial.trainable(study, assignment, report)
