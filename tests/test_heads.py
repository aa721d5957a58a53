"""Heads over blocks of channels of plain networks, and the latent loss that they are made for."""

import pytest
import torch
from test_space import samples

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from searchspace.training.losses import parse_losses
from studies.samplers.inversion import parameters_of
from support import trivial
from trainers.actions import act, permutation
from trainers.instruments.merging import merge_barrier
from trainers.networks.fold import fold
from trainers.networks.networks import build
from trainers.training.objective import TrainingObjective

C4 = Group.parse("C4")
TEXT = "9px: 4k3, 10k3 max3/2 head=block_max:C4"


def test_the_head_is_part_of_the_text_and_of_the_key():
    architecture = Architecture.parse("9px: 4k3, 10k3 max3/2 head=block_max:c4")
    assert str(architecture) == TEXT and architecture.canonical() == architecture
    assert Candidate.parse(TEXT).key != Candidate.parse("9px: 4k3, 10k3 max3/2").key


@pytest.mark.parametrize(
    "text, said",
    [
        ("9px: 4k3@C4 head=block_max:C4", "the last stage has the group C4"),
        ("9px: 4k3 head=block_max:C1", "blocks are single channels"),
        ("9px: 4k3 head=block_max", "block_max:C4"),
        ("9px: 4k3 head=block_max:Q4", "there is no group 'Q4'"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Architecture.parse(text)


def test_features_are_the_maxima_over_blocks_and_a_last_smaller_one():
    network = build(Architecture.parse(TEXT), channels=1, classes=5).eval()
    images = torch.rand(3, 1, 9, 9)
    logits, stages = network.forward_with_stages(images)
    means = stages[-1].mean((2, 3))
    blocks = [means[:, :4].amax(1), means[:, 4:8].amax(1), means[:, 8:].amax(1)]
    expected = network.linear(torch.stack(blocks, 1))
    assert torch.allclose(logits, expected, atol=1e-6)
    assert torch.allclose(fold(network)(images), logits, atol=1e-5)
    params = sum(parameter.numel() for parameter in network.parameters())
    assert cost(network.architecture, 1, 5).params == params
    # nothing is claimed that a linear head does not keep
    plain = Architecture.parse("9px: 4k3, 10k3 max3/2 head=none")
    assert verdict(network.architecture, C4).invariant == verdict(plain, C4).invariant


def test_the_merge_barrier_moves_blocks_as_wholes():
    network = build(Architecture.parse(TEXT), channels=1, classes=5).eval()
    images = torch.rand(8, 1, 9, 9)
    found = merge_barrier(network, images, network(images).argmax(1), C4.elements[1])
    assert found.original == found.moved == 1


SPACE = {
    "backbone": "4k3, 8k3",
    "family": ["plain", "steerable"],
    "group": ["C2", "C4"],
    "input_size": 9,
    "head": ["group_mean", "none", "block_max:C4"],
    "equivariance_loss": {"kind": ["none", "latent", "label"], "weight": 1.0},
}


def test_a_space_offers_blocks_with_the_latent_loss_of_plain_networks_alone():
    study, heads = trivial.study(space=SPACE, symmetry__group="D4"), set()
    for proposal, params in samples(SearchSpace(**SPACE), 80, declared=Group.parse("D4")):
        latent = any(loss.kind == "latent" for loss in proposal.recipe.losses)
        family, head = proposal.architecture.family, proposal.architecture.head
        heads.add((family, latent, head))
        assert ("block_head" in params) == (family == "plain" and latent)
        if proposal.recipe.losses:
            assert parameters_of(study, Candidate.parse(str(proposal))) is not None
    assert heads == {
        *(("plain", False, head) for head in ("none",)),
        *(("plain", True, head) for head in ("none", "block_max:C4")),
        *(("steerable", latent, h) for latent in (True, False) for h in ("group_mean", "none")),
    }


def latent_error(network, images):
    """||W_g z(x) - z(g x)|| / ||z(x)||, mean over the quarter turns."""
    with torch.no_grad():
        z = network.forward_with_stages(images)[1][-1].mean((2, 3))
        errors = []
        for g in C4.elements[1:]:
            moved = network.forward_with_stages(act(images, g))[1][-1].mean((2, 3))
            expected = z.unflatten(1, (-1, 4))[:, :, list(permutation(C4, g.inverse))].flatten(1)
            errors.append(((expected - moved).norm() / z.norm()).item())
    return sum(errors) / 3


def trained(weight, steps=60):
    """A plain network trained on a few images, bright ones against dark ones, with the latent
    loss.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, 1, 9, 9, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    network = build(Architecture.parse("9px: 8k3, 8k3 head=block_max:C4"), channels=1, classes=2)
    objective = TrainingObjective.of(parse_losses(f"latent:{weight or 1}"), C4, (9, 9))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        cross_entropy, latent = objective.terms(
            network, images, labels, 32, lambda x: x - 0.5, generator
        )
        optimizer.zero_grad()
        (cross_entropy + weight * latent).backward()
        optimizer.step()
    return latent_error(network.eval(), images - 0.5), network


def test_the_layerwise_loss_makes_the_maps_of_every_stage_move():
    generator, found = torch.Generator().manual_seed(0), []
    images = torch.rand(32, 1, 9, 9, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    objective = TrainingObjective.of(parse_losses("layerwise:1"), C4, (9, 9))
    for weight in (0, 1):
        network = build(Architecture.parse("9px: 8k3, 8k3, 8k3"), channels=1, classes=2)
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(40):
            draws = torch.Generator().manual_seed(1)
            terms = objective.terms(network, images, labels, 32, lambda x: x - 0.5, draws)
            optimizer.zero_grad()
            (terms[0] + weight * terms[1]).backward()
            optimizer.step()
        found.append(terms[1].item())
    assert found[0] > 5 * found[1]


def test_the_latent_loss_makes_the_latent_move_as_the_regular_representation():
    (free, plain), (taught, lossy) = trained(0), trained(100)
    assert free > 5 * taught, (free, taught)
    counts = [sum(p.numel() for p in network.parameters()) for network in (plain, lossy)]
    assert counts[0] == counts[1]
