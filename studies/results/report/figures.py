"""Small figures of the page, as SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence

from studies.markup import Html, html, joined_html

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 220, 58, 178, 12  # pixels


def steps_html(values: Sequence[float], across: str, up: str) -> Html:
    """A step line of values in 0..1, one for each whole number from 1 on."""
    right = WIDTH - 14

    def x(number: float) -> float:
        return LEFT + (number - 1) / max(1, len(values) - 1) * (right - LEFT)

    def y(value: float) -> float:
        return BOTTOM - value * (BOTTOM - TOP)

    path = f"M{x(1):.1f},{y(values[0]):.1f}" + "".join(
        f"H{x(number):.1f}V{y(value):.1f}" for number, value in enumerate(values, start=1)
    )
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    numbers = sorted({1, len(values), *(round(len(values) * k / 4) or 1 for k in (1, 2, 3))})
    parts = [
        *(
            html(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text x="{}" y="{}" text-anchor="end">{}</text>',
                *(str(LEFT), str(right), f"{y(mark):.1f}", f"{y(mark):.1f}"),
                *(str(LEFT - 6), f"{y(mark) + 4:.1f}", f"{mark:g}"),
            )
            for mark in marks
        ),
        *(
            html(
                '<text x="{}" y="{}" text-anchor="middle">{}</text>',
                *(f"{x(number):.1f}", str(BOTTOM + 16), str(number)),
            )
            for number in numbers
        ),
        html('<path class="line line0" d="{}"/>', path),
        html(
            '<text x="{}" y="{}" text-anchor="middle">{}</text>',
            *(str((LEFT + right) // 2), str(HEIGHT - 6), across),
        ),
        html(
            '<text transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>',
            *(str((TOP + BOTTOM) // 2), up),
        ),
    ]
    return html(
        '<svg class="figure" viewBox="0 0 {} {}" role="img" '
        'aria-label="{} over {}, last {}">{}</svg>',
        *(str(WIDTH), str(HEIGHT), up, across, f"{values[-1]:.4f}", joined_html(parts)),
    )
