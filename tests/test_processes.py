"""Jobs in processes of their own: stopped by signals, left by a killed parent, and dying
themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from studies.errors import StudyError
from studies.workers.processes import run_each

HERE = Path(__file__).parent


def square(number):
    return number**2, os.getpid()


def refuse_odd(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    # so that the process of an odd one has started before the rest is done
    time.sleep(number / 10)
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def linger(job):
    """The first job is done at once; the others leave a mark, and take a minute in a temporary
    folder.
    """
    folder, number = job
    if number == 0:
        return 0
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        (Path(folder) / f"{number}-{os.getpid()}.mark").write_text(temporary)
        time.sleep(60)


def stubborn(job):
    """Heeds no SIGTERM."""
    try:
        return linger(job)
    except SystemExit:
        time.sleep(60)


def main(name: str, folder: str, workers: int) -> None:
    """Runs six jobs, as a command does."""
    from studies.cli import main as cli

    def told(index, result):
        Path(folder, f"{index}.told").touch()

    cli.app = lambda **options: run_each(
        globals()[name], [(folder, number) for number in range(6)], workers, told
    )
    cli.main()


def start(folder, workers=2, name="linger") -> subprocess.Popen:
    """The six jobs in a process of their own; returns once as many as there are workers linger."""
    code = f"import test_processes; test_processes.main({name!r}, {str(folder)!r}, {workers})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=HERE,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.mark"))) < workers:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    return process


def gone(folder) -> bool:
    """Whether the workers end, and tidy up."""
    pids = [int(mark.stem.partition("-")[2]) for mark in folder.glob("*.mark")]
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids) and not [
            path for path in folder.iterdir() if path.is_dir()
        ]:
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_come_in_order_from_several_processes():
    told = []
    found = run_each(square, range(7), 2, lambda index, result: told.append(index))
    assert [value for value, _ in found] == [number**2 for number in range(7)] and sorted(
        told
    ) == list(range(7))
    assert os.getpid() not in {pid for _, pid in found} and len({pid for _, pid in found}) == 2
    assert {pid for _, pid in run_each(square, range(3), 1)} == {os.getpid()}
    assert run_each(square, [], 2) == []


def test_what_a_job_raises_comes_here_and_nothing_more_is_begun():
    told = []
    with pytest.raises(ValueError, match="1 is odd"):
        run_each(refuse_odd, [0, 1, *[2] * 50], 2, lambda index, result: told.append(index))
    assert 0 in told and len(told) < 50


def test_a_worker_that_dies_is_named():
    with pytest.raises(StudyError, match="a worker process died .*-9.*the same command goes on"):
        run_each(die, [1, 2], 2)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_keeps_what_is_finished_and_ends_the_rest(tmp_path, workers, number):
    process = start(tmp_path, workers)
    began = time.monotonic()
    # Ctrl-C reaches everybody
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number and time.monotonic() - began < 20
    assert (
        error.count("\n") == 1
        and error.startswith(f"interrupted ({number.name}): ")
        and "the same command goes on" in error
    ), error
    assert (
        gone(tmp_path)
        and (tmp_path / "0.told").exists()
        and len(list(tmp_path.glob("*.mark"))) == workers
    )


def test_two_signals_end_at_once_whatever_the_jobs_do(tmp_path):
    process = start(tmp_path, name="stubborn")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert gone(tmp_path)


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    process = start(tmp_path)
    process.kill()
    process.wait()
    assert gone(tmp_path)
