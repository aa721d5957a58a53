"""Invariant shares: the pooled part of the fields is invariant, the rest equivariant, in the
network and in what it folds to.
"""

import pytest
import torch
from test_space import Dice

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from searchspace.weights.relaxed import relaxed
from studies.results.check import check
from trainers.actions import act, act_on_fields
from trainers.networks.fold import fold
from trainers.networks.networks import build

TEXT = "9px: 4k3i0.5@D4, 3k3i0.4 max3/2, 4k3"


def network(text=TEXT):
    made = build(Architecture.parse(text), channels=2, classes=3).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, 2, 9, 9, generator=generator, dtype=torch.float64)
    made(images)  # statistics
    return made.eval(), images


def test_the_invariant_part_is_invariant_and_the_rest_equivariant():
    made, images = network()
    maps = made.forward_with_stages(images)[1]
    for element in Group.parse("D4").elements[1:]:
        moved = made.forward_with_stages(act(images, element))[1]
        for stage, before, after in zip(made.architecture.stages, maps, moved):
            cut = stage.invariant_fields * 8
            assert cut == {4: 16, 3: 8}[stage.fields] * (stage.invariant > 0)
            # the pixels move, and nothing else; so the spatial mean stays
            assert (
                (after[:, :cut] - act(before[:, :cut], element)).abs().amax() < 1e-12 if cut else 1
            )
            rest = act_on_fields(before[:, cut:], element, stage.group)
            assert (after[:, cut:] - rest).abs().amax() < 1e-12
            turned = act(before[:, cut:], element)  # which equivariant fields are not
            assert (after[:, cut:] - turned).abs().amax() > 1e-3


def test_folded_and_trained_networks_are_one_function():
    made, images = network()
    logits, maps = fold(made).forward_with_stages(images)
    expected, stages = made.forward_with_stages(images)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(maps, stages))


def test_shares_of_nothing_are_no_share():
    plain, share = Architecture.parse("9px: 4k3@C4, 4k3"), "9px: 4k3i{}@C4, 4k3"
    assert Architecture.parse(share.format("0")) == plain
    for nothing in (share.format("0.1"), "9px: 4k3i0.5, 4k3i1"):
        assert "i" not in str(Architecture.parse(nothing).canonical()).partition(":")[2]
    a, b = (Candidate.parse(share.format(s)) for s in ("0.5", "0.45"))
    assert a.key == b.key and a.key != Candidate.parse(share.format("0.75")).key
    assert Candidate.parse(a.key).key == a.key
    assert cost(a.architecture) == cost(plain)


def test_a_last_stage_that_is_wholly_invariant_needs_no_head():
    for share, invariant in (("1", True), ("0.5", False), ("1 max2/2, 3k1", True)):
        text = f"8px: 2k3@C4, 2k3i{share} head=none"
        architecture = Architecture.parse(text)
        found = verdict(architecture)
        assert found.exact and (found.invariant == found.surviving) == invariant
        assert "of 2 in stage 2" in check(architecture).text()
        measured = build(architecture, channels=1, classes=3).double().eval()
        images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
        change = (measured(images.rot90(1, (2, 3))) - measured(images)).abs().max()
        assert (change < 1e-12) == invariant


@pytest.mark.parametrize("share", ["1.5", "2"])
def test_shares_beyond_one_are_refused(share):
    with pytest.raises(ValueError, match=f"invariant share is {share}; .* at most 1, such as i0.5"):
        Architecture.parse(f"9px: 4k3i{share}@C4")


def test_a_stage_with_a_share_is_not_relaxed():
    architecture = Architecture.parse("9px: 4k3@C4, 4k3i0.5, 4k3 head=group_mean")
    assert relaxed(architecture, 3, Group.parse("C2"))
    with pytest.raises(ValueError, match="stage 2 pools fields over C4"):
        relaxed(architecture, 2, Group.parse("C2"))


def test_a_space_offers_shares_to_stages_with_a_group():
    space = SearchSpace.model_validate(
        {
            "backbone": "2k3 *, 2k3",
            "group": ["C4"],
            "input_size": 8,
            "invariant_share": [0, 0.5],
        }
    )
    drawn = set()
    for seed in range(40):
        found = space.sample(Dice(seed)).architecture
        drawn.add((found.family, tuple(stage.invariant for stage in found.stages)))
    assert drawn == {("plain", (0, 0)), ("steerable", (0, 0)), ("steerable", (0.5, 0.5))}


def test_what_changes_nothing_has_one_text_and_is_said():
    made = Architecture.parse("9px: 4k3, 4k3i0.5")
    assert str(made) == "9px: 4k3, 4k3" and made.lasts == made.stages[-1:]
    said = check("9px resize9: 4k3i0.5, 3k1d2p0reflect max1/1 head=group_mean")
    assert said.as_dict()["without_effect"] == [
        *("resize9", "i0.5 in stage 1", "d2 in stage 2", "reflect in stage 2"),
        *("max1/1 in stage 2", "head=group_mean"),
    ]
    assert "Without effect: resize9, i0.5 in stage 1, d2" in said.text()
    for text in ("9px: 4k3i0.5@C4, 3k3d2p2reflect max2/2", "9px: 4k3 head=none", "p4cnn"):
        assert not check(text).idle
