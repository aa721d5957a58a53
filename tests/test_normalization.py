"""Batch norm over fields: torch's own on the fields, its gradient, and float32 statistics of
bfloat16 maps.
"""

import pytest
import torch
from torch import nn

from searchspace.architecture import Architecture
from trainers.networks.networks import build
from trainers.networks.normalization import MOMENTUM, FieldNorm, PoolWindow, estimate_statistics


def maps(order, fields=3, batch=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(
        batch, fields * order, 5, 6, generator=generator, dtype=dtype
    ) * 2 + torch.arange(fields * order).view(1, -1, 1, 1)
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
        assert torch.allclose(mine.running_mean, theirs.running_mean) and torch.allclose(
            mine.running_var, theirs.running_var
        )
        weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        mine_grads = torch.autograd.grad((found * weights).sum(), [x, mine.weight, mine.bias])
        their_grads = torch.autograd.grad(
            (expected * weights).sum(), [x, theirs.weight, theirs.bias]
        )
        for a, b in zip(mine_grads, their_grads):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_skip_connection_is_added_before_relu(layout):
    norm, other = (randomised(FieldNorm(3, 4, relu)) for relu in (True, False))
    for training in (True, False):
        norm.train(training), other.train(training)
        x = maps(4).contiguous(memory_format=layout).requires_grad_()
        skip = maps(4).flip(0).mul(3).contiguous(memory_format=layout).requires_grad_()
        kept = skip.detach().clone()
        found, expected = norm(x, skip), (other(x) + skip).relu()
        assert torch.allclose(found, expected) and torch.equal(skip, kept)
        for a, b in zip(
            *(
                torch.autograd.grad(f.square().sum(), [x, skip, n.weight, n.bias])
                for f, n in ((found, norm), (expected, other))
            )
        ):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("order", [1, 4])
@pytest.mark.parametrize(
    "pool",
    [PoolWindow(2, 2, 0, 1, False), PoolWindow(3, 2, 1, 1, True), PoolWindow(2, 1, 0, 1, False)],
)
def test_pooling_before_the_norm_is_pooling_after_it(pool, order, layout):
    """Also for fields of negative scale, whose smallest value is the one that counts."""
    norm, other = randomised(FieldNorm(3, order, False)), randomised(FieldNorm(3, order, False))
    assert (norm.weight < 0).any() and (norm.weight > 0).any()
    x = maps(order).contiguous(memory_format=layout).requires_grad_()
    signs = norm.signs()
    found = norm.pooled(
        (x.unflatten(1, (3, order)) * signs.view(-1, 1, 1, 1))
        .flatten(1, 2)
        .contiguous(memory_format=layout),
        signs,
        pool,
    )
    expected = torch.nn.functional.max_pool2d(other(x), *pool).relu()
    assert torch.allclose(found, expected)
    assert torch.allclose(norm.running_mean, other.running_mean) and torch.allclose(
        norm.running_var, other.running_var
    )
    for a, b in zip(
        *(
            torch.autograd.grad(f.square().sum(), [x, n.weight, n.bias])
            for f, n in ((found, norm), (expected, other))
        )
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_gradient_by_differences():
    norm = randomised(FieldNorm(3, 2, True))
    x = maps(2, batch=2)[..., :2, :3].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(norm, {"weight": w, "bias": b}, (x,)),
        (x, norm.weight, norm.bias),
    )


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


def test_statistics_are_those_of_the_present_weights_on_given_batches():
    torch.manual_seed(0)
    network = build(
        Architecture.parse("12px: 4k3@C4, 4k3 max2/2, 4k3x2r, 4k3"), channels=1, classes=3, seed=1
    )
    batches = [torch.rand(32, 1, 12, 12) for _ in range(3)]
    with torch.no_grad():
        # running averages: still half of where they began
        for images in batches:
            network.train()(images)
    before = network.eval()(batches[0])
    estimate_statistics(network, batches)
    assert network.training and all(
        m.momentum == MOMENTUM for m in network.modules() if isinstance(m, FieldNorm)
    )
    with torch.no_grad():
        expected, settled = network.train()(batches[0]), network.eval()(batches[0])
        assert (settled - expected).abs().max() < 0.2 * (before - expected).abs().max()
        means = []
        # of the first layer: the mean over batches, exactly
        for images in batches:
            estimate_statistics(network, [images])
            means.append(
                next(m for m in network.modules() if isinstance(m, FieldNorm)).running_mean.clone()
            )
        estimate_statistics(network, batches)
    assert torch.allclose(
        next(m for m in network.modules() if isinstance(m, FieldNorm)).running_mean,
        torch.stack(means).mean(0),
        atol=1e-6,
    )


def test_momentum_comes_back_after_a_failure():
    network = build(Architecture.parse("12px: 4k3@C4, 4k3"), channels=1, classes=3)
    with pytest.raises(ValueError, match="images"):
        estimate_statistics(network, [torch.rand(4, 2, 12, 12)])
    assert all(m.momentum == MOMENTUM for m in network.modules() if isinstance(m, FieldNorm))
