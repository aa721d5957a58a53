"""The figures of the report: lines lie where their values are."""

import re

import pytest

from studies.results.report.figures import BOTTOM, LEFT, TOP, WIDTH, steps_html


def corners(svg):
    """The (x, y) of the line's corners."""
    path = re.search(r'class="line line0" d="M([\d.]+),([\d.]+)([^"]*)"', str(svg))
    x, y = float(path[1]), float(path[2])
    found = [(x, y)]
    for kind, number in re.findall(r"([HV])([\d.]+)", path[3]):
        x, y = (float(number), y) if kind == "H" else (x, float(number))
        found.append((x, y))
    return found


@pytest.mark.parametrize("values", [[0.25], [0.5, 0.75], [0.1, 0.2, 0.9, 1.0, 1.0]])
def test_a_step_line_spans_the_figure_and_rises_with_its_values(values):
    svg = steps_html(values, "trials", "volume")
    found = corners(svg)
    steps = found[0:1] + found[2::2]  # where each step ends: after H and V
    step = 0 if len(values) == 1 else (found[-1][0] - LEFT) / (len(values) - 1)
    assert found[0][0] == LEFT and (len(values) == 1 or LEFT + 500 < found[-1][0] < WIDTH)
    for number, (value, (x, y)) in enumerate(zip(values, steps[1:])):
        assert x == pytest.approx(LEFT + number * step, abs=0.11)
        assert y == pytest.approx(BOTTOM - value * (BOTTOM - TOP), abs=0.06)
    assert found[0][1] == steps[1][1]  # it begins at the first value


def test_numbers_stand_below_the_axis_where_the_line_has_them():
    svg = str(steps_html([0.1, 0.5, 0.6, 0.7, 0.9], "trials", "volume"))
    labels = {
        int(text): (float(x), float(y))
        for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" [^>]*>(\d+)</text>', svg)
        if float(y) > BOTTOM + 5
    }
    assert set(labels) >= {1, 5} and labels[1][0] == LEFT
    assert {y for _, y in labels.values()} == {BOTTOM + 16}
    assert labels[5][0] == corners(steps_html([0.1, 0.5, 0.6, 0.7, 0.9], "trials", "volume"))[-1][0]


@pytest.mark.parametrize("values", [[0.5, 0.75], [0.1, 0.2, 0.9, 1.0, 1.0]])
def test_what_is_counted_stands_below_the_middle_of_the_line(values):
    svg = str(steps_html(values, "trials ended", "volume"))
    x = float(re.search(r'<text x="([\d.]+)" [^>]*>trials ended<', svg)[1])
    assert x == pytest.approx((LEFT + corners(svg)[-1][0]) / 2, abs=8)
