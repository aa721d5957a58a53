"""The symmetry of a data set, as `probe` finds it: values, and their text for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from searchspace.geometry import counted
from trainers.instruments.proportions import Proportion
from trainers.text_table import Column, table_lines

PLURALS = {"class": "classes", "label set": "label sets", "range": "ranges"}


@dataclass(frozen=True)
class Likeness:
    """Class `moved`, under an element, is closer to class `like` than it is upright: how often the
    two are told apart.
    """

    moved: str
    like: str
    apart: Proportion
    apart_upright: Proportion
    p: float  # Fisher's exact test of the fall, Holm-corrected over all pairs and elements


@dataclass(frozen=True)
class ClassProbe:
    """How often the images of one class are told from the same images moved."""

    name: str
    apart: Proportion
    p: float  # as `ElementProbe.p_inputs`, corrected over all classes and elements


@dataclass(frozen=True)
class ElementProbe:
    """What one element does to the data.

    `apart` is how often x and gx are told apart; 0.5 is a guess. `p_inputs`: of the exact
    randomisation test of "x and gx have one distribution", Holm-corrected over the elements.
    `inputs` follows from `apart`: symmetric, nearly, distinct, or undecided (too few images).
    `labels`: kept; resemble (classes in `likenesses` come closer to each other); collide (they
    cannot be told apart). `alike`: classes whose own images look the same moved.
    `accuracy_unseen`: of a plain classifier trained upright, on moved images. `accuracy_blind`: of
    one trained on both that is not asked which of the two it sees. `called`: (class, name,
    fraction) where the one trained upright calls most of a class's moved images by another's name.
    """

    element: str
    apart: Proportion
    inputs: str
    labels: str
    likenesses: tuple[Likeness, ...]
    alike: tuple[str, ...]
    accuracy_unseen: Proportion
    accuracy_blind: Proportion
    called: tuple[tuple[str, str, float], ...]
    p_inputs: float
    per_class: tuple[ClassProbe, ...]


@dataclass(frozen=True)
class DataSymmetry:
    """The symmetry of a data set under a group.

    `accuracy`: of a small plain classifier on upright held-out images. `symmetric`: the largest
    subgroup whose elements keep inputs and labels. `declare`: the largest subgroup under which no
    two classes collide. `images`: how many were looked at.
    """

    group: str
    images: int
    classes: tuple[str, ...]
    accuracy: Proportion
    elements: tuple[ElementProbe, ...]
    symmetric: str
    declare: str
    kind: str = "class"  # what `classes` are: classes, label sets, or ranges of targets

    @property
    def kinds(self) -> str:
        """The plural of `kind`."""
        return PLURALS[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def text(self, *, per_class: bool = False) -> str:
        """A table of the elements, one of the classes if `per_class`, remarks on each element, and
        what to declare and to expect.
        """
        classes = ["", *_class_table(self)] if per_class else []
        lines = [_headline(self), "", *_table(self), *classes, "", *_remarks(self), *_advice(self)]
        return "\n".join(lines)


def collides(pair: Likeness) -> bool:
    """Whether the two classes cannot be told apart under the element."""
    return pair.apart.high < 0.75


def _headline(probe: DataSymmetry) -> str:
    return (
        f"{counted(probe.images, 'image')} of {counted(len(probe.classes), probe.kind)} under "
        f"{probe.group}; "
        f"a small plain classifier gets {probe.accuracy.short()} of upright held-out images right"
    )


def _table(probe: DataSymmetry) -> list[str]:
    rows = [
        (
            "element",
            "told from upright",
            "p",
            "inputs",
            "labels",
            "accuracy, unseen",
            "accuracy, orientation unknown",
        )
    ]
    rows += [
        (
            e.element,
            e.apart.short(),
            p_text(e.p_inputs),
            e.inputs,
            e.labels,
            e.accuracy_unseen.short(),
            e.accuracy_blind.short(),
        )
        for e in probe.elements
    ]
    return _aligned(rows)


def _class_table(probe: DataSymmetry) -> list[str]:
    rows = [("element", probe.kind, "told from upright", "p")]
    rows += [
        (e.element, c.name, c.apart.short(), p_text(c.p))
        for e in probe.elements
        for c in e.per_class
        if c.apart.count
    ]
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows under the first one."""
    return table_lines([Column(title) for title in rows[0]], rows[1:], rule="-")


def p_text(p: float) -> str:
    """A p value as tables show it: two digits, and `<0.0001` for smaller ones."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _remarks(probe: DataSymmetry) -> list[str]:
    lines = []
    for e in probe.elements:
        for pair in e.likenesses[:3]:
            verb = "cannot be told from" if collides(pair) else "comes close to"
            lines.append(
                f"{e.element}: {probe.kind} {pair.moved} {verb} {probe.kind} {pair.like} (told "
                f"apart {pair.apart.short()}, upright {pair.apart_upright.short()})"
            )
        if e.alike and e.inputs != "symmetric":
            lines.append(
                f"{e.element}: {', '.join(e.alike)} hardly "
                f"differ{'s' if len(e.alike) == 1 else ''} from upright"
            )
        if e.called and e.labels != "kept":
            calls = ", ".join(f"{100 * f:.0f} % of {a} is called {b}" for a, b, f in e.called[:3])
            lines.append(f"{e.element}: by a classifier that saw upright images only, {calls}")
    return [*lines, ""] if lines else []


def _advice(probe: DataSymmetry) -> list[str]:
    of = {
        verdict: [e for e in probe.elements if e.inputs == verdict]
        for verdict in ("symmetric", "nearly", "distinct", "undecided")
    }
    colliding = [e for e in probe.elements if e.labels == "collide"]
    free = [e for e in of["symmetric"] if e.labels == "kept"]
    lines = []
    if free:
        lines.append(
            f"True symmetries of inputs and labels: {_names(free)}. Exact equivariance under "
            f"{probe.symmetric} costs no accuracy here, "
            "and training sees these orientations without augmentation."
        )
    if colliding:
        lines.append(
            f"Not symmetries of the labels: {_names(colliding)}. A network invariant to them "
            f"cannot tell the {probe.kinds} named above "
            f"apart, whatever it is trained on: do not declare them."
        )
    unseen = [e for e in of["distinct"] + of["nearly"] if e.labels != "collide"]
    if unseen:
        worst = min(unseen, key=lambda e: e.accuracy_unseen.value)
        lines.append(
            f"Not symmetries of the inputs, but labels survive: {_names(unseen)}. Training does "
            "not show them; a plain network falls to "
            f"{100 * worst.accuracy_unseen.value:.0f} % ({worst.element}). Declare them if "
            "deployment meets them: exact networks keep "
            "their accuracy there, approximate ones gain upright and lose there."
        )
    close = [e for e in unseen if e.labels == "resemble"]
    if close:
        lines.append(
            f"Under {_names(close)} some {probe.kinds} come closer to each other: expect an "
            "invariant network to confuse them more often "
            f"(orientation unknown: {100 * min(e.accuracy_blind.value for e in close):.0f} % "
            f"here, upright {100 * probe.accuracy.value:.0f} %)."
        )
    if of["undecided"]:
        lines.append(f"Too few images to decide about {_names(of['undecided'])}.")
    return [
        *lines,
        f"Declare at most {probe.declare} as `symmetry: {{group: {probe.declare}}}`"
        f"{'' if probe.declare != 'C1' else ': no declared symmetry keeps the labels'}.",
    ]


def _names(elements: list[ElementProbe]) -> str:
    return ", ".join(e.element for e in elements)
