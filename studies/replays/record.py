"""A recorded table: every architecture of a finite space trained to the end, with its scores after
each epoch.

With it a search can be replayed in milliseconds a trial, with many seeds, and two ways of searching
can be compared on real trainings (`studies.replays.replay`). `equisearch record` makes one.
"""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from searchspace.geometry import counted
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study, dump, parse
from studies.errors import StudyError, StudyFileError
from studies.journal.definition import with_stored_corners
from studies.journal.directory import require_writable_place
from studies.journal.lock import StudyLock
from studies.replays.trainings import train_missing
from studies.sections import Resources
from trainers.files import as_word, write_whole
from trainers.settings import Settings

TABLE_FORMAT = 1
MOST_BYTES = 256 << 20  # of an unpacked table: 10,000 trainings of 100 epochs take 50 MB
TABLE_SCORES = ("accuracy", "symmetry_accuracy")


@dataclass(frozen=True)
class TableEntry:
    """One architecture and its scores after each epoch."""

    architecture: str
    learning_rate: float | None
    key: str  # `Candidate.key`
    params: int
    macs: int
    epochs: tuple[tuple[float, float], ...]  # (accuracy, symmetry accuracy) after each epoch
    # of one epoch of training, on the machine that recorded it; not in tables of earlier versions
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RecordedTable:
    """Every entry of a space, and the study that they were recorded under."""

    study: Study
    channels: int
    classes: int
    versions: dict[str, str]
    entries: tuple[TableEntry, ...]
    total: int  # architectures of the space: more than `entries` while recording is not finished

    @property
    def by_key(self) -> dict[str, TableEntry]:
        """The entries by the keys of their candidates."""
        return {entry.key: entry for entry in self.entries}

    @property
    def is_timed(self) -> bool:
        """Whether it says of every entry how many seconds an epoch took."""
        return all(entry.seconds is not None for entry in self.entries)


Score = Annotated[float, Field(ge=0, le=1)]


class _FileEntry(BaseModel):
    """A `TableEntry` as it stands in a file."""

    architecture: str
    learning_rate: Annotated[float, Field(gt=0)] | None
    key: str
    params: Annotated[int, Field(ge=0)]
    macs: Annotated[int, Field(ge=0)]
    epochs: tuple[tuple[Score, Score], ...]
    seconds: Annotated[float, Field(gt=0)] | None = None


class _TableFile(BaseModel):
    """The values in a table's file."""

    format: Literal[1]
    study: str
    channels: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=1)]
    versions: dict[str, str]
    entries: tuple[_FileEntry, ...]
    architectures: int | None = None  # of the space; not in tables of earlier versions


def enumerate_space(study: Study, channels: int, classes: int) -> Iterator[Candidate]:
    """Every proposal of the study's space once. Raises StudyError if a choice is a range of real
    numbers.
    """
    import optuna

    study = _with_grid(study)
    declared = Group.parse(study.symmetry.group)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from studies.samplers.factory import Enumeration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = Enumeration(seed=0)
    trials = optuna.create_study(sampler=sampler)
    seen: set[str] = set()
    while not sampler.exhausted:
        trial = trials.ask()
        proposal = study.space.sample(trial, channels=channels, classes=classes, declared=declared)
        trials.tell(trial, 0.0)
        if proposal.key not in seen:
            seen.add(proposal.key)
            yield proposal


def _with_grid(study: Study) -> Study:
    """The study, checked to have nothing but finite choices."""
    try:
        return parse(dump(study), name="the recorded study", overrides={"search.sampler": "grid"})
    except StudyError as error:
        raise StudyError(f"only a finite space can be recorded: {error}") from None


def record(
    study: Study,
    path: Path,
    *,
    channels: int,
    classes: int,
    workers: int | None = None,
    on_entry: Callable[[int, int, TableEntry], None] = lambda done, total, entry: None,
) -> RecordedTable:
    """Trains every architecture of the space on the workers of a search (`workers` at a time, or
    as the study's `resources` say) and writes the table; entries that `path` already holds are
    kept.

    The file is written anew after each training. A killed or interrupted recording goes on where
    it ended: trainings that were under way lie in a folder beside the table, which workers must
    see. Raises StudyError if `path` holds the table of another study, and LockedError while
    another process records to it.
    """
    require_table_file(path)
    used = study.resources if workers is None else _with_workers(study.resources, workers)
    with closing(StudyLock(path.parent, f".{path.name}.lock", path)):
        return _record(study, path, channels, classes, used, on_entry)


def require_table_file(path: Path) -> None:
    """Raises StudyError where no table can be written to `path`, before anything is read for it."""
    if not path.parent.is_dir():
        raise StudyError(f"{path.parent} is not a folder; create it, or give another file")
    if path.is_dir():
        raise StudyError(f"{path} is a folder, and a table is a file; give the name of a file")
    require_writable_place(path.parent)


def _with_workers(resources: Resources, workers: int) -> Resources:
    return resources.model_copy(update={"workers": workers})


def _record(
    study: Study,
    path: Path,
    channels: int,
    classes: int,
    resources: Resources,
    on_entry: Callable[[int, int, TableEntry], None],
) -> RecordedTable:
    from studies.journal.directory import versions
    from studies.workers.corners import with_corners

    if path.exists():
        study = with_stored_corners(study, read_table(path).study)
    study = with_corners(study)
    candidates = {c.key: c for c in enumerate_space(study, channels, classes)}
    entries = _recorded_before(study, path)
    missing = [candidate for key, candidate in candidates.items() if key not in entries]

    def table() -> RecordedTable:
        recorded = tuple(entries[key] for key in candidates if key in entries)
        return RecordedTable(study, channels, classes, versions(), recorded, len(candidates))

    def keep(candidate: Candidate, rows: list[dict[str, Any]]) -> None:
        entry = _entry_of(candidate, rows)
        entries[entry.key] = entry
        written = table()
        write_table(written, path)
        on_entry(len(written.entries), len(candidates), entry)

    running = study.model_copy(update={"resources": resources})
    train_missing(running, missing, path.with_name(f".{path.name}.trainings"), keep)
    # nothing was missing, but the study's search or space is described anew
    if path.exists() and read_table(path) != table():
        write_table(table(), path)
    return table()


def _recorded_before(study: Study, path: Path) -> dict[str, TableEntry]:
    """The entries of an earlier recording in `path`, by key. Raises StudyError if they are of
    another study.
    """
    if not path.exists():
        return {}
    before = read_table(path)
    if _trained_by(before.study) != _trained_by(study):
        raise StudyError(
            f"{path} holds a table of another study (data, training or symmetry differ); "
            "give another file"
        )
    return before.by_key


def _trained_by(study: Study) -> tuple[Settings, ...]:
    """The sections that decide what a training gives."""
    corners = {"corners": study.symmetry.filling}
    return study.data, study.training, study.symmetry.model_copy(update=corners)


def _entry_of(candidate: Candidate, rows: list[dict[str, Any]]) -> TableEntry:
    """The entry of a candidate whose scores after each epoch are `rows`."""
    return TableEntry(
        str(candidate.with_learning_rate(None)),
        candidate.recipe.learning_rate,
        candidate.key,
        rows[-1]["params"],
        rows[-1]["macs"],
        tuple((round(row["accuracy"], 5), round(row["symmetry_accuracy"], 5)) for row in rows),
        float(f"{rows[-1]['seconds'] / len(rows):.3g}"),  # of all epochs and the last scoring
    )


def write_table(table: RecordedTable, path: Path) -> None:
    """Writes the table as gzipped JSON, in one move. Raises StudyError where it cannot be written;
    what was there before stays.
    """
    content = {
        "format": TABLE_FORMAT,
        "study": dump(table.study),
        "channels": table.channels,
        "classes": table.classes,
        "versions": table.versions,
        "entries": [asdict(entry) for entry in table.entries],
        "architectures": table.total,
    }
    packed = gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0)
    try:
        write_whole(path, packed)
    except OSError as error:
        raise StudyError(
            f"the table could not be written to {path}: {error.strerror or error}; what it held "
            "before is kept: "
            "make room, then the same command goes on"
        ) from error


def read_table(path: Path) -> RecordedTable:
    """The table in a file, whole or as far as a recording got. Raises StudyError if there is none,
    for another format, and where a value is missing or odd.
    """
    command = f"`equisearch record STUDY {as_word(path)}`"
    if path.exists() and not path.is_file():
        raise StudyError(f"{path} is not a file, and so not a recorded table; give another file")
    try:
        with gzip.open(path) as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise StudyError(f"there is no table '{path}'; {command} makes one") from None
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(
            f"{path} is not a recorded table ({error}); give another file, or delete it and "
            f"{command} makes one"
        ) from None
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")
        content = json.loads(text)
        number = content.get("format") if isinstance(content, dict) else None
        if isinstance(number, int) and number != TABLE_FORMAT:
            raise StudyError(
                f"{path} has format {number}, and this version reads {TABLE_FORMAT}; "
                "record it again"
            )
        return _table(_TableFile.model_validate(content, strict=False), str(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, StudyFileError):
            raise
        raise StudyError(
            f"{path} is not a recorded table ({_first_fault(error)}); give another file, or "
            f"delete it and {command} makes one"
        ) from None


def _table(content: _TableFile, name: str) -> RecordedTable:
    """The table of a file's values. Raises ValueError where they contradict each other."""
    study = with_stored_corners(parse(content.study, name=name))
    for entry in content.entries:
        if len(entry.epochs) != study.training.epochs:
            raise ValueError(
                f"{entry.architecture} has scores of {counted(len(entry.epochs), 'epoch')}, "
                "and the study "
                f"trains {study.training.epochs}"
            )
    total = len(content.entries) if content.architectures is None else content.architectures
    entries = tuple(TableEntry(**dict(entry)) for entry in content.entries)
    return RecordedTable(study, content.channels, content.classes, content.versions, entries, total)


def _first_fault(error: Exception) -> str:
    """What is wrong, in one line."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
