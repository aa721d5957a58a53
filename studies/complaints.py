"""What is wrong with a study file, in sentences: file, line, key, what was given, what may be."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ValidationError

from searchspace.geometry import counted
from studies.yaml_loader import line_of

# how pydantic names the members of a union that are no models
MEMBER = re.compile(r"(literal|dict|list|tuple|constrained|function)\b.*[\[-]")
VALUE_CHARACTERS = 80  # characters of a wrong value


def explain(
    error: ValidationError,
    study: type[BaseModel],
    text: str,
    name: str,
    overridden: Sequence[str] = (),
) -> str:
    """One line per mistake in a `study`: file, line, key, what was given and what is allowed; keys
    that were set over the file have no line in it.
    """
    lines = {}
    problems = error.errors(include_url=False)
    for problem in problems:
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(
            other["loc"][: len(loc)] == loc != other["loc"] for other in problems
        ):  # pydantic drops wrong items, then misses them
            continue
        path = _keys(study, loc)
        if problem["type"] == "literal_error" and any(
            _keys(study, other["loc"])[: len(path)] == path != _keys(study, other["loc"])
            for other in problems
        ):  # of a word or a mapping, where a mapping was given and one of its values is wrong
            continue
        if problem["type"] == "extra_forbidden":  # it may look like no key
            path = (*_keys(study, loc[:-1]), loc[-1])
        lines.setdefault(place_of(path, text, name, overridden), _complaint(study, problem, path))
    return "\n".join(visible(f"{place}: {complaint}") for place, complaint in lines.items())


def visible(text: str) -> str:
    """The text on one line, with characters that cannot be seen written as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def place_of(
    path: Sequence[int | str], text: str, name: str, overridden: Sequence[str] = ()
) -> str:
    """Where a key stands: file, line and key."""
    key, line = ".".join(map(str, path)), line_of(text, tuple(path))
    if any(f"{key}.".startswith(f"{given}.") for given in overridden):
        return f"{key}, set over {name}"
    return f"{name}{f', line {line}' if line else ''}" + (f", {key}" if key else "")


def booleans(study: type[BaseModel], content: Any) -> list[tuple[int | str, ...]]:
    """The keys in `content` that hold true or false where a number or text belongs, which pydantic
    would read as 1 and 0.
    """
    paths: list[tuple[int | str, ...]] = []
    _find_booleans(study, content, (), paths)
    return paths


def _find_booleans(
    model: Any, value: Any, path: tuple[int | str, ...], paths: list[tuple[int | str, ...]]
) -> None:
    if isinstance(value, bool):
        if model is not Any and not {bool, Any} & set(_members(model)):
            paths.append(path)
    elif isinstance(value, dict):
        fields = _fields(model)
        for key, inner in value.items():
            if fields is None:
                _find_booleans(_inner(model), inner, (*path, key), paths)
            elif key in fields:
                _find_booleans(fields[key].annotation, inner, (*path, key), paths)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _find_booleans(_inner(model), inner, (*path, index), paths)


def _keys(study: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The path of keys in the file: pydantic also names the members of unions and validators, which
    are no keys.
    """
    keys: list[int | str] = []
    model: Any = study
    for part in loc:
        fields = _fields(model)
        if (
            fields is not None
            and part not in fields
            and (re.search(r"[\[\]()\-]", str(part)) or part in _member_names(model))
        ):
            continue
        if fields is None and isinstance(part, str):
            of_union = len(_members(model)) > 1 and MEMBER.match(part)
            if of_union or not _is_mapping(model):
                continue
        keys.append(part)
        model = fields[part].annotation if fields and part in fields else _inner(model)
    return tuple(keys)


def _members(model: Any) -> list[Any]:
    """The types inside unions and annotations, flattened."""
    if typing.get_origin(model) is Annotated:
        return _members(typing.get_args(model)[0])
    if typing.get_origin(model) in (Union, type(int | str)):
        return [member for argument in typing.get_args(model) for member in _members(argument)]
    return [model]


def _models(model: Any) -> list[type[BaseModel]]:
    return [m for m in _members(model) if isinstance(m, type) and issubclass(m, BaseModel)]


def _member_names(model: Any) -> set[str]:
    return {m.__name__ for m in _models(model)}


def _fields(model: Any) -> dict[str, Any] | None:
    models = _models(model)
    return (
        {name: field for m in models for name, field in m.model_fields.items()} if models else None
    )


def _is_mapping(model: Any) -> bool:
    return any(m is dict or typing.get_origin(m) is dict for m in _members(model))


def _inner(model: Any) -> Any:
    """The type of the members of a list, tuple or mapping."""
    for member in _members(model):
        arguments = [a for a in typing.get_args(member) if a is not Ellipsis]
        if arguments and typing.get_origin(member) is not Literal:
            return arguments[-1]
    return Any


def _complaint(
    study: type[BaseModel], problem: Mapping[str, Any], path: tuple[int | str, ...]
) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        allowed = list(_allowed(study, path[:-1]))
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        return (
            f"unknown key '{path[-1]}'"
            + (f" (did you mean '{close[0]}'?)" if close else "")
            + f"; allowed are {', '.join(allowed)}"
        )
    if kind == "missing":
        return "this key is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return message
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        keys = ", ".join(_allowed(study, path))
        message = f"input should be a mapping{f' with {keys}' if keys else ''}"
    if kind in ("tuple_type", "list_type"):
        message = "input should be a list, in square brackets"
    if kind == "too_short":
        message = f"a list must hold at least {counted(problem['ctx']['min_length'], 'value')}"
    if kind == "literal_error" and _is_mapping(_type_at(study, path)):
        message += ", or a mapping"
    text = (
        _shortened("null" if value is None else repr(value))
        if not isinstance(value, (dict, list))
        else f"a {'mapping' if isinstance(value, dict) else 'list'}"
    )
    return f"got {text}; {message[0].lower()}{message[1:]}"


def _shortened(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}..."


def _allowed(study: type[BaseModel], path: tuple[int | str, ...]) -> tuple[str, ...]:
    return tuple(_fields(_type_at(study, path)) or ())


def _type_at(study: type[BaseModel], path: tuple[int | str, ...]) -> Any:
    model: Any = study
    for part in path:
        fields = _fields(model)
        model = fields[part].annotation if fields and part in fields else _inner(model)
    return model
