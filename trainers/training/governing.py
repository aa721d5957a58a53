"""What moves gamma of residual pathways in a training (`searchspace.weights.governor`).

gamma and its dual variable lambda are values of the network, so that a checkpoint holds them. After
each step's gradients, with eta = PACE / (steps of the training) x (learning rate / its peak):

    dual        gamma -= eta (dJ/dgamma + lambda + gamma),  lambda += eta / 4 gamma
    resilient   gamma -= eta (dJ/dgamma + lambda sign(gamma)),
                lambda = max(0, lambda + eta (|gamma| - lambda / rho)),  u = lambda / rho

These are ACE's steps (arXiv:2505.13631, equality and resilient), but for the gamma in the first:
descent in gamma and ascent in lambda alone circle around the solution, which this term, that of an
augmented Lagrangian, damps critically. Rates that go with the length of the training let gamma
settle within it, whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from searchspace.weights.governor import DEFAULT_GOVERNOR, Governor
from trainers.networks.networks import Network
from trainers.networks.projection import distance, layers_of
from trainers.networks.soft_weights import Banks, Pathway

# sum of the primal rates over a training at a constant learning rate. |gamma| at the end, simulated
# with noisy gradients (mean of 3, 200 to 5,000 steps, onecycle): 0.017 at 20, 0.005 at 40
PACE = 40.0


@dataclass(frozen=True, eq=False)
class Governing:
    """A governor on the pathways (and banks) of one network."""

    governor: Governor
    pathways: tuple[Pathway, ...]
    banks: tuple[Banks, ...]
    # [] of a step at the peak rate: `schedule` sets it, and a captured step reads it
    rate: Tensor

    @classmethod
    def of(cls, network: Network, governor: Governor | None, epochs: int) -> Governing:
        """The governor at work in a training of so many epochs; None: gamma stays 1. Sets gamma as
        it starts. Raises ValueError where there are too few epochs.
        """
        if governor is not None:
            governor.check_epochs(epochs)
        soft = [convolution.soft for convolution in network.convolutions]
        made = cls(
            governor or DEFAULT_GOVERNOR,
            tuple(s for s in soft if isinstance(s, Pathway)),
            tuple(s for s in soft if isinstance(s, Banks)),
            torch.zeros((), device=network.linear.weight.device),
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
            self.rate.fill_(PACE / total)
        if self.governor.kind == "triangle":
            with torch.no_grad():
                for gamma in self.gammas:
                    gamma.fill_(self.governor.at(number / max(1, total - 1)))

    def clear(self) -> None:
        """Forgets the gradients of gamma, before those of a step."""
        for gamma in self.gammas:
            gamma.grad = None

    def penalty(self) -> Tensor | None:
        """What a prior adds to the loss []; None: nothing."""
        if self.governor.kind != "prior":
            return None
        terms = [part.filters.square().sum() for p in self.pathways for part in p.parts]
        for bank in self.banks:
            apart = bank.weights[:, :, None] - bank.weights[:, None, :]
            terms.append(apart.abs().sum())
        return self.governor.value * torch.stack(terms).sum()

    def values(self, network: Network) -> dict[str, float]:
        """What the relaxations of the network have become, by name: of each layer gamma, lambda and
        u, the shares alpha or the spread of w, and how far its weight is from the constraint.
        """
        values: dict[str, float] = {}
        for name, convolution, weight in layers_of(network):
            if convolution.soft is None:
                continue
            of_layer = convolution.soft.state()
            if self.governor.kind == "resilient" and "lambda" in of_layer:
                of_layer["u"] = of_layer["lambda"] / self.governor.value
            elif not self.governor.trains_gamma:
                of_layer.pop("lambda", None)
            group = convolution.parametrisation.group
            of_layer["distance"] = distance(weight, convolution.source, group)
            values |= {f"{what} {name}": value for what, value in of_layer.items()}
        return values

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """Moves gamma and lambda along the gradients of a step, at a share of the peak rate."""
        if not self.governor.trains_gamma:
            return
        rate = self.rate * share
        for pathway in self.pathways:
            gamma, multiplier = pathway.gamma, pathway.multiplier
            if gamma.grad is None:
                continue
            if self.governor.kind == "dual":
                pull, rise = multiplier + gamma, gamma / 4
            else:
                pull = multiplier * gamma.sign()
                rise = gamma.abs() - multiplier / self.governor.value
            multiplier.add_(rate * rise)
            gamma.sub_(rate * (gamma.grad + pull))
            if self.governor.kind == "resilient":
                multiplier.clamp_(min=0)
