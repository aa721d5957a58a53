"""A planted task that no network which is exact under C4 can solve: images against the same turned
by 180 degrees (MNIST6-180 in small). Every way of giving exactness up solves it.
"""

from functools import cache

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from trainers.networks.networks import build


@cache
def images_and_turned():
    """Noisy digits-like images, 24 of each class; class 1 is class 0 turned by 180 degrees."""
    generator = torch.Generator().manual_seed(0)
    images = 0.2 * torch.rand(24, 1, 9, 9, generator=generator)
    images[:, :, 1:4, 3:6] += 1  # a blob above
    images[:, :, 4:8, 4] += 1  # and a line below
    return torch.cat([images, images.rot90(2, (2, 3))]) - 0.5, torch.arange(2).repeat_interleave(24)


def accuracy_of(text, steps=30):
    """The share of images that a network tells apart after training on them."""
    images, labels = images_and_turned()
    network = build(Architecture.parse(text), channels=1, classes=2)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        network.train()  # statistics of these images, which are all that there are
        return (network(images).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("text", ["9px: 3k3@C4, 3k3, 3k3", "9px: 6k3, 6k3, 6k3 orbit=C4"])
def test_what_is_exact_is_right_half_of_the_time(text):
    assert verdict(Architecture.parse(text), Group.parse("C4")).exact
    # logits of both are the same up to rounding: at most images on the border differ
    assert accuracy_of(text) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "text",
    [
        "9px: 3k3@C4+C1, 3k3, 3k3",
        "9px: 3k3@C4|C1, 3k3, 3k3",
        "9px: 3k3@C4b2, 3k3, 3k3",
        "9px: 3k3@C4~0.3, 3k3, 3k3",
        "9px: 3k3@C4, 3k3, 3k3 coordinates=xy",
        "9px: 3k3@C4, 3k3, 12k3@C1",
        "9px: 6k3, 6k3, 6k3",
    ],
)
def test_what_gives_exactness_up_solves_the_task(text):
    assert not verdict(Architecture.parse(text), Group.parse("C4")).exact
    assert accuracy_of(text) > 0.95
