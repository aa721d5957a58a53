"""Drives a trivial study in a process of its own, so that tests can kill it: `python drive.py DIR
EXECUTOR [key=value ...]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies.errors import StudyError
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial


def main() -> int:
    """Starts the study or goes on with it; prints `driving` for each trial that starts, and why it
    ended. Returns the exit status.
    """
    directory, executor, *pairs = sys.argv[1:]
    overrides = {
        key: json.loads(value) for key, _, value in (pair.partition("=") for pair in pairs)
    }
    if executor == "ray":
        from studies.workers.ray_executor import run_on_ray as execute
    else:
        execute = run_in_process
    study = trivial.study(**overrides)
    try:
        there = (Path(directory) / "study.yaml").exists()
        with (
            SearchDriver.open(directory, study)
            if there
            else SearchDriver.create(directory, study) as driver
        ):
            for warning in driver.warnings:
                print(warning, file=sys.stderr)
            ending = execute(
                driver,
                trivial.trainable,
                lambda event: print("driving", flush=True) if event.kind == "started" else None,
            )
    except StudyError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(ending.reason)
    return ending.exit_status


if __name__ == "__main__":
    sys.exit(main())
