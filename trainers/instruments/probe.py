"""How symmetric is the data itself? Small classifiers ask it of held-out images, before any search.

For an element g: can images x be told from moved images gx (a classifier two-sample test: Lopez-Paz
and Oquab, "Revisiting classifier two-sample tests", 2017)? And does g carry one class onto another,
as half a turn carries 6 onto 9?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act
from trainers.data.datasets import load_data
from trainers.data.fitting import fit_images
from trainers.data.splitting import remaining_indices, take
from trainers.instruments.data_symmetry import (
    ClassProbe,
    DataSymmetry,
    ElementProbe,
    Likeness,
    collides,
)
from trainers.instruments.proportions import Proportion, binomial, fisher, holm, wilson
from trainers.instruments.tasks.kinds import as_kinds, kind_of
from trainers.instruments.twosample import (
    Answers,
    Classifier,
    count_answers,
    count_jointly,
    upright_classifier,
)
from trainers.settings import Data

# pixels of the shorter side; larger images are resized: orientation is coarse, and time is short
LARGEST_SIDE = 16


def probe(
    data: Data, group: Group, *, images: int = 2000, seed: int = 0, joint: bool = False
) -> DataSymmetry:
    """What each element of `group` but the identity does to the inputs and the labels of `data`.

    Looks at `images` training and validation images at most, drawn from every class in proportion,
    at 16 pixels or fewer on the shorter side; the test split is not touched. Where labels are no
    classes, their kinds are asked (`trainers.instruments.tasks.kinds`). Images that are not square
    are cropped to their central square. `joint`: as in `probe_images`. Raises ValueError for
    bad data and for the trivial group.
    """
    splits = load_data(data)
    if min(splits.size) > LARGEST_SIDE:
        height, width = (
            max(LARGEST_SIDE, round(side * LARGEST_SIDE / min(splits.size))) for side in splits.size
        )
        splits = load_data(data, (height, width))
    given = torch.cat([splits.train.labels, splits.validation.labels])
    labels, names = as_kinds(splits.outputs, given)
    chosen = torch.from_numpy(take(labels.numpy(), min(images, len(labels)), (seed, 0)))
    # what is not chosen of a mapped array is not read
    first = chosen < len(splits.train)
    pixels = torch.empty((len(chosen), *splits.train.pixels.shape[1:]), dtype=torch.uint8)
    pixels[first] = splits.train.pixels[chosen[first]]
    pixels[~first] = splits.validation.pixels[chosen[~first] - len(splits.train)]
    side = min(splits.size)
    square = fit_images(pixels, (side, side), "pad")
    probed = probe_images(
        square.float() / 255, labels[chosen], names, group, seed=seed, joint=joint
    )
    return replace(probed, kind=kind_of(splits.task))


def probe_images(
    pixels: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    group: Group,
    *,
    seed: int = 0,
    joint: bool = False,
) -> DataSymmetry:
    """What each element of `group` but the identity does to these images, floats [N, C, S, S] in
    0..1, and their labels.

    Half of them train the classifiers, the other half answer; intervals count each held-out image
    once. An element and its inverse share one classifier, because P = gP says the same as g^-1 P =
    P. `joint`: one classifier answers for all elements on the grid, and others are left out: a
    short form. Raises ValueError for the trivial group, and for images that are not square.
    """
    require_square(pixels, group)
    fit = take(labels.numpy(), len(labels) // 2, (seed, 1), keep=1)
    held_out = torch.from_numpy(remaining_indices(len(labels), fit))
    train = (pixels[fit], labels[fit])
    test = (pixels[held_out], labels[held_out])
    upright = upright_classifier(train, len(classes), seed)
    elements = _judged(
        _answers(train, test, group, len(classes), seed, joint), upright, test, classes
    )
    right = int((upright(test[0]).argmax(1) == test[1]).sum())
    return DataSymmetry(
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
    of_inputs = holm(
        [binomial(float(a.hits.sum()), float(a.trials.sum())) for a in answers.values()]
    )
    of_classes = holm(
        [
            binomial(float(hits), float(trials))
            for a in answers.values()
            for hits, trials in zip(a.hits, a.trials)
        ]
    )
    pairs = [(b, a) for b in range(len(classes)) for a in range(len(classes)) if a != b]
    of_pairs = holm(
        [
            fisher(
                float(counted.upright[b, a]),
                float(counted.pairs[b, a]),
                float(counted.counts[a] + counted.counts[b]),
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
        if any(collides(pair) for pair in likenesses)
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
