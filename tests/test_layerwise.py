import json

import pytest
import torch
from torch import nn

from searchspace.architecture import Architecture
from searchspace.groups import Element
from trainers.actions import act
from trainers.instruments.layerwise import (
    channel_correlations,
    layerwise_equivariance,
    match,
    steerability,
)
from trainers.networks.networks import build

QUARTER, MIRROR = Element.parse("r90"), Element.parse("m")
IMAGES = torch.rand(96, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def network(text, seed=0):
    """A network with random weights and random batch norm, so that channels differ."""
    model = build(Architecture.parse(text), channels=1, classes=5, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    for convolution in model.convolutions:
        convolution.norm.running_mean.normal_(0, 0.2, generator=generator)
        convolution.norm.running_var.uniform_(0.5, 2, generator=generator)
        convolution.norm.bias.data.normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("element", [QUARTER, MIRROR, Element.parse("mr90")])
def test_a_group_convolution_network_is_found_out_by_its_correlations(element):
    model = network("16px: 3k3@D4 max2/2, 3k3")
    for stage in layerwise_equivariance(model, IMAGES, element):
        assert stage.correlation > 0.99999 and stage.unmatched < 0.9


def test_the_permutation_is_that_of_the_regular_representation():
    model = network("16px: 3k3@C4 max2/2")
    (stage,) = layerwise_equivariance(model, IMAGES, QUARTER)
    # The moved maps of channel k are those of the next channel of the field, so channel k is
    # matched to the one before it.
    assert stage.permutation == tuple(4 * f + (k - 1) % 4 for f in range(3) for k in range(4))


def test_a_plain_random_network_is_not_layerwise_equivariant():
    stages = layerwise_equivariance(network("16px: 12k3 max2/2, 12k3"), IMAGES, QUARTER)
    assert all(stage.unmatched <= stage.correlation < 0.9 for stage in stages)


def test_a_broken_layout_lowers_the_correlation():
    exact, broken = (
        layerwise_equivariance(
            network(f"{size}px: 3k3@C4 max2/2, 3k3"), torch.rand(64, 1, size, size), QUARTER
        )[1].correlation
        for size in (16, 17)
    )
    assert broken < 0.95 < exact


def test_any_model_can_be_matched_by_the_names_of_its_modules():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    model[0].weight.data[3:] = act(model[0].weight.data[:3], MIRROR)
    model[0].bias.data[3:] = model[0].bias.data[:3]
    assert layerwise_equivariance(model, IMAGES, MIRROR, stages=["0"])[0].correlation > 0.99999
    assert layerwise_equivariance(model, IMAGES, QUARTER)[0].correlation < 0.9
    with pytest.raises(ValueError, match="no stages to match"):
        layerwise_equivariance(lambda x: x.flatten(1), IMAGES, MIRROR)


def test_dead_channels_are_left_out_and_dead_stages_refused():
    model = network("16px: 6k3 max2/2")
    model.convolutions[0].norm.bias.data.fill_(1)
    assert layerwise_equivariance(model, IMAGES, MIRROR)[0].num_dead == 0
    model.convolutions[0].norm.weight.data[2] = 0
    model.convolutions[0].norm.bias.data[2] = -1
    assert layerwise_equivariance(model, IMAGES, MIRROR)[0].num_dead == 1
    model.convolutions[0].norm.weight.data.zero_()
    with pytest.raises(ValueError, match="do not vary"):
        layerwise_equivariance(model, IMAGES, MIRROR)


@pytest.mark.parametrize("name", ["e", "r45"])
def test_elements_that_cannot_be_matched_are_refused(name):
    with pytest.raises(ValueError, match="quarter turn or flip"):
        layerwise_equivariance(network("16px: 3k3"), IMAGES, Element.parse(name))


def test_correlations_are_those_of_numpy_and_the_match_is_the_best_of_all():
    import itertools

    import numpy as np

    first, second = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64)
    expected = np.corrcoef(first.transpose(0, 1).flatten(1), second.transpose(0, 1).flatten(1))[
        :4, 4:
    ]
    found = channel_correlations(first, second)
    assert np.allclose(found, expected)
    best = max(
        itertools.permutations(range(4)), key=lambda p: sum(float(found[i, p[i]]) for i in range(4))
    )
    assert tuple(match(found).tolist()) == best


def test_an_exact_network_is_steered_by_a_matrix_of_roots_of_unity():
    found = steerability(network("16px: 3k3@C4 max2/2, 3k3").double(), IMAGES.double(), QUARTER)
    assert found.residual < 1e-6 and found.root_distance < 1e-6 and found.change > 0.05
    angles = sorted(
        round(float(torch.tensor(v).angle() / torch.pi * 2)) % 4 for v in found.eigenvalues
    )
    assert angles == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_float32_features_are_steered_as_exactly_as_they_are():
    assert steerability(network("16px: 3k3@C4 max2/2, 3k3"), IMAGES, QUARTER).residual < 1e-5


def test_a_mirror_has_square_roots_of_unity_and_an_eighth_turn_interpolates():
    model = network("16px: 3k3@D4 max2/2, 3k3").double()
    found = steerability(model, torch.rand(256, 1, 16, 16, dtype=torch.float64), MIRROR)
    assert found.residual < 1e-6 and all(abs(v.real) > 0.99 for v in found.eigenvalues)
    assert (
        steerability(
            model, torch.rand(256, 1, 16, 16, dtype=torch.float64), Element.parse("r45")
        ).residual_of_spread
        > 0.1
    )


def test_a_plain_network_is_not_steered_by_any_matrix():
    found = steerability(network("16px: 12k3 max2/2, 12k3"), IMAGES, QUARTER)
    assert found.residual_of_spread > 0.3 and found.root_distance > 0.05


def test_invariant_features_are_told_from_equivariant_ones():
    invariant = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.ones_(invariant[0].weight)
    found = steerability(invariant.double(), IMAGES.double(), QUARTER, stage="0")
    assert found.residual < 1e-6 and found.change < 1e-6 and abs(found.eigenvalues[0] - 1) < 1e-6


def test_too_few_images_and_constant_features_are_refused():
    with pytest.raises(
        ValueError, match="20 images are too few to fit a matrix on .. features; take at least"
    ):
        steerability(network("16px: 12k3"), IMAGES[:20], QUARTER)
    silent = network("16px: 12k3")
    silent.convolutions[0].norm.weight.data.zero_()
    with pytest.raises(ValueError, match="do not vary"):
        steerability(silent, IMAGES, QUARTER)
    with pytest.raises(ValueError, match="no stage stage 7"):
        steerability(silent, IMAGES, QUARTER, stage="stage 7")
    with pytest.raises(ValueError, match="identity"):
        steerability(silent, IMAGES, Element.parse("e"))


def test_as_dict_is_plain():
    model = network("16px: 2k3@C4")
    for value in (
        layerwise_equivariance(model, IMAGES, QUARTER)[0],
        steerability(model, IMAGES, QUARTER),
    ):
        assert json.loads(json.dumps(value.as_dict())) == value.as_dict()
