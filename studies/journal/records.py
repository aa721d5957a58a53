"""What a record of the journal must hold for this version: Optuna's operations, and the attributes
of ours whose meaning is fixed. Whatever another program or a newer version adds is left alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

Entry = dict[str, Any]
ValueTest = Callable[[Any], bool]

# optuna's codes of operations, part of its file format
CREATE_STUDY, SET_STUDY_ATTRIBUTE = 0, 2
CREATE_TRIAL, SET_PARAM, SET_STATE, SET_TRIAL_ATTRIBUTE = 4, 5, 6, 8
OPERATION_CODES = range(10)  # all of them
OF_STUDIES = (1, SET_STUDY_ATTRIBUTE, 3, CREATE_TRIAL)
# of a record that concerns one trial: parameters, states, intermediate values, attributes
OF_TRIALS = (SET_PARAM, SET_STATE, 7, SET_TRIAL_ATTRIBUTE, 9)
STATE_CODES = range(5)
RUNNING, COMPLETE, WAITING = 0, 1, 4
DISTRIBUTIONS = ("FloatDistribution", "IntDistribution")  # and CategoricalDistribution


def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _or_null(test: ValueTest) -> ValueTest:
    return lambda value: value is None or test(value)


def _list_of(test: ValueTest) -> ValueTest:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


def _time(value: Any) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except (ValueError, TypeError):
        return False


def _rung(value: Any) -> bool:
    """Scores at a rung, those that are compared as numbers."""
    scores = value.get("scores") if isinstance(value, dict) else None
    if not isinstance(scores, dict) or not isinstance(value.get("decision"), str):
        return False
    return all(_number(scores[name]) for name in JOURNAL_SCORES if scores.get(name) is not None)


def _data(value: Any) -> bool:
    """What tells the images: `studies.journal.origin.DataIdentity.as_dict`."""
    return (
        isinstance(value, dict)
        and _text(value.get("fingerprint"))
        and _mapping(value.get("images"))
        and _list_of(_text)(value.get("classes"))
    )


JOURNAL_SCORES = (
    "epoch",
    "accuracy",
    "symmetry_accuracy",
    "symmetry_accuracy_worst",
    "equivariance_error",
    "latency",
    "seconds",
)
RUNG = "rung "  # and an epoch: the attribute with the scores and the decision at that epoch
OF_STUDY: Mapping[str, ValueTest] = {
    "channels": _whole,
    "classes": _whole,
    "objectives": _list_of(_text),
    "study": _mapping,
    "data": _data,
    "symmetry_accuracy": _text,
    "superseded": _list_of(_whole),
}
OF_TRIAL: Mapping[str, ValueTest] = {
    "architecture": _text,
    "canonical": _text,
    "seed": _whole,
    "learning_rate": _or_null(_number),
    "params": _whole,
    "macs": _whole,
    "exact": lambda value: isinstance(value, bool),
    "surviving": _list_of(_text),
    "constraints": _numbers,
    "attempts": _mapping,
    "batch_divisor": _whole,
    "continues": _or_null(_whole),
    "inherited_from": _or_null(_whole),
    "inherited_epoch": _whole,
    "trial_kind": _text,
    "of": _whole,
    "role": _text,
    "reason": _text,
    "enqueued": _text,
}


def wrong_attributes(
    attributes: Mapping[str, Any], known: Mapping[str, ValueTest] = OF_TRIAL
) -> list[str]:
    """The names of attributes of a trial (or of the study, with `OF_STUDY`) whose values this
    version cannot read.
    """
    wrong = [name for name, value in attributes.items() if name in known and not known[name](value)]
    rungs = [name for name in attributes if name.startswith(RUNG)] if known is OF_TRIAL else []
    return wrong + [
        name
        for name in rungs
        if not name.removeprefix(RUNG).isdecimal() or not _rung(attributes[name])
    ]


def is_record(entry: Any) -> bool:
    """Whether this is a record that a journal of this version can hold, and that Optuna reads."""
    if not isinstance(entry, dict) or type(entry.get("op_code")) is not int:
        return False
    code = entry["op_code"]
    if code not in OPERATION_CODES:
        return False
    if code in OF_TRIALS and not (_whole(entry.get("trial_id")) and entry["trial_id"] >= 0):
        return False
    if code in OF_STUDIES and entry.get("study_id", 0) != 0:
        return False  # a journal of ours holds one study
    return CHECKS[code](entry)


def _is_study(entry: Entry) -> bool:
    return _text(entry.get("study_name")) and _list_of(_whole)(entry.get("directions"))


def _is_creation(entry: Entry) -> bool:
    state, parameters = entry.get("state", RUNNING), entry.get("params") or {}
    distributions = entry.get("distributions") or {}
    attributes = entry.get("user_attrs") or {}
    return (
        state in STATE_CODES
        and _or_null(_time)(entry.get("datetime_start"))
        and ("datetime_complete" not in entry or _time(entry["datetime_complete"]))
        and _or_null(_list_of(_number))(entry.get("values"))
        and all(map(_mapping, (parameters, distributions, attributes)))
        and set(distributions) <= set(parameters)
        and all(_is_value(parameters[name], text) for name, text in distributions.items())
        and not wrong_attributes(attributes)
    )


def _is_parameter(entry: Entry) -> bool:
    return _text(entry.get("param_name")) and _is_value(
        entry.get("param_value_internal"), entry.get("distribution")
    )


def _is_value(value: Any, text: Any) -> bool:
    """Whether `value` is one of the distribution in `text`, as Optuna writes both."""
    try:
        distribution = json.loads(text)
        name, given = distribution["name"], distribution["attributes"]
        if name == "CategoricalDistribution":
            return _number(value) and 0 <= value < len(given["choices"])
        return _number(value) and name in DISTRIBUTIONS and isinstance(given, dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_state(entry: Entry) -> bool:
    state, values = entry.get("state"), entry.get("values", 0)
    if type(state) is not int or state not in STATE_CODES:
        return False
    if not _or_null(_list_of(_number))(values) or (state == COMPLETE and not values):
        return False
    if state == WAITING:
        return True
    return _time(entry.get("datetime_start" if state == RUNNING else "datetime_complete"))


def _has_mapping(name: str, known: Mapping[str, ValueTest] = {}) -> Callable[[Entry], bool]:
    def test(entry: Entry) -> bool:
        return isinstance(entry.get(name), dict) and not wrong_attributes(entry[name], known)

    return test


CHECKS: Mapping[int, Callable[[Entry], bool]] = {
    CREATE_STUDY: _is_study,
    1: lambda entry: False,  # deletes the study
    SET_STUDY_ATTRIBUTE: _has_mapping("user_attr", OF_STUDY),
    3: _has_mapping("system_attr"),
    CREATE_TRIAL: _is_creation,
    SET_PARAM: _is_parameter,
    SET_STATE: _is_state,
    7: lambda entry: "step" in entry and "intermediate_value" in entry,
    SET_TRIAL_ATTRIBUTE: _has_mapping("user_attr", OF_TRIAL),
    9: _has_mapping("system_attr"),
}


def copied_lines(lines: Sequence[bytes]) -> range:
    """The lines that say again what the journal begins with, as where a copy was appended to it;
    empty for a journal that begins once. Each process names itself in what it writes, so that two
    equal first records are one record twice.
    """
    if not lines or b'"op_code":0' not in lines[0].replace(b" ", b""):
        return range(0)
    try:
        start = lines.index(lines[0], 1)
    except ValueError:
        return range(0)
    most = min(start, len(lines) - start)
    same = next((k for k in range(most) if lines[start + k] != lines[k]), most)
    return range(start, start + same) if same > 1 else range(0)
