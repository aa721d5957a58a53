"""Everything measured of one model's symmetry as one value, and its tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from searchspace.geometry import counted
from searchspace.groups import Element, Group
from trainers.instruments.accuracy import AngleCurve, SymmetryAccuracy
from trainers.instruments.angle_plot import draw_angles
from trainers.instruments.equivariance import EquivarianceError
from trainers.instruments.layerwise import MatchedStage, Steerability
from trainers.instruments.lie import LieDerivative
from trainers.instruments.merging import MergeBarrier
from trainers.instruments.proportions import Proportion
from trainers.settings import Corners
from trainers.text_table import Column, table_lines


@dataclass(frozen=True)
class Measurement:
    """The symmetry of one model on labelled images; what could not be measured is None or empty,
    and `notes` say why.
    """

    group: Group  # declared: under which the model will be used
    num_images: int
    accuracy: SymmetryAccuracy
    curve: AngleCurve
    consistency: Proportion | None  # None: only the identity is declared
    effective_invariance: float | None
    error: EquivarianceError | None
    lie: tuple[LieDerivative, ...]  # of the logits
    # for every generator of the group on the pixel grid
    matched: tuple[MatchedStage, ...]
    steerability: tuple[Steerability, ...]
    barriers: tuple[MergeBarrier, ...]  # of our networks
    seconds: float
    notes: tuple[str, ...] = field(default=())
    # outside of images that were turned by an angle off the grid
    corners: Corners = "black"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, keys in the order of the fields."""
        return {
            "group": str(self.group),
            "num_images": self.num_images,
            "symmetry_accuracy": self.accuracy.as_dict(),
            "accuracy_by_angle": self.curve.as_dict(),
            "consistency": self.consistency.as_dict() if self.consistency else None,
            "effective_invariance": self.effective_invariance,
            "equivariance_error": self.error.as_dict() if self.error else None,
            "lie_derivative": [d.as_dict() for d in self.lie],
            "layerwise": [m.as_dict() for m in self.matched],
            "steerability": [s.as_dict() for s in self.steerability],
            "merge_barrier": [b.as_dict() for b in self.barriers],
            "seconds": self.seconds,
            "notes": list(self.notes),
            "corners": self.corners,
        }

    def text(self, *, ascii_only: bool = False) -> str:
        """A table for people, with the accuracy by angle drawn under it."""
        sections = [
            _scores(self),
            _elements(self.accuracy),
            _stages(self),
            _motions(self.lie),
            _steering(self),
        ]
        drawn = "Accuracy by angle, %\n" + draw_angles(self.curve, ascii_only=ascii_only)
        return "\n\n".join(
            [*filter(None, sections), drawn, *(f"Note: {note}." for note in self.notes)]
        )


def _filled(m: Measurement) -> str:
    """What the title says of corners that are not black."""
    return "" if m.corners == "black" else f", corners {m.corners}"


def generators(group: Group) -> tuple[Element, ...]:
    """The smallest rotation of the group on the pixel grid and its mirror, where it has them."""
    grid = group.grid
    rotations = [grid.elements[1]] if grid.rotations > 1 else []
    return (*rotations, *([grid.elements[grid.rotations]] if grid.mirror else []))


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = [Column(name, right=number > 0) for number, name in enumerate(header)]
    return "\n".join([title, *table_lines(columns, rows, rule="-")])


def _share(share: Proportion | None) -> tuple[str, str]:
    return (
        ("-", "")
        if share is None
        else (f"{100 * share.value:.2f} %", f"{100 * share.low:.2f} to {100 * share.high:.2f}")
    )


def _scores(m: Measurement) -> str:
    worst, lowest = m.accuracy.worst
    rows = [
        ("accuracy", *_share(m.accuracy.accuracy)),
        ("mean over other elements", *_share(m.accuracy.mean)),
        (f"worst of them, {worst}", *_share(lowest)),
        ("  quarter turns and flips (exact)", *_share(m.accuracy.exact)),
        ("  other angles (interpolated)", *_share(m.accuracy.interpolated)),
        ("mean over seen elements", *_share(m.accuracy.mean_seen)),
        ("mean over unseen elements", *_share(m.accuracy.mean_unseen)),
        ("mean over all elements", *_share(m.accuracy.mean_all)),
        (f"mean over {counted(len(m.curve.degrees), 'angle')}", f"{100 * m.curve.mean:.2f} %", ""),
        (f"worst angle, {m.curve.worst[0]:g}", *_share(m.curve.worst[1])),
        ("consistency", *_share(m.consistency)),
    ]
    if m.error:
        rows += [
            ("effective invariance", f"{m.effective_invariance:.4f}", ""),
            ("equivariance error, logits", f"{m.error.logits.mean:.2e}", "mean"),
            ("equivariance error, logits", f"{m.error.logits.worst:.2e}", "worst"),
        ]
    return _table(
        f"Symmetry under {m.group} on {counted(m.num_images, 'image')}{_filled(m)}",
        ("score", "value", f"{100 * m.accuracy.confidence:g} % interval"),
        rows,
    )


def _elements(accuracy: SymmetryAccuracy) -> str:
    rows = [
        (
            str(e),
            "seen" if e in accuracy.seen else "unseen",
            "exact" if e.on_grid else "interpolated",
            *_share(a),
        )
        for e, a in zip(accuracy.elements, accuracy.accuracies)
    ]
    return _table(
        "Accuracy by element",
        ("element", "training", "pixels", "accuracy", f"{100 * accuracy.confidence:g} % interval"),
        rows,
    )


def _stages(m: Measurement) -> str:
    names = generators(m.group)
    matched = {(s.stage, s.element): f"{s.correlation:.3f}" for s in m.matched}
    rows = [
        (
            s.stage,
            f"{s.mean:.2e}",
            f"{s.worst:.2e}",
            f"{s.mean_correlation:.4f}",
            *(matched.get((s.stage, e), "-") for e in names),
        )
        for s in ((m.error.logits, *m.error.stages) if m.error else ())
    ]
    return (
        _table(
            "Equivariance error (0 exact, 1 as another image) and channels matched",
            ("stage", "mean", "worst", "correlation", *(f"matched {e}" for e in names)),
            rows,
        )
        if rows
        else ""
    )


def _motions(derivatives: Sequence[LieDerivative]) -> str:
    rows = [
        (d.motion, f"{d.relative:.3f}", f"{d.per_pixel:.4f}", f"{d.softmax:.4f}")
        for d in derivatives
    ]
    return (
        _table("Lie derivative of the logits", ("motion", "relative", "per pixel", "softmax"), rows)
        if rows
        else ""
    )


def _steering(m: Measurement) -> str:
    rows = [
        (
            f"steerability, {s.element}",
            f"residual {s.residual:.2e}",
            f"of spread {s.residual_of_spread:.2e}",
            f"eigenvalues {s.root_distance:.2e} from roots of unity",
        )
        for s in m.steerability
    ]
    rows += [
        (
            f"merge barrier, {b.element}",
            f"{100 * b.barrier:.1f} points",
            f"original - repaired {100 * b.lost:.1f} points",
            f"original {100 * b.original:.1f} %, aligned {100 * b.aligned:.1f} %, reset "
            f"{100 * b.reset:.1f} %, repaired {100 * b.repaired:.1f} %; two trainings: "
            + ("not measured" if b.control is None else f"{100 * b.control:.1f} points"),
        )
        for b in m.barriers
    ]
    return _table("Inside", ("instrument", "", "", ""), rows) if rows else ""
