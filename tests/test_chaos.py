"""Fifty random faults over one study, and the count: `pytest -m slow -s tests/test_chaos.py`."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import time

import pytest
from test_faults import finish, start, undisturbed

from studies.journal.reader import JOURNAL, read_trials
from support import trivial

TRIALS, FAULTS, SEED = 400, 50, 0
LEAST = 20  # faults, where a slow machine ends the study between two signals
OPTIONS = {"search__trials": TRIALS, "search__retries": 50, "search__rungs": [1, 3]}


def trainers(path) -> list[int]:
    """The processes that train the study's running trials."""
    folders = [
        path / "trials" / f"{r.number:05d}" for r in read_trials(path) if r.state == "running"
    ]
    return [
        int(folder.joinpath("pid").read_text() or 0)
        for folder in folders
        if folder.joinpath("pid").exists()
    ]


def ended(path) -> bool:
    """Whether the study has all its trials."""
    states = [r.state for r in read_trials(path)]
    return sum(state in ("complete", "pruned", "failed") for state in states) >= TRIALS


def end(process: subprocess.Popen, *signals: signal.Signals) -> None:
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    process.communicate(timeout=60)


def kill_a_worker(path, process: subprocess.Popen) -> None:
    for pid in trainers(path)[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    end(process, signal.SIGKILL)


def fill_the_disk(path, process: subprocess.Popen) -> None:
    size = (path / JOURNAL).stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + 3000, size + 3000))
    process.communicate(timeout=300)
    assert process.returncode in (1, -signal.SIGXFSZ) or ended(path)


def tear_the_journal(path, process: subprocess.Popen) -> None:
    end(process, signal.SIGKILL)
    with (path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":6,"worker_id":"x","trial_id":1,"st')


def leave_a_lock(path, process: subprocess.Popen) -> None:
    end(process, signal.SIGKILL)
    (path / "lock").write_text("pid 1 on nowhere\n")
    (path / f"{JOURNAL}.lock").unlink(missing_ok=True)
    (path / f"{JOURNAL}.lock").symlink_to(JOURNAL)


def start_a_second(path, process: subprocess.Popen) -> None:
    second = subprocess.run([*process.args], capture_output=True, text=True, timeout=60)
    assert (
        second.returncode == 3 and f"pid {process.pid}" in second.stderr
    ) or process.poll() is not None
    end(process, signal.SIGKILL)


FAULTS_ = {
    "driver killed": lambda path, process: end(process, signal.SIGKILL),
    "one signal": lambda path, process: end(process, signal.SIGINT),
    "SIGTERM": lambda path, process: end(process, signal.SIGTERM),
    "two signals": lambda path, process: end(process, signal.SIGINT, signal.SIGINT),
    "worker killed": kill_a_worker,
    "no space": fill_the_disk,
    "torn journal": tear_the_journal,
    "stale lock": leave_a_lock,
    "second driver": start_a_second,
}


@pytest.mark.slow
@pytest.mark.parametrize("second_chances", [True, False])
def test_fifty_faults_lose_nothing_double_nothing_and_leave_no_zombie(tmp_path, second_chances):
    options = {**OPTIONS, "search__second_chances": second_chances}
    rng, path, count = random.Random(SEED), tmp_path / "study", dict.fromkeys(FAULTS_, 0)
    for number in range(FAULTS):
        name = rng.choice(list(FAULTS_))
        executor = "ray" if number % 10 == 9 else "in_process"
        if number and ended(path):
            break
        process = start(path, executor, epoch_seconds=0.02, **options)
        time.sleep(rng.uniform(0, 0.25))
        FAULTS_[name](path, process)
        count[name] += 1
    assert sum(count.values()) >= LEAST
    assert ended(path) or finish(path, **options) == 0
    result = trivial.audit(path, TRIALS)
    print(
        f"\n{sum(count.values())} faults "
        f"({', '.join(f'{n} {name}' for name, n in count.items())}) over {TRIALS} trials: "
        f"lost {result['lost']}, doubled {result['doubled']}, zombies {result['zombies']}, "
        f"failed {result['failed']}, "
        f"epochs repeated {result['repeated']}"
    )
    assert (result["lost"], result["doubled"], result["zombies"], result["failed"]) == (0, 0, 0, 0)
    assert result["repeated"] <= FAULTS + FAULTS // 10  # two workers on Ray
    continued = sum("continues" in record.attributes for record in read_trials(path))
    assert continued > TRIALS // 20 if second_chances else continued == 0
    # two Ray workers come to rungs in another order, so that other trials get a second chance
    if not second_chances:
        expected = undisturbed(tmp_path / "undisturbed", **options)
        assert set(trivial.ended(path)) == set(expected)
