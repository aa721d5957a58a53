"""Candidates that cost no training: what a trained trial becomes when its weights are softened,
its logits averaged over an orbit, or its mixed layers held to one group
(`searchspace.weights.softened`).

They are trials of their own kind, `softened`, complete from the start, whose folders hold the
network as a training would leave it: every command takes them as any other trial. The front has
them; samplers, rungs, patience, pairs and `search.trials` do not see them. The folder is written
first and the journal's record after it, in one piece: what is killed in between leaves a folder of
no trial, which is moved to `orphaned/` when its number is given out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.recipe import Candidate
from searchspace.weights.softened import Softened
from studies.config import Study
from studies.errors import StudyError
from studies.journal.folders import SCORES_FILE, TRIALS, move_aside, write_given
from studies.journal.reader import read_trials
from studies.journal.trial import KIND, RUNG, TRAINED, TrialRecord
from studies.search.proposals import architecture_facts, attributes_of
from studies.search.scores import checked, ending
from trainers.files import write_whole

if TYPE_CHECKING:
    from studies.search.driver import SearchDriver
    from trainers.data.datasets import Splits
    from trainers.networks.networks import Network


@dataclass(frozen=True)
class SoftenedSource:
    """A trained trial, as its softened candidates are made of it."""

    record: TrialRecord
    network: Network
    splits: Splits

    def candidate(self) -> Candidate:
        """What was trained."""
        text = str(self.record.architecture)
        return Candidate.parse(text).with_learning_rate(self.record.learning_rate)

    def becomes(self, how: Softened) -> Candidate:
        """What it becomes. Raises ValueError where that is not an architecture."""
        trained = self.candidate()
        return trained.recipe.onto(how.architecture(trained.architecture))


def softened_key(key: str, parent: int, how: Softened) -> str:
    """The key of such a candidate, which no training has."""
    return f"{key} softened_from={parent} {how}"


def add_softened(
    driver: SearchDriver, source: SoftenedSource, ways: Sequence[Softened]
) -> list[tuple[int | None, str]]:
    """For each of `ways` (the number of its new trial, its text), or (None, why there is none).

    Raises StudyError for a trial that is not complete.
    """
    record = source.record
    if record.state != "complete" or record.kind == "softened":
        what = "softened already" if record.kind == "softened" else record.state
        raise StudyError(
            f"trial {record.number} is {what}; candidates of the front are made of complete trials "
            "that were trained: leave --front out, or name one"
        )
    if driver.study.data.folds is not None:
        raise StudyError(
            "softened candidates are scored on the images of one fold, and the trials of this "
            f"study on {driver.study.data.folds} (data.folds): leave --front out"
        )
    return [_add(driver, source, how) for how in ways]


def _add(driver: SearchDriver, source: SoftenedSource, how: Softened) -> tuple[int | None, str]:
    study, parent = driver.study, source.record
    try:
        candidate = source.becomes(how)
        known = architecture_facts(candidate.architecture, study, driver.channels, driver.classes)
    except ValueError as error:
        return None, f"{how}: {error}"
    key = softened_key(candidate.key, parent.number, how)
    records = read_trials(driver.directory)
    for record in records:
        if record.key == key:
            return None, f"{how}: it is trial {record.number} already"
    if known.broken:
        return None, f"{how}: {known.broken}"
    attributes = {
        KIND: "softened",
        "of": parent.number,
        "role": str(how),
        TRAINED: str(parent.architecture),
        **attributes_of(candidate, known, key, parent.seed - study.search.seed, study.search.seed),
    }
    number = len(records)
    folder = driver.directory / TRIALS / f"{number:05d}"
    try:
        scores = _leave(study, source, how, candidate, attributes, folder)
    except ValueError as error:
        return None, f"{how}: {error}"
    attributes[f"{RUNG}{scores['epoch']}"] = {"scores": scores, "decision": "continue"}
    record = TrialRecord(number, "running", attributes=attributes)
    outcome, reason, values, excess = ending(study, record, "complete", None)
    if outcome != "complete" or values is None:
        return None, f"{how}: {reason}"
    made = driver.add_complete(
        {**attributes, **({"constraints": excess} if excess else {})}, values
    )
    assert made == number
    return made, str(candidate)


def _leave(
    study: Study,
    source: SoftenedSource,
    how: Softened,
    candidate: Candidate,
    attributes: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """The scores of the softened network on validation images, once its folder holds it."""
    from trainers.training.evaluate import evaluate
    from trainers.training.softened import save_softened, soften_trained

    config = study.training_config(source.record.seed, candidate.recipe, device="cpu")
    network = soften_trained(source.network, how, source.splits, config.corners)
    trained = source.record.scores or {}
    if os.path.lexists(folder):
        move_aside(folder)
    folder.mkdir(parents=True)
    scores = evaluate(
        network,
        source.splits,
        config,
        epoch=trained["epoch"],
        folder=folder,
        learned=trained.get("learned"),
    )
    save_softened(network, config, folder, trained["epoch"])
    found = checked(scores.as_dict())
    write_whole(folder / SCORES_FILE, json.dumps(found) + "\n")
    beside = {name: attributes[name] for name in (KIND, "of", "role", TRAINED)}
    write_given(folder, {**attributes, "beside": beside})
    return found
