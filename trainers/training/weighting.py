"""Weights of several loss terms that adapt while training (GradNorm, Chen et al. 2018,
arXiv:1711.02257).

Each weighted term should move a shared layer at a common rate, faster where the term has been
lowered less: the target of its gradient's norm is the mean over terms times r^EXPONENT, where r is
its share of its first value, relative to the mean of these shares. The weights follow by gradient
descent at RATE on the distance to the targets, and their sum is kept. Exponent and rate are those
that REMUL's adapted weights are run with (arXiv:2410.17878).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPONENT, RATE = 1.5, 0.025
LEAST = 1e-3  # share of the sum that a weight keeps


class AdaptedWeights(nn.Module):
    """The weights of loss terms, and what they started from; buffers, so that checkpoints hold
    them.
    """

    weights: Tensor
    first: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.total = sum(weights)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))
        # each term's first value; 0 before the first step
        self.register_buffer("first", torch.zeros(len(weights), dtype=torch.float64))

    def forward(self, terms: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
        """The weighted sum [] of the terms; then, for the next step, the weights follow the norms
        of the terms' gradients at the `shared` parameters.
        """
        weights = self.weights.clone()
        norms = [_norm(term, shared) for term in terms]
        self._follow(torch.stack([term.detach().double() for term in terms]), torch.stack(norms))
        return torch.stack([w.to(t.dtype) * t for w, t in zip(weights, terms)]).sum()

    @torch.no_grad()
    def _follow(self, values: Tensor, norms: Tensor) -> None:
        if not bool(self.first.any()):
            self.first.copy_(values)
        shares = values / self.first.clamp(min=torch.finfo(torch.float64).tiny)
        relative = shares / shares.mean()
        weighted = self.weights * norms
        targets = weighted.mean() * relative**EXPONENT
        moved = self.weights - RATE * torch.sign(weighted - targets) * norms
        moved = moved.clamp(min=LEAST * self.total)
        self.weights.copy_(moved * self.total / moved.sum())


def _norm(term: Tensor, shared: Sequence[Tensor]) -> Tensor:
    """The norm of the term's gradient at the shared parameters; 0 where it does not depend on
    them.
    """
    if not term.requires_grad:
        return torch.zeros((), dtype=torch.float64, device=term.device)
    gradients = torch.autograd.grad(term, shared, retain_graph=True, allow_unused=True)
    squares = [g.detach().double().square().sum() for g in gradients if g is not None]
    return sum(squares, torch.zeros((), dtype=torch.float64, device=term.device)).sqrt()
