"""Checkpoints of a training: one whole checkpoint lies in its directory at every moment, and says
whose it is.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from trainers.files import open_whole, system_reason, write_whole
from trainers.settings import as_identity
from trainers.training.config import TrainingConfig

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"

# by the number of the system's error
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    errno.ENOENT: "put the folder back",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable"),
}


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is."""

    epoch: int = 0  # epochs done
    seconds: float = 0.0  # of all calls
    history: tuple[dict[str, float], ...] = ()  # one row per epoch
    settled: bool = True  # whether batch norm has the statistics of the present weights


def training_fingerprint(architecture: Architecture, config: TrainingConfig) -> str:
    """What a checkpoint belongs to: all that changes the result, so not the device, nor where the
    data lie.
    """
    training = as_identity(config.training, {"device", "cuda_graphs"})
    data = as_identity(config.data, {"download", "root", "folder", "files"})
    corners = {} if config.corners == "black" else {"corners": config.corners}
    merged = {"merge_validation": True} if config.merge_validation else {}
    return json.dumps(
        {
            "architecture": str(Candidate(architecture, config.recipe).with_learning_rate(None)),
            "seed": config.seed,
            "learning_rate": config.peak_rate,
            "training": training,
            "data": data,
            "group": config.symmetry.group,
            **corners,
            **merged,
        },
        sort_keys=True,
    )


def save_checkpoint(
    directory: Path,
    owner: str,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
    companions: torch.nn.Module | None = None,
) -> None:
    """Writes the checkpoint of the training whose fingerprint is `owner`; `companions` are trained
    beside the network. Raises OSError, with the earlier checkpoint kept, where it cannot be
    written.
    """
    content = {
        "fingerprint": owner,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": progress.epoch,
        "settled": progress.settled,
        "seconds": progress.seconds,
        "history": list(progress.history),
    }
    if companions is not None and (state := companions.state_dict()):
        content["companions"] = state
    # torch's own writer reports a full disk as RuntimeError, or ends the process
    whole = io.BytesIO()
    try:
        torch.save(content, whole)
        write_whole(directory / CHECKPOINT, whole.getbuffer(), previous=directory / PREVIOUS)
    except OSError as error:
        raise OSError(
            f"the checkpoint of epoch {progress.epoch} could not be written to {directory}: "
            f"{system_reason(error)}; {REMEDIES.get(error.errno or 0, 'mend that')}, then resume: "
            "nothing before this epoch is lost"
        ) from error


def restore(
    directory: Path,
    owner: str,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    companions: torch.nn.Module | None = None,
) -> TrainingProgress:
    """Gives network, optimizer and companions the state of the checkpoint in `directory` and says
    how far it is; without a checkpoint nothing changes. Raises ValueError if it is not `owner`'s.
    """
    saved = read_checkpoint(directory, owner)
    if saved is None:
        return TrainingProgress()
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    if companions is not None and "companions" in saved:
        companions.load_state_dict(saved["companions"])
    return _progress(saved)


def epochs_done(directory: Path, owner: str) -> int:
    """The epoch of the checkpoint in `directory`; 0 without one. Raises ValueError if it is not
    `owner`'s.
    """
    saved = read_checkpoint(directory, owner)
    return 0 if saved is None else _progress(saved).epoch


def read_checkpoint(directory: Path, owner: str) -> Mapping[str, Any] | None:
    """The content of the checkpoint in `directory`, or of the one before where a crash of the
    machine tore the last; None if there is neither. Raises ValueError if it is not `owner`'s.
    """
    for path in (directory / CHECKPOINT, directory / PREVIOUS):
        saved = _read(path)
        if saved is None:
            continue
        if saved["fingerprint"] != owner:
            raise ValueError(
                f"{path} belongs to another training; give an empty directory. It holds "
                f"{saved['fingerprint']}"
            )
        return saved
    return None


def set_aside_foreign(directory: Path, owner: str) -> list[Path]:
    """Renames checkpoints in `directory` that are not `owner`'s, and returns their new places."""
    moved = []
    for path in (directory / CHECKPOINT, directory / PREVIOUS):
        saved = _read(path)
        if saved is not None and saved["fingerprint"] != owner:
            moved.append(path.replace(path.with_suffix(f".foreign{path.suffix}")))
    return moved


def _progress(saved: Mapping[str, Any]) -> TrainingProgress:
    return TrainingProgress(
        saved["epoch"], saved["seconds"], tuple(saved["history"]), saved.get("settled", True)
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with open_whole(path) as file:
            saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # absent, or torn: a zip file cut anywhere fails in many ways
        return None
    return saved if _is_whole(saved) else None


def _is_whole(saved: Any) -> bool:
    """Whether this is all that `save_checkpoint` writes; another program's file is as good as a
    torn one.
    """
    return (
        isinstance(saved, dict)
        and isinstance(saved.get("fingerprint"), str)
        and all(isinstance(saved.get(name), Mapping) for name in ("network", "optimizer"))
        and isinstance(saved.get("companions", {}), Mapping)
        and type(saved.get("epoch")) is int
        and isinstance(saved.get("seconds"), int | float)
        and isinstance(saved.get("history"), list)
        and all(isinstance(row, dict) for row in saved["history"])
    )
