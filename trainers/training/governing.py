"""What moves gamma of residual pathways in a training (`searchspace.weights.governor`).

gamma and its dual variable lambda are values of the network, so that a checkpoint holds them. After
each step's gradients, with eta = PACE / (steps of the training), at most HIGHEST_RATE:

    dual        gamma -= eta_t (dJ/dgamma + lambda) + 2 eta gamma,  lambda += eta_t gamma
    resilient   gamma -= eta (dJ/dgamma + lambda sign(gamma)),
                lambda = max(0, lambda + eta (|gamma| - lambda / rho)),  u = lambda / rho

These are ACE's steps (arXiv:2505.13631, equality and resilient), but that dJ/dgamma is clipped, and
for the 2 eta gamma in the first: descent in gamma and ascent in lambda alone circle around the
solution, which this term, that of an augmented Lagrangian, damps critically. A rate that goes with
the length of the training, and not with the learning rate, lets gamma settle within it and follow
a gradient that changes. eta_t is eta in the first half of the training and falls to 0, like the
square of the steps that are left, in the second: the weight of the augmented Lagrangian,
eta / eta_t, grows, as it does in that method. With a constant eta the noise of the gradient stays
in gamma, which then ended at 0.04 to 0.10 in trainings of 384 steps, and what the pathway did was
missing when it was left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from searchspace.weights.governor import DEFAULT_GOVERNOR, Governor
from trainers.networks.networks import Network
from trainers.networks.projection import convolutions_of, equivariance_distance
from trainers.networks.soft_weights import Banks, Pathway

PACE = 40.0  # sum of eta over a training
HIGHEST_DUAL_RATE = 0.1
# dJ/dgamma counts up to this: of a network that learns nothing else it drove a resilient gamma to
# 28 (MNIST6-180), where lambda = rho |gamma| = |dJ/dgamma| makes it 1
MOST_GRADIENT = 1.0


@dataclass(frozen=True, eq=False)
class Governing:
    """A governor on the pathways (and banks) of one network."""

    governor: Governor
    pathways: tuple[Pathway, ...]
    banks: tuple[Banks, ...]
    # [] eta_t and eta: `schedule` sets them, and a captured step reads them
    rate: Tensor
    hold: Tensor

    @classmethod
    def of(cls, network: Network, governor: Governor | None, epochs: int) -> Governing:
        """The governor at work in a training of so many epochs; None: gamma stays 1. Sets gamma as
        it starts. Raises ValueError where there are too few epochs.
        """
        if governor is not None:
            governor.check_epochs(epochs)
        soft = [convolution.soft for convolution in network.convolutions]
        device = network.linear.weight.device
        made = cls(
            governor or DEFAULT_GOVERNOR,
            tuple(s for s in soft if isinstance(s, Pathway)),
            tuple(s for s in soft if isinstance(s, Banks)),
            torch.zeros((), device=device),
            torch.zeros((), device=device),
        )
        with torch.no_grad():
            for pathway in made.pathways:
                pathway.gamma.fill_(made.governor.start)
                pathway.gamma.requires_grad_(made.governor.trains_gamma)
        return made

    @property
    def gammas(self) -> list[nn.Parameter]:
        """What the optimizer leaves alone."""
        return [pathway.gamma for pathway in self.pathways]

    def schedule(self, number: int, total: int) -> None:
        """Sets what a training of `total` steps has for step `number` (from 0)."""
        if self.governor.trains_gamma:
            eta = min(PACE / total, HIGHEST_DUAL_RATE)
            left = 1 - number / total
            self.rate.fill_(eta * min(1.0, 2 * left) ** 2 if self.governor.kind == "dual" else eta)
            self.hold.fill_(2 * eta if self.governor.kind == "dual" else 0.0)
        if self.governor.kind == "triangle":
            with torch.no_grad():
                for gamma in self.gammas:
                    gamma.fill_(self.governor.at(number / max(1, total - 1)))

    def clear(self) -> None:
        """Forgets the gradients of gamma, before those of a step."""
        for gamma in self.gammas:
            gamma.grad = None

    def penalty(self) -> Tensor | None:
        """What a prior, or a triangle with a weight, adds to the loss []; None: nothing."""
        filters = [part.filters for pathway in self.pathways for part in pathway.parts]
        if self.governor.kind == "triangle" and self.governor.value:
            return self.governor.value * torch.stack([phi.norm() for phi in filters]).sum()
        if self.governor.kind != "prior":
            return None
        terms = [phi.square().sum() for phi in filters]
        for bank in self.banks:
            apart = bank.weights[:, :, None] - bank.weights[:, None, :]
            terms.append(apart.abs().sum())
        return self.governor.value * torch.stack(terms).sum()

    def values(self, network: Network) -> dict[str, float]:
        """What the relaxations of the network have become, by name: of each layer gamma, lambda and
        u, the shares alpha or the spread of w, and how far its weight is from the constraint.
        """
        values: dict[str, float] = {}
        for name, convolution, weight in convolutions_of(network):
            if convolution.soft is None:
                continue
            of_layer = convolution.soft.state()
            if self.governor.kind == "resilient" and "lambda" in of_layer:
                of_layer["u"] = of_layer["lambda"] / self.governor.value
            elif not self.governor.trains_gamma:
                of_layer.pop("lambda", None)
            group = convolution.parametrisation.group
            of_layer["distance"] = equivariance_distance(weight, convolution.source, group)
            values |= {f"{what} {name}": value for what, value in of_layer.items()}
        return values

    @torch.no_grad()
    def update(self) -> None:
        """Moves gamma and lambda along the gradients of a step."""
        if not self.governor.trains_gamma:
            return
        for pathway in self.pathways:
            gamma, multiplier = pathway.gamma, pathway.multiplier
            if gamma.grad is None:
                continue
            if self.governor.kind == "dual":
                pull, rise = multiplier.clone(), gamma.clone()
            else:
                pull = multiplier * gamma.sign()
                rise = gamma.abs() - multiplier / self.governor.value
            multiplier.add_(self.rate * rise)
            gradient = gamma.grad.clamp(-MOST_GRADIENT, MOST_GRADIENT)
            gamma.sub_(self.rate * (gradient + pull) + self.hold * gamma)
            if self.governor.kind == "resilient":
                multiplier.clamp_(min=0)
