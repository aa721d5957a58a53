"""The projection of weights to the equivariant ones: what it is, by its properties and on networks'
own weights.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from searchspace.architecture import Architecture
from searchspace.groups import Group
from trainers.actions import act, act_on_fields
from trainers.networks.filters import aligned_channels
from trainers.networks.networks import build
from trainers.networks.projection import (
    distances_squared,
    equivariance_distance,
    partition_distance,
    project_weight,
    shared_entries,
)

CASES = [
    (source, fields, kernel)
    for fields in ("C2", "C4", "D1", "D2", "D4")
    for source in (None, fields, "D4")
    for kernel in (1, 2, 3)
]


def drawn(source: Group | None, fields: Group, kernel: int, seed: int = 0) -> torch.Tensor:
    into = 3 if source is None else 2 * source.order
    generator = torch.Generator().manual_seed(seed)
    shape = 2 * fields.order, into, kernel, kernel
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("source, fields, kernel", CASES)
def test_a_projected_weight_is_equivariant_and_the_projection_orthogonal(source, fields, kernel):
    source, fields = source and Group.parse(source), Group.parse(fields)
    weight, other = drawn(source, fields, kernel), drawn(source, fields, kernel, 1)
    projected = project_weight(weight, source, fields)
    images = torch.randn((2, weight.shape[1], 6, 6), dtype=torch.float64)
    for element in fields.elements:
        moved = act(images, element) if source is None else act_on_fields(images, element, source)
        expected = act_on_fields(F.conv2d(images, projected), element, fields)
        assert torch.allclose(F.conv2d(moved, projected), expected, rtol=0, atol=1e-12)
    again = project_weight(projected, source, fields)
    assert torch.allclose(again, projected, rtol=0, atol=1e-14)
    mixed = project_weight(2 * weight - 3 * other, source, fields)
    assert torch.allclose(
        mixed, 2 * projected - 3 * project_weight(other, source, fields), rtol=0, atol=1e-13
    )
    assert abs(float(((weight - projected) * project_weight(other, source, fields)).sum())) < 1e-12


@pytest.mark.parametrize("text", ["8px: 2k3@D4, 2k3s2r, 3k2@D2, 2k3@D1", "8px: 2k3@C4, 2k3@C1"])
def test_the_weights_of_steerable_networks_are_fixed(text):
    network = build(Architecture.parse(text), channels=2, classes=3).double()
    for convolution, weight in zip(network.convolutions, network.weights()):
        fields = convolution.parametrisation.group
        assert torch.allclose(
            project_weight(weight, convolution.source, fields), weight, atol=1e-14
        )
        assert equivariance_distance(weight, convolution.source, fields) < 1e-14


def test_a_subgroup_fixes_more_and_the_distance_is_relative():
    fields, half = Group.parse("C4"), Group.parse("C2")
    weight = drawn(fields, fields, 3)
    towards = project_weight(weight, fields, fields, half)
    assert (
        equivariance_distance(towards, fields, fields, half)
        < 1e-14
        < equivariance_distance(towards, fields, fields)
    )
    assert equivariance_distance(5 * weight, fields, fields) == pytest.approx(
        equivariance_distance(weight, fields, fields)
    )
    # of a weight whose entries are independent, 1 / |G| of the squared norm is equivariant
    many = torch.cat([drawn(fields, fields, 3, seed) for seed in range(200)])
    assert equivariance_distance(many, fields, fields) == pytest.approx(0.75**0.5, rel=0.01)
    assert equivariance_distance(torch.zeros(4, 4, 3, 3), fields, fields) == 0


def test_what_has_no_projection():
    with pytest.raises(ValueError, match="off their grid; choose its subgroup C4"):
        project_weight(torch.zeros(8, 8, 3, 3), Group.parse("C8"), Group.parse("C8"))
    with pytest.raises(ValueError, match="6 channels are not a whole number of fields of C4"):
        project_weight(torch.zeros(6, 4, 3, 3), Group.parse("C4"), Group.parse("C4"))


@pytest.mark.parametrize("text", ["8px: 2k3@D4+C4, 2k3@C4~0.5, 1k3", "8px: 8k3, 4k3"])
def test_the_sum_of_squared_distances_has_its_value_and_gradient(text):
    network = build(Architecture.parse(text), channels=2, classes=3).double()
    group, expected = Group.parse("C4"), 0.0
    for convolution, weight in zip(network.convolutions, network.weights()):
        own, source = convolution.parametrisation.group, convolution.source
        if own.order == 1:
            own, source = group, source and group
        expected += equivariance_distance(weight, source, own, group) ** 2
    total = distances_squared(network, group)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-12)
    for convolution in network.convolutions[:2]:
        parameter = convolution.filters
        (grad,) = torch.autograd.grad(distances_squared(network, group), parameter)
        step, ends = torch.randn(parameter.shape, dtype=torch.float64), []
        for sign in (1, -2):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * step)
                ends.append(float(distances_squared(network, group)))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((grad * step).sum()), rel=1e-5)


def test_channels_that_are_no_whole_field_stay_in_place():
    """Under C4 six channels are a field and two that stay, whose kernels alone are averaged."""
    plain = build(Architecture.parse("8px: 6k3"), channels=1, classes=3).double()
    weight, group = plain.weights()[0].detach(), Group.parse("C4")
    whole = project_weight(weight[:4], None, group)
    kept = sum(act(weight[4:], element) for element in group.elements) / 4
    outside = weight - torch.cat([whole, kept])
    expected = float(outside.square().sum() / weight.square().sum())
    assert float(distances_squared(plain, group).detach()) == pytest.approx(expected)
    exact = build(Architecture.parse("8px: 2k3@C4, 2k3"), channels=1, classes=3)
    assert float(distances_squared(exact, group).detach()) == 0


def read_as(weight, fields, group):
    order = aligned_channels(len(weight), fields, group)
    return weight if order is None else weight[list(order)]


@pytest.mark.parametrize(
    "text,name",
    [("8px: 4k3@C4, 4k3", "D2"), ("8px: 4k3@C4 & 4k3@D1", "C4"), ("8px: 8k3@C2, 8k3", "D4")],
)
def test_a_group_beside_that_of_a_stage_reads_its_channels_as_fields_of_its_own(text, name):
    network, group = (
        build(Architecture.parse(text), channels=1, classes=3).double(),
        Group.parse(name),
    )
    expected = 0.0
    for convolution, weight in zip(network.convolutions, network.weights()):
        if not group <= convolution.parametrisation.group:
            source, own = convolution.source, convolution.parametrisation.group
            weight = read_as(weight, own, group)
            if source is not None:
                weight = read_as(weight.transpose(0, 1), source, group).transpose(0, 1)
            # what both groups hold fixes the weight still
            common = own & group
            assert equivariance_distance(weight, source and group, group, common) < 1e-14
            expected += equivariance_distance(weight, source and group, group) ** 2
    assert expected > 0
    assert float(distances_squared(network, group).detach()) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_partitions_is_the_least_number_of_entries_to_move():
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        found, planted = torch.randint(3, (2, 7), generator=draws)
        least = min(
            sum(
                other != part
                for other, part in zip(planted.tolist(), map(named.__getitem__, found))
            )
            for named in map(list, itertools.permutations(range(3)))
        )
        assert partition_distance(found, planted) == least
    with pytest.raises(ValueError, match="cannot be compared"):
        partition_distance(torch.zeros(3), torch.zeros(4))


@pytest.mark.parametrize("name", ["C1", "C2", "C4", "D1", "D4"])
def test_entries_that_a_group_makes_equal_are_one_part(name):
    group = Group.parse(name)
    weight = project_weight(drawn(None, Group.parse("D4"), 3)[: group.order, :1], None, group)
    shared = shared_entries(tuple(weight.shape), None, group)
    assert len(shared.unique()) == 9  # a field has as many parameters as a kernel
    values = weight.flatten()
    means = torch.zeros(int(shared.max()) + 1, dtype=values.dtype).index_add_(0, shared, values)
    means = means / shared.bincount()
    assert torch.allclose(means[shared], values)


def test_weights_are_made_once_for_the_forward_pass_and_the_loss():
    network = build(Architecture.parse("8px: 4k3, 4k3"), channels=1, classes=3)
    with pytest.raises(KeyError), network.same_weights():
        made = network.weights()
        assert network.weights() is made
        raise KeyError
    with torch.no_grad():
        network.convolutions[0].filters.zero_()
    assert network.weights() is not made and not network.weights()[0].any()
