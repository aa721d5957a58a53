"""A recorded table: every architecture of a finite space trained to the end, with its scores after
each epoch.

With it a search can be replayed in milliseconds a trial, with many seeds, and two ways of searching
can be compared on real trainings (`studies.replays.replay`). `equisearch record` makes one.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study, dump, parse
from studies.errors import StudyError
from trainers.files import write_whole

FORMAT = 1
MOST_BYTES = 256 << 20  # of an unpacked table: 10,000 trainings of 100 epochs take 50 MB
SCORES = ("accuracy", "symmetry_accuracy")


@dataclass(frozen=True)
class Entry:
    """One architecture and what each epoch gave."""

    architecture: str
    learning_rate: float | None
    # `Candidate.key`: what proposals are recognised by
    key: str
    params: int
    macs: int
    epochs: tuple[tuple[float, float], ...]  # (accuracy, symmetry accuracy) after each epoch


@dataclass(frozen=True)
class Table:
    """Every entry of a space, and the study that they were recorded under."""

    study: Study
    channels: int
    classes: int
    versions: dict[str, str]
    entries: tuple[Entry, ...]

    @property
    def by_key(self) -> dict[str, Entry]:
        """The entries by what proposals are recognised by."""
        return {entry.key: entry for entry in self.entries}


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


@dataclass(frozen=True)
class _Job:
    study: Study
    proposal: Candidate


def _record_one(job: _Job) -> list[dict[str, Any]]:
    """The scores after each epoch of one training."""
    from studies.workers.processes import prepare_process
    from trainers.training.train import train

    prepare_process(job.study)
    config = job.study.training_config(job.study.search.seed, job.proposal.recipe)
    with tempfile.TemporaryDirectory() as folder:
        return [
            train(job.proposal.architecture, config, Path(folder), epoch).as_dict()
            for epoch in range(1, job.study.training.epochs + 1)
        ]


def record(
    study: Study,
    path: Path,
    *,
    channels: int,
    classes: int,
    workers: int,
    on_entry: Callable[[int, int, Entry], None] = lambda done, total, entry: None,
) -> Table:
    """Trains every architecture of the space and writes the table; entries that `path` already
    holds are kept.

    The file is written anew after each training, so that a killed or interrupted recording goes on
    where it ended. Raises StudyError if `path` holds the table of another study.
    """
    from studies.journal.directory import versions
    from studies.workers.processes import run_each

    proposals = list(enumerate_space(study, channels, classes))
    known: dict[str, Entry] = {}
    if path.exists():
        old = read_table(path)
        if (old.study.data, old.study.training, old.study.symmetry) != (
            study.data,
            study.training,
            study.symmetry,
        ):
            raise StudyError(
                f"{path} holds a table of another study (data, training or symmetry differ); "
                "give another file"
            )
        known = old.by_key
    missing = [proposal for proposal in proposals if proposal.key not in known]
    order = [proposal.key for proposal in proposals]

    def table() -> Table:
        return Table(
            study, channels, classes, versions(), tuple(known[key] for key in order if key in known)
        )

    def keep(index: int, rows: list[dict[str, Any]]) -> None:
        proposal = missing[index]
        entry = Entry(
            str(proposal.with_learning_rate(None)),
            proposal.recipe.learning_rate,
            proposal.key,
            rows[-1]["params"],
            rows[-1]["macs"],
            tuple((round(row["accuracy"], 5), round(row["symmetry_accuracy"], 5)) for row in rows),
        )
        known[entry.key] = entry
        write_table(table(), path)
        on_entry(sum(key in known for key in order), len(order), entry)

    run_each(_record_one, [_Job(study, proposal) for proposal in missing], workers, keep)
    # nothing was missing, but the study's search or space is described anew
    if path.exists() and read_table(path) != table():
        write_table(table(), path)
    return table()


def write_table(table: Table, path: Path) -> None:
    """Writes the table as gzipped JSON, in one move. Raises StudyError where it cannot be written;
    what was there before stays.
    """
    content = {
        "format": FORMAT,
        "study": dump(table.study),
        "channels": table.channels,
        "classes": table.classes,
        "versions": table.versions,
        "entries": [asdict(entry) for entry in table.entries],
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


def read_table(path: Path) -> Table:
    """The table in a file. Raises StudyError for a file that does not hold one, one of another
    format, and one of more than `MOST_BYTES`.
    """
    try:
        with gzip.open(path) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise StudyError(
                f"{path} unpacks to more than {MOST_BYTES >> 20} MB, which a recorded table does "
                "not; record it again"
            )
        content = json.loads(text)
        number = content["format"]
    except FileNotFoundError:
        raise StudyError(
            f"there is no table '{path}'; `equisearch record STUDY {path}` makes one"
        ) from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error):
        raise StudyError(
            f"{path} is no recorded table; `equisearch record STUDY FILE` makes one"
        ) from None
    if number != FORMAT:
        raise StudyError(
            f"{path} has format {number}, and this version reads {FORMAT}; record it again"
        )
    entries = tuple(
        Entry(**{**entry, "epochs": tuple(map(tuple, entry["epochs"]))})
        for entry in content["entries"]
    )
    return Table(
        parse(content["study"], name=str(path)),
        content["channels"],
        content["classes"],
        content["versions"],
        entries,
    )
