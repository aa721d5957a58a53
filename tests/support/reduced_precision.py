"""Networks under bfloat16 autocast against themselves in float64, for every kind of layer."""

from __future__ import annotations

import copy

import torch

from searchspace.architecture import Architecture
from trainers.networks.networks import build

# Each kind of layer with weights, with a norm and with a pooling step of its own.
KINDS = {
    "lifted": "12px: 4k3@C4, 4k3",
    "pooled": "12px: 4k3@D4, 4k3 max2/2, 4k3",
    "basis of C8": "12px: 2k3@C8, 2k3 avg2/2, 2k3 filters=basis",
    "residual": "11px: 4k3@C4, 4k3x2r, 8k3s2r",
    "strided step": "11px: 4k3@C4 conv3/2p1, 4k3 blur/2",
    "one field": "12px: 1k3@D4, 1k3 max2/2, 1k3",
    "restricted": "12px: 2k3@D4, 4k3@C4, 8k3@C2",
    "plain": "12px: 24k3, 24k3 max2/2, 24k3",
    "pathway": "12px: 6k3@C4+C1, 6k3 max2/2, 6k3@C4+C2",
    "mixed": "12px: 6k3@C4|C2|C1, 6k3 max2/2, 6k3@C4|C1",
    "banks": "12px: 6k3@C4b2, 6k3 max2/2, 6k3@C4b3",
    "softness": "12px: 6k3@C4~0.3, 6k3 max2/2, 6k3@C4~1",
    "orbit": "12px: 16k3, 16k3 max2/2, 16k3 orbit=C4",
    "streams": "12px: 4k3@C4, 4k3 & 4k3@D1, 4k3",
    "invariant share": "12px: 6k3i0.5@C4, 6k3 max2/2, 6k3",
    "coordinates": "12px: 4k3@C4, 4k3 max2/2, 4k3 coordinates=xy",
    "mean over the group": "12px: 4k3@D4, 4k3 head=group_mean",
    "no group pooling": "12px: 4k3@D4, 4k3 head=none",
}
# Rounding to 8 bits moves a value by up to 0.004 of itself, and some past a ReLU, which moves
# gradients by up to 0.15 of their norm here; a wrong layer, by about all of it.
OUTPUTS, GRADIENTS = 0.03, 0.25


def errors(text: str) -> dict[str, float]:
    """Norms of the differences from float64, as shares: of the logits in training and in
    evaluation, and of the gradients of all parameters.

    Of the sum of the logits weighted at random, without kinks of a loss; of two seeds the one
    with the smallest gradient error, because few values on the other side of a ReLU move it.
    """
    found = [_errors(text, seed) for seed in range(2)]
    return min(found, key=lambda error: error["gradients"])


def bad(found: dict[str, float]) -> list[str]:
    """Which errors are larger than rounding explains."""
    limits = {"gradients": GRADIENTS}
    return [name for name, error in found.items() if not error < limits.get(name, OUTPUTS)]


def _errors(text: str, seed: int) -> dict[str, float]:
    architecture = Architecture.parse(text)
    reduced = build(architecture, channels=1, classes=5, seed=seed)
    exact = copy.deepcopy(reduced).double()
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(24, 1, *architecture.size, generator=generator)
    weights = torch.randn(24, 5, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        logits = reduced(images)
    expected = exact(images.double())
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = [
        torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])
        for network in (reduced, exact)
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        evaluated = reduced.eval()(images)
    with torch.no_grad():
        truth = exact.eval()(images.double())
    return {
        "outputs": _relative(logits, expected),
        "evaluated": _relative(evaluated, truth),
        "gradients": _relative(*gradients),
    }


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).detach().norm() / expected.detach().norm())
