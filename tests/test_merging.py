import pytest
import torch
from test_layerwise import network

from searchspace.architecture import Architecture
from searchspace.groups import Element
from trainers.actions import act
from trainers.instruments.merging import (
    _spaces,
    _with_measured_statistics,
    merge_barrier,
    moved_copy,
    permuted,
)
from trainers.networks.networks import build

QUARTER, MIRROR = Element.parse("r90"), Element.parse("m")
IMAGES = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
RESIDUAL = "17px: 8k3, 10k3s2x2r, 12k3s2r, 6k3x2 conv3/2p1"


def spread(model, images=None):
    """The network with logits that differ between images (by default noise), so that a class is a
    statement.
    """
    with torch.no_grad():
        if images is None:
            images = torch.rand(
                200, 1, *model.architecture.size, generator=torch.Generator().manual_seed(5)
            )
        features = model.forward_with_stages(images)[1][-1].mean((2, 3))
        if model.order > 1:
            features = features.unflatten(1, (-1, model.order)).mean(2)
        model.linear.weight /= features.std(0).clamp_min(1e-6)
        model.linear.bias.copy_(-model.linear.weight @ features.mean(0))
    return model


def settled(model):
    """The network with the statistics that its batch norms have on the images, as after
    training.
    """
    model.train()
    with torch.no_grad():
        for _ in range(80):
            model(IMAGES)
    return model.eval()


def plain_twin(model):
    """The plain network with the same function as a network with groups and head=group_mean,
    sequential and without steps that have weights.
    """
    stages = [
        f"{s.channels}k{s.kernel}" + (f" {s.subsampling}" if s.subsampling else "")
        for s in model.architecture.stages
    ]
    plain = build(
        Architecture.parse(f"{model.architecture.size[0]}px: " + ", ".join(stages)),
        channels=1,
        classes=5,
    ).eval()
    for mine, theirs, weight in zip(plain.convolutions, model.convolutions, model.weights()):
        mine.filters.data = weight.detach().reshape(mine.filters.shape)
        for name, values in theirs.norm.state_dict().items():
            mine.norm.state_dict()[name].copy_(values.repeat_interleave(model.order))
    plain.linear.weight.data = (
        model.linear.weight.data.repeat_interleave(model.order, 1) / model.order
    )
    plain.linear.bias.data = model.linear.bias.data
    return plain


@pytest.mark.parametrize("group,element", [("D1", MIRROR), ("C4", QUARTER)])
def test_a_group_network_in_disguise_has_no_barrier(group, element):
    model = spread(settled(network(f"16px: 4k3@{group} max2/2, 6k3 head=group_mean")))
    plain = plain_twin(model)
    assert torch.allclose(plain(IMAGES), model(IMAGES), atol=1e-4)
    found = merge_barrier(plain, IMAGES, plain(IMAGES).argmax(1), element)
    assert found.original == 1 and found.moved == found.aligned == 1
    assert found.reset > 0.9 and abs(found.barrier) < 0.1
    assert found.unaligned < 0.9


def test_a_random_network_has_a_barrier_that_repair_does_not_remove():
    model = spread(settled(network("16px: 12k3 max2/2, 12k3, 12k3")))
    found = merge_barrier(model, IMAGES, model(IMAGES).argmax(1), QUARTER)
    assert (
        found.original == 1
        and found.aligned < 0.9
        and found.repaired < 0.9
        and found.barrier < found.original
    )
    assert found.barrier == pytest.approx((1 + found.moved) / 2 - found.repaired)


def test_a_constant_network_is_refused_or_has_no_barrier_to_show():
    model = network("16px: 6k3")
    model.linear.weight.data.zero_()
    found = merge_barrier(model, IMAGES, torch.zeros(200, dtype=torch.int64), QUARTER)
    assert (
        len({found.original, found.moved, found.aligned, found.repaired}) == 1
        and found.barrier == 0
    )


@pytest.mark.parametrize("text", ["16px: 6k3 max2/2, 8k3x2, 4k3", RESIDUAL])
@pytest.mark.parametrize("element", [QUARTER, MIRROR])
def test_the_moved_copy_says_of_moved_images_what_the_network_says_of_images(text, element):
    model = network(text).double()
    images = torch.rand(20, 1, *model.architecture.size, dtype=torch.float64)
    assert torch.allclose(moved_copy(model, element)(act(images, element)), model(images))
    assert not torch.allclose(moved_copy(model, element)(images), model(images), atol=1e-3)


@pytest.mark.parametrize("text", ["16px: 6k3 max2/2, 8k3x2, 4k3", RESIDUAL])
def test_permuting_channels_changes_maps_and_not_logits(text):
    model = network(text).double()
    spaces = _spaces(model)
    modules = dict(model.named_modules())
    generator = torch.Generator().manual_seed(2)
    convolutions = {
        outgoing: modules[name].fields for name, (_, outgoing) in spaces.convolutions.items()
    }
    permutations = {
        name: torch.randperm(convolutions[name], generator=generator) for name in spaces.members
    }
    images = torch.rand(10, 1, *model.architecture.size, dtype=torch.float64)
    logits, maps = model.forward_with_stages(images)
    moved_logits, moved_maps = permuted(model, spaces, permutations).forward_with_stages(images)
    assert torch.allclose(moved_logits, logits) and not torch.allclose(moved_maps[0], maps[0])
    assert torch.allclose(moved_maps[-1], maps[-1][:, permutations[spaces.last]])


def test_reset_statistics_are_those_of_the_batch_in_every_layer():
    outputs, model = [], network("16px: 6k3 max2/2, 8k3x2").double()
    with torch.no_grad():
        reset = _with_measured_statistics(model, IMAGES.double())
    for convolution in reset.convolutions:
        convolution.norm.register_forward_hook(
            lambda module, args, output: outputs.append((module, args[0].detach()))
        )
    reset(IMAGES.double())
    for norm, maps in outputs:
        assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3))) and torch.allclose(
            norm.running_var, maps.var((0, 2, 3))
        )


def test_a_residual_stream_has_one_permutation():
    spaces = _spaces(network("17px: 8k3, 8k3x3r, 12k3s2x2r"))
    assert len(spaces.members) == 1 + 3 + 1 + 2
    assert spaces.members["stages.0.0"] == ["stages.0.0", "stages.1.0", "stages.1.1", "stages.1.2"]


def test_a_residual_network_can_be_merged_and_stays_as_it_was():
    model = spread(network(RESIDUAL)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(120, 1, 17, 17, generator=torch.Generator().manual_seed(3))
    found = merge_barrier(model, images, model.eval()(images).argmax(1), QUARTER)
    assert found.original == 1 and 0 <= found.repaired <= 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "text,element,message",
    [
        ("16px: 4k3@C4", QUARTER, "plain networks"),
        ("16px: 4k3", Element.parse("e"), "quarter turn or flip"),
        ("16px: 4k2p0:1", QUARTER, "equal padding"),
        ("16px: 4k3 filters=basis", QUARTER, "filters=free"),
    ],
)
def test_what_cannot_be_merged_is_refused(text, element, message):
    with pytest.raises(ValueError, match=message):
        merge_barrier(network(text), IMAGES, torch.zeros(200), element)
