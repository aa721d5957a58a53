"""YAML as a study file needs it: numbers such as 1e-3 are numbers, a key given twice is an error,
keys know their line.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class StudyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2 floats and without silently dropped duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; raises ConstructorError for a key given twice (YAML's default
        keeps the last).
        """
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 (PyYAML) reads 1e-3 and 25e3 as text, because it wants a dot and a signed exponent.
StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def line_of(text: str, path: tuple[int | str, ...]) -> int | None:
    """The line, counted from 1, of the key at `path`; of its nearest parent where the key is
    absent; None for the top.
    """
    node, line = yaml.compose(text, Loader=StudyLoader), None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            key, node = found[0]
            line = key.start_mark.line + 1
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
