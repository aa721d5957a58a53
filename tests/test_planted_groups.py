"""Labels that are invariant under a group and under no larger one: what learns or chooses a degree
of equivariance finds the group that was planted. Each image is noise of 7 x 7 pixels, its class the
sign of its product with a template that is averaged over the group.
"""

from functools import cache

import pytest
import torch

from searchspace.groups import Group
from searchspace.recipe import Candidate
from trainers.actions import act
from trainers.networks.networks import build
from trainers.training.governing import Governing
from trainers.training.objective import TrainingObjective

SEED = 1
VALIDATION = 1000


@cache
def planted(group, number):
    """Images and labels of `group`: `number` to train on, then `VALIDATION`."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(number + VALIDATION, 1, 7, 7, generator=generator)
    template = torch.randn(1, 1, 7, 7, generator=generator)
    template = sum(act(template, e) for e in Group.parse(group).elements)
    return images, ((images * template).sum((1, 2, 3)) > 0).long()


def trained(text, group, number=512, batch=32, steps=150, seed=0, rate=0.02):
    """The network of a candidate's text, its governor, and its accuracy on validation images after
    training on what `group` labels.
    """
    images, labels = planted(group, number)
    candidate = Candidate.parse(text)
    torch.manual_seed(seed)
    network = build(candidate.architecture, channels=1, classes=2)
    governing = Governing.of(network, candidate.recipe.gamma, epochs=2)
    losses = candidate.recipe.losses
    objective = TrainingObjective.of(losses, Group.parse("C4"), (7, 7))
    governed = set(map(id, governing.gammas))
    optimizer = torch.optim.Adam([p for p in network.parameters() if id(p) not in governed], rate)
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        governing.schedule(step, steps)
        governing.clear()
        optimizer.zero_grad()
        chosen = (torch.arange(batch) + step * batch) % number
        task, *others = objective.terms(
            network, images[chosen], labels[chosen], batch, lambda x: x, draws
        )
        weighted = [loss.weight * term for loss, term in zip(losses, others)]
        penalty = governing.penalty()
        sum(weighted, task if penalty is None else task + penalty).backward()
        optimizer.step()
        governing.update()
    return network, governing.values(network), accuracy_of(network, group, number)


@torch.no_grad()
def accuracy_of(network, group, number=512):
    """On validation images, whose own statistics batch norm takes."""
    images, labels = planted(group, number)
    return (network(images[number:]).argmax(1) == labels[number:]).float().mean().item()


def learned(values, kind):
    """What is learned of the only convolution."""
    (value,) = (value for name, value in values.items() if name.startswith(f"{kind} stage"))
    return value


@pytest.mark.parametrize("group", ["C1", "C2", "D1", "C4"])
def test_the_group_whose_label_loss_validates_best_is_the_planted_one(group):
    """REMUL's choice of the group, on as few images as the choice matters for."""
    accuracies = {}
    for name in ("C1", "C2", "D1", "C4"):
        text = "7px: 4k7p0" + (f" loss=label:1@{name}" if name != "C1" else "")
        accuracies[name] = trained(text, group, number=60, batch=60, steps=25, rate=0.05)[2]
    best, second = sorted(accuracies, key=accuracies.get, reverse=True)[:2]
    assert best == group and accuracies[best] > accuracies[second] + 0.01, accuracies


@pytest.mark.parametrize("seed", [0, 1])
def test_the_alphas_of_a_mixed_layer_move_to_the_group_of_the_data(seed):
    """EquiNAS_D: from equal shares, with what trains the weights."""
    alphas = [
        learned(trained("7px: 4k7p0@C4|C1", group, seed=seed)[1], "alpha C4")
        for group in ("C4", "C1")
    ]
    assert alphas[0] > 0.52 and alphas[1] < 0.42, alphas


def test_a_chain_gives_the_planted_group_more_than_any_data_that_are_not_of_it():
    shares = {
        group: [learned(values, f"alpha {name}") for name in ("C4", "C2", "C1")]
        for group in ("C4", "C2", "C1")
        for values in [trained("7px: 4k7p0@C4|C2|C1", group)[1]]
    }
    for number, group in enumerate(shares):
        assert max(shares, key=lambda other: shares[other][number]) == group, shares


def test_a_dual_gamma_ends_at_0_and_the_pathway_can_be_left_out():
    """ACE on symmetric data."""
    network, values, accuracy = trained("7px: 4k7p0@C4+C1 gamma=dual", "C4")
    assert abs(learned(values, "gamma")) < 1e-2
    with torch.no_grad():
        network.convolutions[0].soft.gamma.zero_()
    assert accuracy_of(network, "C4") > accuracy - 0.003 and accuracy > 0.88


def test_a_resilient_slack_stays_where_the_data_need_it():
    """ACE on data without the symmetry: slack and accuracy, which the exact network has not."""
    needed = trained("7px: 4k7p0@C4+C1 gamma=resilient:1", "C1")
    idle = trained("7px: 4k7p0@C4+C1 gamma=resilient:1", "C4")
    exact = trained("7px: 4k7p0@C4", "C1")
    assert learned(needed[1], "u") > 1.5 * learned(idle[1], "u") > 0
    assert needed[2] > exact[2] + 0.15


def test_a_triangle_ends_as_accurate_as_the_exact_network():
    _, values, accuracy = trained("7px: 4k7p0@C4+C1 gamma=triangle", "C4")
    exact = trained("7px: 4k7p0@C4", "C4")[2]
    assert accuracy > exact - 0.03 and exact > 0.88, (accuracy, exact)
    assert learned(values, "distance") < 1e-6


def test_a_heavy_prior_makes_banks_exact_again():
    """Relaxed group convolutions: data that break the symmetry, against the weight of the prior."""
    spreads = [
        learned(trained(f"7px: 4k7p0@C4b2 gamma=prior:{weight}", "C1")[1], "w spread")
        for weight in (0, 0.01, 1)
    ]
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2] and spreads[2] < 0.05, spreads
