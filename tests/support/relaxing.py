"""Networks whose relaxed weights are far from the constraint, and random relaxations."""

import random
from dataclasses import replace

import torch

from searchspace.architecture import Architecture
from searchspace.groups import Group
from searchspace.layers import Stage
from searchspace.weights.relaxation import Relaxation
from trainers.networks.networks import Network

TEXTS = [
    "9px: 2k3@{}+C1, 3k3p0 conv3/2p1, 2k2",
    "9px: 2k3@{}b2, 3k3x2r, 2k3s2r",
    "9px: 2k3@{}|C1, 3k3p0 max3/2, 2k2p1:0",
    "9px: 2k3@{}~0.3, 3k3x2r, 2k3s2",
]


@torch.no_grad()
def stir(network: Network, seed: int = 0) -> Network:
    """The network with random values in everything that a relaxation has beside its filters."""
    generator = torch.Generator().manual_seed(seed)
    for convolution in network.convolutions:
        if convolution.soft is not None:
            for name, parameter in convolution.soft.named_parameters():
                if name in ("gamma", "alpha", "weights"):
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(drawn.sign() * (drawn.abs() + 0.2))
    return network


def random_relaxation(rng: random.Random, group: Group) -> Relaxation | None:
    """A relaxation that suits the group, or sometimes none."""
    below = group.subgroups()[:-1]
    if not below or not group.on_grid or rng.random() < 0.25:
        return None
    kind = rng.choice(("+", "+", "|", "b", "~"))
    if kind == "+":
        return Relaxation.parse(f"+{rng.choice(below)}")
    if kind == "|":
        chain = [rng.choice(below)]
        while chain[-1].order > 1 and rng.random() < 0.6:
            chain.append(rng.choice(chain[-1].subgroups()[:-1]))
        return Relaxation("mixed", tuple(chain))
    return Relaxation.parse(
        f"b{rng.randint(2, 3)}" if kind == "b" else f"~{0.1 + 0.8 * rng.random():.2f}"
    )


def random_relaxed(rng: random.Random, architecture: Architecture) -> Architecture:
    """The architecture with random relaxations in its stages."""

    def relaxed(stage: Stage) -> Stage:
        return replace(stage, relaxation=random_relaxation(rng, stage.group))

    return replace(architecture, filters="free", stages=tuple(map(relaxed, architecture.stages)))
