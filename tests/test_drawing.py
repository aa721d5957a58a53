"""The drawing says what the verdict says, fits the terminal, and folds what repeats."""

import re
from xml.etree import ElementTree

import pytest

from searchspace.architecture import Architecture
from searchspace.drawing import draw_verdict, verdict_html
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.published import PUBLISHED


def drawn(text: str, group: str = "", **choices) -> list[str]:
    return draw_verdict(
        verdict(Architecture.parse(text), Group.parse(group) if group else None), **choices
    ).splitlines()


def test_a_broken_layer_is_named_where_it_shifts_and_what_is_left_stands_behind_its_stage():
    lines = drawn("29px: 10k3@D4, 10k3 max2/2, 10k3")
    shifted = next(n for n, line in enumerate(lines) if "✗" in line)
    assert "max2/2: height and width shifted by 1 px (29 px in)" in lines[shifted]
    assert (
        lines[shifted - 1].endswith("D1: e mr90")
        and lines[shifted - 2].endswith("D4")
        and lines[-1].endswith("D1: e mr90")
    )
    assert not any("✗" in line for line in drawn("28px: 10k3@D4, 10k3 max2/2, 10k3"))


def test_the_axis_that_shifts_is_named():
    (note,) = [line for line in drawn("29x28px: 4k3@D4 max2/2") if "✗" in line]
    assert "height shifted by 1 px" in note and "width" not in note


def test_a_nearest_neighbour_resize_counts_samples_not_pixels():
    (note,) = [line for line in drawn("56px resize57nearest: 4k3@D4 max3/2") if "✗" in line]
    assert (
        "55 samples not mirrored in height and width (56 px in)" in note and "shifted" not in note
    )


def test_what_is_left_stands_under_its_heading():
    heading, _, *rows = drawn("10x28px: 4k3@C4 max2/2, 4k3")
    assert len(rows) == 3 and all(row[heading.index("left") - 1 :][:2] == " C" for row in rows)


def test_without_a_width_lines_have_at_most_88_cells():
    lines = drawn("29x30px: 10k3p2:1reflectx12@D4 max3/2p0:1ceil, 4k5x9 conv3/2p1")
    assert max(map(len, lines)) == 88


def test_bars_follow_the_sizes():
    bars = [line.count("█") for line in drawn("32px: 4k3@C4 max2/2, 4k3 max2/2, 4k3")]
    assert bars[2:] == [16, 8, 4, 4]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_published_network_fits_the_terminal(name, ascii_only):
    text = draw_verdict(verdict(PUBLISHED[name].architecture), 80, ascii_only)
    assert all(len(line) <= 80 for line in text.splitlines()) and len(text.splitlines()) < 25
    assert text.isascii() or not ascii_only


def test_a_stage_is_shown_whole_up_to_34_cells_and_cut_behind_them():
    whole, longer = "10k3p2:1reflectx12 max3/2p0:1ceil", "100k5p2:1reflectd2x12 max3/2p0:1ceil"
    assert len(whole) == 33 and len(longer) == 36
    text = "\n".join(drawn(f"200px: {whole}, {longer}", width=100))
    assert f"  {whole}  " in text and f"  {longer[:31]}...  " in text


def test_equal_neighbours_are_folded():
    lines = drawn("64px: " + ", ".join(["8k3@C4"] + ["8k3"] * 30))
    assert (
        len(lines) == 6
        and any(line.strip() == "⋮" for line in lines)
        and lines[-1].split()[0] == "31"
    )
    assert len(drawn("64px: 8k3@C4, 8k3 max2/2, 8k3, 8k3 max2/2")) == 7


def test_groups_that_are_given_up_show():
    lines = drawn("28px: 4k3@D4, 4k3@C4, 4k3@C1", "D4")
    assert [line.split()[-1] for line in lines[2:5]] == ["D4", "D4", "C4"] and lines[-1].endswith(
        "C1 (nothing)"
    )


def test_a_narrow_terminal_is_refused():
    with pytest.raises(ValueError, match="at least 80"):
        drawn("28px: 4k3@C4", width=60)


def test_bars_of_the_html_follow_the_sizes_and_lie_inside_with_their_marks_above():
    shown = verdict_html(verdict(Architecture.parse("29px: 4k3@D4, 4k3 max2/2, 4k3, 4k3 max2/2")))
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", shown, re.DOTALL)[0])
    width, height = (float(svg.get(name)) for name in ("width", "height"))
    tag = "{http://www.w3.org/2000/svg}"
    bars = [
        {k: float(bar.get(k)) for k in ("x", "y", "width", "height")}
        for bar in svg.iter(f"{tag}rect")
    ]
    sizes = [
        int(t.text.split()[0]) for t in svg.iter(f"{tag}text") if (t.text or "").endswith(" px")
    ]
    assert len(bars) == len(sizes) >= 4
    tallest = max(bar["height"] for bar in bars)
    for bar, size in zip(bars, sizes):
        assert bar["height"] / tallest == pytest.approx(size / max(sizes), abs=0.02)
        assert bar["x"] >= 0 and bar["x"] + bar["width"] <= width
        assert bar["y"] >= 0 and bar["y"] + bar["height"] == bars[0]["y"] + bars[0]["height"]
    assert width <= bars[-1]["x"] + 100
    places = [(float(t.get("x")), float(t.get("y")), t.text) for t in svg.iter(f"{tag}text")]
    assert all(0 <= x <= width and 0 <= y <= height for x, y, _ in places)
    marks = [(x, y) for x, y, text in places if text == "!"]
    shifted = [bar for bar in bars if (bar["x"] + 14, bar["y"] - 3) in marks]
    assert marks and len(shifted) == len(marks)  # each right above its bar


def test_a_verdict_can_be_drawn_in_ascii():
    text = "\n".join(drawn("32px: 4k3@C4 max2/2, 4k3", ascii_only=True))
    assert "#" * 16 in text and text.isascii()
