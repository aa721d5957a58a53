"""The trained network of a trial, loaded from its folder for export and for measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from searchspace.recipe import Candidate
from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import TRIALS
from studies.journal.trial import MODEL, TrialRecord, state_word
from studies.search.softened import MODEL_WEIGHTS

if TYPE_CHECKING:
    from trainers.data.datasets import Splits
    from trainers.networks.networks import Network
    from trainers.training.augmentation import LearnedAugmentation
    from trainers.training.config import TrainingConfig


@dataclass(frozen=True)
class TrainedTrial:
    """The network of a trial with the data and the configuration of its training."""

    network: Network
    splits: Splits
    config: TrainingConfig
    epoch: int  # of the checkpoint
    augmentation: LearnedAugmentation | None = None  # that was trained beside it


def outside(record: TrialRecord, folder: Path) -> str:
    """Why a model from outside is not loaded, and what exports it."""
    role = str(record.attributes["role"])
    average = f", average it with trainers.orbit_average(model, '{role.split()[-1]}')"
    return (
        f"trial {record.number} is a model from outside, of which a study holds the weights and "
        f"not the program: load {folder / MODEL_WEIGHTS} with safetensors.torch.load_file into "
        f"what {record.attributes[MODEL]} returns{average if role.startswith('orbit') else ''}, "
        "and save it with torch.export.save"
    )


def load_trained(
    study: Study, record: TrialRecord, directory: Path, *, device: str | None = None
) -> TrainedTrial:
    """The trial's network from its last whole checkpoint in the study's `directory`, on `device`
    (None: that of the study).

    Raises StudyError where there is no whole checkpoint, or where its data are missing or do not
    fit it.
    """
    from trainers.data.datasets import load_data
    from trainers.training.checkpoint import CHECKPOINT, PREVIOUS
    from trainers.training.train import start_training

    folder = directory.absolute() / TRIALS / f"{record.number:05d}"
    if record.kind == "model":
        raise StudyError(outside(record, folder))
    if not record.architecture or not any(
        (folder / name).is_file() for name in (CHECKPOINT, PREVIOUS)
    ):
        raise StudyError(
            f"trial {record.number} has no checkpoint in {folder} "
            f"(it is {state_word(record.state)}); choose a trial that was trained, "
            "or train the architecture again: equisearch train STUDY ARCHITECTURE --out DIR"
        )
    candidate = Candidate.parse(record.architecture).with_learning_rate(
        record.attributes.get("learning_rate")
    )
    seed, architecture = record.attributes["seed"], candidate.architecture
    config = study.training_config(seed, candidate.recipe, device=device)
    try:
        splits = load_data(study.data, architecture.size)
        state = start_training(architecture, config, folder, splits)
    # torch reports other classes or channels as RuntimeError
    except (ValueError, RuntimeError) as error:
        raise StudyError(f"trial {record.number} cannot be loaded: {error}") from error
    _require_scored_epoch(record, folder, state.epoch)
    augmentation = dict(state.step.companions.items()).get("augmentation")
    return TrainedTrial(
        state.network,
        splits,
        config,
        state.epoch,
        cast("LearnedAugmentation | None", augmentation),
    )


def _require_scored_epoch(record: TrialRecord, folder: Path, epoch: int) -> None:
    """Raises StudyError where the checkpoint that could be read is of an earlier epoch than the
    scores; of epoch 0 where none could, and the network is as it was drawn.
    """
    scored = (record.scores or {}).get("epoch") or 1
    if epoch < scored:
        raise StudyError(
            f"trial {record.number} cannot be loaded: what can be read of its checkpoints in "
            f"{folder} is of epoch {epoch}, its scores are of epoch {scored} (torn, or another "
            "program's); choose a trial whose folder is whole, or train the architecture again: "
            "equisearch train STUDY ARCHITECTURE --out DIR"
        )
