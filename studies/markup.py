"""HTML in which every text is escaped, since nothing else can be put into it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from studies.terminal import plain


class Html(str):
    """Text that is HTML already: made by `html` and `joined`, or by a library that escapes."""


def html(template: str, *values: Any) -> Html:
    """The template, a literal of the program, with `{}` for each value; values that are no `Html`
    are escaped.
    """
    return Html(
        template.format(
            *(value if isinstance(value, Html) else Html(escape(plain(value))) for value in values)
        )
    )


def joined(parts: Iterable[Any], between: str = "\n") -> Html:
    """The parts one after the other; those that are no `Html` are escaped."""
    return Html(between.join(html("{}", part) for part in parts))
