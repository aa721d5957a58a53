"""Softened networks: strict at 0, the trained network at 1, nearer to strict in between, and never
further from it than the bound says.
"""

import pytest
import torch
from test_layerwise import network

from searchspace.groups import Group
from trainers.actions import act
from trainers.networks.fold import fold
from trainers.networks.soft.logit_bound import logit_bounds
from trainers.networks.soft.softening import actions, soften_network

C4, D4 = Group.parse("C4"), Group.parse("D4")
TEXTS = (
    "16px: 4k3@C4+C1 max2/2, 3k3@C4~0.7",
    "17px: 4k3@D4 avg3/2p1, 3k3s2r@C4b2 head=group_mean",
    "16px: 8k3 max2/2, 12k3 head=none",
    "17px: 8k5 blur/2, 8k3 lp3/2, 8k3r head=block_max:C4",
)


def trained(text, seed=0):
    """A network whose relaxed weights have left the constraint, in double precision."""
    model = network(text, seed).double()
    generator = torch.Generator().manual_seed(seed + 9)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * parameter.abs().mean() * noise)
    return model


def images_of(model, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = model.architecture.size
    return torch.rand(count, 1, *size, generator=generator, dtype=torch.float64)


def changes(model, images, group):
    """How far the logits move when the images do, at most [image]."""
    still = model(images)
    moved = [(model(act(images, e)) - still).norm(dim=1) for e in group.elements]
    return torch.stack(moved).amax(0)


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_softness_goes_from_strict_to_the_trained_network(text):
    model = trained(text)
    images = images_of(model)
    whole = soften_network(model, C4, 1.0)
    assert all(torch.equal(v, whole.state_dict()[n]) for n, v in model.state_dict().items())
    assert torch.equal(whole(images), model(images))
    found = [
        float(changes(soften_network(model, C4, s), images, C4).max())
        for s in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert found[0] < 1e-12 < 1e-4 < found[-1]
    assert found == sorted(found)


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_measured_statistics_leave_a_strict_network_strict(text):
    model = trained(text)
    images = images_of(model, 16)
    for softness in (0.0, 0.5):
        softened = soften_network(model, C4, softness, images)
        assert not softened.training
        plain = soften_network(model, C4, softness)
        assert not torch.allclose(softened(images), plain(images), atol=1e-3)
    assert float(changes(soften_network(model, C4, 0, images), images, C4).max()) < 1e-12


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_no_logit_changes_by_more_than_the_bound(text):
    """Over the texts, seeds, values of softness and images: 1,000 settings."""
    for seed in range(2):
        model = trained(text, seed)
        acting = actions(model, C4)
        images = images_of(model, 25, seed)
        for softness in (0, 0.1, 0.4, 0.8, 1):
            softened = soften_network(model, C4, softness)
            folded = fold(softened)
            orbit = torch.cat([act(images, e) for e in C4.elements])
            bounds = logit_bounds(folded, acting, C4, orbit).view(4, -1)
            bound = bounds[0] + bounds.amax(0)
            measured = changes(softened, images, C4)
            assert bool((measured <= bound + 1e-9).all())
            assert bool((bound == 0).all()) == (softness == 0)


@pytest.mark.parametrize(
    "text,group,softness,message",
    [
        ("16px: 4k3@C4", "C4", 1.2, "softness is 1.2; it must be from 0"),
        ("16px: 4k3@C4", "C4", -0.1, "it must be from 0"),
        ("16px: 4k3@C4, 4k3@C2", "C4", 0.5, "soften under C2"),
        ("16px: 6k3, 8k3 head=none", "C4", 0.5, "6 channels, which are not blocks of 4"),
        ("16px: 4k3@D1, 4k3", "C4", 0.5, "do not act; soften a network whose stages are plain"),
        ("16px: 4k3 orbit=C4", "C4", 0.5, "averages over an orbit"),
    ],
)
def test_what_cannot_be_softened_is_said(text, group, softness, message):
    with pytest.raises(ValueError, match=message):
        soften_network(network(text), Group.parse(group), softness)
