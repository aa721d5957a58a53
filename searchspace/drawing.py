"""A verdict drawn for the terminal and as HTML: sizes along the network, where the grid shifts, and
which elements are left after each stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from searchspace.architecture import Architecture
from searchspace.exactness import AXES, Verdict, places, shift_text, verdict
from searchspace.function.coordinates import kept_elements
from searchspace.geometry import size_text
from searchspace.grammar import format_stage
from searchspace.groups import TRIVIAL, Element, isomorphic_name, largest_subgroup
from searchspace.layers import Layer

LONGEST_BAR = 16  # cells of the longest bar
MOST_LABEL = 34  # cells of a stage's text
BAR_CHARACTER = {True: "#", False: "█"}
FOLD = {True: ":", False: "⋮"}
SHIFT_MARK = {True: "!", False: "✗"}
RULE = {True: "-", False: "─"}
# of the drawing in HTML, pixels
TALLEST, COLUMN, MARGIN = 110, 58, 6
# fill of a stage's bar: all elements of the group survive in it, some do, only the identity does
FILLS = {"all": "#3f8f5f", "some": "#d9a441", "none": "#9aa0a6"}


class _Row(NamedTuple):
    stage: str
    group: str
    text: str
    size: tuple[int, int]
    notes: tuple[str, ...]  # shifted windows
    left: str
    survives: str = "none"  # a key of FILLS

    def like(self, other: _Row) -> bool:
        return self[1:] == other[1:]


def draw_verdict(verdict: Verdict, width: int = 88, ascii_only: bool = False) -> str:
    """`verdict` as lines of at most `width` cells (80 or more), without a final newline.
    `ascii_only`: no box characters.

    One line per stage, with the output size as a bar; below it, the windows that lie shifted. Equal
    neighbours are folded. Raises ValueError for a width below 80.
    """
    if width < 80:
        raise ValueError(f"a drawing of {width} cells is too narrow; it needs at least 80")
    rows = _folded(list(_rows(verdict)))
    label = min(max(len(row.text) for row in rows), MOST_LABEL)
    column = max(5, *(len(row.group) for row in rows))
    longest = max(max(row.size) for row in rows)
    sizes = LONGEST_BAR + 9
    lines = [
        f"{'stage':>6}  {'group':{column}}  {'layers':{label}}  {'size':{sizes}}  left".rstrip(),
        RULE[ascii_only] * min(width, label + column + LONGEST_BAR + 33),
    ]
    for row in rows:
        if not row.text:
            lines.append(f"{FOLD[ascii_only]:>6}")
            continue
        bar = BAR_CHARACTER[ascii_only] * max(1, round(max(row.size) / longest * LONGEST_BAR))
        text = row.text if len(row.text) <= label else row.text[: label - 3] + "..."
        lines.append(
            f"{row.stage:>6}  {row.group:{column}}  "
            f"{text:{label}}  {bar + ' ' + size_text(row.size):{sizes}}  {row.left}".rstrip()
        )
        lines += [f"{'':{column + 10}}{SHIFT_MARK[ascii_only]} {note}" for note in row.notes]
    return "\n".join(line if len(line) <= width else line[: width - 3] + "..." for line in lines)


def architecture_html(architecture: Architecture, text: str | None = None) -> str:
    """The text form above a drawing of the sizes along the network, as HTML that needs no script
    and no other file. Colours say what survives of the group that the network is built with; `text`
    replaces the text form, such as by a candidate's.
    """
    code = f"<code>{escape(str(architecture) if text is None else text)}</code>"
    return f"<div>{code}<br>\n{_svg(verdict(architecture))}</div>"


def verdict_html(verdict: Verdict) -> str:
    """The verdict in a sentence, the drawing, and where each element that does not survive is lost,
    as HTML that needs no script and no other file.
    """
    group, survivors = verdict.group, " ".join(map(str, verdict.surviving))
    if verdict.exact:
        answer = f"exact under {group}"
    else:
        count = len(verdict.surviving)
        answer = (
            f"not exact under {group}: {count} of {group.order} elements "
            f"survive{'s' * (count == 1)} ({survivors})"
        )
    rows = "".join(
        f"<tr><td>{escape(str(element))}</td><td>{escape('; '.join(places(breaks)))}</td></tr>\n"
        for element, breaks in verdict.losses
        if breaks
    )
    lost = f"<table>\n<tr><th>lost</th><th>where</th></tr>\n{rows}</table>" if rows else ""
    text = f"<code>{escape(str(verdict.architecture))}</code>"
    return f"<div>{text}<br>\n{escape(answer)}<br>\n{_svg(verdict)}{lost}</div>"


def _svg(verdict: Verdict) -> str:
    """A bar per stage, as high as its map is wide, with its group and pixels; the stage's text
    and its shifted windows stand in the tooltip.
    """
    rows = _folded(list(_rows(verdict)))
    longest = max(max(row.size) for row in rows)
    width, height = COLUMN * len(rows) + MARGIN, TALLEST + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" font-family="monospace" font-size="11">'
    ]
    for place, row in enumerate(rows):
        middle = MARGIN + place * COLUMN + COLUMN // 2
        if not row.text:
            parts.append(f'<text x="{middle}" y="{TALLEST // 2}">...</text>')
            continue
        bar = max(2, round(max(row.size) / longest * (TALLEST - 14)))
        title = escape("; ".join([f"{row.stage}: {row.text}", f"left: {row.left}", *row.notes]))
        mark = SHIFT_MARK[True] if row.notes else ""
        parts.append(
            f'<g><title>{title}</title><rect x="{middle - 14}" y="{TALLEST - bar}" width="28" '
            f'height="{bar}" fill="{FILLS[row.survives]}"/>'
            f'<g text-anchor="middle"><text x="{middle}" y="{TALLEST - bar - 3}">{mark}</text>'
            f'<text x="{middle}" y="{TALLEST + 14}">{size_text(row.size)} px</text>'
            f'<text x="{middle}" y="{TALLEST + 28}">{escape(row.group or row.stage)}</text>'
            "</g></g>"
        )
    return "\n".join([*parts, "</svg>"])


def _rows(verdict: Verdict) -> Iterable[_Row]:
    architecture = verdict.architecture
    left = verdict.after_stages
    after_entry = architecture.size_entered
    yield from _rows_before(verdict)
    streams = iter(verdict.streams)
    for number, (stage, size, elements) in enumerate(
        zip(architecture.stages, architecture.sizes, left[1:]), start=1
    ):
        if len(verdict.streams) > 1 and (stage.stream or number == 1):
            entered = next(streams).after_stages[0]
            left_of_it = _named(entered, verdict), _survives(entered, verdict)
            yield _Row("&" if stage.stream else "", "", "stream", after_entry, (), *left_of_it)
        yield _Row(
            str(number),
            stage.annotation,
            format_stage(stage, stage),
            size,
            _notes(architecture.layers, number),
            _named(elements, verdict),
            _survives(elements, verdict),
        )
    yield from _rows_behind(verdict)


def _rows_before(verdict: Verdict) -> Iterable[_Row]:
    """The image, the entry and the coordinates."""
    architecture, left = verdict.architecture, verdict.after_stages
    after_entry = architecture.size_entered
    yield _Row(
        "image", "", "-", architecture.size, (), _named(verdict.group.elements, verdict), "all"
    )
    if architecture.entry is not None:
        yield _Row(
            "entry",
            "",
            str(architecture.entry),
            after_entry,
            _notes(architecture.layers, 0),
            _named(left[0], verdict),
            _survives(left[0], verdict),
        )
    if architecture.coordinates != "none":
        unmoved = kept_elements(architecture.coordinates, after_entry)
        elements = tuple(e for e in left[0] if e in unmoved)
        yield _Row(
            "input",
            "",
            f"coordinates {architecture.coordinates}",
            after_entry,
            (),
            _named(elements, verdict),
            _survives(elements, verdict),
        )


def _rows_behind(verdict: Verdict) -> Iterable[_Row]:
    """Where streams are joined, and logits averaged."""
    architecture = verdict.architecture
    if len(verdict.streams) > 1 and architecture.orbit == TRIVIAL:
        joined = _named(verdict.surviving, verdict), _survives(verdict.surviving, verdict)
        yield _Row("join", "", f"{architecture.features} features", (1, 1), (), *joined)
    if architecture.orbit != TRIVIAL:
        yield _Row(
            "orbit",
            str(architecture.orbit),
            f"mean of {architecture.orbit.order} logits",
            (1, 1),
            (),
            _named(verdict.surviving, verdict),
            _survives(verdict.surviving, verdict),
        )


def _survives(elements: tuple[Element, ...], verdict: Verdict) -> str:
    """A key of FILLS: whether the elements are all of the verdict's group, some, or only the
    identity.
    """
    if len(elements) == verdict.group.order:
        return "all"
    return "some" if len(elements) > 1 else "none"


def _notes(layers: Iterable[Layer], stage: int) -> tuple[str, ...]:
    """The shifted windows of a stage, layers that shift alike in one note."""
    notes: dict[str, list[str]] = {}
    for layer in layers:
        if layer.stage == stage and layer.remainder != (0, 0):
            shifted = [(axis, r) for axis, r in zip(AXES, layer.remainder) if r]
            if len(shifted) == 2 and shifted[0][1] == shifted[1][1]:
                what = shift_text(layer.name, AXES, shifted[0][1])
            else:
                what = ", ".join(shift_text(layer.name, (axis,), r) for axis, r in shifted)
            notes.setdefault(f"{what} ({size_text(layer.size_in)} px in)", []).append(layer.name)
    return tuple(f"{', '.join(names)}: {what}" for what, names in notes.items())


def _named(elements: tuple[Element, ...], verdict: Verdict) -> str:
    """`C4`, or for a group with a slanted or no regular form its elements; `all` of a large group
    are its name.
    """
    name = isomorphic_name(largest_subgroup(elements))
    if len(elements) == verdict.group.order or len(elements) == 1:
        return (
            str(verdict.group) if len(elements) > 1 or verdict.group.order == 1 else "C1 (nothing)"
        )
    text = " ".join(map(str, elements))
    return f"{name}: {text}" if len(text) <= 14 else name


def _folded(rows: list[_Row], rows_shown: int = 2) -> list[_Row]:
    """The rows, where of more than three equal neighbours only the first and last stay, with an
    empty row between them.
    """
    folded: list[_Row] = []
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and rows[start].like(rows[end]):
            end += 1
        run = rows[start:end]
        folded += (
            run
            if len(run) <= rows_shown + 1
            else [run[0], _Row("", "", "", (0, 0), (), ""), run[-1]]
        )
        start = end
    return folded
