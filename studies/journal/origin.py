"""What a study was started with, as its journal holds it: the study file and the data.

A study goes on with the same images, the same training and the same space, or not at all: scores
that were measured otherwise must not share a front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from searchspace.geometry import counted
from studies.config import Study, differences
from studies.errors import StudyError
from studies.journal.definition import ATTRIBUTE, as_stored, definition_attribute
from studies.journal.folders import read_folders
from studies.journal.reader import JOURNAL, SUPERSEDED, begins, study_attributes
from trainers.files import as_word

if TYPE_CHECKING:
    from studies.journal.writer import JournalWriter, OpenedJournal

# may change if the images are the same
PLACES = ("data.folder", "data.root", "data.files", "data.download")
WIDENING = (
    "search.trials",
    "search.timeout",
    "search.patience",
    "search.retries",
    "controls",
    "resources.",
    "loggers.",
    "training.device",
    "training.cuda_graphs",
)


@dataclass(frozen=True)
class DataIdentity:
    """What identifies the images of a study."""

    fingerprint: str
    images: Mapping[str, int]  # by split
    classes: tuple[str, ...]
    content: str = ""  # of the bytes of images; empty: not compared

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return {
            "fingerprint": self.fingerprint,
            "images": dict(self.images),
            "classes": list(self.classes),
            **({"content": self.content} if self.content else {}),
        }

    def same_as(self, before: Mapping[str, Any]) -> bool:
        """Whether the journal speaks of these images; earlier versions wrote no content down."""
        content = before.get("content")
        return before["fingerprint"] == self.fingerprint and (
            not content or not self.content or content == self.content
        )


def first_attributes(
    study: Study, channels: int, classes: int, images: DataIdentity | None
) -> dict[str, Any]:
    """The attributes that a journal begins with."""
    return {
        "channels": channels,
        "classes": classes,
        "objectives": list(study.objectives),
        "study": study.model_dump(mode="json"),
        **definition_attribute(study),
        **({} if images is None else {"data": images.as_dict()}),
    }


def require_begun(directory: Path) -> dict[str, Any]:
    """The study's attributes in its journal.

    Raises StudyError where the journal is missing, or lacks the records that every start writes.
    """
    path = directory / JOURNAL
    attributes = study_attributes(directory) if path.is_file() and begins(directory) else {}
    if {"channels", "classes"} <= set(attributes):
        return attributes
    raise lost_journal(directory)


def lost_journal(directory: Path) -> StudyError:
    """What to say of a study whose journal is missing, no file, or lacks its first records."""
    path = directory / JOURNAL
    there = (
        f"there is no {JOURNAL} in {directory}"
        if not path.exists()
        else f"{path} is not a file"
        if not path.is_file()
        else f"{path} is empty"
        if not path.stat().st_size
        else f"{path} lacks its first records"
    )
    folders = read_folders(directory)
    scored = sum(bool(folder.scores) for folder in folders.values())
    if folders:
        return StudyError(
            f"{there}, but {counted(len(folders), 'folder')} of trials, {scored} with "
            "scores: restore "
            f"the journal from a copy, or rebuild it with `equisearch repair {as_word(directory)}`"
        )
    return StudyError(
        f"{there}, and no trial: its start ended before the first trial. Delete {directory} and "
        "start the study again"
    )


def require_same_study(
    directory: Path, started: Mapping[str, Any], stored: Study, asked: Study, same_images: bool
) -> None:
    """Raises StudyError with the differences where `study.yaml` (`stored`) or `asked` changes what
    decides about scores; `started` are the study's attributes in the journal.

    Other places of the data are accepted where the images are known to be the same.
    """
    _refuse(
        f"{directory / 'study.yaml'} has been edited since the study was started",
        _study(started, stored),
        stored,
        same_images,
    )
    _refuse(f"the study has changed since {directory} was started", stored, asked, same_images)


def require_same_images(
    directory: Path, started: Mapping[str, Any], images: DataIdentity, accepted: bool
) -> bool:
    """Whether the images are known to be those of the start.

    Raises StudyError with what has changed where they are not, unless that is `accepted`. A study
    of an earlier version knows how many classes there were, and no more.
    """
    before = started.get("data")
    if before is None:
        changed = [
            f"classes: {started['classes']} -> {len(images.classes)}"
            for _ in range(started["classes"] != len(images.classes))
        ]
    elif images.same_as(before):
        return True
    elif before["fingerprint"] == images.fingerprint:
        changed = ["the content of images, whose names and sizes are as they were"]
    else:
        changed = _changes(before, images) or ["names, sizes or labels of images"]
    if changed and not accepted:
        raise StudyError(
            f"the data of {directory} has changed since the study was started "
            f"({'; '.join(changed)}): scores before and after cannot be compared. Put the data "
            "back, start a new study, or give --accept-data, which takes the earlier trials off "
            "the front and starts a new comparison"
        )
    return False


def adopt(
    journal: JournalWriter, opened: OpenedJournal, study: Study, images: DataIdentity | None
) -> OpenedJournal:
    """The journal, once it says what the study goes on with: for a study of an earlier version,
    for a study that was widened, and for other images, whose earlier trials are superseded.
    """
    from studies.journal.writer import OpenedJournal

    new: dict[str, Any] = {}
    if opened.attributes.get("study") != study.model_dump(mode="json"):
        new["study"] = study.model_dump(mode="json")
    if ATTRIBUTE not in opened.attributes:
        new.update(definition_attribute(study))
    records = list(opened.records)
    before = opened.attributes.get("data")
    if images is not None and (before is None or before != images.as_dict()):
        new["data"] = images.as_dict()
        same = before is not None and images.same_as(before)
        if not same and (before is not None or opened.attributes["classes"] != len(images.classes)):
            for record in opened.records:
                if record.state in ("running", "waiting") and record.architecture is not None:
                    if record.state == "waiting":
                        record = journal.move(record, "running")
                    record = journal.set(record, {"reason": "the data changed while it trained"})
                    journal.end(record, "failed")
            proposed = [r.number for r in opened.records if r.architecture is not None]
            new[SUPERSEDED] = sorted({*opened.attributes.get(SUPERSEDED, ()), *proposed})
            new["classes"] = len(images.classes)
            records = [r for r in opened.records if r.architecture is None]
    if new:
        journal.describe(new)
    return OpenedJournal({**opened.attributes, **new}, records, opened.torn)


def _study(started: Mapping[str, Any], stored: Study) -> Study:
    """The study as it was started; `stored` where an earlier version did not write that down."""
    if "study" not in started:
        return stored
    try:
        return as_stored(Study.model_validate(started["study"]))
    except ValidationError:  # values that an earlier version accepted
        from studies.journal.stored import leniently

        study = leniently(started["study"]) if isinstance(started["study"], dict) else None
        return stored if study is None else as_stored(study)


def _refuse(what: str, old: Study, new: Study, same_images: bool) -> None:
    allowed = (*WIDENING, *(PLACES if same_images else ()))
    refused = [d for d in differences(old, new) if not d.startswith(allowed)]
    if refused:
        raise StudyError(
            f"{what} ({'; '.join(refused)}); start it in a new directory, or undo that (trials, "
            "timeout, patience and resources may change, and the place of the same images)"
        )


def _changes(before: Mapping[str, Any], images: DataIdentity) -> list[str]:
    """What can be named of the difference between two sets of images."""
    changed = [
        f"{split} images: {before['images'].get(split, 'none')} -> "
        f"{images.images.get(split, 'none')}"
        for split in dict.fromkeys([*before["images"], *images.images])
        if before["images"].get(split) != images.images.get(split)
    ]
    gone = [name for name in before["classes"] if name not in images.classes]
    new = [name for name in images.classes if name not in before["classes"]]
    changed += [f"classes that are gone: {', '.join(gone)}"] if gone else []
    return changed + ([f"new classes: {', '.join(new)}"] if new else [])


ReadIdentity = Callable[[Study], DataIdentity]
