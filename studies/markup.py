"""HTML in which every text is escaped, since nothing else can go into it; tables and figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from studies.output import Column
from studies.terminal import plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Html(str):
    """Text that is HTML already: made by `html` and `joined_html`, or by a library that escapes."""


def html(template: str, *values: Any) -> Html:
    """The template, a literal of the program, with `{}` for each value; a value that is not `Html`
    is escaped.
    """
    return Html(
        template.format(
            *(
                value if isinstance(value, Html) else Html(escape(plain_text(value)))
                for value in values
            )
        )
    )


def joined_html(parts: Iterable[Any], between: str = "\n") -> Html:
    """The parts one after the other; those that are not `Html` are escaped."""
    return Html(between.join(html("{}", part) for part in parts))


def table_html(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> Html:
    """A table; cells of right-aligned columns have the class `right`."""

    def row(tag: str, texts: Sequence[str]) -> Html:
        right = html("<{0} class=right>", tag), html("<{0}>", tag)
        return html(
            "<tr>{}</tr>",
            joined_html(
                (
                    html("{}{}</{}>", right[not c.right], text, tag)
                    for c, text in zip(columns, texts)
                ),
                "",
            ),
        )

    return html(
        "<table>\n{}\n</table>",
        joined_html(
            [row("th", [column.title for column in columns]), *(row("td", line) for line in cells)]
        ),
    )


def svg_html(figure: Figure) -> Html:
    """The figure as an element of a page; matplotlib escapes the texts in it."""
    import matplotlib

    # text stays text; equal figures are equal
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "equisearch"}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return Html(text[text.index("<svg") :])
