"""What a worker does with an assignment: train rung by rung, report, and keep a readable record in
the trial's folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from searchspace.recipe import Candidate
from studies.config import Study
from studies.journal.folders import ARCHITECTURE_FILE, SCORES_FILE, read_folder
from studies.search.assignments import Assignment, Report
from trainers.data.datasets import load_data
from trainers.devices import limit_memory
from trainers.files import parse_json, read_whole, write_plain, write_whole
from trainers.process import tune_process
from trainers.training.checkpoint import epochs_done, set_aside_foreign, training_fingerprint
from trainers.training.folds import train_folds
from trainers.training.inheritance import TrainingPlace, begin


def run_trial(study: Study, assignment: Assignment, report: Report) -> None:
    """Trains the assigned architecture up to each rung in turn, until the report says stop or the
    last epoch is done.

    Goes on from the checkpoint in the trial's folder. Rungs behind it are not scored again; scores
    of its own epoch are taken from the trial's record where that holds them.
    """
    tune_process(int(study.resources.cpus_per_trial))
    limit_memory(study.resources.gpu_share)  # alone in this process, with all GPUs
    directory = Path(assignment.directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_plain(directory / ARCHITECTURE_FILE, assignment.architecture + "\n")
    candidate = Candidate.parse(assignment.architecture).with_learning_rate(
        assignment.learning_rate
    )
    config = study.training_config(assignment.seed, candidate.recipe, assignment.batch_divisor)
    owner = training_fingerprint(candidate.architecture, config)
    for path in set_aside_foreign(directory, owner):
        warnings.warn(
            f"the checkpoint of trial {assignment.number} is of another training: it is kept as "
            f"{path}, and the trial begins again",
            stacklevel=2,
        )
    if assignment.inherited_from is not None:
        _begin(study, TrainingPlace(candidate.architecture, config, directory), assignment)
    done = epochs_done(directory, owner)
    rungs = study.rungs if assignment.inherited_from is None else study.rungs[-1:]
    for rung in (r for r in rungs if done <= r <= assignment.until_epoch):
        scores = _recorded(directory).get(rung) if rung == done else None
        if scores is None:
            scores = train_folds(
                candidate.architecture,
                config,
                directory,
                rung,
                on_epoch=lambda epoch, row: report.heartbeat(epoch),
            ).as_dict()
            _record(directory, scores)
        if report(scores) == "stop":
            return


def _begin(study: Study, child: TrainingPlace, assignment: Assignment) -> None:
    """Leaves the first checkpoint of a trial that begins with another's weights in its folder,
    unless it has one. Raises ValueError where they cannot be inherited.
    """
    if study.data.folds is not None:
        raise ValueError(
            "weights are inherited by one network, and with data.folds a trial has several; leave "
            "folds out to relax trials"
        )
    folder = child.directory.with_name(f"{assignment.inherited_from:05d}")
    given = read_folder(folder).given
    if not {"architecture", "learning_rate", "seed"} <= given.keys():
        raise ValueError(
            f"the folder of trial {assignment.inherited_from}, whose weights are inherited, does "
            f"not say what was trained ({folder}); relax a trial whose folder is whole"
        )
    parent = Candidate.parse(given["architecture"]).with_learning_rate(given["learning_rate"])
    config = study.training_config(given["seed"], parent.recipe)
    begin(
        child,
        TrainingPlace(parent.architecture, config, folder),
        assignment.inherited_epoch,
        lambda: load_data(config.data, child.architecture.size),
    )


def _record(directory: Path, scores: Mapping[str, Any]) -> None:
    """Writes the scores of an epoch into the trial's own record, in place of what a killed worker
    wrote of it and of later epochs.
    """
    earlier = [row for epoch, row in _recorded(directory).items() if epoch < scores["epoch"]]
    lines = [json.dumps(row) for row in [*earlier, scores]]
    write_whole(directory / SCORES_FILE, "\n".join(lines) + "\n")


def _recorded(directory: Path) -> dict[int, dict[str, Any]]:
    """The scores in the trial's own record, by epoch; lines that are damaged are left out."""
    try:
        lines = read_whole(directory / SCORES_FILE).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    rows = {}
    for line in lines:
        try:
            row = parse_json(line)
            rows[int(row["epoch"])] = row
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return rows
