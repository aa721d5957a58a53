"""Equivariance losses: zero for what is exact, positive for what is not, equal to their
formulas.
"""

import pytest
import torch
import torch.nn.functional as functional

from searchspace.architecture import Architecture
from searchspace.groups import IDENTITY, Element, Group
from searchspace.training.losses import LOSS_KINDS
from trainers.actions import act, act_on_fields
from trainers.networks.kernels import compiled, maxima
from trainers.networks.kernels.maxima import compiled_block_maxima
from trainers.networks.networks import build
from trainers.training.losses import LOSSES, Views, draw_elements, move_images, usable_elements

C4, D4 = Group.parse("C4"), Group.parse("D4")


def views(text, group, kind="label", images=24, seed=0):
    """What the loss of `kind` compares, of an untrained network."""
    network = build(Architecture.parse(text), channels=1, classes=5, seed=seed).double().eval()
    pixels = torch.rand(
        images,
        1,
        *network.architecture.size,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    parts = draw_elements(
        usable_elements(group, network.architecture.size),
        images,
        torch.Generator().manual_seed(seed),
    )
    block = group.order if LOSSES[kind].pools else 1
    logits, maps = zip(
        *(network.forward_with_stages(batch) for batch in (pixels, move_images(pixels, parts)))
    )
    stages = tuple(tuple(compiled_block_maxima(m, block) for m in both) for both in zip(*maps))
    if LOSSES[kind].last:
        stages = stages[-1:]
    return Views(group, parts, torch.zeros(images, dtype=torch.int64), logits, stages)


def loss_of(kind, text, group):
    return LOSSES[kind].function(views(text, group, kind))


@pytest.mark.parametrize("kind", ["layerwise", "latent"])
@pytest.mark.parametrize("group", ["C4", "D4", "C2", "D1"])
def test_zero_for_an_exact_network_and_not_for_a_broken_or_plain_one(kind, group):
    declared = Group.parse(group)
    exact = loss_of(kind, f"12px: 3k3@{group}, 3k3 max2/2, 3k3", declared)
    broken = loss_of(kind, f"13px: 3k3@{group}, 3k3 max2/2, 3k3", declared)
    plain = loss_of(kind, "12px: 12k3, 12k3 max2/2, 12k3", declared)
    assert exact < 1e-12 and broken > 1e-7 and plain > 1e-7


def test_layerwise_is_the_sum_of_mean_squared_differences_of_pooled_maps():
    maps = views("12px: 8k3, 8k3 max2/2", C4)
    expected = 0.0
    for before, after in maps.stages:
        total = 0.0
        for element, where in maps.parts:
            for x, y in zip(before[where], after[where]):
                highest = [
                    m.reshape(2, 4, *m.shape[1:]).amax(1, keepdim=False)[None].float()
                    for m in (x, y)
                ]
                total += (highest[0] - act(highest[1], element.inverse)).square().mean().item()
        expected += total / 24
    measured = loss_of("layerwise", "12px: 8k3, 8k3 max2/2", C4)
    assert measured.item() == pytest.approx(expected, rel=1e-6)


def test_a_last_block_of_fewer_channels_is_one_by_itself():
    maps = torch.randn(2, 11, 3, 3)
    found = compiled_block_maxima(maps, 4)
    assert torch.equal(
        found, torch.stack([maps[:, :4].amax(1), maps[:, 4:8].amax(1), maps[:, 8:].amax(1)], 1)
    )
    assert torch.equal(compiled_block_maxima(maps, 1), maps) and torch.equal(
        compiled_block_maxima(maps[:, :3], 4), maps[:, :3].amax(1, keepdim=True)
    )


@pytest.mark.parametrize("block", [2, 3, 4, 6, 8, 16, 24])
def test_compiled_maxima_and_their_places_are_torchs(block, monkeypatch):
    # with ties at zero
    maps = functional.relu(torch.randn(3, 48, 5, 7, generator=torch.Generator().manual_seed(0)))
    maps = maps.contiguous(memory_format=torch.channels_last)
    assert (maxima.maxima_library() is None) == (compiled.compiler() is None)
    found = maxima._over_blocks(maps, block)
    monkeypatch.setattr(maxima, "maxima_library", lambda: None)
    expected = maxima._over_blocks(maps, block)
    assert torch.equal(found[0], expected[0])
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert mine.shape == theirs.shape and torch.equal(mine, theirs)


def test_training_takes_compiled_maxima(monkeypatch):
    class Counting:
        def block_maxima(self, *arguments):
            calls.append(arguments)

    calls, images = [], torch.rand(6, 1, 9, 9)
    monkeypatch.setattr(maxima, "maxima_library", Counting)
    build(Architecture.parse("9px: 8k3, 8k3"), channels=1, classes=5).forward_with_parts(
        images, slice(0, 2), slice(4, 6), block=4
    )
    assert [arguments[:2] for arguments in calls] == [(4, 2 * 81 * 2)] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_the_gradient_of_parts_equals_that_of_slices_of_all_maps(block, dtype):
    parts, gradients = (slice(0, 2), slice(4, 6)), []
    for direct in (True, False):
        network = build(Architecture.parse("9px: 6k3, 7k3 max3/2, 8k3"), channels=1, classes=5).to(
            dtype
        )
        images = torch.rand(
            6, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).to(dtype)
        if direct:
            logits, stages = network.forward_with_stages(images)
            stages = [
                tuple(compiled_block_maxima(maps[part], block) for part in parts) for maps in stages
            ]
        else:
            logits, stages = network.forward_with_parts(images, *parts, block=block)
        (
            logits.square().sum()
            + sum((before - 2 * after).square().sum() for before, after in stages)
        ).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    rounding = 1e-10 if dtype == torch.float64 else 1e-4
    assert all(
        torch.allclose(a, b, rtol=rounding, atol=rounding * float(b.abs().max()))
        for a, b in zip(*gradients)
    )


@pytest.mark.parametrize("block", [1, 4])
def test_the_gradient_of_a_loss_on_parts_alone(block):
    maps = torch.randn(4, 6, 3, 3).requires_grad_()
    _, part = maxima.of_parts(maps, (slice(1, 3),), block)
    expected = compiled_block_maxima(maps[1:3], block).square().sum()
    (found,) = torch.autograd.grad(part.square().sum(), maps, retain_graph=True)
    assert torch.allclose(found, torch.autograd.grad(expected, maps)[0])


def test_latent_moves_fields_as_the_regular_representation_does():
    # one whole field of D4, 3 channels left over
    maps = views("12px: 12k3, 11k3", D4, "latent")
    total = 0.0
    for element, where in maps.parts:
        before, after = (m[where].float() for m in maps.stages[-1])
        fields = act_on_fields(before[:, :8], element, D4).mean((-2, -1))
        rest = before[:, 8:].mean((-2, -1))
        total += (torch.cat([fields, rest], 1) - after.mean((-2, -1))).square().mean().item() * len(
            before
        )
    assert LOSSES["latent"].function(maps).item() == pytest.approx(total / 24, rel=1e-5)


def test_label_is_the_cross_entropy_of_the_moved_images():
    both = views("12px: 4k3", C4)
    expected = torch.nn.functional.cross_entropy(both.logits[1].float(), both.labels)
    assert LOSSES["label"].function(both) == expected


def test_every_kind_of_loss_that_an_architecture_may_name_has_its_function():
    assert {"none", *LOSSES} == set(LOSS_KINDS)


@pytest.mark.parametrize("count", [1, 3, 7, 32])
def test_every_image_draws_an_element_and_shares_are_equal(count):
    parts = draw_elements(usable_elements(D4, (9, 9)), count, torch.Generator().manual_seed(count))
    sizes = [where.stop - where.start for _, where in parts]
    assert (
        sum(sizes) == count
        and max(sizes) - min(sizes) <= 1
        and len({e for e, _ in parts}) == min(7, count)
    )
    assert all(element != IDENTITY for element, _ in parts)


def test_images_that_are_not_square_keep_the_elements_that_keep_their_shape():
    assert usable_elements(D4, (8, 9)) == tuple(map(Element.parse, ("r180", "m", "mr180")))
    with pytest.raises(ValueError, match="loss=none"):
        usable_elements(Group.parse("C1"), (8, 8))
