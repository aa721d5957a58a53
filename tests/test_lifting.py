"""The first convolution with its norm in the weights: what the convolution and the norm, one after
the other, compute.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from searchspace.architecture import Architecture
from trainers.networks import convolution
from trainers.networks.lifting import fits, lift
from trainers.networks.networks import build
from trainers.networks.normalization import FieldNorm


def layer(relu, channels, kernel, fields=3, order=4):
    generator = torch.Generator().manual_seed(0)
    norm = FieldNorm(fields, order, relu).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.5, 1.0]))
        norm.bias.copy_(torch.tensor([0.3, 0.0, -0.2]))
    return norm, torch.randn(
        fields * order,
        channels,
        kernel,
        kernel,
        generator=generator,
        dtype=torch.float64,
        requires_grad=True,
    )


@pytest.mark.parametrize(
    "channels,kernel,stride,padding,dilation",
    [
        (1, 3, 1, 0, 1),
        (1, 3, 1, 1, 1),
        (1, 4, 2, 1, 1),
        (3, 3, 2, 1, 2),
        (2, 1, 2, 0, 1),
        (1, 2, 1, 0, 3),
    ],
)
@pytest.mark.parametrize("relu", [True, False])
def test_is_convolution_norm_and_relu(channels, kernel, stride, padding, dilation, relu):
    """Outputs, running statistics and gradients in float64, of images that are far from centred."""
    images = (
        torch.randn(
            5, channels, 11, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        + 3
    )
    norm, weight = layer(relu, channels, kernel)
    other = copy.deepcopy(norm)
    for _ in range(2):
        found = lift(images, weight, norm, stride, padding, dilation)
        expected = other(
            F.conv2d(images, weight, stride=stride, padding=padding, dilation=dilation)
        )
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(norm.running_mean, other.running_mean) and torch.allclose(
        norm.running_var, other.running_var
    )
    towards = torch.randn(
        found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    gradients = [
        torch.autograd.grad((maps * towards).sum(), [weight, n.weight, n.bias])
        for maps, n in ((found, norm), (expected, other))
    ]
    for mine, theirs in zip(*gradients):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-9)


def test_float32_is_as_accurate_as_the_norm_of_the_maps():
    """Also for a filter that takes the small differences of smooth images, whose variance is a
    small part of the patches'.
    """
    ramp = torch.linspace(-1, 1, 28)
    generator = torch.Generator().manual_seed(0)
    images = ramp[:, None] * torch.randn(64, 1, 1, 1, generator=generator) + ramp * torch.randn(
        64, 1, 1, 1, generator=generator
    )
    images += 0.05 * torch.randn(64, 1, 28, 28, generator=generator)
    weight = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    norm = FieldNorm(1, 1, False)
    exact = copy.deepcopy(norm).double()(F.conv2d(images.double(), weight.double()))
    assert (lift(images, weight, norm, 1, 0, 1) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_images_that_need_a_gradient_get_it(monkeypatch):
    architecture = Architecture.parse("12px: 3k3@C4, 3k3 max2/2")
    network, images = build(architecture, channels=1, classes=3), torch.randn(4, 1, 12, 12)
    weight = network.weights()[0]
    assert fits(images, weight) and not fits(images.requires_grad_(), weight)
    (gradient,) = torch.autograd.grad(network(images).square().sum(), images)
    assert gradient.abs().max() > 0
    monkeypatch.setattr(convolution, "fits", lambda *_: False)
    other = build(architecture, channels=1, classes=3)
    assert torch.allclose(torch.autograd.grad(other(images).square().sum(), images)[0], gradient)


def test_one_value_has_no_variance():
    norm, weight = layer(True, 1, 3, order=4)
    with pytest.raises(ValueError, match="two values per field"):
        lift(
            torch.zeros(1, 1, 3, 3, dtype=torch.float64),
            weight[:3],
            FieldNorm(3, 1, True).double(),
            1,
            0,
            1,
        )
    lift(torch.zeros(1, 1, 3, 3, dtype=torch.float64), weight, norm, 1, 0, 1)
