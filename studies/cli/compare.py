"""The command `compare`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from studies.cli.app import LOOK_PANEL, app
from studies.cli.options import Directory, FormatOption, number_of_trial, trial_named
from studies.output import Format, note, print_json, print_lines, print_rows, print_table


def _trial(name: str, help: str) -> typer.models.ArgumentInfo:
    return typer.Argument(
        metavar=name, help=help, show_default=False, parser=trial_named, callback=number_of_trial
    )


First = Annotated[int | None, _trial("A", "A trial's number, knee, or an objective.")]
Second = Annotated[int | None, _trial("B", "Another trial, named likewise.")]


@app.command(rich_help_panel=LOOK_PANEL)
def compare(
    directory: Directory,
    first: First = None,
    second: Second = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="All pairs of trials that differ in one thing, summarised."),
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="The front's best against its controls.")
    ] = False,
    format: FormatOption = Format.table,
) -> None:
    """Compares two trials of the study in DIR: choices, scores with the difference's interval, what
    is exact, costs; or pairs that differ in one thing; or the winner and its controls.
    """
    if pairs + controls + (first is not None) != 1 or (first is None) != (second is None):
        raise typer.BadParameter("name two trials, or give either --pairs or --controls")
    if first is not None and first == second:
        raise typer.BadParameter(f"A and B are both {first}; name two different trials")
    if first is not None and second is not None:
        return _two(directory, first, second, format)
    from studies.evidence.intervals import Evidence
    from studies.results import compare as comparing
    from studies.results import tables

    opened = (*tables.open_records(directory, reading=True), Evidence.of(directory))
    if pairs:
        return _pairs(comparing.pair_rows(*opened), format)
    said, columns, cells = comparing.control_rows(*opened)
    if format is Format.json:
        return print_json(said)
    empty = "no controls yet: `equisearch resume DIR --set controls=auto` trains them"
    print_rows(said["controls"], format, columns, cells, empty)
    if text := comparing.control_text(said):
        note(text)
    return None


def _pairs(found: tuple[list[dict[str, Any]], list[Any], list[list[str]]], format: Format) -> None:
    rows, columns, cells = found
    empty = (
        "no two trials differ in one thing alone; `equisearch resume DIR --pairs N` trains partners"
    )
    print_rows(rows, format, columns, cells, empty)
    if rows:
        note(
            "mean differences, first minus second, in percentage points with 95 % intervals; "
            "fewer than three pairs say little"
        )


def _two(directory: Directory, first: int, second: int, format: Format) -> None:
    from studies.results import compare as comparing

    value = comparing.compare(directory, first, second)
    if format is Format.json:
        return print_json(value)
    columns, cells = comparing.compare_cells(value)
    if format is Format.csv:
        rows = [dict(zip([c.title or "what" for c in columns], row)) for row in cells]
        return print_rows(rows, format, columns, cells)
    print_lines(comparing.compare_lines(value))
    print_table(columns, cells)
    return None
