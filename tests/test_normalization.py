"""Batch norm over fields: torch's own on the fields, its gradient, and float32 statistics of bfloat16 maps."""

import pytest
import torch
from torch import nn

from trainers.normalization import FieldNorm


def maps(order, fields=3, batch=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, fields * order, 5, 6, generator=generator, dtype=dtype) * 2 + torch.arange(fields * order).view(1, -1, 1, 1)
    return values.contiguous(memory_format=torch.channels_last)


def randomised(norm):
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean"):
            getattr(norm, name).copy_(torch.linspace(-0.5, 1.5, 3))
        norm.running_var.copy_(torch.linspace(0.5, 1.5, 3))
    return norm.double()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("order", [1, 4, 16])
@pytest.mark.parametrize("relu", [True, False])
def test_is_batch_norm_of_the_fields(order, relu, layout):
    mine, theirs = randomised(FieldNorm(3, order, relu)), randomised(nn.BatchNorm3d(3))
    for training in (True, True, False):
        mine.train(training), theirs.train(training)
        x = maps(order).contiguous(memory_format=layout).requires_grad_()
        expected = theirs(x.unflatten(1, (3, order)).contiguous()).flatten(1, 2)
        expected = expected.relu() if relu else expected
        found = mine(x)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert torch.allclose(mine.running_mean, theirs.running_mean) and torch.allclose(mine.running_var, theirs.running_var)
        weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        mine_grads = torch.autograd.grad((found * weights).sum(), [x, mine.weight, mine.bias])
        their_grads = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias])
        for a, b in zip(mine_grads, their_grads):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


def test_gradient_by_differences():
    norm = randomised(FieldNorm(3, 2, True))
    x = maps(2, batch=2)[..., :2, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x,)), (x, norm.weight, norm.bias))


def test_statistics_of_bfloat16_maps_are_float32():
    norm, x = FieldNorm(3, 4, True), maps(4, batch=64, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
    exact = randomised(nn.BatchNorm3d(3))
    exact.reset_running_stats()
    exact(x.double().unflatten(1, (3, 4)))
    assert torch.allclose(norm.running_mean.double(), exact.running_mean, rtol=1e-5)
    assert torch.allclose(norm.running_var.double(), exact.running_var, rtol=1e-4)


def test_one_value_has_no_variance():
    with pytest.raises(ValueError, match="two values per field"):
        FieldNorm(3, 1, True)(torch.zeros(1, 3, 1, 1))
    assert FieldNorm(3, 4, True)(torch.zeros(1, 12, 1, 1)).shape == (1, 12, 1, 1)
