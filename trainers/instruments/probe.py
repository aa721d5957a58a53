"""How symmetric is the data itself? Small classifiers ask it of held-out images, before any search.

For an element g: can images x be told from moved images gx (a classifier two-sample test: Lopez-Paz
and Oquab, "Revisiting classifier two-sample tests", 2017)? And does g carry one class onto another,
as half a turn carries 6 onto 9?
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act
from trainers.data.datasets import load
from trainers.data.fitting import fit_images
from trainers.data.splitting import remainder, take
from trainers.instruments.proportions import Proportion, wilson
from trainers.instruments.twosample import Answers, Classifier, count_answers, plain
from trainers.settings import Data

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


@dataclass(frozen=True)
class ElementProbe:
    """What one element does to the data.

    `apart` is how often x and gx are told apart; 0.5 is a guess. `inputs` follows from it:
    symmetric, nearly, distinct, or undecided (too few images). `labels`: kept; resemble (classes in
    `likenesses` come closer to each other); collide (they cannot be told apart). `alike`: classes
    whose own images look the same moved. `accuracy_unseen`: of a plain classifier trained upright,
    on moved images. `accuracy_blind`: of one trained on both that is not asked which of the two it
    sees. `called`: (class, name, fraction) where the one trained upright calls most of a class's
    moved images by another's name.
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

    def text(self) -> str:
        """A table of the elements, remarks on each, and what to declare and to expect."""
        return "\n".join([_headline(self), "", *_table(self), "", *_remarks(self), *_advice(self)])


def probe(data: Data, group: Group, *, images: int = 2000, seed: int = 0) -> Probe:
    """What each element of `group` but the identity does to the inputs and the labels of `data`.

    Looks at `images` training and validation images at most, drawn from every class in proportion,
    at 16 pixels or fewer on the shorter side; the test split is not touched. Images that are not
    square are cropped to their central square. Raises ValueError for bad data and for the trivial
    group.
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
    return probe_images(square.float() / 255, labels[chosen], splits.classes, group, seed=seed)


def probe_images(
    pixels: Tensor, labels: Tensor, classes: tuple[str, ...], group: Group, *, seed: int = 0
) -> Probe:
    """What each element of `group` but the identity does to these images, floats [N, C, S, S] in
    0..1, and their labels.

    Half of them train the classifiers, the other half answer; intervals count each held-out image
    once. An element and its inverse share one classifier, because P = gP says the same as g^-1 P =
    P. Raises ValueError for the trivial group, and for images that are not square.
    """
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
    fit = take(labels.numpy(), len(labels) // 2, (seed, 1), keep=1)
    held_out = torch.from_numpy(remainder(len(labels), fit))
    train = (pixels[fit], labels[fit])
    test = (pixels[held_out], labels[held_out])
    upright = plain(train, len(classes), seed)
    answers: dict[Element, Answers] = {}
    for element in group.elements:
        if element != IDENTITY:
            other = answers.get(element.inverse)
            if other is not None:
                answers[element] = _inverted(other)
            else:
                answers[element] = count_answers(train, test, element, len(classes), seed)
    questions = max(1, len(classes) * (len(classes) - 1) * len(answers))
    surely = NormalDist().inv_cdf(1 - 0.05 / questions)
    elements = tuple(
        _judge(element, counted, upright, test, classes, surely)
        for element, counted in answers.items()
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


def _inverted(answers: Answers) -> Answers:
    """The same answers about the inverse element: b moved looks like a exactly if a moved back
    looks like b.
    """
    return Answers(answers.apart, answers.labels, answers.pairs.T, answers.upright, answers.counts)


def _judge(
    element: Element,
    answers: Answers,
    upright: Classifier,
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    surely: float,
) -> ElementProbe:
    images, labels = test
    count = len(labels)
    # both views of an image count as one trial
    apart = wilson(answers.apart / 2, count)
    likenesses = tuple(_likenesses(answers, classes, surely))
    inputs = _inputs(apart)
    alike = tuple(
        name
        for i, name in enumerate(classes)
        if answers.counts[i] >= 10
        and wilson(float(answers.pairs[i, i]) / 2, int(answers.counts[i])).value < 0.6
    )
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


def _likenesses(answers: Answers, classes: tuple[str, ...], surely: float) -> list[Likeness]:
    """Pairs of classes that come closer under the element, by 5 points and `surely` standard errors
    at least; the closest first.

    `surely` allows for the number of pairs and elements asked about, so that chance finds a pair in
    one data set of twenty.
    """
    closer = []
    for b in range(len(classes)):
        for a in range(len(classes)):
            count = int(answers.counts[a] + answers.counts[b])
            if a == b or not count:
                continue
            pair = Likeness(
                classes[b],
                classes[a],
                *(wilson(float(right[b, a]), count) for right in (answers.pairs, answers.upright)),
            )
            fall, middle = (
                pair.apart_upright.value - pair.apart.value,
                (pair.apart_upright.value + pair.apart.value) / 2,
            )
            if fall >= 0.05 and fall > surely * math.sqrt(2 * middle * (1 - middle) / count):
                closer.append(pair)
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
            e.inputs,
            e.labels,
            e.accuracy_unseen.short(),
            e.accuracy_blind.short(),
        )
        for e in probe.elements
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]


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
