"""What a study's journal says, read without optuna: `optuna.journal` is the single truth about trials.

The file has one JSON object per line, in optuna's `JournalStorage` format, which optuna and optuna-dashboard read as well. Reading
it here takes 0.8 s for 10,000 trials (37 MB) and no import of optuna, so that a command that only looks starts at once.
"""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from studies.errors import DamagedError

JOURNAL = "optuna.journal"
State = Literal["running", "waiting", "complete", "pruned", "failed", "refused", "earlier"]

# optuna's codes of operations and of trial states, part of its file format
CREATE_TRIAL, SET_PARAM, SET_STATE, SET_TRIAL_ATTRIBUTE = 4, 5, 6, 8
SET_STUDY_ATTRIBUTE = 2
STATES: dict[int, State] = {0: "running", 1: "complete", 2: "pruned", 3: "failed", 4: "waiting"}
PREFIXES = (b'{"op_code":5,', b'{"op_code":9,')     # parameters, and optuna's own notes: more than half of all lines
FINISHED = ("complete", "pruned", "failed", "refused")


@dataclass(frozen=True)
class Record:
    """One trial as the journal knows it."""

    number: int
    state: State                        # refused: proposed but not trained (cannot fit, or a repeat); earlier: of a warm start
    values: tuple[float, ...] | None    # the objectives of a complete trial, in the study's order
    attributes: dict[str, Any]          # architecture, params, macs, exact, surviving, seed, "rung 2", ...
    order: int | None                   # place among the finished trials, in the order of finishing
    started: str | None                 # ISO 8601, UTC
    finished: str | None
    parameters: dict[str, Any] = field(default_factory=dict)    # as sampled; only if asked for

    @property
    def architecture(self) -> str | None:
        """The text form of the architecture; None if the trial was interrupted before it was proposed."""
        return self.attributes.get("architecture")

    @property
    def reason(self) -> str | None:
        """Why the trial failed or was refused."""
        return self.attributes.get("reason")

    @cached_property
    def rungs(self) -> dict[int, dict[str, Any]]:
        """The scores at each epoch at which the trial was compared, ascending."""
        found = {int(key[5:]): value["scores"] for key, value in self.attributes.items() if key.startswith("rung ")}
        return dict(sorted(found.items()))

    @property
    def scores(self) -> dict[str, Any] | None:
        """The latest scores, or None before the first rung."""
        return self.rungs[max(self.rungs)] if self.rungs else None

    @property
    def feasible(self) -> bool:
        """True unless a constraint of the study is broken."""
        return all(excess <= 0 for excess in self.attributes.get("constraints", {}).values())


def read_trials(directory: str | os.PathLike[str], *, parameters: bool = False) -> list[Record]:
    """Every trial of the study in `directory`, in the order of their numbers.

    A torn last line is passed over. Raises FileNotFoundError without a journal, DamagedError for a line in the middle that
    is no JSON (`equisearch repair` cuts there).
    """
    return read_journal(directory, parameters=parameters)[1]


def read_journal(directory: str | os.PathLike[str], *, parameters: bool = False) -> tuple[dict[str, Any], list[Record]]:
    """The study's attributes (channels, classes, ...) and its trials; see `read_trials`."""
    collecting = gc.isenabled()
    gc.disable()        # nothing of what is read is garbage; a third of the time otherwise (10,000 trials, Python 3.11)
    try:
        return _replay(Path(directory) / JOURNAL, parameters)
    finally:
        if collecting:
            gc.enable()


def _replay(path: Path, parameters: bool) -> tuple[dict[str, Any], list[Record]]:
    study: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    done = 0
    for entry in _entries(path, parameters):
        operation = entry["op_code"]
        if operation == CREATE_TRIAL:
            trials.append(_created(entry))
            if trials[-1]["state"] in FINISHED:
                trials[-1]["order"], done = done, done + 1
        elif operation == SET_STUDY_ATTRIBUTE:
            study.update(entry["user_attr"])
        elif operation in (SET_PARAM, SET_STATE, SET_TRIAL_ATTRIBUTE):
            trial = trials[entry["trial_id"]]
            if trial["order"] is not None:
                continue                        # as optuna does: a finished trial never changes
            _apply(trial, entry, operation)
            if trial["state"] in FINISHED:
                trial["order"], done = done, done + 1
    return study, [_record(number, trial) for number, trial in enumerate(trials)]


def _entries(path: Path, parameters: bool) -> list[dict[str, Any]]:
    """The records that matter; what follows the last newline is torn, and passed over."""
    lines = path.read_bytes().split(b"\n")[:-1]
    skipped = PREFIXES[1:] if parameters else PREFIXES
    kept = [line for line in lines if not line.startswith(skipped)]
    try:
        entries = json.loads(b"[" + b",".join(kept) + b"]")     # one call: half the time of a call per line
        if all(isinstance(entry, dict) and "op_code" in entry for entry in entries):
            return entries
    except ValueError:
        pass
    number, line = next((n, line) for n, line in enumerate(lines, start=1) if not _is_record(line))
    raise DamagedError(f"{path}, line {number} is damaged: {line[:60]!r}; `equisearch repair` keeps what stands before it")


def _created(entry: dict[str, Any]) -> dict[str, Any]:
    return {"state": STATES[entry.get("state", 0)], "values": entry.get("values"), "attributes": dict(entry.get("user_attrs") or {}),
            "order": None, "started": entry.get("datetime_start"), "finished": entry.get("datetime_complete"), "parameters": {}}


def _apply(trial: dict[str, Any], entry: dict[str, Any], operation: int) -> None:
    if operation == SET_TRIAL_ATTRIBUTE:
        trial["attributes"].update(entry["user_attr"])
    elif operation == SET_PARAM:
        trial["parameters"][entry["param_name"]] = _external(entry["param_value_internal"], json.loads(entry["distribution"]))
    else:
        trial["state"] = STATES[entry["state"]]
        trial["values"] = entry["values"] or trial["values"]
        trial["started"] = entry.get("datetime_start", trial["started"])
        trial["finished"] = entry.get("datetime_complete")


def _external(value: float, distribution: dict[str, Any]) -> Any:
    if distribution["name"] == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if distribution["name"] == "IntDistribution" else value


def _record(number: int, trial: dict[str, Any]) -> Record:
    state = trial["state"]
    if state in FINISHED:
        state = "refused" if "refused" in trial["attributes"] else "earlier" if "warm_start" in trial["attributes"] else state
    values = tuple(trial["values"]) if trial["values"] else None
    return Record(number, state, values, trial["attributes"], trial["order"], trial["started"], trial["finished"], trial["parameters"])


def drop_torn_line(directory: str | os.PathLike[str]) -> Path | None:
    """Cuts a torn last line off the journal, and returns the file that keeps a copy of it; None if nothing is torn.

    A line is torn if the newline is missing or it is no JSON: the machine stopped while it was written, so it was never
    acted upon. Only the holder of the study's lock may call this.
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
            if _is_record(tail):
                return None
        copy = path.with_name(f"{JOURNAL}.torn-{start}")
        copy.write_bytes(tail)
        file.truncate(start)
        os.fsync(file.fileno())
    return copy


def _is_record(line: bytes) -> bool:
    try:
        return "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False
