"""Tables as text: one layout for all that is printed and does not have to fit a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column of a table: its title, and whether numbers are aligned right."""

    title: str
    right: bool = False


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], rule: str = "─"
) -> list[str]:
    """The titles, a rule, and the rows, as wide as their cells are on a terminal."""
    from rich.cells import cell_len

    titles = [column.title for column in columns]
    widths = [max(map(cell_len, cells)) for cells in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for column, cell, width in zip(columns, cells, widths, strict=True):
            gap = " " * (width - cell_len(cell))
            padded.append(gap + cell if column.right else cell + gap)
        return " " + "   ".join(padded).rstrip()

    return [line(titles), " " + rule * (sum(widths) + 3 * len(widths) - 3), *map(line, rows)]
