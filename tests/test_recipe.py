"""Recipes: augmentation, equivariance losses and their weights as text, as choices of a space, and
what is refused.
"""

import random
from dataclasses import FrozenInstanceError

import pytest
from test_space import samples

from searchspace.groups import Group
from searchspace.recipe import Candidate, Recipe
from searchspace.space import SearchSpace
from searchspace.training.augmentation import Augmentation
from searchspace.training.losses import Blocks, Loss, parse_losses, savings
from studies.results.check import check
from studies.samplers.inversion import parameters_of
from support import trivial

C4 = Group.parse("C4")


@pytest.mark.parametrize(
    "given, printed",
    {
        "augment=normal:0:30": "augment=normal:30",
        "augment=normal:45:20": "augment=normal:45:20",
        "augment=learned:0.01": "augment=learned",
        "augment=learned:0.1": "augment=learned:0.1",
        "loss=latent:1+0.1": None,
        "loss=label:1+layerwise:0.1": "loss=layerwise:0.1+label:1.0",
        "loss=layerwise:1e+22@R8-4-2-1#1,2+latent:1@D1#2": (
            "loss=layerwise:1e+22@R8-4-2-1#1,2+latent:1.0@D1#2"
        ),
        "loss=layerwise:0.1 loss_weight=adapted": "loss=layerwise:0.1 loss_weight=adapted",
        "loss_weight=adapted": "",  # of nothing
        "loss=layerwise:0@C2": "",
        "loss=none+label:1": "loss=label:1.0",
    }.items(),
)
def test_text_forms(given, printed):
    if printed is None:
        with pytest.raises(ValueError, match="loss is"):
            Candidate.parse(f"28px: 4k3, 4k3 {given}")
        return
    candidate = Candidate.parse(f"28px: 4k3, 4k3 {given}")
    assert str(candidate) == f"28px: 4k3, 4k3 {printed}".strip()
    assert Candidate.parse(str(candidate)) == candidate


@pytest.mark.parametrize(
    "options, said",
    {
        "augment=turned": "augment is 'turned'; write none, group",
        "augment=normal": "augment is 'normal'; write",
        "augment=normal:-3": "not negative",
        "augment=learned:nan": "augment is 'learned:nan'",
        "augment=group:3": "augment is 'group:3'",
        "loss=layerwise:1@C1": "no element beside the identity",
        "loss=layerwise:1@Q4": "there is no group 'Q4'",
        "loss=layerwise:1@R4-8": "falling orders",
        "loss=layerwise:1@R4": "falling orders",
        "loss=layerwise:1@R-2": "not numbers",
        "loss=latent:1@R4-2-1": "the layerwise loss alone",
        "loss=label:1#2": "reads no stages",
        "loss=projection:1#4": "reads stage 4",
        "loss=latent:1#3": "reads stage 3, but the architecture has 2",
        "loss=latent:1#0": "numbers from 1",
        "loss=latent:1#2,1": "rising order",
        "loss=latent:1#a": "loss is 'latent:1#a'",
        "loss=label:1+label:2": "one loss twice",
        "loss=label:1 loss_weight=fixed": "choose one of constant, adapted",
    }.items(),
)
def test_what_is_refused_says_why(options, said):
    with pytest.raises(ValueError, match=said):
        Candidate.parse(f"28px: 4k3, 4k3 {options}")


def test_heterogeneous_blocks_save_the_channels_that_the_paper_says():
    assert Blocks((4, 2, 1)).homogeneous_channels(88) == 128  # 31 % fewer
    assert Blocks((8, 4, 2, 1)).homogeneous_channels(129) == 192  # 33 % fewer
    assert [part.ratio for part in Blocks((8, 4, 2, 1)).parts] == [32, 8, 2, 1]
    for channels in range(1, 200):
        split = Blocks((8, 4, 2, 1)).split(channels)
        assert sum(size for size, _ in split) == channels and min(s for s, _ in split) >= 0
        assert all(size % block == 0 for size, block in split)


def test_a_check_says_what_heterogeneous_blocks_save():
    text = "28px: 88k3, 88k3, 44k3 loss=layerwise:1@R4-2-1#1,2"
    (line,) = check(text).as_dict()["savings"]
    assert "stages of 88 channels" in line and "in 128 channels (-31%)" in line
    assert line in check(text).text() and not check("28px: 88k3 loss=1").as_dict()["savings"]
    assert "(-33%)" in savings(parse_losses("1@R8-4-2-1"), [129])[0]


def test_recipes_that_train_alike_have_one_key():
    a, b = "28px: 4k3 loss=label:1+layerwise:2", "28px: 4k3 loss=layerwise:2+label:1"
    assert Candidate.parse(a).key == Candidate.parse(b).key
    others = ("loss=label:1", "loss=label:1@C2", "augment=group", "augment=uniform", "")
    assert len({Candidate.parse(f"28px: 4k3 {text}").key for text in others}) == len(others)
    # stages that are named count repeats
    named = [f"28px: {stages} loss=latent:1#1" for stages in ("4k3x2", "4k3, 4k3")]
    assert len({Candidate.parse(text).key for text in named}) == 2


SPACE = {
    "backbone": "4k3, 4k3 *, 4k3",
    "family": ["steerable", "plain"],
    "group": ["C2", "C4"],
    "input_size": [28, 29],
    "augment": ["none", "group", "normal:30", "learned"],
    "equivariance_loss": {
        "kind": ["none", "layerwise@R4-2-1", "layerwise+label", "latent"],
        "group": ["declared", "C2"],
        "stages": ["all", 2, "1,2"],
        "weighting": ["constant", "adapted"],
        "weight": {"low": 0.01, "high": 10, "log": True},
    },
}


def test_a_space_asks_what_matters_and_every_proposal_is_found_again():
    study = trivial.study(space=SPACE, symmetry={"group": "C4"})
    augments, losses = set(), set()
    for number, (proposal, params) in enumerate(samples(SearchSpace(**SPACE), 200, declared=C4)):
        recipe = proposal.recipe
        exact = "augment/exact" in params
        augments.add((exact, str(recipe.augment)))
        losses.update((loss.kind, str(loss.group), loss.stages) for loss in recipe.losses)
        assert not (exact and recipe.losses)
        assert ("loss_weighting" in params) == bool(recipe.losses)
        assert ("loss_weight_2" in params) == (len(recipe.losses) == 2)
        assert ("loss_group" in params) == any(
            not isinstance(loss.group, Blocks) for loss in recipe.losses
        )
        if number % 4 == 0:
            again = parameters_of(study, Candidate.parse(str(proposal)))
            assert again is not None and set(again) == set(params)
            for name in again:
                assert name.startswith("loss_weight") or again[name] == params[name]
    assert augments == {
        *((True, text) for text in ("none", "normal:30", "learned")),
        *((False, text) for text in ("none", "group", "normal:30", "learned")),
    }
    assert {("layerwise", "R4-2-1", (1, 2)), ("label", "C2", ()), ("latent", "None", ())} <= losses


def test_without_an_augmentation_of_its_own_a_candidate_has_that_of_the_study():
    study = trivial.study(
        space={**SPACE, "augment": ["group", "none"], "family": "plain"},
        training={"augment": {"rotation": "group"}},
    )
    found = parameters_of(study, Candidate.parse("28px: 4k3, 4k3 max2/2, 4k3"))
    assert found is not None and found["augment"] == "group"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"augment": ["turned"]}, "augment is 'turned'"),
        ({"augment": []}, "at least 1"),
        ({"equivariance_loss": {"kind": ["layer"]}}, "'layer' is not a kind"),
        ({"equivariance_loss": {"kind": ["label"], "group": ["Q"]}}, "there is no group 'Q'"),
        ({"equivariance_loss": {"kind": ["label"], "stages": ["last"]}}, "which stages a loss"),
    ],
)
def test_a_space_refuses_what_no_recipe_can_be(change, said):
    with pytest.raises(ValueError, match=said):
        SearchSpace(**{**SPACE, **change})


def test_candidates_are_values_that_count_once_in_a_set_and_do_not_change():
    text = "28px: 4k3@C4 loss=label:1"
    candidate = Candidate.parse(text)
    assert len({candidate, Candidate.parse(text), Candidate.parse("28px: 4k3@C4")}) == 2
    with pytest.raises(FrozenInstanceError):
        candidate.recipe = Recipe()


def test_weight_zero_is_no_loss_at_all():
    assert Candidate.parse("28px: 4k3 loss=layerwise:0+latent:0@C2").recipe == Recipe()
    assert parse_losses("none") == () and Recipe((Loss(),)) == Recipe()


def test_random_augmentations_parse_back():
    rng = random.Random(0)
    for _ in range(200):
        made = Augmentation("normal", rng.uniform(-90, 90), rng.choice([0, 1e-9, rng.random()]))
        assert Augmentation.parse(str(made)) == made
