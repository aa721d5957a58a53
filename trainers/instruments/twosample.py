"""A small classifier that tells images from moved images and classes apart, and what it says about
pairs of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from searchspace.groups import Element
from trainers.actions import act
from trainers.data.augment import rotate, shift

STEPS = 120  # of Adam: enough for 97 % after 1,000 upright MNIST images of 16 pixels
BATCH = 128  # images
PEAK = 0.01  # learning rate
SHIFT = 2  # pixels, at random while training: position must not give anything away
# degrees, at angles off the grid: no single pattern of interpolation belongs to an angle
JITTER = 5.0

Labelled = tuple[Tensor, Tensor]  # images [N, C, S, S] in 0..1, labels [N]
Classifier = Callable[[Tensor], Tensor]  # images -> logits


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier of (class, moved or not) says of held-out images x and moved images gx, in
    numbers of right answers.

    `apart`: x against gx, over 2N images. `labels`: classes, where it is not asked whether an image
    is moved, over 2N images. `pairs[b, a]`: moved images of class b against upright ones of class
    a. `upright[b, a]`: the same, not moved. `counts`: held-out images of each class.
    """

    apart: int
    labels: int
    pairs: Tensor
    upright: Tensor
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
    return _count(upright, moved, test[1], num_classes)


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


def plain(train: Labelled, num_classes: int, seed: int) -> Classifier:
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
) -> Classifier:
    """A small convolutional network trained on the images of `shape` [C, S, S] and labels that
    `draw` gives for indices below `count`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(shape, num_classes)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS)
    order = torch.cat(
        [torch.randperm(count, generator=generator) for _ in range(STEPS * BATCH // count + 1)]
    )
    for step in range(STEPS):
        images, labels = draw(order[step * BATCH : (step + 1) * BATCH], generator)
        offsets = torch.randint(-SHIFT, SHIFT + 1, (2, len(images)), generator=generator)
        loss = functional.cross_entropy(
            network(shift(images, offsets[0], offsets[1], SHIFT)), labels
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


def _count(upright: Tensor, moved: Tensor, labels: Tensor, num_classes: int) -> Answers:
    """Right answers from the logits [N, 2K] of upright and of moved images, whose first K columns
    say upright.
    """
    one_hot = functional.one_hot(labels, num_classes).double()
    of_upright, of_moved = (
        part.gather(1, column[:, None])
        for part, column in ((upright, labels), (moved, labels + num_classes))
    )
    # [a, b]: a upright, not b moved
    upright_right = one_hot.T @ (of_upright > upright[:, num_classes:]).double()
    # [b, a]: b moved, not a upright
    moved_right = one_hot.T @ (of_moved > moved[:, :num_classes]).double()
    # [a, b]: both upright
    unmoved_right = one_hot.T @ (of_upright > upright[:, :num_classes]).double()
    apart, right = 0, 0
    for logits, is_moved in ((upright, False), (moved, True)):
        first, second = logits[:, :num_classes], logits[:, num_classes:]
        apart += int(((second.logsumexp(1) > first.logsumexp(1)) == is_moved).sum())
        right += int((torch.logaddexp(first, second).argmax(1) == labels).sum())
    return Answers(
        apart, right, moved_right + upright_right.T, unmoved_right + unmoved_right.T, one_hot.sum(0)
    )
