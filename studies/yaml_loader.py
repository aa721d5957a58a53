"""YAML as a study file needs it: numbers such as 1e-3 are numbers and 1:30 is text, a key given
twice is an error, keys know their line, and no file makes the program work without limit.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.scanner import ScannerError

# of a study file: far more than the largest that makes sense
MOST_CHARACTERS, MOST_DEPTH, MOST_VALUES = 1_000_000, 40, 100_000
INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
TIMESTAMP = "tag:yaml.org,2002:timestamp"
# of YAML 1.1: no value of a study is one, and JSON, in which studies are kept, has none of them
REFUSED_TAGS = ("binary", "set", "omap", "pairs", "timestamp")
BASES = {"0x": 16, "0o": 8, "0b": 2}


class YamlError(ValueError):
    """What is wrong with a text, and in which line, counted from 1, if that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class _Numbers(yaml.resolver.Resolver):
    """Numbers as YAML 1.2 has them: 1e-3 and 25e3 are numbers (YAML 1.1 reads text, because it
    wants a dot and a signed exponent), 1:30 is text (90 there), 010 is ten (eight there), and
    2020-01-01 is text (a date there).
    """

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in (INT, FLOAT, TIMESTAMP)]
        for first, resolvers in yaml.resolver.Resolver.yaml_implicit_resolvers.items()
    }


_Numbers.add_implicit_resolver(
    INT,
    re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|\d[\d_]*)$", re.ASCII),
    list("-+0123456789"),
)
_Numbers.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"([-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        re.ASCII,
    ),
    list("-+.0123456789"),
)


class StudyLoader(_Numbers, yaml.SafeLoader):
    """PyYAML's safe loader with those numbers, without silently dropped duplicate keys."""

    def fetch_more_tokens(self) -> None:
        """Reads on. Raises ScannerError where brackets or indents are nested too deeply."""
        if max(self.flow_level, len(self.indents)) > MOST_DEPTH:
            raise ScannerError(
                None, None, f"values are nested more than {MOST_DEPTH} deep", self.get_mark()
            )
        super().fetch_more_tokens()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; raises ConstructorError for a key given twice (YAML's default
        keeps the last), and for one that is a list or a mapping.
        """
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word, not a list or a mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The whole number of a node."""
        text = str(node.value).replace("_", "").lower()
        sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
        base = BASES.get(digits[:2], 10)
        return sign * int(digits if base == 10 else digits[2:], base)

    def refuse(self, node: yaml.Node) -> None:
        """Raises ConstructorError for a value of `REFUSED_TAGS`."""
        name = str(node.tag).rpartition(":")[2]
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"a value is marked !!{name}; write text, a number or a list",
            node.start_mark,
        )


StudyLoader.add_constructor(INT, StudyLoader.construct_yaml_int)
for _name in REFUSED_TAGS:
    StudyLoader.add_constructor(f"tag:yaml.org,2002:{_name}", StudyLoader.refuse)


class _StudyDumper(_Numbers, yaml.SafeDumper):
    """Quotes what `StudyLoader` would read as a number."""


def read_yaml(text: str) -> Any:
    """The value of a text. Raises YamlError where it is not YAML, too large, or too
    deeply nested.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"it has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read")
    try:
        loader = StudyLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            f"character {error.position} is {chr(error.character)!r}, which YAML does not allow",
            line,
        ) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _values(node, 0, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise YamlError(
            str(getattr(error, "problem", None) or error), mark.line + 1 if mark else None
        ) from None
    except RecursionError:
        raise YamlError("values are nested too deeply") from None
    except (ValueError, TypeError, AttributeError) as error:  # a date such as 2020-13-45, !!int x
        raise error if isinstance(error, YamlError) else YamlError(str(error)) from None
    finally:
        loader.dispose()


def write_yaml(value: Any) -> str:
    """The text of a value, which `read_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_StudyDumper, sort_keys=False, allow_unicode=True, width=120)


def _values(node: yaml.Node, depth: int, counts: dict[int, int]) -> int:
    """How many values a node holds, those that aliases repeat included."""
    if depth > MOST_DEPTH:
        raise YamlError(f"values are nested more than {MOST_DEPTH} deep", node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counts:
        parts = [
            part
            for entry in node.value
            for part in (entry if isinstance(entry, tuple) else (entry,))
        ]
        counts[id(node)] = 1 + sum(_values(part, depth + 1, counts) for part in parts)
    if counts[id(node)] > MOST_VALUES:
        raise YamlError(
            f"with what its aliases repeat it holds more than {MOST_VALUES:,} values",
            node.start_mark.line + 1,
        )
    return counts[id(node)]


def line_of(text: str, path: tuple[int | str, ...]) -> int | None:
    """The line, counted from 1, of the key at `path`; of its nearest parent where the key is
    absent; None for the top.
    """
    node, line = yaml.compose(text, Loader=StudyLoader), None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            matching = [(key, value) for key, value in node.value if key.value == str(part)]
            if not matching:
                break
            key, node = matching[0]
            line = key.start_mark.line + 1
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
