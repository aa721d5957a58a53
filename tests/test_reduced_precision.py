"""Every kind of layer computes in bfloat16 what it computes in float64, to the rounding of
bfloat16: forward, in evaluation, and backward.
"""

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.subsampling import KINDS as KINDS_OF_STEPS
from support.reduced_precision import KINDS, bad, errors
from trainers.networks.networks import build


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_float64_to_rounding(kind):
    found = errors(KINDS[kind])
    assert not bad(found), found


STEPS = [
    *("max2/2", "max3/2p1", "avg3/2p1", "lp3/2", "conv3/2p1", "blur/2", "blurmax/2", "max2/1"),
    *("adaptive5", "adaptivemax5", "resize5", "resize15", "resize5bicubic", "resize15bicubic"),
    *("resize5nearest", "crop5"),
]


def test_every_kind_of_step_is_among_them():
    texts = (f"13px: 2k3 {step}, 2k3" for step in STEPS)
    kinds = {
        stage.subsampling.kind for text in texts for stage in Architecture.parse(text).stages[:1]
    }
    assert kinds == set(KINDS_OF_STEPS)


@pytest.mark.parametrize("size, group", [(13, "C4"), (12, "D4"), (9, "C1")])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_step_behind_a_stage_goes_forwards_and_backwards(step, size, group, dtype):
    network = build(Architecture.parse(f"{size}px: 2k3@{group} {step}, 2k3"), channels=1, classes=3)
    with torch.autocast("cpu", dtype):
        logits = network(torch.rand(4, 1, size, size))
    logits.float().square().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients) and logits.isfinite().all()
