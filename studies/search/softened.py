"""Candidates that cost no training: what a trained trial becomes when its weights are softened,
its logits averaged over an orbit, or its mixed layers held to one group
(`searchspace.weights.softened`), and any torch model, as it is and softened.

They are trials of their own kinds, complete from the start. The folders of `softened` ones hold the
network as a training would leave it: every command takes them as any other trial. Those of a
`model` hold its weights, model.safetensors; it has no architecture, so that nothing trains or
exports it. The front has them; samplers, rungs, patience, pairs and `search.trials` do not see
them. The folder is written first and the journal's record after it, in one piece: what is killed in
between leaves a folder of no trial, which is moved to `orphaned/` when its number is given out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.weights.softened import Softened
from studies.config import Study
from studies.errors import StudyError
from studies.journal.folders import SCORES_FILE, TRIALS, move_aside, write_given
from studies.journal.reader import read_trials
from studies.journal.trial import KIND, MODEL, RUNG, TRAINED, TrialRecord, state_word
from studies.search.proposals import architecture_facts, attributes_of
from studies.search.scores import checked, ending
from trainers.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from studies.search.driver import SearchDriver
    from trainers.data.datasets import Splits
    from trainers.networks.networks import Network

MODEL_WEIGHTS = "model.safetensors"  # of a model from outside
AS_IT_IS = "as it is"


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
        what = "softened already" if record.kind == "softened" else state_word(record.state)
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
    number, there = _place(driver, key)
    if there is not None:
        return None, f"{how}: it is trial {there} already"
    if known.broken:
        return None, f"{how}: {known.broken}"
    attributes = {
        KIND: "softened",
        "of": parent.number,
        "role": str(how),
        TRAINED: str(parent.architecture),
        **attributes_of(candidate, known, key, parent.seed - study.search.seed, study.search.seed),
    }
    with _new_folder(driver.directory, number) as folder:
        try:
            scores = _leave(study, source, how, candidate, attributes, folder)
        except ValueError as error:
            return None, f"{how}: {error}"
        reason = _complete(driver, number, attributes, scores)
    return (number, str(candidate)) if reason is None else (None, f"{how}: {reason}")


def _place(driver: SearchDriver, key: str) -> tuple[int, int | None]:
    """The number of the next trial, and of the trial that has the key already."""
    records = read_trials(driver.directory)
    return len(records), next((r.number for r in records if r.key == key), None)


def _complete(
    driver: SearchDriver, number: int, attributes: dict[str, Any], scores: dict[str, Any]
) -> str | None:
    """Writes the complete trial `number` into the journal; the reason where its scores lack an
    objective.
    """
    attributes = {
        **attributes,
        f"{RUNG}{scores['epoch']}": {"scores": scores, "decision": "continue"},
    }
    record = TrialRecord(number, "running", attributes=attributes)
    outcome, reason, values, excess = ending(driver.study, record, "complete", None)
    if outcome != "complete" or values is None:
        return reason
    made = driver.add_complete(
        {**attributes, **({"constraints": excess} if excess else {})}, values
    )
    assert made == number
    return None


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


@contextmanager
def _new_folder(directory: Path, number: int) -> Iterator[Path]:
    """The empty folder of the next trial; what was there belongs to none. It goes again where no
    trial comes of it.
    """
    folder = directory / TRIALS / f"{number:05d}"
    if os.path.lexists(folder):
        move_aside(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        if len(read_trials(directory)) <= number:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ModelPoint:
    """What a model from outside becomes, or the model itself."""

    role: str  # `Softened` as text, or AS_IT_IS
    model: nn.Module  # takes images in 0..1 as the data have them, and gives logits
    weights: Mapping[str, Tensor]  # of the module that the user's function returns
    surviving: tuple[str, ...]  # elements of the declared group under which it is exact for certain


def add_models(
    driver: SearchDriver, source: str, points: Sequence[ModelPoint], splits: Splits
) -> list[tuple[int | None, str]]:
    """For each of `points`, made of the module that the function `source` returns, (the number of
    its new trial, what it is), or (None, why there is none).

    Raises StudyError for a study whose trials are scored on other images.
    """
    if driver.study.data.folds is not None:
        raise StudyError(
            "a model is scored on the images of one fold, and the trials of this study on "
            f"{driver.study.data.folds} (data.folds): leave --front out"
        )
    return [_add_model(driver, source, point, splits) for point in points]


def _add_model(
    driver: SearchDriver, source: str, point: ModelPoint, splits: Splits
) -> tuple[int | None, str]:
    from safetensors.torch import save

    weights = save({n: t.detach().cpu().contiguous().clone() for n, t in point.weights.items()})
    key = f"model={sha256(weights).hexdigest()[:16]} {source} {point.role}"
    number, there = _place(driver, key)
    if there is not None:
        return None, f"{point.role}: it is trial {there} already"
    study = driver.study
    attributes = {
        KIND: "model",
        MODEL: source,
        "role": point.role,
        "canonical": key,
        "surviving": list(point.surviving),
        "exact": len(point.surviving) == Group.parse(study.symmetry.group).order,
    }
    with _new_folder(driver.directory, number) as folder:
        try:
            scores = _score_model(study, point, splits, folder)
        except ValueError as error:
            return None, f"{point.role}: {error}"
        attributes |= {name: scores[name] for name in ("params", "macs")}
        write_whole(folder / MODEL_WEIGHTS, weights)
        write_given(folder, {"beside": attributes})
        reason = _complete(driver, number, attributes, scores)
    return (number, source) if reason is None else (None, f"{point.role}: {reason}")


def _score_model(study: Study, point: ModelPoint, splits: Splits, folder: Path) -> dict[str, Any]:
    from trainers.training.evaluate import evaluate_model

    config = study.training_config(study.search.seed, device="cpu")
    scores = evaluate_model(point.model, splits, config, epoch=study.rungs[-1], folder=folder)
    found = checked(scores.as_dict())
    write_whole(folder / SCORES_FILE, json.dumps(found) + "\n")
    return found
