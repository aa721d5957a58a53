"""Streams: each is exactly what it is alone, the network what all of them are, the same folded and
exported.
"""

from dataclasses import replace

import pytest
import torch
from test_space import Dice

from searchspace.architecture import Architecture
from searchspace.cost import cost, widened
from searchspace.drawing import draw_verdict
from searchspace.exactness import verdict
from searchspace.groups import Element, Group
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from searchspace.weights.relaxed import relaxed
from studies.config import Study
from studies.results.check import check
from studies.samplers.inversion import parameters_of
from trainers.actions import act
from trainers.instruments.merging import merge_barrier
from trainers.networks.fold import fold
from trainers.networks.networks import build

TEXT = "8px: 3k3@C4, 2k3 max2/2 & 2k3@D1, 3k3 conv3/1p1, 1k1"


def network(text):
    made = build(Architecture.parse(text), channels=1, classes=3).double()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    made(images)  # statistics
    return made.eval(), images


def test_each_stream_is_invariant_under_its_own_group_and_the_network_under_none():
    made, images = network(TEXT)
    read = []
    made.linear.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    made(images)
    upright = read.pop()
    for name, kept in (("r90", slice(0, 2)), ("r180", slice(0, 2)), ("m", slice(2, 3))):
        made(act(images, Element.parse(name)))
        change = (read.pop() - upright).abs().amax(0)
        others = [n for n in range(3) if n not in range(*kept.indices(3))]
        assert change[kept].max() < 1e-12 and change[others].min() > 1e-3, name
    assert upright.shape == (5, made.architecture.features) == (5, 3)


def test_verdict_and_answer_say_what_each_stream_keeps():
    architecture = Architecture.parse(TEXT)
    assert [str(stage.group) for stage in architecture.lasts] == ["C4", "D1"]
    found = verdict(architecture)
    assert str(found.group) == "D4" and [str(e) for e in found.surviving] == ["e"]
    own = [verdict(stream) for stream in architecture.streams]
    assert [(str(v.group), v.exact) for v in own] == [("C4", True), ("D1", True)]
    text = check(architecture).text()
    assert "Stream 1 (stages 1 to 2): exact under its own C4" in text
    assert "Stream 2 (stages 3 to 5): exact under its own D1" in text
    assert "invariant under e m" in text and text.count("stream") >= 2
    shared = verdict(Architecture.parse(TEXT.replace("@D1", "@C2")))
    assert str(shared.group) == "C4" and [str(e) for e in shared.surviving] == ["e", "r180"]
    assert "stage 3" in str(shared.breaks(Element.parse("r90"))[0])
    assert "3 features" in draw_verdict(found)


def test_costs_add_up():
    whole = Architecture.parse(TEXT)
    parts = [cost(stream, 2, 5) for stream in whole.streams]
    found = cost(whole, 2, 5)
    assert found.macs == sum(p.macs for p in parts)
    assert found.params == sum(p.params for p in parts) - 5  # one bias of the classes
    made = build(whole, channels=2, classes=5)
    assert sum(p.numel() for p in made.parameters()) == found.params
    wide = widened(replace(whole, stages=whole.stages[:4]), "params", 3000)
    assert cost(wide).params == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize("text", [TEXT, TEXT + " head=none", TEXT + " head=group_mean orbit=C4"])
def test_network_and_fold_are_one_function(text):
    architecture = Architecture.parse(text)
    assert Architecture.parse(str(architecture)) == architecture
    made, images = network(text)
    logits, maps = made.forward_with_stages(images)
    folded, stages = fold(made).forward_with_stages(images)
    assert torch.allclose(folded, logits, rtol=0, atol=1e-12) and len(stages) == 5
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(maps, stages))
    key = Candidate.parse(text).key
    assert Candidate.parse(key).key == key and " & " in key


def test_a_stream_alone_is_no_stream():
    with pytest.raises(ValueError, match="joins nothing; write a stream on both sides"):
        Architecture.parse("8px: 3k3@C4 & ")
    with pytest.raises(ValueError, match="stage 3: .* is not a stage"):
        Architecture.parse("8px: 3k3@C4, 3k3 & x")
    with pytest.raises(ValueError, match="stage 3 has group D1, which is not a subgroup"):
        Architecture.parse("8px: 3k3@C4 & 3k3@C4, 3k3@D1")
    with pytest.raises(ValueError, match="has streams, which are not relaxed"):
        relaxed(Architecture.parse(TEXT), 1, Group.parse("C2"))
    with pytest.raises(ValueError, match="follows the channels of one stream"):
        merge_barrier(
            network("8px: 3k3 & 2k3")[0].float(),
            torch.rand(4, 1, 8, 8),
            torch.zeros(4, dtype=torch.int64),
            Element.parse("m"),
        )


def test_a_space_splits_its_backbone_into_streams():
    study = Study.model_validate(
        {
            "data": {"name": "digits", "train": 100, "validation": 50},
            "space": {
                "backbone": "4k3 *, 6k3",
                "group": ["C4", "D4"],
                "input_size": 8,
                "head": ["group_max", "group_mean"],
                "streams": ["none", "C4&D1"],
            },
        }
    )
    seen = set()
    for seed in range(40):
        dice = Dice(seed)
        candidate = study.space.sample(dice, declared=Group.parse("C4"))
        streams = len(candidate.architecture.streams) > 1
        assert ("family" in dice.params) != streams
        if streams:
            text = str(candidate.architecture).partition(" head")[0]
            assert text == "8px: 2k3@C4 max2/2, 3k3 & 2k3@D1 max2/2, 3k3"
            found = parameters_of(study, candidate)
            assert found is not None and found["streams"] == "C4 & D1"
        seen.add(streams)
    assert seen == {True, False}
    with pytest.raises(ValueError, match="which joins nothing; write two groups or more"):
        SearchSpace.model_validate({"streams": ["C4"]})


def test_streams_in_another_order_are_the_same_candidate():
    swapped = "8px: 2k3@D1, 3k3 conv3/1p1, 1k1 & 3k3@C4, 2k3 max2/2"
    one, other = Candidate.parse(TEXT), Candidate.parse(swapped)
    assert one.key == other.key and one != other
    assert Candidate.parse(one.key).key == one.key
    assert Candidate.parse(TEXT.replace("2k3 max", "3k3 max")).key != one.key
    named = " loss=latent:1@C4#1"  # stages by number
    assert Candidate.parse(TEXT + named).key != Candidate.parse(swapped + named).key
