"""Gradients are those of the same numbers every time, bit for bit: nothing reads memory that was
not written.
"""

import pytest
import torch

from searchspace.architecture import Architecture
from trainers.networks.networks import build


@pytest.mark.parametrize(
    "text", ["16px: 2k3@D4, 1k3 max2/2, 2k3, 2k3 max2/2, 2k3", "12px: 3k3@D4, 5k3 max2/2, 3k3"]
)
@pytest.mark.parametrize("reduced", [False, True])
def test_the_same_batch_has_the_same_gradients(text, reduced):
    architecture = Architecture.parse(text)
    network = build(architecture, channels=1, classes=10, seed=2).train()
    images = torch.rand(64, 1, *architecture.size, generator=torch.Generator().manual_seed(0))
    seen = []
    for number in range(20):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            logits = network(images)
        logits.square().sum().backward()
        seen.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        del_soon = [torch.full((1000 + 37 * number,), 1e30) for _ in range(5)]  # dirty memory
        del del_soon
    assert all(torch.equal(gradients, seen[0]) for gradients in seen)
