"""Texts that become no markup, in Markdown."""

from __future__ import annotations

import re
import unicodedata
from typing import Any


def text_of(value: Any) -> str:
    """The value as Markdown that shows it as it is, in one line: no markup, HTML or end of a
    table's cell is taken from it.
    """
    return re.sub(r"([\\`*\[\]<>|&!#])", r"\\\1", line_of(value))


def code_of(value: Any) -> str:
    """The value as a code span, outside of tables; in it backslashes escape nothing, so it gets a
    fence that it does not hold.
    """
    line = line_of(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def line_of(value: Any) -> str:
    """Without control characters, and without breaks of lines."""
    return "".join(
        " " if c.isspace() else c
        for c in str(value)
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
