"""`equisearch export` of a model from outside: a file of torch.export with the weights that its
trial holds, compared with the trial's scores before it is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.config import Study
from studies.errors import ExistsError, StudyError
from studies.evidence.front import best_compromise, front_members
from studies.journal.directory import TRIALS, require_writable_place
from studies.journal.trial import MODEL, TrialRecord
from studies.search.softened import MODEL_WEIGHTS
from trainers.files import write_whole

if TYPE_CHECKING:
    from torch import nn

PROGRAM, CARD = "model.pt2", "README.md"
BATCH = 128  # images at once, in the comparison
CLOSE = 1e-4  # of logits, relative to the largest
CLOSE_LOSS = 1e-3  # relative


def require_code(study: Study, record: TrialRecord, records: list[TrialRecord]) -> None:
    """Raises StudyError that says what exporting this model takes, and which trial needs none."""
    trained = [r for r in records if r.kind != "model"]
    other = best_compromise(study, front_members(study, trained))
    instead = (
        ""
        if other is None
        else f", or export trial {other.number}, the best compromise of what this study trained"
    )
    raise StudyError(
        f"trial {record.number} is a model from outside, and to export it the function "
        f"{record.attributes[MODEL]} must run: add --run-code (run_code=True) if you trust "
        f"it{instead}"
    )


def export_model(
    study: Study,
    record: TrialRecord,
    directory: Path,
    folder: Path,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """The path of `folder` with `model.pt2` and a README of what it takes, gives and scored. Runs
    the function that the trial names. Raises StudyError where that gives no such model any more,
    ExistsError where the folder holds other files.
    """
    if folder.exists() and not (folder.is_dir() and _ours(folder)):
        raise ExistsError(f"{folder} holds other files; give a folder that is new or empty")
    require_writable_place(folder.parent, "give another folder with --out")
    from trainers.data.datasets import load_data

    splits = load_data(study.data, None)
    model = _restored(record, directory)
    program, loss = _exported(model, splits.validation, record)
    scored = float((record.scores or {})["loss"])
    if abs(loss - scored) > CLOSE_LOSS * abs(scored):
        raise StudyError(
            f"trial {record.number} had a loss of {scored:.5g} on the validation images, and what "
            f"{record.attributes[MODEL]} returns now, with the trial's weights, {loss:.5g}: the "
            "function has changed; restore it, or add the model again with `soften --front`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PROGRAM, program)
    write_whole(folder / CARD, _card(record, directory, splits))
    note(f"compared and written; read {folder / CARD} (`verify` is for bundles)")
    return folder


def _ours(folder: Path) -> bool:
    present = {path.name for path in folder.iterdir()}
    return not present or (present <= {PROGRAM, CARD} and PROGRAM in present)


def _restored(record: TrialRecord, directory: Path) -> nn.Module:
    """What the function returns, with the trial's weights, averaged where the trial was."""
    from safetensors.torch import load_file

    from trainers.instruments.loading import load_model
    from trainers.networks.orbit import orbit_average

    source, role = str(record.attributes[MODEL]), str(record.attributes["role"])
    weights = directory / TRIALS / f"{record.number:05d}" / MODEL_WEIGHTS
    try:
        model = load_model(source).eval()
        model.load_state_dict(load_file(weights))
    except (OSError, ValueError, RuntimeError) as error:
        raise StudyError(
            f"trial {record.number} cannot be made again from {source} and {weights}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return orbit_average(model, role.split()[-1]) if role.startswith("orbit") else model


def _exported(model: nn.Module, images: Any, record: TrialRecord) -> tuple[bytes, float]:
    """The file, and its loss on the images. Raises StudyError where torch cannot export it."""
    import io

    import torch

    held = io.BytesIO()
    example = images.pixels[:2].float() / 255
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            batch = {0: torch.export.Dim("batch", min=1)}
            program = torch.export.export(model, (example,), dynamic_shapes=(batch,))
            torch.export.save(program, held)
            module = program.module()
    except Exception as error:  # of torch, about the user's code
        raise StudyError(
            f"trial {record.number} cannot be exported by torch.export: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}; its weights are in the trial's folder"
        ) from error
    total = 0.0
    with torch.no_grad():
        for pixels, labels in zip(images.pixels.split(BATCH), images.labels.split(BATCH)):
            logits, own = module(pixels.float() / 255), model(pixels.float() / 255)
            if float((logits - own).abs().max()) > CLOSE * float(own.abs().max()):
                raise StudyError(
                    f"trial {record.number}: what torch.export wrote gives other logits than the "
                    "model; its weights are in the trial's folder"
                )
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return held.getvalue(), total / len(images)


def _card(record: TrialRecord, directory: Path, splits: Any) -> str:
    """What the file takes, gives and scored, for people."""
    scores = record.scores or {}
    height, width = splits.size
    role = record.attributes["role"]
    return f"""# {record.attributes[MODEL]}, {role}

Trial {record.number} of the study {directory.name}: a model from outside, with the weights that
the trial was scored with.

    import torch
    model = torch.export.load("{PROGRAM}").module()
    logits = model(images)  # [batch, {len(splits.classes)}]

- images: floats in 0..1, [batch, {splits.channels}, {height}, {width}]
- classes, in the order of logits: {", ".join(splits.classes)}
- accuracy {scores.get("accuracy", float("nan")):.4f}, symmetry accuracy
  {scores.get("symmetry_accuracy", float("nan")):.4f}, on {len(splits.validation)} validation images
- kept exactly: {", ".join(record.attributes.get("surviving") or ["e"])}

`torch.export.load` may unpickle objects: open such a file only if you trust where it comes from.
"""
