"""Every whole record of a damaged journal: those before the damage, behind it, and on one line with
it.

The number of a trial is its place among the records that create trials, so a lost one of those
shifts all that follow; records that name a trial which was not created yet show where.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchspace.geometry import counted
from studies.errors import DamagedError, JournalWarning
from studies.journal.reader import JOURNAL, read_lines, read_trials
from studies.journal.records import (
    CREATE_STUDY,
    CREATE_TRIAL,
    OF_TRIALS,
    SET_STATE,
    Entry,
    copied_lines,
    is_record,
)
from studies.journal.trial import TrialRecord
from trainers.files import as_word

BEGINNING = re.compile(r'\{\s*"op_code"\s*:')
CREATE_BYTES = 60  # a record that creates a trial has at least as many
# in place of a record that created a trial and is lost
LOST_TRIAL: Entry = {
    "op_code": CREATE_TRIAL,
    "worker_id": "repair",
    "study_id": 0,
    "datetime_start": None,
    "state": 4,
    "user_attrs": {},
}


@dataclass(frozen=True)
class Salvage:
    """The whole records of a journal, in order, and what was wrong with it."""

    entries: tuple[Entry, ...]
    # one sentence each; empty for a journal without damage
    damage: tuple[str, ...]


@dataclass
class _Gap:
    """A place where bytes were passed over."""

    position: int  # among the entries
    lost: str

    @property
    def most(self) -> int:
        """How many trials can have been created by what was lost."""
        return max(1, len(self.lost) // CREATE_BYTES)


@dataclass
class _Reading:
    entries: list[Entry] = field(default_factory=list)
    gaps: list[_Gap] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def salvage(content: bytes) -> Salvage:
    """What can be saved of a journal's bytes: every record, where the journal is whole."""
    reading = _Reading()
    lines = content.split(b"\n")
    tail = lines.pop()
    numbers = list(range(1, len(lines) + 1))
    while copied := copied_lines(lines):
        created = f'"op_code":{CREATE_TRIAL},'.encode()
        copies = [line.replace(b" ", b"") for line in lines[copied.start : copied.stop]]
        trials = sum(created in line for line in copies)
        reading.damage.append(_twice(trials))
        del lines[copied.start : copied.stop], numbers[copied.start : copied.stop]
    for number, line in zip(numbers, lines):
        _read_line(reading, number, line)
    if tail:
        _read_line(reading, content.count(b"\n") + 1, tail)
        reading.damage.append("the last line has no end")
    return _placed(reading)


def _twice(trials: int) -> str:
    return f"the study stands in it more than once, with copies of {counted(trials, 'trial')}"


def read_what_is_whole(directory: Path, *, parameters: bool = False) -> list[TrialRecord]:
    """Every trial of the study in `directory`, as far as whole records of this version tell: for
    commands that only look. A JournalWarning says what is left out.
    """
    try:
        return read_trials(directory, parameters=parameters, lenient=True)
    except DamagedError:
        saved = salvage((directory / JOURNAL).read_bytes())
    said = "; ".join(saved.damage[:1]) or "records contradict each other"
    more = f" and {len(saved.damage) - 1} more" if len(saved.damage) > 1 else ""
    warnings.warn(
        f"{directory / JOURNAL}: {said}{more}; left out here. If a newer version wrote "
        f"it, use that one; else `equisearch repair {as_word(directory)}` removes it and keeps "
        "a copy",
        JournalWarning,
        stacklevel=2,
    )
    lines = [json.dumps(entry, separators=(",", ":")).encode() for entry in saved.entries]
    return read_lines(lines, parameters=parameters, lenient=True)[1]


def _read_line(reading: _Reading, number: int, line: bytes) -> None:
    """Takes in the records of one line, and notes what else stands in it."""
    entry = _decoded(line)
    if is_record(entry):
        reading.entries.append(entry)
        return
    if isinstance(entry, dict) and "op_code" in entry:
        reading.damage.append(f"line {number} is not a record of this version: {line[:60]!r}")
        if entry["op_code"] == CREATE_TRIAL and entry.get("study_id", 0) == 0:
            reading.entries.append(dict(LOST_TRIAL))  # numbers of later trials count it
        return
    text, count, end = line.decode("utf-8", "surrogateescape"), 0, 0
    for start, stop, record in _records(text):
        _pass_over(reading, text[end:start])
        reading.entries.append(record)
        count, end = count + 1, stop
    _pass_over(reading, text[end:])
    reading.damage.append(
        f"line {number} is damaged ({count} whole records in it)"
        if text.strip()
        else f"line {number} is blank"
    )


def _pass_over(reading: _Reading, lost: str) -> None:
    if lost.strip():
        reading.gaps.append(_Gap(len(reading.entries), lost))


def _records(text: str) -> Iterator[tuple[int, int, Entry]]:
    """(start, end, record) of each whole record within a line."""
    decoder, end = json.JSONDecoder(), 0
    for match in BEGINNING.finditer(text):
        start = match.start()
        if start < end:
            continue  # inside another record
        try:
            entry, stop = decoder.raw_decode(text, start)
            text[start:stop].encode()  # not the bytes that are no UTF-8
        except (ValueError, RecursionError):
            continue
        if is_record(entry):
            yield start, stop, entry
            end = stop


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line.decode())  # bytes would be taken in UTF-16 too, or after a mark
    except (ValueError, RecursionError):
        return None


class _Copies:
    """Tells the records of a copy of the journal that stands behind it, as after a backup was
    appended in place of restored.
    """

    def __init__(self) -> None:
        self._first: Counter[str] = Counter()
        self._again: Counter[str] | None = None  # of the present copy
        self.trials = 0  # that were created again

    def repeats(self, entry: Entry) -> bool:
        """Whether the record creates what an earlier copy has created."""
        code, text = entry["op_code"], json.dumps(entry, sort_keys=True)
        if code == CREATE_STUDY:
            seen, self._first[text] = self._first[text], 1
            self._again = Counter() if seen else self._again
            return bool(seen)
        if code != CREATE_TRIAL:
            return False
        if self._again is not None and self._again[text] < self._first[text]:
            self._again[text] += 1
            self.trials += 1
            return True
        self._first[text] += 1
        return False


def _placed(reading: _Reading) -> Salvage:
    """The entries with a placeholder for each trial whose creation was lost, and without records of
    trials that never were.
    """
    entries: list[Entry] = []
    damage = list(reading.damage)
    created, unknown, lost, objectives, other = 0, 0, 0, 0, 0
    gaps: list[_Gap] = []  # those passed so far, by their place in `entries`
    waiting, copies = list(reading.gaps), _Copies()
    for index, entry in enumerate(reading.entries):
        while waiting and waiting[0].position <= index:
            gaps.append(_Gap(len(entries), waiting.pop(0).lost))
        code = entry["op_code"]
        if copies.repeats(entry):
            continue
        if code == CREATE_STUDY:
            objectives = objectives or len(entry["directions"])
        elif code == SET_STATE and objectives and len(entry["values"] or ()) not in (0, objectives):
            other += 1
            continue
        if code == CREATE_TRIAL:
            created += 1
        elif code in OF_TRIALS and entry["trial_id"] >= created:
            missing = entry["trial_id"] - created + 1
            if missing > sum(gap.most for gap in gaps) - lost:
                unknown += 1
                continue
            place = _place_of(gaps)
            entries[place:place] = [dict(LOST_TRIAL) for _ in range(missing)]
            for gap in gaps:
                gap.position += missing if gap.position > place else 0
            created, lost = created + missing, lost + missing
        entries.append(entry)
    if copies.trials:
        damage.append(_twice(copies.trials))
    if lost:
        damage.append(f"the beginning of {counted(lost, 'trial')} was lost")
    if unknown:
        damage.append(
            f"trials that the journal does not hold are named by {counted(unknown, 'record')}"
        )
    if other:
        damage.append(
            f"another number of objectives than {objectives}: in {counted(other, 'record')}"
        )
    return Salvage(tuple(entries), tuple(damage))


def _place_of(gaps: list[_Gap]) -> int:
    """Where a lost creation most likely stood: at the last gap that shows one, else at the last."""
    creations = [gap for gap in gaps if '"op_code":4' in gap.lost.replace(" ", "")]
    return (creations or gaps)[-1].position
