"""Conditions on trials, as `--where` takes them: `params < 50k and exact`. A language of its own,
which calls nothing and evaluates no Python.

    >>> condition = Condition.parse("accuracy >= 95% and not (family == plain or params > 50k)")
    >>> condition({"accuracy": 0.96, "family": "steerable", "params": 24_000})
    True

Comparisons (`<`, `<=`, `>`, `>=`, `==` or `=`, `!=`, `~` for "contains") are joined by `and`, `or`,
`not` and brackets; a column by itself is true where its value is. Numbers may end in %, k, M or G;
text stands in quotes, or bare where it is not a column. A comparison with a value that is not there
is false.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from studies.output import is_number

TrialRow = Mapping[str, Any]
RowTest = Callable[[TrialRow], bool]
Compare = Callable[[Any, Any], bool]
ColumnKind = Literal["number", "text", "flag", "either"]  # of a column's values
TOKEN_PATTERN = re.compile(
    r"""\s*(?:
    (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?P<unit>[%kMG](?![\w.]))?
    |(?P<quoted>"[^"]*"|'[^']*')
    |(?P<word>[A-Za-z_][\w.]*)
    |(?P<symbol><=|>=|==|!=|<|>|=|~|\(|\))
    )""",
    re.VERBOSE,
)
UNIT_FACTORS = {"%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9}
ORDERED: dict[str, Compare] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
MOST_DEPTH = 50  # of brackets and `not`


class ConditionError(ValueError):
    """The text is not a condition."""


@dataclass(frozen=True)
class _Token:
    kind: str  # number | quoted | word | symbol | end
    text: str
    value: Any
    start: int


@dataclass(frozen=True)
class Condition:
    """A condition on the columns of a trial."""

    text: str
    columns: tuple[tuple[str, int], ...]  # that it names, and where in the text
    _test: RowTest
    _compared: tuple[tuple[str, str, Any], ...]  # column, sign, and what it is compared with

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition that `text` says. Raises ConditionError that shows the place in error."""
        parser = _Parser(text, _tokens(text))
        test = parser.disjunction(0)
        rest = parser.peek
        if rest.kind != "end":
            raise parser.error(f"'{rest.text}' follows a complete condition; join them by and, or")
        return cls(text, tuple(parser.columns), test, tuple(parser.compared))

    def __call__(self, row: TrialRow) -> bool:
        """Whether a row meets the condition."""
        return self._test(row)

    def require(
        self,
        known: Sequence[str],
        shares: Sequence[str] = (),
        kinds: Mapping[str, ColumnKind] | None = None,
    ) -> Condition:
        """The condition itself. Raises ConditionError for a column that is not among those
        `known`, for one of `shares` that is compared with a number above 1, and for a comparison
        that no value of the column's kind can meet.
        """
        for name, start in self.columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                raise ConditionError(
                    f"{_shown(self.text, start)}: there is no column '{name}'"
                    + (f"; similar ones are {', '.join(near)}" if near else "")
                    + f"; columns are {', '.join(known)}"
                )
        for name, sign, value in self._compared:
            if name in shares and is_number(value) and abs(value) > 1:
                raise ConditionError(
                    f"{self.text}: {name} is a share from 0 to 1, and is compared with "
                    f"{value:g}; write {value / 100:g} or {value:g}%"
                )
            if why := _senseless((kinds or {}).get(name, "either"), name, sign, value):
                raise ConditionError(f"{self.text}: {why}")
        return self


def _senseless(kind: ColumnKind, name: str, sign: str, value: Any) -> str:
    """Why no value of that kind can be compared so; empty where it can."""
    given = f"{value:g}" if is_number(value) else str(value)
    if kind == "flag" and (sign not in ("=", "==", "!=") or not isinstance(value, bool)):
        return f"{name} is true or false; write {name}, not {name} or {name} == true"
    if kind == "number" and (sign == "~" or not is_number(value)):
        return f"{name} is a number, which cannot be compared by {sign} with '{given}'"
    if kind == "text" and (sign in ORDERED or not isinstance(value, str)):
        return (
            f"{name} is text, which cannot be compared by {sign} with {given}; write "
            f"{name} == TEXT, {name} != TEXT or {name} ~ PART"
        )
    return ""


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    while text[place:].strip():
        match = TOKEN_PATTERN.match(text, place)
        if match is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            raise ConditionError(
                f"{_shown(text, start)}: '{text[start]}' means nothing here; a condition is such "
                "as params < 50k and exact"
            )
        kind = match.lastgroup if match.lastgroup != "unit" else "number"
        assert kind is not None
        word, value = match[kind], match[kind]
        if kind == "number":
            value = float(match["number"]) * UNIT_FACTORS.get(match["unit"] or "", 1)
            word += match["unit"] or ""
        elif kind == "quoted":
            value = word[1:-1]
        tokens.append(_Token(kind, word, value, match.start(kind)))
        place = match.end()
    return [*tokens, _Token("end", "the end", None, len(text))]


def _shown(text: str, start: int) -> str:
    return f"{text[:start]}>>>{text[start:]}"


class _Parser:
    """Recursive descent over the tokens of a condition."""

    def __init__(self, text: str, tokens: Sequence[_Token]) -> None:
        self._text, self._tokens, self._place = text, tokens, 0
        self.columns: list[tuple[str, int]] = []
        self.compared: list[tuple[str, str, Any]] = []

    @property
    def peek(self) -> _Token:
        return self._tokens[self._place]

    def error(self, why: str) -> ConditionError:
        return ConditionError(f"{_shown(self._text, self.peek.start)}: {why}")

    def _take(self, *words: str) -> bool:
        token = self.peek
        if token.kind in ("word", "symbol") and token.text in words:
            self._place += 1
            return True
        return False

    def disjunction(self, depth: int) -> RowTest:
        return self._joined(self._conjunction, "or", any, depth)

    def _conjunction(self, depth: int) -> RowTest:
        return self._joined(self._negation, "and", all, depth)

    def _joined(
        self, part: Callable[[int], RowTest], word: str, join: Callable[..., bool], depth: int
    ) -> RowTest:
        parts = [part(depth)]
        while self._take(word):
            parts.append(part(depth))
        return parts[0] if len(parts) == 1 else lambda row: join(test(row) for test in parts)

    def _negation(self, depth: int) -> RowTest:
        if depth > MOST_DEPTH:
            raise self.error(f"brackets are nested more than {MOST_DEPTH} deep; write less")
        if self._take("not"):
            inner = self._negation(depth + 1)
            return lambda row: not inner(row)
        if self._take("("):
            inner = self.disjunction(depth + 1)
            if not self._take(")"):
                raise self.error("a bracket is not closed; write ) here")
            return inner
        return self._comparison()

    def _comparison(self) -> RowTest:
        token = self.peek
        if token.kind != "word" or token.text in ("and", "or", "true", "false"):
            raise self.error(f"a column must stand here, such as params; got {token.text}")
        name = token.text
        self.columns.append((name, token.start))
        self._place += 1
        sign = self.peek.text
        if self.peek.kind != "symbol" or not self._take(*ORDERED, "==", "=", "!=", "~"):
            return lambda row: bool(row.get(name))
        return self._against(name, sign, self._value())

    def _value(self) -> Any:
        token = self.peek
        if token.kind not in ("number", "quoted", "word"):
            raise self.error(f"a number or text must stand here; got {token.text}")
        self._place += 1
        if token.kind == "word" and token.text in ("true", "false"):
            return token.text == "true"
        return token.value

    def _against(self, name: str, sign: str, value: Any) -> RowTest:
        self.compared.append((name, sign, value))
        if sign in ORDERED:
            if not is_number(value):
                self._place -= 1
                raise self.error(f"{sign} compares numbers; got the text {value}")
            compare = ORDERED[sign]

            def ordered(row: TrialRow) -> bool:
                mine = row.get(name)
                return is_number(mine) and compare(mine, value)

            return ordered
        if sign == "~":
            return lambda row: str(value) in str(row.get(name) or "")
        if sign == "!=":
            return lambda row: row.get(name) is not None and not _equal(row[name], value)
        return lambda row: row.get(name) is not None and _equal(row[name], value)


def _equal(mine: Any, value: Any) -> bool:
    if isinstance(value, bool) or isinstance(mine, bool) or is_number(mine):
        return mine == value
    return str(mine) == (f"{value:g}" if is_number(value) else str(value))
