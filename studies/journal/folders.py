"""What the folders of trials say, apart from the journal: enough to rebuild a trial that the
journal lost, and to see that a folder belongs to another trial than the journal's.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.files import open_whole, parse_json, read_whole, set_aside_odd, write_plain

TRIALS, ORPHANED = "trials", "orphaned"
TRIAL = "trial.json"  # what the driver gives to the worker
ARCHITECTURE_FILE = "architecture.txt"
SCORES_FILE = "scores.jsonl"  # at the epochs at which trials are compared
EPOCH_NOTE = re.compile("[0-9]{1,9}")
EPOCH = "epoch"  # the last one that was trained and saved
ERROR = "error.txt"  # why it failed
# of these a link in the place of the file is not written through
PLAIN_FILES = (TRIAL, ARCHITECTURE_FILE, EPOCH, ERROR)
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")
GIVEN = ("architecture", "learning_rate", "seed", "continues")
INHERITED = ("inherited_from", "inherited_epoch")  # given to trials with another's weights


@dataclass(frozen=True)
class TrialFolder:
    """One folder of a trial, as far as it can be read."""

    path: Path
    number: int
    # architecture, learning_rate, seed, continues, and what is inherited: those that are known
    given: Mapping[str, Any]
    scores: Mapping[int, dict[str, Any]]  # by epoch, ascending
    error: str | None  # the last line of what made the trial fail
    rate: float | None  # the learning rate that a checkpoint names
    epoch: int  # the last one that was noted; 0 for none

    @property
    def architecture(self) -> str | None:
        """The text form of the trained architecture; None if the folder does not tell."""
        return self.given.get("architecture")

    def belongs_to(self, attributes: Mapping[str, Any]) -> bool:
        """Whether nothing in the folder contradicts what a journal says of its trial."""
        return all(
            attributes[name] == value for name, value in self.given.items() if name in attributes
        )


def read_folders(directory: Path) -> dict[int, TrialFolder]:
    """The folders of a study's trials, by number."""
    if not (directory / TRIALS).is_dir():
        return {}
    folders = [
        read_folder(path)
        for path in sorted((directory / TRIALS).iterdir())
        if path.is_dir() and _is_number(path.name)
    ]
    return {folder.number: folder for folder in folders}


def _is_number(name: str) -> bool:
    """Whether it is how a trial's folder is called: 00017, not 17 or the name of a copy."""
    return name.isascii() and name.isdigit() and name == f"{int(name):05d}"


def read_folder(path: Path) -> TrialFolder:
    """What the folder says of its trial; what is damaged in it is left out."""
    trained = next(filter(None, (_of_checkpoint(path / name) for name in CHECKPOINTS)), {})
    rate = trained.pop("rate", None)
    error = [line for line in _text(path / ERROR).splitlines() if line.strip()]
    return TrialFolder(
        path,
        int(path.name),
        {**trained, **_given(path)},
        dict(sorted(_rows(_text(path / SCORES_FILE)), key=lambda row: row[0])),
        error[-1] if error else None,
        rate,
        int(noted) if EPOCH_NOTE.fullmatch(noted := _text(path / EPOCH).strip()) else 0,
    )


def write_given(path: Path, given: Mapping[str, Any]) -> None:
    """Writes down whose folder this is: `given` holds architecture (None: a model from outside),
    learning rate, seed, what the trial continues, and whose weights it inherits.
    """
    content = {name: given.get(name) for name in GIVEN}
    if given.get("beside") is not None:
        content["beside"] = given["beside"]
    if given.get("inherited_from") is not None:
        content |= {name: given[name] for name in INHERITED}
    if content["architecture"] is not None:
        write_plain(path / ARCHITECTURE_FILE, f"{content['architecture']}\n")
    write_plain(path / TRIAL, json.dumps(content) + "\n")


def set_aside_not_files(path: Path) -> list[str]:
    """Renames what lies in a trial's folder in the place of a file and is none, and returns the new
    names. Raises OSError.
    """
    moved = set_aside_odd(path, (SCORES_FILE, *CHECKPOINTS))
    moved += set_aside_odd(path, PLAIN_FILES, links=True)
    return [place.name for place in moved]


def move_aside(path: Path) -> Path:
    """Moves a trial's folder out of the way, to `orphaned/` of its study, and returns where it is
    now.
    """
    target = path.parent.parent / ORPHANED
    target.mkdir(exist_ok=True)
    place, copies = target / path.name, 1
    while os.path.lexists(place):
        copies += 1
        place = target / f"{path.name}-{copies}"
    os.rename(path, place)
    return place


def _given(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(_text(path / TRIAL))
        inherited = {name: content[name] for name in (*INHERITED, "beside") if name in content}
        return {name: content[name] for name in GIVEN} | inherited
    except (ValueError, KeyError, TypeError):
        pass  # of an older version, or damaged
    architecture = _text(path / ARCHITECTURE_FILE).strip()
    return {"architecture": architecture} if architecture else {}


def _of_checkpoint(path: Path) -> dict[str, Any]:
    """The architecture, seed and rate that a checkpoint names, without unpickling it."""
    try:
        with open_whole(path) as file, zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            content = archive.read(name).decode("utf-8", "replace")
        record, _ = json.JSONDecoder().raw_decode(content, content.index('{"architecture"'))
        return {
            "architecture": record["architecture"],
            "seed": record["seed"],
            "rate": record["learning_rate"],
        }
    except (OSError, ValueError, KeyError, StopIteration, zipfile.BadZipFile):
        return {}


def _rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in text.splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("epoch")) is int:
            yield row["epoch"], row


def _text(path: Path) -> str:
    try:
        return read_whole(path).decode(errors="replace")
    except OSError:
        return ""
