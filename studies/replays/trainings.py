"""The trainings of a recording, on the workers of a search: each in a folder of its own beside the
table, from which it continues.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.recipe import Candidate
from studies.config import Study, dump
from studies.journal.directory import STUDY
from studies.search.assignments import Assignment, Report
from studies.workers.jobs import JobDriver, run_assignments
from trainers.files import parse_json, write_whole

if TYPE_CHECKING:
    from trainers.training.config import TrainingConfig

ROWS = "rows.json"  # in a training's folder: its scores after each epoch


def run_recorded(
    candidates: Sequence[Candidate], study: Study, assignment: Assignment, report: Report
) -> None:
    """Trains the candidate of that number and leaves its scores after each epoch in its folder:
    what a worker carries out (`functools.partial` with the candidates).

    What the folder holds is not trained again.
    """
    from trainers.devices import limit_memory
    from trainers.process import tune_process

    tune_process(int(study.resources.cpus_per_trial))
    limit_memory(study.resources.gpu_share)
    candidate = candidates[assignment.number]
    config = study.training_config(
        study.search.seed, candidate.recipe, batch_divisor=assignment.batch_divisor
    )
    folder = Path(assignment.directory)
    folder.mkdir(parents=True, exist_ok=True)
    _record_one(candidate, config, folder, report.heartbeat)


def _record_one(
    candidate: Candidate,
    config: TrainingConfig,
    folder: Path,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    from trainers.training.checkpoint import epochs_done, training_fingerprint
    from trainers.training.train import train

    done = epochs_done(folder, training_fingerprint(candidate.architecture, config))
    rows = _rows(folder)[:done]
    for epoch in range(len(rows) + 1, config.training.epochs + 1):
        rows.append(train(candidate.architecture, config, folder, epoch).as_dict())
        write_whole(folder / ROWS, json.dumps(rows))
        on_epoch(epoch)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The scores after each epoch that a folder holds."""
    try:
        return parse_json((folder / ROWS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []


def train_missing(
    study: Study,
    missing: Sequence[Candidate],
    place: Path,
    keep: Callable[[Candidate, list[dict[str, Any]]], None],
) -> None:
    """Trains what is missing in folders under `place`, each removed once `keep` has its scores, and
    `place` with the last.
    """
    if not missing:
        return
    # by which workers recognise the place
    place.mkdir(exist_ok=True)
    write_whole(place / STUDY, dump(study))
    folders = [place.absolute() / derived_name(candidate.key) for candidate in missing]

    def done(number: int) -> None:
        keep(missing[number], _rows(folders[number]))
        shutil.rmtree(folders[number])

    epochs, seed = study.training.epochs, study.search.seed
    driver = JobDriver(
        study,
        place.absolute(),
        [
            Assignment(number, str(c), c.recipe.learning_rate, seed, epochs, str(folder))
            for number, (c, folder) in enumerate(zip(missing, folders))
        ],
        on_done=done,
    )
    run_assignments(driver, partial(run_recorded, missing), lambda number: str(missing[number]))
    shutil.rmtree(place)


def derived_name(key: str) -> str:
    """The name of the folder of a candidate's training."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
