"""Results to stdout as a table, JSON or CSV; progress and messages go to stderr."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeGuard

from studies.terminal import continued, encodable, is_terminal, lasting, one_line, styled
from trainers.text_table import Column, table_lines

PROSE_WIDTH = 100  # columns where no terminal says how many


class Format(str, Enum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def print_json(value: Any) -> None:
    """Prints `value` as JSON; keys stay in their order."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_value(value: dict[str, Any], form: Format, text: str) -> None:
    """Prints one result: `text` as a table, or `value` as JSON or as one row of CSV."""
    if form is Format.json:
        print_json(value)
    elif form is Format.csv:
        _print_csv([value])
    else:
        print(text)


def print_rows(
    rows: Sequence[dict[str, Any]],
    form: Format,
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    empty: str = "",
) -> None:
    """Prints `rows` as JSON or CSV, or `cells` under `columns` as a table; `empty` says why there
    are none, on stderr.
    """
    if form is Format.json:
        print_json(list(rows))
    elif form is Format.csv:
        _print_csv(rows)
    elif cells:
        print_table(columns, cells)
    if not rows and empty:
        note(empty)


def _print_csv(rows: Sequence[dict[str, Any]]) -> None:
    flat = [flattened(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def flattened(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The row with the values of inner mappings under dotted keys, and lists as one text."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            values.update(flattened(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = (
                " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            )
    return values


def print_table(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int | None = None
) -> None:
    """Prints a table that fits the terminal, with long cells on several lines, or into a pipe one
    with every row on one line; `width` columns if given.
    """
    rows = [[encodable(one_line(cell), sys.stdout) for cell in row] for row in cells]
    if width is None and not is_terminal(sys.stdout):
        styled(sys.stdout).write("\n".join(table_lines(columns, rows)) + "\n")
    else:
        _print_folded(columns, rows, width)


def _print_folded(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> None:
    """The same layout by rich, which folds cells and highlights titles."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=column.right,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    stream = styled(sys.stdout)
    console = Console(file=stream, width=width)
    with console.capture() as capture:
        console.print(table)
    stream.write("\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines()) + "\n")


def print_lines(lines: Sequence[str]) -> None:
    """Prints each text in a line of its own, whatever it holds."""
    print("\n".join(map(one_line, lines)))


def reading_width() -> int:
    """Columns for prose: COLUMNS, else those of the terminal on stdout, stderr or stdin, else 100;
    40 at least.
    """
    asked = os.environ.get("COLUMNS", "")
    if re.fullmatch("0*[1-9][0-9]{0,4}", asked):
        return max(40, int(asked))
    for descriptor in (1, 2, 0):
        try:
            return max(40, os.get_terminal_size(descriptor).columns or PROSE_WIDTH)
        except OSError:
            continue
    return PROSE_WIDTH


def note(message: str) -> None:
    """Prints a message for the person, not the program: to stderr. Raises nothing where that is
    gone.
    """
    stream = lasting(sys.stderr)
    stream.write(f"{continued(message)}\n")
    stream.flush()


def formatted(value: Any, form: str) -> str:
    """The number in a format such as `.3g`; anything else, from a file that was edited, is
    shown as it is.
    """
    return format(value, form) if is_number(value) else str(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, which True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def percent(share: float | None) -> str:
    """A share in 0..1 as per cent with two digits; `-` for None. Anything that is not a number is
    shown as it is.
    """
    return "-" if share is None else f"{100 * share:.2f}" if is_number(share) else str(share)


def short(number: float | None) -> str:
    """A count such as 24.7k or 26.0M; `-` for None; anything else is shown as it is."""
    if number is None or not is_number(number):
        return "-" if number is None else str(number)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:g}"
