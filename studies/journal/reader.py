"""What a study's journal says, read without optuna: `optuna.journal` is the single truth about
trials.

The file has one JSON object per line, in optuna's `JournalStorage` format, which optuna and
optuna-dashboard read as well. Reading it here takes no import of optuna, and attributes (most of
the 37 MB of 10,000 trials) are parsed for the trials that are asked for theirs, so that a command
that only looks starts at once.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies.errors import DamagedError
from studies.journal.records import (
    CREATE_STUDY,
    CREATE_TRIAL,
    SET_PARAM,
    SET_STATE,
    SET_STUDY_ATTRIBUTE,
    SET_TRIAL_ATTRIBUTE,
    copied_lines,
    is_record,
)
from studies.journal.trial import ENDED, JournalAttributes, State, TrialRecord
from trainers.files import as_word, write_whole

JOURNAL = "optuna.journal"

# optuna's codes of trial states, part of its file format
OPTUNA_STATES: dict[int, State] = {
    0: "running",
    1: "complete",
    2: "pruned",
    3: "failed",
    4: "waiting",
}
# parameters, and optuna's own notes: more than half of all lines
PREFIXES = (b'{"op_code":5,', b'{"op_code":9,')
# the study's attribute with the numbers of trials that were scored on other data
SUPERSEDED = "superseded"
ATTRIBUTE, TRIAL = b'{"op_code":8,', b'"trial_id":'
NOTHING = b"\n"  # begins no line


def read_trials(
    directory: str | os.PathLike[str], *, parameters: bool = False, lenient: bool = False
) -> list[TrialRecord]:
    """Every trial of the study in `directory`, in the order of their numbers.

    A torn last line is skipped. Raises FileNotFoundError without a journal, DamagedError for a
    line that is not a record of this version (`equisearch repair` removes it). With `lenient`,
    lines that set attributes are left out where they are not.
    """
    return read_journal(directory, parameters=parameters, lenient=lenient)[1]


def read_journal(
    directory: str | os.PathLike[str], *, parameters: bool = False, lenient: bool = False
) -> tuple[dict[str, Any], list[TrialRecord]]:
    """The study's attributes (channels, classes, ...) and its trials; see `read_trials`."""
    path = Path(directory) / JOURNAL
    # what follows the last newline is torn
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return read_lines(lines, parameters=parameters, lenient=lenient)
    except DamagedError as error:
        raise DamagedError(
            f"{path}: {error}; if a newer version wrote it, use that one, else `equisearch repair "
            f"{as_word(directory)}` keeps the other records"
        ) from None


def read_lines(
    lines: Sequence[bytes], *, parameters: bool = False, lenient: bool = False
) -> tuple[dict[str, Any], list[TrialRecord]]:
    """What the lines of a journal say, without their newlines; see `read_journal`."""
    if copied := copied_lines(lines):
        raise DamagedError(
            f"line {copied.start + 1} begins the journal a second time, as where a copy was "
            "appended to it"
        )
    collecting = gc.isenabled()
    # nothing of what is read is garbage; a third of the time otherwise (10,000 trials, Python 3.11)
    gc.disable()
    try:
        return _replay(lines, parameters, lenient)
    except (IndexError, KeyError, TypeError, ValueError, StopIteration) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(
            "a record names a trial that the journal does not hold, or a value that no trial can "
            f"have ({error!r})"
        ) from None
    finally:
        if collecting:
            gc.enable()


def begins(directory: str | os.PathLike[str]) -> bool:
    """Whether the first record of the journal creates the study: trials before it would be counted
    otherwise by optuna than here.
    """
    with (Path(directory) / JOURNAL).open("rb") as file:
        first = file.readline()
    return _is_record(first) and json.loads(first)["op_code"] == CREATE_STUDY


def study_attributes(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The study's attributes alone; lines that are not records are skipped."""
    attributes: dict[str, Any] = {}
    for line in (Path(directory) / JOURNAL).read_bytes().split(b"\n"):
        # another program may write spaces, or keys in another order
        if b'"user_attr"' in line and b'"trial_id"' not in line and _is_record(line):
            attributes.update(json.loads(line)["user_attr"])
    return attributes


def _replay(
    lines: Sequence[bytes], parameters: bool, lenient: bool
) -> tuple[dict[str, Any], list[TrialRecord]]:
    study: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    done, objectives = 0, 0
    lines, entries = _entries(lines, parameters)
    # how lines begin that set attributes of the last trial, and who takes them
    same, append = NOTHING, [].append
    for line in lines:
        if line.startswith(same):
            append(line)
            continue
        if line.startswith(ATTRIBUTE):
            number, same = _trial_of(line)
            trial = trials[_index(number)]
            append = (trial["lines"] if trial["order"] is None else []).append
            append(line)
            continue
        entry, same = next(entries), NOTHING
        operation = entry["op_code"]
        if operation == CREATE_TRIAL:
            trials.append(_created(line, entry, parameters))
            if trials[-1]["state"] in ENDED:
                trials[-1]["order"], done = done, done + 1
        elif operation == CREATE_STUDY:
            objectives = objectives or len(entry["directions"])
        elif operation == SET_STUDY_ATTRIBUTE:
            study.update(entry["user_attr"])
        elif operation in (SET_PARAM, SET_STATE, SET_TRIAL_ATTRIBUTE):
            trial = trials[entry["trial_id"]]
            if trial["order"] is not None:
                continue  # as optuna does: a finished trial never changes
            if operation == SET_TRIAL_ATTRIBUTE:  # written with spaces, by another program
                trial["lines"].append(line)
                continue
            _apply(trial, entry, operation, objectives)
            if trial["state"] in ENDED:
                trial["order"], done = done, done + 1
    superseded = frozenset(study.get(SUPERSEDED, ()))
    records = [_record(number, trial, lenient) for number, trial in enumerate(trials)]
    return study, [
        replace(record, state="earlier")
        if record.number in superseded and record.state in ENDED
        else record
        for record in records
    ]


def _entries(
    lines: Sequence[bytes], parameters: bool
) -> tuple[list[bytes], Iterator[dict[str, Any]]]:
    """The lines that matter, and what those say that set no attributes."""
    skipped = PREFIXES[1:] if parameters else PREFIXES
    wanted = [line for line in lines if not line.startswith(skipped)]
    try:
        # one call: half the time of a call per line
        entries = json.loads(
            b"[" + b",".join([line for line in wanted if not line.startswith(ATTRIBUTE)]) + b"]"
        )
        if all(map(is_record, entries)):
            return wanted, iter(entries)
    except (ValueError, RecursionError):
        pass
    number, line = next((n, line) for n, line in enumerate(lines, start=1) if not _is_record(line))
    what = "is not a record of this version" if b'"op_code"' in line else "is damaged"
    raise DamagedError(f"line {number} {what}: {line[:60]!r}")


def _index(number: int) -> int:
    if number < 0:
        raise IndexError(f"trial {number}")
    return number


def _trial_of(line: bytes) -> tuple[int, bytes]:
    """The trial of a line that sets an attribute, and how others of the same trial begin."""
    start = line.find(TRIAL) + len(TRIAL)
    end = line.find(b",", start)
    try:
        return int(line[start:end]), line[: end + 1]
    except ValueError:
        return json.loads(line)["trial_id"], NOTHING


def _created(line: bytes, entry: dict[str, Any], parameters: bool) -> dict[str, Any]:
    # of a trial that was made whole
    distributions = entry.get("distributions") or {} if parameters else {}
    return {
        "state": OPTUNA_STATES[entry.get("state", 0)],
        "values": entry.get("values"),
        "lines": [line] if entry.get("user_attrs") else [],
        "order": None,
        "started": entry.get("datetime_start"),
        "finished": entry.get("datetime_complete"),
        "parameters": {
            name: _external(entry["params"][name], json.loads(text))
            for name, text in distributions.items()
        },
    }


def _apply(trial: dict[str, Any], entry: dict[str, Any], operation: int, objectives: int) -> None:
    if operation == SET_PARAM:
        trial["parameters"][entry["param_name"]] = _external(
            entry["param_value_internal"], json.loads(entry["distribution"])
        )
    else:
        if objectives and len(entry["values"] or ()) not in (0, objectives):
            raise ValueError(f"{len(entry['values'])} values of {objectives} objectives")
        trial["state"] = OPTUNA_STATES[entry["state"]]
        trial["values"] = entry["values"] or trial["values"]
        trial["started"] = entry.get("datetime_start", trial["started"])
        trial["finished"] = entry.get("datetime_complete")


def _external(value: float, distribution: dict[str, Any]) -> Any:
    if distribution["name"] == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if distribution["name"] == "IntDistribution" else value


def _record(number: int, trial: dict[str, Any], lenient: bool) -> TrialRecord:
    state = trial["state"]
    if state in ENDED:
        # texts in it hold no quotation marks that are not escaped
        set_by_it = b"".join(trial["lines"])
        state = (
            "refused"
            if b'"refused"' in set_by_it
            else "earlier"
            if b'"warm_start"' in set_by_it
            else state
        )
    values = tuple(trial["values"]) if trial["values"] else None
    return TrialRecord(
        number,
        state,
        values,
        JournalAttributes(number, trial["lines"], lenient=lenient),
        trial["order"],
        trial["started"],
        trial["finished"],
        trial["parameters"],
    )


def drop_torn_line(directory: str | os.PathLike[str]) -> Path | None:
    """Cuts a torn last line off the journal, and returns the file that keeps a copy of it; None if
    nothing is torn.

    A line is torn if the newline is missing or it is not JSON: the machine stopped while it was
    written, so it was never acted upon. Only the holder of the study's lock may call this.
    """
    path = Path(directory) / JOURNAL
    if not path.exists() or path.stat().st_size == 0:
        return None
    with path.open("r+b") as file:
        content = file.read()
        body, newline, tail = content.rpartition(b"\n")
        start = len(body) + len(newline)
        if not tail:
            start = body.rfind(b"\n") + 1
            tail = content[start:]
            if _is_whole(tail):
                return None
        copy = path.with_name(f"{JOURNAL}.torn-{start}")
        write_whole(copy, tail)
        file.truncate(start)
        os.fsync(file.fileno())
    return copy


def _is_whole(line: bytes) -> bool:
    """Whether the line was written to its end, by this version or another."""
    try:
        return "op_code" in json.loads(line.decode())
    except (ValueError, TypeError, RecursionError):
        return False


def _is_record(line: bytes) -> bool:
    try:
        return is_record(json.loads(line.decode()))
    except (ValueError, RecursionError):
        return False
