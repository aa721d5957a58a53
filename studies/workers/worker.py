"""What a worker does with an assignment: train rung by rung, report, and keep a readable record in
the trial's folder.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from searchspace.recipe import Candidate
from studies.config import Study
from studies.search.assignments import Assignment, Report
from trainers.devices import limit_memory
from trainers.files import write_whole
from trainers.process import tune_process
from trainers.scores import Scores
from trainers.training.train import train

ARCHITECTURE = "architecture.txt"
SCORES = "scores.jsonl"


def run_trial(study: Study, assignment: Assignment, report: Report) -> None:
    """Trains the assigned architecture up to each rung in turn, until the report says stop or the
    last epoch is done.
    """
    tune_process(int(study.resources.cpus_per_trial))
    share = study.resources.gpus_per_trial
    limit_memory(0 if share == "auto" else share)  # alone in this process, with all GPUs
    directory = Path(assignment.directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ARCHITECTURE).write_text(assignment.architecture + "\n", encoding="utf-8")
    candidate = Candidate.parse(assignment.architecture).with_learning_rate(
        assignment.learning_rate
    )
    config = study.training_config(assignment.seed, candidate.recipe, assignment.batch_divisor)
    for rung in (r for r in study.rungs if r <= assignment.until_epoch):
        scores = train(
            candidate.architecture,
            config,
            directory,
            rung,
            on_epoch=lambda epoch, row: report.heartbeat(epoch),
        )
        _record(directory, scores)
        if report(scores.as_dict()) == "stop":
            return


def _record(directory: Path, scores: Scores) -> None:
    """Writes the scores of an epoch into the trial's own record, in place of what a killed worker
    wrote of it.
    """
    path = directory / SCORES
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    earlier = [line for line in lines if _epoch(line) < scores.epoch]
    write_whole(path, "\n".join([*earlier, json.dumps(scores.as_dict())]) + "\n")


def _epoch(line: str) -> float:
    """The epoch of a recorded line; infinity if the line is torn."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError):
        return math.inf
