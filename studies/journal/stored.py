"""The study file of a directory for reading alone: values that this version refuses, and an earlier
one accepted, do not hide the trials that were run with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from studies.config import Study
from studies.errors import StudyFileError
from studies.journal.definition import as_stored
from studies.journal.directory import STUDY, read_study
from studies.yaml_loader import YamlError, read_yaml

# what no version accepted: it stays an error
NEVER = ("missing", "extra_forbidden", "literal_error", "model_type", "model_attributes_type")


class _Stored(Study):
    """A study without the rules that look at several sections."""

    @model_validator(mode="after")
    def _measured(self) -> _Stored:
        return self

    @model_validator(mode="after")
    def _enumerable(self) -> _Stored:
        return self


def read_stored(directory: str | Path) -> Study:
    """The study of a directory, for reading what it did: a value that is refused today is as it
    stands in the file where it is a number, a text or a list of those, else the default.

    Raises StudyError if there is no study, and for a file that no version accepted.
    """
    try:
        return read_study(directory, reading=True)
    except StudyFileError:
        text = (Path(directory) / STUDY).read_text(encoding="utf-8", errors="replace")
        study = as_an_earlier_version(text)
        if study is None:
            raise
        return as_stored(study)


def as_an_earlier_version(text: str) -> Study | None:
    """The study in the text of a file; None where it has what no version accepted."""
    try:
        content = read_yaml(text)
    except YamlError:
        return None
    return leniently(content) if isinstance(content, dict) else None


def leniently(content: Mapping[str, Any]) -> Study | None:
    """The study in `content`, with values that this version refuses; None where one was never
    accepted.
    """
    content = copy.deepcopy(dict(content))
    refused: list[tuple[tuple[str, ...], Any]] = []
    while True:
        try:
            study: Study = _Stored.model_validate(content, context={"reading": True})
            break
        except ValidationError as error:
            places = {_place(content, problem["loc"]) for problem in error.errors()}
            if () in places or any(problem["type"] in NEVER for problem in error.errors()):
                return None
        # the longest first: a section is taken out behind its keys
        for place in sorted(places, key=len, reverse=True):
            section = content if len(place) == 1 else content[place[0]]
            refused.append((place, section.pop(place[-1])))
    for place, value in reversed(refused):
        study = _with(study, place, value)
    return study


def _place(content: Mapping[str, Any], loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys, two at most, of what an error is about; empty where it is about no key."""
    place: list[str] = []
    inside: Any = content
    for part in loc[:2]:
        if not isinstance(inside, dict) or part not in inside:
            break
        place.append(str(part))
        inside = inside[part]
    return tuple(place)


def _with(model: Any, place: tuple[str, ...], value: Any) -> Any:
    """The model with a plain value at that place; a mapping gives its plain values to the section
    there.
    """
    name, *rest = place
    inner = getattr(model, name, None)
    if rest and isinstance(inner, BaseModel):
        value = _with(inner, tuple(rest), value)
    elif isinstance(value, dict) and isinstance(inner, BaseModel):
        for key in [key for key in value if key in type(inner).model_fields]:
            inner = _with(inner, (key,), value[key])
        value = inner
    elif isinstance(value, list) and all(type(v) in (int, float, str) for v in value):
        value = tuple(value)
    elif type(value) not in (int, float, str):
        return model
    return model.model_copy(update={name: value})
