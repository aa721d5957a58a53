import pytest
import torch
from test_layerwise import network

from searchspace.architecture import Architecture
from searchspace.groups import Element
from trainers.actions import act
from trainers.instruments.merging import (
    _match_blocks,
    _spaces,
    _with_measured_statistics,
    merge_barrier,
    moved_copy,
    permuted,
)
from trainers.networks.networks import build
from trainers.networks.normalization import estimate_statistics
from trainers.networks.relaxing import relax_network

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
        features = features.unflatten(1, (model.linear.in_features, -1)).mean(2)
        model.linear.weight /= features.std(0).clamp_min(1e-6)
        model.linear.bias.copy_(-model.linear.weight @ features.mean(0))
    return model


def settled(model, images=IMAGES):
    """The network with the statistics that its batch norms have on the images, as after
    training.
    """
    with torch.no_grad():
        estimate_statistics(model, [images])
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


@pytest.mark.parametrize(
    "text,element",
    [
        ("16px: 4k3@D1 max2/2, 6k3", MIRROR),
        ("16px: 3k3@C4 max2/2, 4k3 head=group_mean filters=basis", QUARTER),
        ("17px: 3k3@D4, 3k3r avg3/2p1, 5k3s2r@C4", QUARTER),
        ("16px: 4k3@C4 max2/2, 16k3@C1 head=block_max:C4", None),
    ],
)
def test_a_network_with_groups_is_its_own_moved_copy(text, element):
    model = network(text)
    if element is None:  # a plain network that is one with groups
        whole, element = network("16px: 4k3@C4 max2/2, 4k3"), QUARTER
        model = relax_network(whole, model.architecture)
    images = torch.rand(
        160, 1, *model.architecture.size, generator=torch.Generator().manual_seed(1)
    )
    model = spread(settled(model, images))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = merge_barrier(model, images, model(images).argmax(1), element)
    assert found.original == found.moved == 1 and found.aligned > 0.95 > found.unaligned
    assert abs(found.barrier) < 0.1 and found.lost == pytest.approx(found.barrier)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_moved_copy_is_scored_on_moved_images():
    """A network that is not invariant says of moved images something else than its copy does."""
    model = spread(settled(network("16px: 12k3 max2/2, 12k3, 12k3")))
    labels = model(IMAGES).argmax(1)
    found = merge_barrier(model, IMAGES, labels, QUARTER)
    assert found.moved == 1
    assert float((moved_copy(model, QUARTER)(IMAGES).argmax(1) == labels).double().mean()) < 0.9


@pytest.mark.parametrize("text", ["16px: 8k3 max2/2, 6k3", "16px: 4k3@C4 max2/2, 4k3"])
def test_a_second_training_stands_beside_as_control(text):
    first, second = (spread(settled(network(text, seed))) for seed in (0, 7))
    labels = first(IMAGES).argmax(1)
    found = merge_barrier(first, IMAGES, labels, QUARTER, control=second)
    agree = float((second(IMAGES).argmax(1) == labels).double().mean())
    assert found.control is not None and found.control > -agree
    same = merge_barrier(first, IMAGES, labels, QUARTER, control=first)
    assert same.control == pytest.approx(0, abs=0.1) and same.control < found.control
    assert same.repaired == found.repaired
    assert found.as_dict()["control"] == found.control
    with pytest.raises(ValueError, match="another training of the same architecture"):
        merge_barrier(first, IMAGES, labels, QUARTER, control=network("16px: 9k3 max2/2, 6k3"))


def test_what_a_head_pools_is_matched_as_a_whole():
    generator = torch.Generator().manual_seed(0)
    similarities = torch.rand(12, 12, generator=generator)
    permutation = _match_blocks(similarities, 4)
    assert sorted(permutation.tolist()) == list(range(12))
    blocks = (permutation // 4).view(3, 4)
    assert bool((blocks == blocks[:, :1]).all())
    planted = torch.cat([block * 4 + torch.randperm(4, generator=generator) for block in (2, 0, 1)])
    similarities[torch.arange(12), planted] = 5
    assert torch.equal(_match_blocks(similarities, 4), planted)
    wide = torch.rand(14, 14, generator=generator)
    assert set(_match_blocks(wide, 4)[12:].tolist()) == {12, 13}


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
        ("16px: 4k3@C8", Element.parse("r45"), "quarter turn or flip"),
        ("16px: 4k3", Element.parse("e"), "quarter turn or flip"),
        ("16px: 4k2p0:1", QUARTER, "equal padding"),
    ],
)
def test_what_cannot_be_merged_is_refused(text, element, message):
    with pytest.raises(ValueError, match=message):
        merge_barrier(network(text), IMAGES, torch.zeros(200), element)
