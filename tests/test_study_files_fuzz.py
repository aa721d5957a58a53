"""Any mapping of known keys to odd values is a study, or is refused in one message;
nothing hangs.
"""

from __future__ import annotations

import typing

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from studies.config import Study, dump, parse
from studies.errors import StudyFileError
from studies.yaml_loader import write_yaml

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 360, 2**31, 2**63, 10**30, 0.5, -0.1, 1e-320, 1e308]),
    st.sampled_from(
        ["", "auto", "none", "C4", "D4", "C0", "1:30", "90m", "x" * 300, "*", "\u202e"]
    ),
    st.sampled_from(
        ["max2/2", "10k3, 10k3 *", "28px: 4k3", "resize9/1", "../x", "a\x00b", "|", "@"]
    ),
    st.sampled_from([float("inf"), float("nan")]),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=True),
    st.text(max_size=8),
)
VALUES = st.one_of(
    ODD,
    st.lists(ODD, max_size=3),
    st.dictionaries(
        st.sampled_from(["low", "high", "log", "normal", "match", "to", "x"]), ODD, max_size=3
    ),
)


def keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of every key of a study file, sections included."""
    found = []
    for name, field in model.model_fields.items():
        path = (*prefix, name)
        found.append(path)
        for member in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(member, type) and issubclass(member, BaseModel):
                found += keys(member, path)
    return found


KEYS = keys(Study)


def nested(changes: dict[tuple[str, ...], object]) -> dict:
    """A small valid study file with values put in place of others."""
    content: dict = {"data": {"name": "digits"}, "space": {"backbone": "4k3, 4k3 *, 4k3"}}
    for path, value in changes.items():
        section = content
        for name in path[:-1]:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[path[-1]] = value
    return content


@settings(
    max_examples=150,
    deadline=4000,  # milliseconds for one study file: far more than any takes
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4))
def test_odd_values_are_a_study_or_one_message(changes):
    text = write_yaml(nested(changes))
    try:
        study = parse(text, name="odd.yaml")
    except StudyFileError as error:
        lines = str(error).splitlines()
        assert lines and all(line.startswith("odd.yaml") for line in lines), error
        assert max(map(len, lines)) < 2000
        return
    assert parse(dump(study)) == study


@settings(
    max_examples=150, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    st.lists(
        st.sampled_from(
            [
                "data: ",
                "{name: digits}",
                "\n",
                "search: ",
                "[",
                "]",
                "{",
                "}",
                "? ",
                ": ",
                "- ",
                "&a ",
                "*a",
                "!!python/object:os.system ",
                "!!int ",
                "!!binary ",
                "<<: ",
                "|",
                ">",
                "'",
                '"',
                "#",
                "%YAML 9.9\n",
                "---\n",
                "...\n",
                "\t",
                "\x07",
                "\ufeff",
                "1e999",
                "2020-13-45",
                "~",
            ]
        ),
        max_size=25,
    )
)
def test_any_text_is_a_study_or_one_message(pieces):
    try:
        parse("".join(pieces), name="odd.yaml")
    except StudyFileError as error:
        assert str(error).startswith("odd.yaml")
