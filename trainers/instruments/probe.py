"""How symmetric is the data itself? Small classifiers ask it of held-out images, before any search.

For an element g: can images x be told from moved images gx (a classifier two-sample test: Lopez-Paz
and Oquab, "Revisiting classifier two-sample tests", 2017)? And does g carry one class onto another,
as half a turn carries 6 onto 9?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act
from trainers.data.datasets import load
from trainers.data.fitting import fit_images
from trainers.data.splitting import remainder, take
from trainers.instruments.proportions import Proportion, binomial, fisher, holm, wilson
from trainers.instruments.twosample import (
    Answers,
    Classifier,
    count_answers,
    count_jointly,
    plain,
)
from trainers.settings import Data
from trainers.text_table import Column, table_lines

# pixels of the shorter side; larger images are resized: orientation is coarse, and time is short
LARGEST = 16


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
class Probe:
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


def probe(
    data: Data, group: Group, *, images: int = 2000, seed: int = 0, joint: bool = False
) -> Probe:
    """What each element of `group` but the identity does to the inputs and the labels of `data`.

    Looks at `images` training and validation images at most, drawn from every class in proportion,
    at 16 pixels or fewer on the shorter side; the test split is not touched. Images that are not
    square are cropped to their central square. `joint`: as in `probe_images`. Raises ValueError for
    bad data and for the trivial group.
    """
    splits = load(data)
    if min(splits.size) > LARGEST:
        height, width = (
            max(LARGEST, round(side * LARGEST / min(splits.size))) for side in splits.size
        )
        splits = load(data, (height, width))
    labels = torch.cat([splits.train.labels, splits.validation.labels])
    chosen = torch.from_numpy(take(labels.numpy(), min(images, len(labels)), (seed, 0)))
    pixels = torch.cat([splits.train.pixels, splits.validation.pixels])[chosen]
    side = min(splits.size)
    square = fit_images(pixels, (side, side), "pad")
    return probe_images(
        square.float() / 255, labels[chosen], splits.classes, group, seed=seed, joint=joint
    )


def probe_images(
    pixels: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    group: Group,
    *,
    seed: int = 0,
    joint: bool = False,
) -> Probe:
    """What each element of `group` but the identity does to these images, floats [N, C, S, S] in
    0..1, and their labels.

    Half of them train the classifiers, the other half answer; intervals count each held-out image
    once. An element and its inverse share one classifier, because P = gP says the same as g^-1 P =
    P. `joint`: one classifier answers for all elements on the grid, and others are left out: a
    short form. Raises ValueError for the trivial group, and for images that are not square.
    """
    require_square(pixels, group)
    fit = take(labels.numpy(), len(labels) // 2, (seed, 1), keep=1)
    held_out = torch.from_numpy(remainder(len(labels), fit))
    train = (pixels[fit], labels[fit])
    test = (pixels[held_out], labels[held_out])
    upright = plain(train, len(classes), seed)
    elements = _judged(
        _answers(train, test, group, len(classes), seed, joint), upright, test, classes
    )
    right = int((upright(test[0]).argmax(1) == test[1]).sum())
    return Probe(
        str(group),
        len(labels),
        classes,
        wilson(right, len(test[1])),
        elements,
        symmetric=_largest(
            group, elements, lambda e: e.inputs == "symmetric" and e.labels == "kept"
        ),
        declare=_largest(group, elements, lambda e: e.labels != "collide"),
    )


def require_square(pixels: Tensor, group: Group) -> None:
    """Raises ValueError for the trivial group, and for images [N, C, H, W] that are not square."""
    if group.order == 1:
        raise ValueError(
            f"{group} has no element but the identity, so there is nothing to ask of the data; "
            "give the symmetries to ask about as `symmetry: {group: D4}`"
        )
    if pixels.shape[-1] != pixels.shape[-2]:
        raise ValueError(
            f"images are {pixels.shape[-2]} x {pixels.shape[-1]} pixels; crop them to a square, "
            "which quarter turns keep"
        )


def _answers(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    group: Group,
    num_classes: int,
    seed: int,
    joint: bool,
) -> dict[Element, Answers]:
    """The answers about each element but the identity, of `joint` those on the grid."""
    elements = [element for element in group.elements if element != IDENTITY]
    if joint:
        on_grid = [element for element in elements if element.on_grid]
        return count_jointly(train, test, on_grid, num_classes, seed)
    answers: dict[Element, Answers] = {}
    for element in elements:
        other = answers.get(element.inverse)
        answers[element] = (
            count_answers(train, test, element, num_classes, seed)
            if other is None
            else _inverted(other)
        )
    return answers


def _inverted(answers: Answers) -> Answers:
    """The same answers about the inverse element: b moved looks like a exactly if a moved back
    looks like b.
    """
    return replace(answers, pairs=answers.pairs.T)


def _judged(
    answers: dict[Element, Answers],
    upright: Classifier,
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
) -> tuple[ElementProbe, ...]:
    """What the answers say of each element; p values are corrected over all of them."""
    of_inputs = holm([binomial(a.hits.sum(), a.trials.sum()) for a in answers.values()])
    of_classes = holm([binomial(h, t) for a in answers.values() for h, t in zip(a.hits, a.trials)])
    pairs = [(b, a) for b in range(len(classes)) for a in range(len(classes)) if a != b]
    of_pairs = holm(
        [
            fisher(
                counted.upright[b, a], counted.pairs[b, a], counted.counts[a] + counted.counts[b]
            )
            for counted in answers.values()
            for b, a in pairs
        ]
    )
    probes = []
    for number, (element, counted) in enumerate(answers.items()):
        mine = of_classes[number * len(classes) : (number + 1) * len(classes)]
        p_pairs = dict(zip(pairs, of_pairs[number * len(pairs) : (number + 1) * len(pairs)]))
        likenesses = tuple(_likenesses(counted, classes, p_pairs))
        probes.append(
            _judge(element, counted, upright, test, classes, likenesses, of_inputs[number], mine)
        )
    return tuple(probes)


def _judge(
    element: Element,
    answers: Answers,
    upright: Classifier,
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    likenesses: tuple[Likeness, ...],
    p_inputs: float,
    p_classes: Sequence[float],
) -> ElementProbe:
    images, labels = test
    count = len(labels)
    # both views of an image count as one trial
    apart = wilson(answers.apart / 2, count)
    inputs = _inputs(apart)
    per_class = tuple(
        ClassProbe(name, wilson(float(answers.pairs[i, i]) / 2, int(answers.counts[i])), p)
        for i, (name, p) in enumerate(zip(classes, p_classes))
    )
    alike = tuple(c.name for c in per_class if c.apart.count >= 10 and c.apart.value < 0.6)
    called = upright(act(images, element)).argmax(1)
    fractions = [
        (a, b, float((called[labels == a] == b).float().mean()))
        for a in range(len(classes))
        if answers.counts[a]
        for b in range(len(classes))
        if a != b
    ]
    return ElementProbe(
        element=str(element),
        apart=apart,
        inputs=inputs,
        likenesses=likenesses,
        alike=alike,
        labels="collide"
        if any(_collides(pair) for pair in likenesses)
        else "resemble"
        if likenesses
        else "kept",
        accuracy_unseen=wilson(int((called == labels).sum()), count),
        accuracy_blind=wilson(answers.labels / 2, count),
        called=tuple(
            (classes[a], classes[b], fraction)
            for a, b, fraction in sorted(fractions, key=lambda f: -f[2])
            if fraction > 0.5
        ),
        p_inputs=p_inputs,
        per_class=per_class,
    )


def _inputs(apart: Proportion) -> str:
    """Thresholds leave room for seven elements tested at once: a true symmetry passes 0.52 once in
    a thousand.
    """
    if apart.low > 0.6:
        return "distinct"
    if apart.low > 0.52:
        return "nearly"
    return "symmetric" if apart.high < 0.65 else "undecided"


def _likenesses(
    answers: Answers, classes: tuple[str, ...], p_pairs: dict[tuple[int, int], float]
) -> list[Likeness]:
    """Pairs of classes that come closer under the element, by 5 points at least and significantly;
    the closest first.
    """
    closer = []
    for (b, a), p in p_pairs.items():
        count = int(answers.counts[a] + answers.counts[b])
        if not count or p >= 0.05:
            continue
        moved, unmoved = (
            wilson(float(right[b, a]), count) for right in (answers.pairs, answers.upright)
        )
        if unmoved.value - moved.value >= 0.05:
            closer.append(Likeness(classes[b], classes[a], moved, unmoved, p))
    return sorted(closer, key=lambda pair: pair.apart.value)


def _collides(pair: Likeness) -> bool:
    return pair.apart.high < 0.75


def _largest(
    group: Group, elements: tuple[ElementProbe, ...], fits: Callable[[ElementProbe], bool]
) -> str:
    """The largest subgroup all of whose elements fit; of two equally large ones that with more
    rotations.
    """
    fitting = {"e", *(e.element for e in elements if fits(e))}
    return str(
        max(
            (h for h in group.subgroups() if all(str(e) in fitting for e in h.elements)),
            key=lambda h: (h.order, h.rotations),
        )
    )


def _headline(probe: Probe) -> str:
    return (
        f"{probe.images} images of {len(probe.classes)} classes under {probe.group}; "
        f"a small plain classifier gets {probe.accuracy.short()} of upright held-out images right"
    )


def _table(probe: Probe) -> list[str]:
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


def _class_table(probe: Probe) -> list[str]:
    rows = [("element", "class", "told from upright", "p")]
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


def _remarks(probe: Probe) -> list[str]:
    lines = []
    for e in probe.elements:
        for pair in e.likenesses[:3]:
            verb = "cannot be told from" if _collides(pair) else "comes close to"
            lines.append(
                f"{e.element}: class {pair.moved} {verb} class {pair.like} (told apart "
                f"{pair.apart.short()}, upright {pair.apart_upright.short()})"
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


def _advice(probe: Probe) -> list[str]:
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
            "cannot tell the classes named above "
            f"apart, whatever it is trained on: do not declare them."
        )
    shown = [e for e in of["distinct"] + of["nearly"] if e.labels != "collide"]
    if shown:
        worst = min(shown, key=lambda e: e.accuracy_unseen.value)
        lines.append(
            f"Not symmetries of the inputs, but labels survive: {_names(shown)}. Training does "
            "not show them; a plain network falls to "
            f"{100 * worst.accuracy_unseen.value:.0f} % ({worst.element}). Declare them if "
            "deployment meets them: exact networks keep "
            "their accuracy there, approximate ones gain upright and lose there."
        )
    close = [e for e in shown if e.labels == "resemble"]
    if close:
        lines.append(
            f"Under {_names(close)} some classes come closer to each other: expect an invariant "
            "network to confuse them more often "
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
