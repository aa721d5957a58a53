"""A small classifier that tells images from moved images and classes apart, and what it says about
pairs of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from searchspace.groups import Element
from trainers.actions import act
from trainers.data.augment import rotate, shift

STEPS = 120  # of Adam: enough for 97 % after 1,000 upright MNIST images of 16 pixels
JOINT_STEPS = 240  # of the one classifier of all elements
CLASSIFIER_BATCH = 128  # images
PEAK = 0.01  # learning rate
SHIFT_PIXELS = 2  # pixels, at random while training: position must not give anything away
# degrees, at angles off the grid: no single pattern of interpolation belongs to an angle
JITTER = 5.0

Labelled = tuple[Tensor, Tensor]  # images [N, C, S, S] in 0..1, labels [N]
Classifier = Callable[[Tensor], Tensor]  # images -> logits


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier of (class, moved or not) says of held-out images x and moved images gx, in
    numbers of right answers.

    `apart`: x against gx, over 2N images. `labels`: classes, moved or not, over 2N images.
    `pairs[b, a]`: moved images of class b against upright ones of class a. `upright[b, a]`: the
    same, not moved. `counts`: held-out images of each class.

    `hits` of `trials`, per class: fair coins if x and gx have the same distribution. Where g is its
    own inverse, x and gx are exchangeable, and a trial is an image with both views named rightly (a
    hit) or both wrongly; otherwise it is one view of each image, drawn by a coin.
    """

    apart: int
    labels: int
    pairs: Tensor
    upright: Tensor
    hits: Tensor
    trials: Tensor
    counts: Tensor


def count_answers(
    train: Labelled, test: Labelled, element: Element, num_classes: int, seed: int
) -> Answers:
    """Train a classifier on upright and moved images, as 2 x `num_classes` classes, and count its
    right answers on `test`.

    Restricting its logits to two of these classes is the best guess between the two, so one
    training answers for every pair.
    """
    images, labels = train
    count = len(labels)

    def draw(index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        moved = index >= count
        index = index % count
        upright, turned = views(images[index], element, generator)
        return torch.where(moved.view(-1, 1, 1, 1), turned, upright), labels[
            index
        ] + num_classes * moved

    classifier = trained(draw, 2 * count, 2 * num_classes, images.shape[1:], seed)
    upright, moved = (
        classifier(view) for view in views(test[0], element, torch.Generator().manual_seed(seed))
    )
    return _count(element, upright, moved, test[1], num_classes, seed)


def count_jointly(
    train: Labelled, test: Labelled, elements: Sequence[Element], num_classes: int, seed: int
) -> dict[Element, Answers]:
    """The answers for every one of `elements`, which are on the grid, of one classifier that tells
    all of them and the classes apart: a short form, less sure of each element.
    """
    images, labels = train
    count = len(labels)

    def draw(index: Tensor, _: torch.Generator) -> Labelled:
        view, index = index // count, index % count
        moved = images[index]
        for number, element in enumerate(elements, start=1):
            moved[view == number] = act(moved[view == number], element)
        return moved, labels[index] + num_classes * view

    views_count = len(elements) + 1
    classifier = trained(
        draw, views_count * count, views_count * num_classes, images.shape[1:], seed, JOINT_STEPS
    )
    upright = classifier(test[0])
    answers = {}
    for number, element in enumerate(elements, start=1):
        moved = classifier(act(test[0], element))
        block = slice(number * num_classes, (number + 1) * num_classes)
        own = slice(num_classes)
        answers[element] = _count(
            element,
            torch.cat([upright[:, own], upright[:, block]], 1),
            torch.cat([moved[:, own], moved[:, block]], 1),
            test[1],
            num_classes,
            seed,
        )
    return answers


def views(images: Tensor, element: Element, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The images [B, C, S, S] and the moved images, such that interpolation alone does not tell
    them apart.

    Off the grid the images are turned back by half the angle and the moved ones forward by half of
    it: turning both sides alike asks the same question, and bilinear interpolation by opposite
    angles leaves the same loss of detail. Of both, only a disc is kept, one pixel inside the image:
    where the turned image's edges touch would give the angle away (noise told apart 79 %).
    """
    if element.on_grid:
        return images, act(images, element)
    jitter = (torch.rand(len(images), generator=generator) * 2 - 1) * JITTER
    radius = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    disc = radius**2 + radius[:, None] ** 2 <= (images.shape[-1] / 2 - 1) ** 2
    mirrored = images.flip(-1) if element.mirror else images
    return rotate(images, jitter - element.degrees / 2) * disc, rotate(
        mirrored, jitter + element.degrees / 2
    ) * disc


def upright_classifier(train: Labelled, num_classes: int, seed: int) -> Classifier:
    """A classifier of the labels, trained on these images as they are."""
    images, labels = train
    return trained(
        lambda index, _: (images[index], labels[index]),
        len(labels),
        num_classes,
        images.shape[1:],
        seed,
    )


def trained(
    draw: Callable[[Tensor, torch.Generator], Labelled],
    count: int,
    num_classes: int,
    shape: torch.Size,
    seed: int,
    steps: int | None = None,
) -> Classifier:
    """A small convolutional network trained on the images of `shape` [C, S, S] and labels that
    `draw` gives for indices below `count`, for `steps` (`STEPS`).
    """
    steps = STEPS if steps is None else steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(shape, num_classes)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
    order = torch.cat(
        [
            torch.randperm(count, generator=generator)
            for _ in range(steps * CLASSIFIER_BATCH // count + 1)
        ]
    )
    for step in range(steps):
        images, labels = draw(
            order[step * CLASSIFIER_BATCH : (step + 1) * CLASSIFIER_BATCH], generator
        )
        offsets = torch.randint(
            -SHIFT_PIXELS, SHIFT_PIXELS + 1, (2, len(images)), generator=generator
        )
        loss = functional.cross_entropy(
            network(shift(images, offsets[0], offsets[1], SHIFT_PIXELS)), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()

    def classify(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(chunk) for chunk in images.split(512)])

    return classify


def _network(shape: torch.Size, num_classes: int) -> nn.Module:
    """Plain strided convolutions and, at the end, weights for every position: it can see any
    orientation.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((shape[0], 16, 2), (16, 32, 1), (32, 32, 2)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    positions = math.ceil(shape[1] / 4) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * positions, num_classes))


def _count(
    element: Element, upright: Tensor, moved: Tensor, labels: Tensor, num_classes: int, seed: int
) -> Answers:
    """Right answers from the logits [N, 2K] of upright and of moved images, whose first K columns
    say upright.
    """
    one_hot = functional.one_hot(labels, num_classes).double()
    of_upright, of_moved = (
        part.gather(1, column[:, None])
        for part, column in ((upright, labels), (moved, labels + num_classes))
    )
    # [N, K]: the image, of class a, is told from a moved one of class b
    from_moved = (of_upright > upright[:, num_classes:]).double()
    # the image, of class b and moved, is told from an upright one of class a
    as_moved = (of_moved > moved[:, :num_classes]).double()
    # both upright
    unmoved = (of_upright > upright[:, :num_classes]).double()

    def both(of_a: Tensor, of_b: Tensor) -> Tensor:
        """[b, a]: over the images of class a and those of class b."""
        return (one_hot.T @ of_a).T + one_hot.T @ of_b

    right_upright = upright[:, :num_classes].logsumexp(1) > upright[:, num_classes:].logsumexp(1)
    right_moved = moved[:, num_classes:].logsumexp(1) > moved[:, :num_classes].logsumexp(1)
    labelled = sum(
        int((torch.logaddexp(*logits.split(num_classes, 1)).argmax(1) == labels).sum())
        for logits in (upright, moved)
    )
    if element.inverse == element:
        hit, tried = right_upright & right_moved, right_upright == right_moved
    else:
        coin = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < 0.5
        hit, tried = torch.where(coin, right_moved, right_upright), torch.ones_like(coin)
    return Answers(
        apart=int(right_upright.sum() + right_moved.sum()),
        labels=labelled,
        pairs=both(from_moved, as_moved),
        upright=both(unmoved, unmoved),
        hits=one_hot.T @ hit.double(),
        trials=one_hot.T @ tried.double(),
        counts=one_hot.sum(0),
    )
