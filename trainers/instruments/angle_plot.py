"""Drawing the accuracy by angle: on a terminal, and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainers.figures import check_name, write
from trainers.instruments.accuracy import AngleCurve

EIGHTHS = " ▁▂▃▄▅▆▇█"
ASCII = " ..::||##"


def draw_angles(curve: AngleCurve, *, height: int = 8, ascii_only: bool = False) -> str:
    """The curve as `height` rows of text with axes: accuracy in percent upwards, the angle in
    degrees to the right.
    """
    blocks, width = ASCII if ascii_only else EIGHTHS, 2 if len(curve.degrees) <= 36 else 1
    levels = [round(a.value * height * 8) for a in curve.accuracies]
    rows = []
    for row in reversed(range(height)):
        label = (
            f"{round(100 * (row + 1) / height):4d} "
            if (row + 1) % max(1, height // 4) == 0
            else "     "
        )
        rows.append(
            (
                label
                + "|"
                + "".join(blocks[min(8, max(0, level - 8 * row))] * width for level in levels)
            ).rstrip()
        )
    ticks = [" "] * (width * len(levels) + 8)
    for degrees in (0, 90, 180, 270):
        place = width * next((n for n, d in enumerate(curve.degrees) if d >= degrees), len(levels))
        if place < width * len(levels):
            ticks[place : place + len(str(degrees))] = str(degrees)
    return "\n".join(
        [
            *rows,
            "   0 +" + "-" * (width * len(levels)),
            "      " + "".join(ticks).rstrip() + "  degrees",
        ]
    )


def save_angle_figure(curves: Mapping[str, AngleCurve], path: Path) -> Path:
    """The path of the figure of one or several curves by name, with their intervals; its suffix
    says png, svg or pdf.

    Raises ValueError for another suffix, or without a curve.
    """
    check_name(path)
    if not curves:
        raise ValueError("there is no curve to draw; give at least one")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        # The full turn closes the curve.
        degrees, closed = [*curve.degrees, 360], [*curve.accuracies, curve.accuracies[0]]
        (line,) = axes.plot(degrees, [100 * a.value for a in closed], marker=".", label=name)
        axes.fill_between(
            degrees,
            [100 * a.low for a in closed],
            [100 * a.high for a in closed],
            alpha=0.2,
            color=line.get_color(),
            linewidth=0,
        )
    axes.set(
        xlabel="rotation, degrees counter-clockwise",
        ylabel="accuracy, %",
        xlim=(0, 360),
        ylim=(0, 100),
        xticks=range(0, 361, 45),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return write(figure, path)
