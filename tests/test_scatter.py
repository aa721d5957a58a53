"""The front, drawn: marks lie where their values are, and what cannot be drawn is said."""

import errno

import pytest

from studies.journal.trial import TrialRecord
from studies.results.front_plot import (
    PlottedTrial,
    draw_text,
    figure,
    plotted_trials,
    save_front_figure,
)
from support import trivial

TWO = ("accuracy", "symmetry_accuracy")


def dot(trial, *values, front=False, knee=False):
    return PlottedTrial(trial, values, front, knee, 0.5)


FOUND = [
    dot(0, 90.0, 20.0, front=True),
    dot(1, 80.0, 60.0, front=True, knee=True),
    dot(2, 50.0, 40.0),
    dot(13, 70.0, 100.0, front=True),
]


def test_marks_lie_where_their_values_are():
    heading, *rows, axis, labels = draw_text(FOUND, TWO, width=41, height=9).splitlines()
    assert heading == "symmetry accuracy, % (up) by accuracy, % (right)"
    start = axis.index("+") + 1
    assert len(axis) == start + 41 and labels.split() == ["50.0", "90.0"]
    assert rows[0].split("|")[0].strip() == "100.0" and rows[-1].split("|")[0].strip() == "20.0"
    assert (
        rows[0][start + 20 :] == "o13"
        and rows[4][start + 30 :] == "*1"
        and rows[8][start + 40 :] == "o0"
        and rows[6][start:] == "."
    )
    assert sum(len(row[start:].split()) for row in rows) == 4  # nothing else is drawn


def test_numbers_never_cover_another_mark():
    close = [dot(n, 50.0 + n, 50.0, front=True) for n in range(5)] + [dot(9, 150.0, 90.0)]
    text = "".join(draw_text(close, TWO, width=50, height=4).splitlines()[1:-2])
    # three columns for five neighbours
    assert text.count("o") == 3 and text.count(".") - text.count("0.") == 1


def test_costs_are_on_logarithmic_axes():
    found = [dot(n, 10.0 * n, float(macs), front=True) for n, macs in enumerate((1e3, 1e4, 1e5))]
    heading, *rows, _axis, _ = draw_text(
        found, ("accuracy", "macs"), width=21, height=5
    ).splitlines()
    assert (
        "less is better of multiply-accumulates" in heading
        and rows[0].startswith("100.0k |")
        and rows[-1].strip().startswith("1.0k |")
    )
    assert [n for n, row in enumerate(rows) if "o" in row] == [0, 2, 4]


@pytest.mark.parametrize("found, objectives", [([], TWO), ([dot(0, 3.0)], ("accuracy",))])
def test_where_there_is_nothing_to_draw_nothing_is_drawn(found, objectives):
    assert draw_text(found, objectives) == ""


def test_what_has_no_range_lies_in_the_middle():
    _, *rows, axis, _ = draw_text([dot(7, 50.0, 50.0)], TWO, width=10, height=4).splitlines()
    start = axis.index("+") + 1
    assert [row[start:].rstrip() for row in rows] == ["", "", "    .", ""]


def test_one_trial_and_equal_values_can_be_drawn():
    for found in (
        [dot(7, 50.0, 50.0, front=True, knee=True)],
        [dot(7, 50.0, 50.0, front=True, knee=True), dot(8, 50.0, 50.0, front=True)],
    ):
        assert "*7" in draw_text(found, TWO)


def test_a_number_that_has_no_room_to_the_right_stands_left():
    found = [
        dot(12, 55.0, 50.0, front=True),
        dot(3, 57.0, 50.0, front=True, knee=True),
        dot(99, 100.0, 90.0, front=True),
        dot(1, 50.0, 10.0),
    ]
    _, top, middle, _, axis, labels = draw_text(found, TWO, width=51, height=3).splitlines()
    start = axis.index("+") + 1
    assert middle[start:] == "   12o *3" and top[start:] == " " * 50 + "o99"
    # the labels of the lowest and highest value end where the axis does
    assert len(labels) == len(axis) and labels.split() == ["50.0", "100.0"]


def test_a_figure_has_costs_on_logarithmic_axes_and_the_front_above_the_others():
    names = ("accuracy", "macs")
    found = [dot(n, 50.0 + n, 10.0 ** (3 + n), front=n == 1) for n in range(3)]
    panel = figure(found, names).axes[0]
    assert (panel.get_xscale(), panel.get_yscale()) == ("linear", "log")
    dominated, front = panel.collections
    assert front.get_zorder() > dominated.get_zorder()
    assert front.get_offsets().tolist() == [[51.0, 10_000.0]]


def record(number, values, state="complete", surviving=("e",), **attributes):
    return TrialRecord(number, state, values, {"surviving": list(surviving), **attributes})


def test_dots_are_the_complete_trials_and_say_what_the_front_says():
    study = trivial.study(symmetry__group="C4")
    found = plotted_trials(
        study,
        [
            record(0, (0.9, 0.2)),
            record(1, (0.8, 0.8), surviving=("e", "r90", "r180", "r270")),
            record(2, (0.7, 0.7), surviving=("e", "r180")),
            record(3, None, "pruned"),
            record(4, None, "failed"),
            record(5, (0.99, 0.99), constraints={"macs": 2.0}),
        ],
    )
    assert [(d.trial, d.values, d.front, d.knee, d.surviving) for d in found] == [
        (0, (90.0, 20.0), True, False, 0.25),
        (1, (80.0, 80.0), True, True, 1.0),
        (2, pytest.approx((70.0, 70.0)), False, False, 0.5),
    ]


@pytest.mark.parametrize(
    "suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_are_written_for_any_number_of_objectives(tmp_path, suffix, start):
    for count in (2, 3, 4):
        names = ("accuracy", "symmetry_accuracy", "macs", "params")[:count]
        found = [
            dot(n, *[10.0 * n + k + 1 for k in range(count)], front=n == 1, knee=n == 1)
            for n in range(3)
        ]
        assert (
            save_front_figure(found, names, tmp_path / "deep" / f"{count}.{suffix}")
            .read_bytes()
            .startswith(start)
        )


def test_figures_that_cannot_be_drawn_are_refused(tmp_path):
    for found, objectives, name, why in [
        (FOUND, TWO, "a.bmp", "end its name in"),
        (FOUND, ("accuracy",), "a.png", "one objective"),
        ([], TWO, "a.png", "no trial is complete"),
    ]:
        with pytest.raises(ValueError, match=why):
            save_front_figure(found, objectives, tmp_path / name)


def test_a_figure_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the figure cannot be written to .*give another place"):
        save_front_figure(FOUND, TWO, tmp_path / "file" / "a.png")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="a.png: No space left on device; give another place"):
        save_front_figure(FOUND, TWO, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_figure_marks_the_best_compromise_alone():
    names = {text.get_text() for text in figure(FOUND, TWO).axes[0].texts}
    assert names == {"0", "1*", "13"}
