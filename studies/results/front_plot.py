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
from studies.evidence.front import best_compromise, front_members, scored
from studies.journal.trial import TrialRecord
from studies.output import short
from studies.pareto import DIRECTIONS, SHARES, WORST_EXPONENT
from studies.tasks import in_words
from trainers.figures import check_name, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "accuracy": "accuracy, %",
    "symmetry_accuracy": "symmetry accuracy, %",
    "worst_symmetry_accuracy": "accuracy under the worst element, %",
    "balanced_accuracy": "balanced accuracy, %",
    "auroc": "AUROC, %",
    "worst_class": "accuracy of the worst class, %",
    "symmetry_balanced_accuracy": "symmetry balanced accuracy, %",
    "symmetry_auroc": "symmetry AUROC, %",
    "symmetry_worst_class": "symmetry accuracy of the worst class, %",
    "equivariance_error": "equivariance error",
    "params": "parameters",
    "macs": "multiply-accumulates",
    "latency": "latency, ms",
}


@dataclass(frozen=True)
class PlottedTrial:
    """A complete trial."""

    trial: int
    values: tuple[float, ...]  # of the objectives, as people read them: accuracies in percent
    front: bool
    knee: bool  # the best compromise
    # share of the declared group's elements under which the logits stay: 0 to 1
    surviving: float


def plotted_trials(study: Study, records: Sequence[TrialRecord]) -> list[PlottedTrial]:
    """All complete trials whose values count, in their order."""
    front = front_members(study, records)
    on_front = {record.number for record in front}
    best = best_compromise(study, front)
    declared = Group.parse(study.symmetry.group).order
    return [
        PlottedTrial(
            record.number,
            tuple(
                100 * v if name in SHARES else v
                for v, name in zip(record.values or (), study.objectives)
            ),
            record.number in on_front,
            record is best,
            len(record.attributes.get("surviving") or "e") / declared,
        )
        for record in scored(records)
    ]


def draw_text(
    trials: Sequence[PlottedTrial], objectives: Sequence[str], *, width: int = 60, height: int = 14
) -> str:
    """The first two objectives as text, the first to the right: `o` on the front with its trial's
    number, `*` the best compromise, `.` dominated.

    Parameters, MACs and latency have logarithmic axes. Empty for one objective, or without a trial.
    """
    if len(objectives) < 2 or not trials:
        return ""
    across, up = (_Axis([t.values[n] for t in trials], objectives[n]) for n in range(2))
    canvas = _canvas(trials, across, up, width, height)
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


def _canvas(
    trials: Sequence[PlottedTrial], across: _Axis, up: _Axis, width: int, height: int
) -> list[list[str]]:
    """Rows of characters, top first, with every trial's mark and the numbers that find room."""
    # a number may stand right of the last mark
    columns = width + max((len(str(t.trial)) for t in trials if t.front), default=0)
    canvas = [[" "] * columns for _ in range(height)]

    def place(trial: PlottedTrial) -> tuple[int, int]:
        row = height - 1 - up.place(trial.values[1], height)
        return row, across.place(trial.values[0], width)

    # what matters most is drawn last, over the others
    for trial in sorted(trials, key=lambda t: (t.front, t.knee)):
        row, column = place(trial)
        canvas[row][column] = "*" if trial.knee else "o" if trial.front else "."
    for trial in sorted((t for t in trials if t.front), key=lambda t: not t.knee):
        row, column = place(trial)
        _label(canvas[row], column, str(trial.trial))
    return canvas


def _label(row: list[str], column: int, text: str) -> None:
    """Writes `text` beside the mark in `column`, right or else left, where nothing stands."""
    for start in (column + 1, column - len(text)):
        around = range(max(0, start - 1), min(len(row), start + len(text) + 1))
        if start >= 0 and all(row[place] in " ." or place == column for place in around):
            row[start : start + len(text)] = text
            return


def save_front_figure(
    trials: Sequence[PlottedTrial], objectives: Sequence[str], path: Path, score: str = "accuracy"
) -> Path:
    """The path of a figure with a panel for every two objectives; its suffix says png, svg or pdf,
    and `score` what the main score is called.

    Raises ValueError for another suffix, for a study of one objective, and where no trial is
    complete.
    """
    check_name(path)
    if len(objectives) < 2:
        raise ValueError(
            f"the study has one objective, {objectives[0]}; a front is drawn in the plane of two"
        )
    if not trials:
        raise ValueError("no trial is complete; there is nothing to draw")
    return write(figure(trials, objectives, score), path)


def figure(
    trials: Sequence[PlottedTrial], objectives: Sequence[str], score: str = "accuracy"
) -> Figure:
    """A panel for every two objectives: the front is numbered and outlined, the colour is the
    surviving share of the declared group.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    pairs = list(combinations(range(len(objectives)), 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    result = Figure(figsize=(1.5 + 4.5 * columns, 4 * rows), layout="constrained")
    panels = result.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(pairs) :]:
        panel.set_axis_off()
    for panel, (x, y) in zip(panels, pairs):
        _draw_panel(panel, trials, objectives, x, y, score)
    colours = ScalarMappable(Normalize(0, 1), "viridis")
    result.colorbar(colours, ax=list(panels), label="share of the declared symmetry that is exact")
    return result


def _draw_panel(
    panel: Axes,
    trials: Sequence[PlottedTrial],
    objectives: Sequence[str],
    x: int,
    y: int,
    score: str,
) -> None:
    """Draws the trials in the plane of objectives number `x` and `y`."""
    for front in (False, True):
        chosen = [t for t in trials if t.front == front]
        panel.scatter(
            [t.values[x] for t in chosen],
            [t.values[y] for t in chosen],
            s=60 if front else 25,
            c=[t.surviving for t in chosen],
            vmin=0,
            vmax=1,
            cmap="viridis",
            zorder=2 + front,
            alpha=None if front else 0.6,
            edgecolors="black" if front else None,
        )
    for t in trials:
        if t.front:
            panel.annotate(
                f"{t.trial}*" if t.knee else str(t.trial),
                (t.values[x], t.values[y]),
                xytext=(5, 5),
                textcoords="offset points",
            )
    for name, scale, label in (
        (objectives[x], panel.set_xscale, panel.set_xlabel),
        (objectives[y], panel.set_yscale, panel.set_ylabel),
    ):
        scale("log" if name in WORST_EXPONENT else "linear")
        label(in_words(TITLES[name], score))
    panel.grid(alpha=0.3)


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
            if self.name in SHARES
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
