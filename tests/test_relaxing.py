"""A relaxed network has the function of the trained one, its optimizer moves on as the other would
have, and training goes on from there.
"""

import copy

import pytest
import torch
from test_layerwise import network
from test_train import DIGITS, config

from searchspace.architecture import Architecture
from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.weights.relaxed import relaxed
from trainers.actions import act
from trainers.data.datasets import load_data
from trainers.networks.networks import build
from trainers.networks.relaxing import ParameterMap, relax_network, require_same_function
from trainers.training.inheritance import TrainingPlace, begin, carry_over
from trainers.training.step import build_optimizer
from trainers.training.train import start_training, train

IMAGES = torch.rand(6, 1, 17, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PLAIN_STAGES = "17px: 2k3@D4, 2k3x2 max2/2, 2k3@C4 conv3/2p1 head={}"
RESIDUAL = "17px: 2k3@D4, 2k3x2r, 3k3s2r avg3/2p1, 2k3r head={}"
COARSE = "17px: 3k3@C4 lp3/2, 2k2p0:1@C2 max2/2ceil, 2k3r head={}"


def relaxations(text):
    """(number of the stage, group) of every stage and every proper subgroup of its group."""
    stages = Architecture.parse(text).stages
    return [(n, h) for n, s in enumerate(stages, 1) for h in s.group.subgroups()[:-1]]


def state(model, optimizer):
    """The optimizer with the state that it has after a few steps on noise."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.rand(parameter.shape, generator=generator).to(parameter) - 0.3
        optimizer.step()
    return optimizer


def step_at_rest(model, optimizer):
    """The network after the step that its optimizer makes of itself, without a gradient."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return model


@pytest.mark.parametrize(
    "text",
    [PLAIN_STAGES.format("none"), RESIDUAL.format("group_mean"), COARSE.format("group_mean")],
)
@torch.no_grad()
def test_relaxing_any_stage_to_any_subgroup_keeps_the_function(text):
    model = network(text).double()
    for number, group in relaxations(text):
        inheriting = relax_network(model, relaxed(model.architecture, number, group))
        stage = inheriting.architecture.stages[number - 1]
        assert (
            stage.group == group
            and stage.channels == model.architecture.stages[number - 1].channels
        )
        for images in (IMAGES, act(IMAGES, Group.parse("D4").elements[5])):
            assert torch.allclose(inheriting(images), model(images), rtol=0, atol=1e-10)


def test_a_maximum_over_fields_becomes_one_over_blocks_of_channels():
    model = network("17px: 2k3@D4 max2/2, 3k3").double()
    architecture = relaxed(model.architecture, 2, Group.parse("C1"))
    assert str(architecture) == "17px: 2k3@D4 max2/2, 24k3@C1 head=block_max:D4"
    inheriting = relax_network(model, architecture)
    assert torch.allclose(inheriting(IMAGES), model(IMAGES), rtol=0, atol=1e-10)


def test_a_basis_keeps_the_function_to_the_rounding_of_its_samples():
    model = network("17px: 2k3@C8 max2/2, 2k3 head=none").double()
    for number, group in relaxations(str(model.architecture)):
        inheriting = relax_network(model, relaxed(model.architecture, number, group))
        assert inheriting.architecture.filters == "basis"
        assert torch.allclose(inheriting(IMAGES), model(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", [RESIDUAL.format("group_max"), PLAIN_STAGES.format("none")])
@torch.no_grad()
def test_a_pathway_keeps_the_function_and_the_head_at_any_stage(text):
    model = network(text).double()
    for number, group in relaxations(text):
        architecture = relaxed(model.architecture, number, group, pathway=True)
        annotation = architecture.stages[number - 1].annotation
        assert annotation == f"{model.architecture.stages[number - 1].group}+{group}"
        inheriting = relax_network(model, architecture)
        assert torch.equal(inheriting(IMAGES), model(IMAGES))
        assert torch.equal(inheriting.train()(IMAGES), copy.deepcopy(model).train()(IMAGES))


def test_a_pathway_begins_to_train_at_once():
    model = network("16px: 3k3@C4 max2/2, 3k3").double()
    inheriting = relax_network(
        model, relaxed(model.architecture, 1, Group.parse("C1"), pathway=True)
    )
    images = torch.rand(8, 1, 16, 16, dtype=torch.float64)
    inheriting(images).square().sum().backward()
    gradient = inheriting.get_parameter("stages.0.0.convolutions.0.soft.further.0.filters").grad
    assert gradient is not None and float(gradient.norm()) > 1e-6


def test_relaxing_twice_is_relaxing_both_stages_at_once():
    model = network(PLAIN_STAGES.format("none")).double()
    once = relaxed(model.architecture, 3, Group.parse("C2"))
    both = relaxed(once, 2, Group.parse("C4"))
    assert [str(s.group) for s in both.stages] == ["D4", "C4", "C2"]
    direct, in_turn = relax_network(model, both), relax_network(relax_network(model, once), both)
    assert all(
        torch.equal(value, in_turn.state_dict()[name])
        for name, value in direct.state_dict().items()
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("text", [PLAIN_STAGES.format("none"), RESIDUAL.format("group_mean")])
def test_the_next_step_of_its_own_momentum_moves_the_function_alike(text, optimizer):
    model = network(text).double()
    settings = config(optimizer=optimizer, learning_rate=0.01, weight_decay=0.0)
    parent = state(model, build_optimizer(model, settings))
    saved = parent.state_dict()
    for number, group in relaxations(text)[::6]:
        architecture = relaxed(model.architecture, number, group)
        inheriting = relax_network(model, architecture)
        child = build_optimizer(inheriting, settings)
        carry_over(saved, ParameterMap(model, architecture), inheriting, child)
        again = build(model.architecture, channels=1, classes=5).double().eval()
        again.load_state_dict(model.state_dict())
        mine = build_optimizer(again, settings)
        mine.load_state_dict(saved)
        for chosen in (child, mine):
            for group_of in chosen.param_groups:
                if "eps" in group_of:
                    group_of["eps"] = 1e-30
        moved = step_at_rest(again, mine)(IMAGES)
        assert not torch.allclose(moved, model(IMAGES), atol=1e-4)
        assert torch.allclose(step_at_rest(inheriting, child)(IMAGES), moved, rtol=0, atol=1e-10)


def test_equivariance_is_kept_at_first_and_lost_by_training():
    model = network("16px: 3k3@D4 max2/2, 3k3 head=group_mean").double()
    inheriting = relax_network(model, relaxed(model.architecture, 2, Group.parse("D1")))
    images = torch.rand(12, 1, 16, 16, dtype=torch.float64)

    def errors():
        return [
            float((inheriting(act(images, e)) - inheriting(images)).abs().max().detach())
            for e in Group.parse("D4").elements
        ]

    assert max(errors()) < 1e-12
    optimizer = torch.optim.SGD(inheriting.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        inheriting(images).square().mean().backward()
        optimizer.step()
    after = dict(zip(Group.parse("D4").elements, errors()))
    for element, error in after.items():
        assert error < 1e-12 if element in Group.parse("D1") else error > 1e-6


@torch.no_grad()
def test_a_new_skip_connection_is_the_identity_in_training_too():
    model = network("17px: 4k3@C4, 4k3r, 4k3r head=none").double()
    architecture = relaxed(model.architecture, 3, Group.parse("C2"))
    measured = relax_network(model, architecture, images=IMAGES)
    assert torch.allclose(measured(IMAGES), model(IMAGES), rtol=0, atol=1e-10)
    block = measured.stages[2][0]
    maps = model.forward_with_stages(IMAGES)[1][1]
    weight = dict(zip(measured.convolutions, measured.weights()))[block.skip]
    added = block.train().skip(maps, weight)
    assert torch.allclose(added.sum(1), maps.sum(1), atol=1e-3 * float(maps.sum(1).abs().max()))


def test_a_function_that_is_not_kept_is_refused():
    model = network("12px: 4k3@C4, 4k3 head=none")
    other = relax_network(model, relaxed(model.architecture, 2, Group.parse("C2")))
    images = torch.rand(4, 1, 12, 12)
    require_same_function(model, other, images)
    with torch.no_grad():
        other.linear.weight[0, 0] += 1
    with pytest.raises(ValueError, match="cannot take over its function"):
        require_same_function(model, other, images)


@pytest.mark.parametrize(
    "text,stage,group,message",
    [
        ("16px: 4k3@C4, 4k3", 3, "C2", "stages 1 to 2"),
        ("16px: 4k3@C4, 4k3", 2, "D1", "not a proper subgroup of C4.*C1, C2"),
        ("16px: 4k3@C4, 4k3", 2, "C4", "not a proper subgroup"),
        ("16px: 4k3", 1, "C1", "cannot be relaxed any further"),
        ("16px: 4k3@C4, 4k3 head=group_max", 2, "C2", "pathway, or to C1, where head=block_max:C4"),
        ("16px: 4k3@C4, 4k3@C4+C2 head=none", 1, "C1", "stage 2 is relaxed already"),
        ("16px: 4k3@D4, 8k3r@C4 head=none", 1, "C4", "skip connection has no weights"),
    ],
)
def test_what_cannot_be_relaxed_is_said(text, stage, group, message):
    with pytest.raises(ValueError, match=message):
        relaxed(Architecture.parse(text), stage, Group.parse(group))


@pytest.mark.parametrize(
    "text,message",
    [
        ("12px: 4k3@C4, 4k3@C2 head=none", "stage 2 has 8 channels.*with 8 fields"),
        ("12px: 4k3@D4, 4k3 head=none", "D4, which is not a subgroup of .* C4"),
        ("12px: 4k3@C4, 8k3@C2 head=group_mean", "groups differ and nothing else"),
        ("12px: 4k3@C4, 8k5@C2 head=none", "groups differ and nothing else"),
    ],
)
def test_weights_of_what_is_not_a_relaxation_are_not_inherited(text, message):
    with pytest.raises(ValueError, match=message):
        relax_network(network("12px: 4k3@C4, 4k3 head=none"), Architecture.parse(text))


def test_a_training_begins_with_the_weights_of_another_and_goes_on(tmp_path):
    splits = load_data(DIGITS, (12, 12))
    whole, epochs = Architecture.parse("12px: 4k3@C4 max2/2, 4k3 head=none"), config()
    parent = TrainingPlace(whole, epochs, tmp_path / "parent")
    scores = train(whole, epochs, parent.directory, 4, splits=splits)
    child = TrainingPlace(relaxed(whole, 2, Group.parse("C2")), epochs, tmp_path / "child")
    begin(child, parent, 3, lambda: splits)
    begun = start_training(child.architecture, child.config, child.directory, splits)
    trained = start_training(whole, epochs, parent.directory, splits)
    assert begun.epoch == 3 and begun.progress.seconds == 0
    pixels = splits.validation.pixels[:20].float() / 255
    assert torch.allclose(begun.network.eval()(pixels), trained.network.eval()(pixels), atol=1e-5)
    seen = []
    found = train(
        child.architecture,
        child.config,
        child.directory,
        4,
        splits=splits,
        on_epoch=lambda epoch, row: seen.append(epoch),
    )
    assert seen == [4] and found.epoch == 4 and scores.params < found.params
    begin(child, parent, 3, lambda: splits)  # as after a kill: nothing is begun again
    assert start_training(child.architecture, child.config, child.directory, splits).epoch == 4


def begun_training(tmp_path, text, child_text, **options):
    """(the training of `text` after 2 epochs, that of `child_text`, which begins with its weights
    and has no epoch of its own yet).
    """
    splits, places = load_data(DIGITS, (12, 12)), []
    for number, each in enumerate((text, child_text)):
        candidate = Candidate.parse(each)
        settings = config(text=each, **options)
        places.append(TrainingPlace(candidate.architecture, settings, tmp_path / str(number)))
    parent, child = places
    train(parent.architecture, parent.config, parent.directory, 2, splits=splits)
    begin(child, parent, 2, lambda: splits)
    train(child.architecture, child.config, child.directory, 3, splits=splits)
    begin(child._replace(directory=tmp_path / "anew"), parent, 2, lambda: splits)
    return [
        start_training(place.architecture, place.config, place.directory, splits)
        for place in (parent, child._replace(directory=tmp_path / "anew"))
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("gamma", ["", " gamma=dual", " gamma=triangle"])
def test_a_pathway_trains_on_from_the_weights_of_its_parent(tmp_path, gamma, optimizer):
    text = "12px: 2k3@C4{}, 2k3 head=none{}"
    parent, child = begun_training(
        tmp_path, text.format("", ""), text.format("+C1", gamma), optimizer=optimizer
    )
    trained = dict(parent.network.named_parameters())
    state = child.step.optimizer.state_dict()["state"]
    assert child.epoch == 2 and len(state) == len(trained) + 2  # and two pathways, at rest
    for name, parameter in child.network.named_parameters():
        assert name not in trained or torch.equal(parameter, trained[name])


@pytest.mark.parametrize("recipe", ["augment=learned", "loss=label:1 loss_weight=adapted"])
def test_what_is_trained_beside_the_network_goes_on_too(tmp_path, recipe):
    text = "12px: 2k3@C4, {} head=none " + recipe
    parent, child = begun_training(tmp_path, text.format("2k3"), text.format("4k3@C2"))
    found, kept = (run.step.companions.state_dict() for run in (child, parent))
    assert found.keys() == kept.keys() != set()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    other = text.format("4k3@C2").replace(recipe, "")
    fresh = begun_training(tmp_path / "other", text.format("2k3"), other)[1]
    assert fresh.epoch == 2 and not len(fresh.step.companions)


def test_a_parent_without_a_checkpoint_or_of_other_images_is_named(tmp_path):
    splits = load_data(DIGITS, (12, 12))
    architecture = Architecture.parse("12px: 2k3@C4, 2k3 head=none")
    parent = TrainingPlace(architecture, config(), tmp_path / "parent")
    child = TrainingPlace(relaxed(architecture, 2, Group.parse("C1")), config(), tmp_path / "child")
    with pytest.raises(ValueError, match="no checkpoint in .*parent"):
        begin(child, parent, 1, lambda: splits)
    train(architecture, config(), parent.directory, 1, splits=splits)
    content = torch.load(parent.directory / "checkpoint.pt", weights_only=True)
    content["network"]["stages.0.0.convolutions.0.filters"] = torch.zeros(6, 9)
    torch.save(content, parent.directory / "checkpoint.pt")
    with pytest.raises(ValueError, match="which have 1 channel and 10 classes"):
        begin(child, parent, 1, lambda: splits)
    assert not child.directory.exists()


def test_weights_that_are_relaxed_in_part_are_not_moved():
    soft = Architecture.parse("9px: 2k3@C4+C1, 2k3, 2k3 head=none")
    constrained = Architecture.parse("9px: 2k3@C4, 2k3, 2k3 head=none")
    with pytest.raises(ValueError, match="has relaxed weights .* take a trained network without"):
        relax_network(
            build(soft, channels=1, classes=2), relaxed(constrained, 2, Group.parse("C2"))
        )
