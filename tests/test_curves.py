import pytest

from trainers.instruments.accuracy import AngleCurve
from trainers.instruments.angle_plot import draw_angles, save_angle_figure
from trainers.instruments.proportions import proportion

CURVE = AngleCurve(
    tuple(range(0, 360, 10)),
    tuple(proportion(1.0 if d in (0, 90, 180, 270) else 0.5, 100) for d in range(0, 360, 10)),
)


def test_the_drawing_is_high_where_the_accuracy_is():
    lines = draw_angles(CURVE, height=4).splitlines()
    top, second = (line.split("|")[1] for line in (lines[0], lines[2]))
    assert [n // 2 for n, c in enumerate(top) if c == "█"][::2] == [0, 9, 18, 27]
    assert second.count("█") == 72 and lines[0].startswith(" 100") and "degrees" in lines[-1]
    ticks = lines[-1]
    assert all(ticks[6 + 2 * d // 10 :].startswith(str(d)) for d in (0, 90, 180, 270))


def test_the_drawing_needs_no_unicode():
    assert draw_angles(CURVE, ascii_only=True).isascii()


@pytest.mark.parametrize("suffix,start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_written(tmp_path, suffix, start):
    path = save_angle_figure({"C4": CURVE, "plain": CURVE}, tmp_path / "deep" / f"curve.{suffix}")
    assert path.read_bytes().startswith(start) and path.stat().st_size > 2000


def test_other_figures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="png, .svg or .pdf"):
        save_angle_figure({"a": CURVE}, tmp_path / "curve.bmp")
    with pytest.raises(ValueError, match="at least one"):
        save_angle_figure({}, tmp_path / "curve.png")
