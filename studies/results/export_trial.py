"""Export of a trial from its study, and verification of a bundle: the functions behind `equisearch
export` and `equisearch verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.recipe import Candidate
from studies.config import Study
from studies.errors import ExistsError, StudyError
from studies.journal.directory import TRIALS
from studies.journal.trial import TrialRecord
from studies.results.tables import find_trial, open_study

if TYPE_CHECKING:
    from trainers.bundles.export import Subject
    from trainers.bundles.verify import Report

EXPORTS = "exports"


def export_trial(
    directory: Path | str,
    number: int,
    out: Path | str | None = None,
    *,
    force: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """The path of the bundle of trial `number`, written to `out` (DIR/exports/00017 unless given).

    An earlier bundle of the same trial is replaced; another one only with `force`. `note` is told
    what a user should know besides. Raises StudyError for a trial that is unknown or not complete,
    has no checkpoint, or whose data are missing or have changed.
    """
    directory = Path(directory).absolute()
    study, records = open_study(directory)
    record = find_trial(records, number, directory)
    if record.state != "complete":
        raise StudyError(
            f"trial {number} is {record.state}{f' ({record.reason})' if record.reason else ''}; "
            "only complete trials are exported: " + _complete(records)
        )
    trained = directory / TRIALS / f"{number:05d}"
    folder = Path(out) if out is not None else directory / EXPORTS / f"{number:05d}"
    origin = {
        "study": directory.name,
        "trial": number,
        "started": record.started,
        "seed": record.attributes["seed"],
        "learning_rate": record.attributes["learning_rate"],
    }
    from trainers.bundles.export import check_place, export
    from trainers.bundles.formats import FORMATS

    try:
        check_place(folder, origin, force)
    except ValueError as error:
        raise ExistsError(str(error)) from None
    subject = _subject(study, record, trained, origin)
    try:
        bundle = export(subject, folder, force=force)
    except ValueError as error:
        raise StudyError(f"trial {number}: {error}") from error
    for name in FORMATS:
        if not (bundle / FORMATS[name][0]).exists():
            note(f"the bundle has no {name} file; its README.md says why")
    return bundle


def verify_bundle(bundle: Path | str, *, run_code: bool = False) -> Report:
    """What is found in the bundle: `good`, `text()`, `as_dict()`. Its code is executed only with
    `run_code`. Raises StudyError if there is none.
    """
    from trainers.bundles.verify import verify

    try:
        return verify(Path(bundle), run_code=run_code)
    except ValueError as error:
        raise StudyError(str(error)) from None


def _complete(records: list[TrialRecord]) -> str:
    numbers = [str(r.number) for r in records if r.state == "complete"]
    return (
        f"{', '.join(numbers[:12])}{' ...' if len(numbers) > 12 else ''}"
        if numbers
        else "there is none yet"
    )


def _subject(study: Study, record: TrialRecord, trained: Path, origin: dict[str, Any]) -> Subject:
    """The trained network of a trial with its data. Raises StudyError where one is missing."""
    from trainers.bundles.export import Subject
    from trainers.data.datasets import load
    from trainers.training.checkpoint import CHECKPOINT, PREVIOUS
    from trainers.training.train import start

    if not any((trained / name).is_file() for name in (CHECKPOINT, PREVIOUS)):
        raise StudyError(
            f"trial {record.number} has no checkpoint in {trained}; it was moved or deleted, so "
            "train the architecture again: "
            "equisearch train STUDY ARCHITECTURE --out DIR"
        )
    candidate = Candidate.parse(record.attributes["architecture"]).with_learning_rate(
        record.attributes["learning_rate"]
    )
    architecture = candidate.architecture
    config = study.training_config(record.attributes["seed"], candidate.recipe, device="cpu")
    try:
        splits = load(study.data, architecture.size)
        state = start(architecture, config, trained, splits)
    # torch reports other classes or channels as RuntimeError
    except (ValueError, RuntimeError) as error:
        raise StudyError(f"trial {record.number} cannot be exported: {error}") from error
    scores = record.scores or {}
    if state.epoch != scores.get("epoch"):
        raise StudyError(
            f"the checkpoint of trial {record.number} is of epoch {state.epoch}, the reported "
            f"scores of epoch {scores.get('epoch')}: "
            f"it is torn or of another run ({trained})"
        )
    return Subject(state.network, splits, config, scores, origin)
