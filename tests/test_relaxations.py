"""Relaxed weights: text form, what they are at no strength, what stays exact, what they cost."""

from itertools import pairwise

import numpy
import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.weights.relaxation import Relaxation
from studies.samplers.ehvi import FeatureCoding
from studies.samplers.initial_design import candidate_distance as apart_of
from studies.samplers.initial_design import features_of
from studies.samplers.planned import Draft
from support import trivial
from support.relaxing import TEXTS, stir
from trainers.actions import act, act_on_fields
from trainers.networks.fold import fold, scoring
from trainers.networks.networks import build
from trainers.networks.projection import equivariance_distance, project_weight

GRID = ("C2", "C4", "D1", "D2", "D4")
ALL = [text.format(group) for text in TEXTS for group in GRID] + [
    "9px: 2k3@D4+C2, 3k3x2r, 2k3@C4~0.5 max2/2, 2k3@C4",
    "9px: 2k3@D4|C4|C2|C1, 3k3x2r, 2k3s2@C2b3",
    "9px: 2k3@D4, 2k3@C4+C2, 3k3x2r, 2k3s2@C2~1",
    "9px: 2k3@D4+D1, 2k3s2r, 2k3@D2|D1, 2k3@D1b2",
]


def made(text, seed=0):
    return build(Architecture.parse(text), channels=2, classes=3, seed=seed).double()


def images(architecture, count=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 2, *architecture.size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("text", ALL)
def test_the_text_parses_back_and_the_parameters_are_counted(text):
    architecture = Architecture.parse(text)
    assert Architecture.parse(str(architecture)) == architecture
    network = build(architecture, channels=2, classes=3)
    assert cost(architecture, 2, 3).params == sum(p.numel() for p in network.parameters())
    constrained = cost(architecture.constrained, 2, 3)
    assert cost(architecture, 2, 3).macs == constrained.macs
    assert cost(architecture, 2, 3).expanded_params == constrained.expanded_params


@pytest.mark.parametrize("text", ALL)
@torch.no_grad()
def test_each_stage_is_equivariant_under_what_is_certain_and_not_under_the_rest(text):
    architecture = Architecture.parse(text)
    network = stir(made(text)).eval()
    x, certain = images(architecture), architecture.certain_group
    logits, stages = network.forward_with_stages(x)
    for element in architecture.group.elements:
        moved_logits, moved = network.forward_with_stages(act(x, element))
        errors = [
            float((after - act_on_fields(before, element, stage.group)).abs().max())
            for before, after, stage in zip(stages, moved, architecture.stages)
        ]
        errors.append(float((moved_logits - logits).abs().max()))
        if element in certain and element in verdict(architecture).surviving:
            assert max(errors) < 1e-12
        elif element not in certain:
            assert max(errors[:-1]) > 1e-6 and element not in verdict(architecture).surviving


@pytest.mark.parametrize("text", ALL)
@torch.no_grad()
def test_folded_and_scored_networks_give_the_same_logits(text):
    network = stir(made(text)).eval()
    x = images(network.architecture)
    for folded in (fold(network), scoring(network)):
        assert torch.allclose(folded(x), network(x), rtol=0, atol=1e-12)


def without(text):
    return made(str(Architecture.parse(text).constrained))


def set_all(network, name, value):
    with torch.no_grad():
        for convolution in network.convolutions:
            if convolution.soft is not None:
                getattr(convolution.soft, name).copy_(torch.tensor(value))
    return network


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("9px: 2k3@D4+C2, 3k3x2r, 2k3s2@C4+C1", "gamma", 0.0),
        ("9px: 2k3@D4|C4|C1, 3k3x2r, 2k3s2", "alpha", [0.0, -torch.inf, -torch.inf]),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_at_no_strength_the_network_is_bit_identical_to_the_one_without(
    text, name, value, training
):
    """With the same seed its filters are those of the network without the choice."""
    relaxed = set_all(made(text).float(), name, value).train(training)
    plain = without(text).float().train(training)
    for a, b in zip(relaxed.weights(), plain.weights(), strict=True):
        assert torch.equal(a, b)
    x = images(plain.architecture).float()
    with torch.no_grad():
        assert torch.equal(relaxed(x), plain(x))
    assert torch.equal(fold(relaxed)(x), fold(plain)(x))


def test_one_bank_and_softness_0_are_the_constraint_itself():
    for text in ("@C4b1", "@C4~0", "@C4~0.0"):
        assert str(Architecture.parse(f"9px: 2k3{text}, 2k3")) == "9px: 2k3@C4, 2k3"


def test_softness_1_is_the_free_weight_and_between_it_damps_what_is_not_equivariant():
    free = made("9px: 2k3@D4~1, 3k3@C4~1, 2k3")
    half = made("9px: 2k3@D4~0.25, 3k3@C4~0.25, 2k3")
    half.load_state_dict(free.state_dict())
    for whole, damped, convolution in zip(free.weights(), half.weights(), free.convolutions):
        group = convolution.parametrisation.group
        fields = convolution.filters.view(-1, *convolution.parametrisation.expanded_shape)
        assert torch.equal(whole, convolution.weight(fields))
        projected = project_weight(whole, convolution.source, group)
        assert torch.allclose(damped, projected + 0.25 * (whole - projected), atol=1e-15)


def test_banks_start_as_the_constraint_and_break_it_with_the_spread_of_w():
    network = made("9px: 2k3@C4b2, 2k3")
    group, distances = Group.parse("C4"), []
    for spread in (0.0, 0.1, 0.5, 2.0):
        set_all(network, "weights", [[1 + spread, 1, 1, 1 - spread], [1, 1, 1 + spread, 1]])
        distances.append([equivariance_distance(w, c.source, group) for w, c in pairs(network)])
    assert max(distances[0]) < 1e-15
    assert all(a < b for few, more in pairwise(distances) for a, b in zip(few, more))


def pairs(network):
    return zip(network.weights(), network.convolutions)


@pytest.mark.parametrize("text", ["@C4+C1", "@D4+C4", "@D4|C4|C1", "@D4|C1", "@C4~0.3", "@D2~1"])
def test_the_distance_at_the_start_is_the_one_that_samplers_expect(text):
    architecture = Architecture.parse(f"9px: 12k3{text}, 12k3")
    stage = architecture.stages[0]
    network = build(architecture, channels=2, classes=3)
    found = equivariance_distance(network.weights()[1], stage.group, stage.group)
    assert stage.relaxation.start_distance(stage.group) == pytest.approx(found, rel=0.05)


def test_the_gradient_of_relaxed_weights_is_that_of_finite_differences():
    network = stir(made("5px: 1k2@C4+C2, 1k2@C4|C1, 1k2@C4b2, 1k2@C4~0.4, 1k2@C2~0.4"))
    parameters = [p for n, p in network.named_parameters() if "linear" not in n and "norm" not in n]
    generator = torch.Generator().manual_seed(1)
    towards = [torch.randn(w.shape, generator=generator).double() for w in network.weights()]

    def value():
        return sum((w.sin() * t).sum() for w, t in zip(network.weights(), towards))

    grads = torch.autograd.grad(value(), parameters)
    for parameter, grad in zip(parameters, grads):
        step = torch.randn(parameter.shape, generator=generator).double()
        before, ends = parameter.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(before + sign * 1e-6 * step)
                ends.append(
                    float(sum((w.sin() * t).sum() for w, t in zip(network.weights(), towards)))
                )
                parameter.copy_(before)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((grad * step).sum()), rel=1e-5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("@C4+D1", "a pathway to D1, which is not a proper subgroup of C4; .*: C1, C2"),
        ("@C4+C4", "a pathway to C4, which is not a proper subgroup of C4"),
        ("@D4|C1|C4", "a mixed layer with C4, which is not a proper subgroup of C1"),
        ("@C4b0", "has 0 banks; it must have 1 to 64, such as @C4b2"),
        ("@C4~1.5", "softness is 1.5; it must be from 0 .* to 1"),
        ("@C4~-0.5", "softness is -0.5; it must be from 0 .* to 1"),
        ("@C1b2", "a stage of C1, which has no constraint; give the stage a group, such as @C4b2"),
        ("@C8+C1", "a basis; a relaxed stage needs free filters: choose one of C2, C4"),
        ("@C4+C1 filters=basis", "filters=basis has no relaxations; use filters=free"),
        ("@C4+", r"'\+' in stage '2k3@C4\+' is not a relaxation"),
        ("@C4~nan", "is not a relaxation"),
        ("+C1", "follows no group"),
        ("b2", "follows no group"),
        ("@C4+C1~0.3", r"relaxed twice \(\+C1 and ~0.3\)"),
        ("@C4b2|C2", "relaxed twice"),
    ],
)
def test_what_cannot_be_relaxed_is_refused_with_one_message(text, message):
    text, _, options = text.partition(" ")
    with pytest.raises(ValueError, match=message) as caught:
        Architecture.parse(f"9px: 2k3{text}, 2k3 {options}")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not a relaxation; write \\+C1"):
        Relaxation.parse("C1")


def relaxing_study(**choices):
    return trivial.study(
        space__group=["C2", "D4"], space__relaxation=["none", "|C4|C1", "+C1"], **choices
    )


@pytest.mark.parametrize("seed", range(12))
def test_relaxations_are_sampled_where_they_suit_the_group_and_gamma_where_there_is_a_pathway(seed):
    study = relaxing_study(space__gamma=["dual", "triangle"], training__epochs=4)
    draft = Draft({}, numpy.random.default_rng(seed))
    candidate = study.space.sample(draft, declared=Group.parse("C4"))
    stages, params = candidate.architecture.stages, draft.params
    kinds = {str(stage.relaxation) for stage in stages}
    if candidate.architecture.family == "plain":
        assert kinds == {"None"} and not any("relaxation" in name for name in params)
    elif stages[0].group == Group.parse("C2"):
        assert kinds <= {"None", "+C1"} and "relaxation/C2" in params
    else:
        assert kinds == {str(params["relaxation"]).replace("none", "None")}
    assert ("gamma" in params) == ("+C1" in kinds) == (candidate.recipe.gamma is not None)


def test_features_know_how_far_relaxed_weights_are_expected_from_the_constraint():
    group = Group.parse("C4")

    def of(text):
        return features_of(Candidate.parse(text), group)

    base, near = of("12px: 4k3@C4, 4k3"), of("12px: 4k3@C4~0.1, 4k3")
    far, triangle = of("12px: 4k3@C4~0.9, 4k3"), of("12px: 4k3@C4+C1, 4k3 gamma=triangle")
    assert base.weight_distance == 0 == triangle.weight_distance
    assert 0 < near.weight_distance < far.weight_distance < 1
    assert base.surviving == 1 and near.surviving == 0.25
    assert apart_of(near, far, 1) > 0
    study = relaxing_study()
    columns = FeatureCoding(study, [base, near, far]).differences(numpy.arange(3), numpy.arange(3))
    plain = FeatureCoding(study, [base, base]).differences(numpy.arange(2), numpy.arange(2))
    apart = near.weight_distance - far.weight_distance
    assert len(columns) > len(plain) and abs(columns[-1][1, 2]) == pytest.approx(abs(apart))


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"space__relaxation": ["C1"]}, "'C1' is not a relaxation; write \\+C1"),
        ({"space__relaxation": ["~2"]}, "softness is 2; it must be from 0"),
        ({"space__gamma": ["rise"]}, "gamma is 'rise'; write one of fixed:1"),
        (
            {
                "space__relaxation": "+C1",
                "space__gamma": ["triangle"],
                "training__epochs": 1,
            },
            "needs 2 epochs, and the training has 1; choose more epochs, or gamma=dual",
        ),
    ],
)
def test_a_study_with_what_cannot_be_relaxed_or_governed_is_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        trivial.study(**choices)
