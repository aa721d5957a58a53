"""The trials of a study in the planes of their objectives: on a terminal, and as a figure. Nothing
here imports torch, optuna or ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from searchspace.groups import Group
from studies.config import Study
from studies.journal.trial import TrialRecord
from studies.output import short
from studies.pareto import DIRECTIONS, WORST_EXPONENT, knee
from studies.results.tables import members
from trainers.figures import check_name, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "accuracy": "accuracy, %",
    "symmetry_accuracy": "symmetry accuracy, %",
    "equivariance_error": "equivariance error",
    "params": "parameters",
    "macs": "multiply-accumulates",
    "latency": "latency, ms",
}


@dataclass(frozen=True)
class Dot:
    """A complete trial."""

    trial: int
    values: tuple[float, ...]  # of the objectives, as people read them: accuracies in percent
    front: bool
    knee: bool  # the best compromise
    # share of the declared group's elements under which the logits stay: 0 to 1
    surviving: float


def dots(study: Study, records: Sequence[TrialRecord]) -> list[Dot]:
    """All complete trials whose values count, in their order."""
    front = members(study, records)
    best = knee([record.values for record in front], study.objectives)
    on_front, chosen = (
        {record.number for record in front},
        None if best is None else front[best].number,
    )
    declared = Group.parse(study.symmetry.group).order
    return [
        Dot(
            record.number,
            tuple(
                100 * v if name.endswith("accuracy") else v
                for v, name in zip(record.values, study.objectives)
            ),
            record.number in on_front,
            record.number == chosen,
            len(record.attributes.get("surviving") or "e") / declared,
        )
        for record in records
        if record.state == "complete" and record.feasible and record.values
    ]


def draw(
    found: Sequence[Dot], objectives: Sequence[str], *, width: int = 60, height: int = 14
) -> str:
    """The first two objectives as text, the first to the right: `o` on the front with its trial's
    number, `*` the best compromise, `.` dominated.

    Parameters, MACs and latency have logarithmic axes. Empty for one objective, or without a trial.
    """
    if len(objectives) < 2 or not found:
        return ""
    across, up = (_Axis([dot.values[n] for dot in found], objectives[n]) for n in range(2))
    # numbers may stand right of the last mark
    room = width + max((len(str(dot.trial)) for dot in found if dot.front), default=0)
    canvas = [[" "] * room for _ in range(height)]
    # what matters most comes last, on top
    for dot in sorted(found, key=lambda dot: (dot.front, dot.knee)):
        row, column = (
            height - 1 - up.place(dot.values[1], height),
            across.place(dot.values[0], width),
        )
        canvas[row][column] = "*" if dot.knee else "o" if dot.front else "."
    for dot in sorted((dot for dot in found if dot.front), key=lambda dot: not dot.knee):
        row, column, text = (
            height - 1 - up.place(dot.values[1], height),
            across.place(dot.values[0], width),
            str(dot.trial),
        )
        for start in (column + 1, column - len(text)):  # beside its mark, where there is room
            around = range(max(0, start - 1), min(room, start + len(text) + 1))
            if 0 <= start <= room - len(text) and all(
                canvas[row][place] in " ." or place == column for place in around
            ):
                canvas[row][start : start + len(text)] = text
                break
    labels = {0: up.text(up.high), height - 1: up.text(up.low)}
    margin = max(map(len, labels.values()))
    rows = [
        f"{labels.get(n, ''):>{margin}} |{''.join(line)}".rstrip() for n, line in enumerate(canvas)
    ]
    left, right = across.text(across.low), across.text(across.high)
    heading = (
        f"{TITLES[objectives[1]]} (up) by {TITLES[objectives[0]]} (right){_wanted(objectives[:2])}"
    )
    return "\n".join(
        [
            heading,
            *rows,
            " " * margin + " +" + "-" * width,
            " " * (margin + 2) + left + right.rjust(width - len(left)),
        ]
    )


def save_figure(found: Sequence[Dot], objectives: Sequence[str], path: Path) -> Path:
    """The path of a figure with a panel for every two objectives; its suffix says png, svg or pdf.

    Raises ValueError for another suffix, for a study of one objective, and where no trial is
    complete.
    """
    check_name(path)
    if len(objectives) < 2:
        raise ValueError(
            f"the study has one objective, {objectives[0]}; a front is drawn in the plane of two"
        )
    if not found:
        raise ValueError("no trial is complete; there is nothing to draw")
    return write(figure(found, objectives), path)


def figure(found: Sequence[Dot], objectives: Sequence[str]) -> Figure:
    """A panel for every two objectives: the front is numbered and outlined, the colour is the
    surviving share of the declared group.
    """
    from matplotlib.figure import Figure

    pairs = list(combinations(range(len(objectives)), 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    result = Figure(figsize=(1.5 + 4.5 * columns, 4 * rows), layout="constrained")
    panels = result.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(pairs) :]:
        panel.set_axis_off()
    for panel, (x, y) in zip(panels, pairs):
        for front in (False, True):
            chosen = [dot for dot in found if dot.front == front]
            style = {"s": 60, "edgecolors": "black"} if front else {"s": 25, "alpha": 0.6}
            drawn = panel.scatter(
                [dot.values[x] for dot in chosen],
                [dot.values[y] for dot in chosen],
                c=[dot.surviving for dot in chosen],
                vmin=0,
                vmax=1,
                cmap="viridis",
                zorder=2 + front,
                **style,
            )
        for dot in found:
            if dot.front:
                panel.annotate(
                    f"{dot.trial}*" if dot.knee else str(dot.trial),
                    (dot.values[x], dot.values[y]),
                    xytext=(5, 5),
                    textcoords="offset points",
                )
        for name, scale, label in (
            (objectives[x], panel.set_xscale, panel.set_xlabel),
            (objectives[y], panel.set_yscale, panel.set_ylabel),
        ):
            scale("log" if name in WORST_EXPONENT else "linear")
            label(TITLES[name])
        panel.grid(alpha=0.3)
    result.colorbar(drawn, ax=list(panels), label="share of the declared symmetry that is exact")
    return result


class _Axis:
    """One objective along an axis of characters."""

    def __init__(self, values: Sequence[float], name: str) -> None:
        self.name, self.log = name, name in WORST_EXPONENT
        self.low, self.high = min(values), max(values)

    def place(self, value: float, length: int) -> int:
        """Which of `length` characters holds the value."""
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return (
            (length - 1) // 2 if high <= low else round((value - low) / (high - low) * (length - 1))
        )

    def text(self, value: float) -> str:
        """The value as a label."""
        return (
            f"{value:.1f}"
            if self.name.endswith("accuracy")
            else short(value)
            if self.name in ("params", "macs")
            else f"{value:.3g}"
        )

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def _wanted(objectives: Sequence[str]) -> str:
    less = [name for name in objectives if DIRECTIONS[name] == "minimize"]
    return (
        f"; less is better of {' and '.join(TITLES[name].partition(',')[0] for name in less)}"
        if less
        else ""
    )
