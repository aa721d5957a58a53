"""The search space: only valid proposals, choices asked only where they matter, matched widths,
clear refusals.
"""

import itertools
import random

import pytest
from pydantic import ValidationError

from searchspace.architecture import Architecture
from searchspace.cost import cost, widened
from searchspace.exactness import verdict
from searchspace.groups import TRIVIAL, Group
from searchspace.space import SearchSpace

FULL = {
    "family": ["steerable", "plain"],
    "group": ["C1", "C2", "C4", "D1", "D4", "C8"],
    "restrict": {"after": ["none", 2, 3], "to": ["C2", "C1"]},
    "input_size": {"low": 25, "high": 33},
    "layout": ["max2/2", "max3/2", "max3/2p1", "avg3/2p1", "conv3/2p1", "blur/2", "adaptive/2"],
    "head": ["group_max", "group_mean", "none"],
    "filters": ["free", "basis"],
    "equivariance_loss": {
        "kind": ["none", "layerwise", "latent", "label"],
        "weight": {"low": 0.01, "high": 10, "log": True},
    },
    "learning_rate": {"low": 0.003, "high": 0.03, "log": True},
    "width": {"match": "params", "to": 25_000},
}


class Dice:
    """Answers every question at random, and remembers which were asked."""

    def __init__(self, seed):
        self.random, self.params = random.Random(seed), {}

    def suggest_categorical(self, name, choices):
        return self.params.setdefault(name, self.random.choice(choices))

    def suggest_int(self, name, low, high, *, step=1):
        return self.params.setdefault(name, self.random.randrange(low, high + 1, step))

    def suggest_float(self, name, low, high, *, log=False):
        return self.params.setdefault(name, self.random.uniform(low, high))


def samples(space, count, **facts):
    for seed in range(count):
        dice = Dice(seed)
        yield space.sample(dice, **facts), dice.params


def test_every_proposal_is_valid_and_asks_only_what_matters():
    seen = set()
    for proposal, params in samples(SearchSpace(**FULL), 400, declared=Group.parse("C4")):
        architecture = proposal.architecture
        assert Architecture.parse(str(architecture)) == architecture
        assert ("group" in params) == (architecture.family == "steerable")
        assert ("head" in params) == (architecture.group != TRIVIAL)
        assert ("loss_weight" in params) == bool(proposal.recipe.losses)
        assert 0.003 <= proposal.recipe.learning_rate <= 0.03
        if verdict(architecture, Group.parse("C4")).exact and architecture.head != "none":
            assert "equivariance_loss" not in params
        seen.add(
            (
                architecture.family,
                str(architecture.group),
                architecture.head,
                "+".join(loss.kind for loss in proposal.recipe.losses) or "none",
                architecture.filters,
            )
        )
    assert {family for family, *_ in seen} == {"plain", "steerable"} and {
        loss for *_, loss, _ in seen
    } == {"none", "layerwise", "latent", "label"}
    assert {group for _, group, *_ in seen} == {"C1", "C2", "C4", "D1", "D4", "C8"}


def test_groups_never_grow_with_depth():
    for proposal, _ in samples(SearchSpace(**FULL), 200):
        groups = [stage.group for stage in proposal.architecture.stages]
        assert all(later <= earlier for earlier, later in itertools.pairwise(groups))


@pytest.mark.parametrize(
    "match,to,tolerance",
    [("params", 25_000, 0.03), ("params", 100_000, 0.02), ("macs", 60_000_000, 0.06)],
)
def test_widths_are_matched(match, to, tolerance):
    space = SearchSpace(**{**FULL, "width": {"match": match, "to": to}})
    for proposal, _ in samples(space, 120, channels=3, classes=7):
        assert getattr(cost(proposal.architecture, 3, 7), match) == pytest.approx(
            to, rel=tolerance
        ), proposal.architecture


def test_matched_fields_count_the_first_stage():
    space = SearchSpace(
        **{
            **FULL,
            "backbone": "8k3, 8k3 *, 16k3",
            "width": {"match": "fields", "to": 6},
            "restrict": {},
        }
    )
    for proposal, _ in samples(space, 20):
        assert [stage.fields for stage in proposal.architecture.stages] == [6, 6, 12]


def test_residual_backbones_keep_equal_fields_together():
    architecture = widened(Architecture.parse("33px: 8k3@C4, 8k3x2r, 16k3s2x2r"), "params", 100_000)
    a, b, c = (stage.fields for stage in architecture.stages)
    assert (
        a == b
        and abs(c - 2 * a) <= 1
        and cost(architecture).params == pytest.approx(100_000, rel=0.25)
    )


@pytest.mark.parametrize("to", [9_000, 17_000, 33_000, 70_000])
def test_widening_adds_no_projection_to_a_residual_network(to):
    narrow = Architecture.parse("33px: 8k3@C4, 8k3x2r, 8k3x2r, 16k3s2x2r")
    skips = [layer.name for layer in narrow.layers if layer.branch == "skip"]
    wide = widened(narrow, "params", to)
    assert [layer.name for layer in wide.layers if layer.branch == "skip"] == skips


def test_sizes_that_do_not_fit_are_never_proposed():
    space = SearchSpace(
        backbone="4k3 *, 4k3 *, 4k5p0",
        layout=["max2/2", "max3/2"],
        input_size={"low": 14, "high": 40},
        group=["C4"],
        family="steerable",
    )
    smallest = {}
    for proposal, _ in samples(space, 400):
        layout = str(proposal.architecture.stages[0].subsampling)
        smallest[layout] = min(smallest.get(layout, 99), proposal.architecture.size[0])
    assert smallest == {"max2/2": 20, "max3/2": 23}


def test_exactness_is_asked_before_the_size():
    """One pixel decides: about half of the steerable proposals are exact, whatever the sizes; asked
    for pixels alone, few are.
    """

    def exact_share(space):
        found = [
            verdict(p.architecture).grid_exact
            for p, _ in samples(space, 300)
            if p.architecture.group != TRIVIAL
        ]
        return sum(found) / len(found)

    deep = {
        "group": ["C4"],
        "family": "steerable",
        "input_size": {"low": 25, "high": 57},
        "layout": ["max3/2p1"],
        "backbone": "4k3 *, 4k3 *, 4k3 *, 4k3",
    }
    assert 0.4 < exact_share(SearchSpace(**deep)) < 0.6
    assert exact_share(SearchSpace(**deep, size_by="pixels")) < 0.25
    for proposal, params in samples(SearchSpace(**deep), 50):
        assert verdict(proposal.architecture).grid_exact == params["exact"]


def test_marks_take_one_step_each_or_all_the_same():
    space = SearchSpace(backbone="4k3 *, 4k3 *, 4k3", layout=["max2/2 | avg3/2p1"], family="plain")
    proposal, params = next(samples(space, 1))
    assert [str(stage.subsampling) for stage in proposal.architecture.stages] == [
        "max2/2",
        "avg3/2p1",
        "None",
    ] and not params


def test_one_value_in_place_of_a_list_fixes_a_choice():
    space = SearchSpace(
        group="C4",
        family="steerable",
        input_size=29,
        layout="max3/2",
        head="group_mean",
        backbone="4k3 *, 4k3",
    )
    proposal, params = next(samples(space, 1))
    assert str(proposal.architecture) == "29px: 4k3@C4 max3/2, 4k3 head=group_mean" and not params


@pytest.mark.parametrize(
    "change,says",
    [
        ({"grup": ["C4"]}, "grup"),
        ({"group": ["C5x"]}, "no group 'C5x'"),
        ({"family": ["steerabel"]}, "steerable"),
        ({"restrict": {"after": [2], "to": ["D4"]}, "group": ["C4"]}, "not a proper subgroup"),
        ({"restrict": {"after": [9]}}, "7 stages; choose 1 to 6, or none"),
        ({"restrict": {"after": [0]}}, "not a stage to restrict"),
        ({"layout": ["pool2"]}, "subsampling"),
        ({"layout": []}, "at least 1"),
        (
            {"backbone": "3k3 *, 3k3 *, 3k3 *, 3k5p0", "layout": ["max2/2"], "input_size": [8]},
            "no architecture of the space fits",
        ),
        ({"backbone": "3k3@C4 *"}, "names groups"),
        ({"backbone": "3k3 * head=none"}, "options"),
        ({"input_size": {"low": 9, "high": 7}}, "low"),
        ({"layout": ["max2/2 | max2/2"]}, r"has 2 steps, but backbone .* has \d+ marks?"),
        ({"group": ["C8"], "filters": ["free"]}, "basis"),
        ({"width": {"match": "flops", "to": 3}}, "macs"),
        ({"learning_rate": {"low": 0, "high": 1}}, "greater than 0"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"learning_rate": -1}, "greater than 0"),
        ({"learning_rate": 101}, "at most 100"),
        ({"learning_rate": {"low": 0.1, "high": 1e9}}, "at most 100"),
        ({"learning_rate": True}, "valid number"),
        ({"equivariance_loss": {"kind": ["label"], "weight": -1}}, "greater than 0"),
        ({"equivariance_loss": {"kind": []}}, "at least 1 item"),
        ({"head": []}, "at least 1 item"),
        ({"filters": []}, "at least 1 item"),
        ({"family": []}, "at least 1 item"),
        ({"restrict": {"after": [], "to": ["C1"]}}, "at least 1 item"),
        ({"restrict": {"after": [2], "to": []}}, "at least 1 item"),
        ({"input_size": []}, "at least 1 item"),
        ({"input_size": ["a", 3]}, "valid integer"),
        ({"input_size": 0}, "greater than or equal to 1"),
        ({"input_size": {"low": 8, "high": 1_000_000_000}}, "less than or equal to 16384"),
        ({"input_size": {"low": 8, "high": 16000}}, "15993 sizes; there must be at most 1024"),
        ({"width": {"match": "params", "to": 1}}, "no closer to 1 params than 1.. times"),
        ({"width": {"match": "macs", "to": 1000}}, "choose a larger width.to"),
        ({"width": {"match": "fields", "to": 10**9}}, "at most 65536"),
        ({"width": {"match": "params", "to": 10**13}}, "choose a smaller width.to"),
        ({"group": ["C1"], "family": ["steerable", "plain"]}, "beside C1"),
    ],
)
def test_bad_spaces_are_refused_with_one_remedy(change, says):
    with pytest.raises(ValidationError, match=says) as refused:
        SearchSpace(**{**FULL, "restrict": {}, **change})
    assert refused.value.error_count() == 1


def test_no_restriction_may_be_written_as_null():
    null = SearchSpace(**{**FULL, "restrict": {"after": [None, 2], "to": ["C2"]}})
    assert null.restrict.after == ("none", 2)


def test_a_width_that_is_missed_is_told_with_by_how_much():
    space = {
        "backbone": "16k3, 16k3 *, 16k3",
        "group": ["C2", "D4"],
        "family": "steerable",
        "input_size": [16, 32],
    }
    params = SearchSpace(**space, width={"match": "params", "to": 20_000})
    assert not params.width_warnings(1, 10)
    (text,) = SearchSpace(**space, width={"match": "macs", "to": 500_000}).width_warnings(1, 10)
    assert text.startswith("networks of D4 at 32 px come no closer to 500,000 macs than +62% off")
    assert not SearchSpace(**space).width_warnings(1, 10)


@pytest.mark.parametrize(
    "choices,says",
    [
        ({"relaxation": "+C3"}, "relaxation \\+C3 suits no stage of the space"),
        ({"relaxation": "+C1", "filters": "basis"}, "needs filters: \\[free\\]"),
        ({"relaxation": ["none", "|C2"], "family": "plain"}, "groups: none; filters: free"),
        ({"relaxation": "b2", "gamma": "dual"}, "gamma is dual, which governs residual pathways"),
        ({"gamma": ["fixed:1", "fixed:0"]}, "gamma is fixed:0.0"),
        ({"head": ["none", "block_max:C4"]}, "head block_max:C4 is for networks that train with"),
        ({"equivariance_loss": {"kind": "layerwise", "stages": ["all", "2,8"]}}, "names stage 8"),
        ({"equivariance_loss": {"kind": "label", "weight": 1e300}}, "at most 1e\\+06"),
        ({"streams": "C8 & C4"}, "group C8 needs filters"),
        ({"streams": " & ".join(["C4"] * 17)}, "streams has 17 groups; it must have at most 16"),
        ({"augment": "learned:1e99"}, "regularisation must be from 0 to 100"),
        ({"augment": "normal:0:400"}, "angles must be at most 360 degrees"),
    ],
)
def test_a_choice_that_no_network_of_the_space_could_have_is_refused(choices, says):
    with pytest.raises(ValidationError, match=says):
        SearchSpace.model_validate(choices)


@pytest.mark.parametrize(
    "choices",
    [
        {"relaxation": "+C1", "streams": "D1 & C4", "family": "plain"},
        {"relaxation": "|C1", "group": "D4", "restrict": {"after": 2, "to": "C2"}},
        {"streams": "C8 & C4", "filters": "basis"},
        {"head": ["none", "block_max:C4"], "equivariance_loss": {"kind": "label+latent@C4"}},
        {
            "streams": "C4 & D1",
            "equivariance_loss": {"kind": "layerwise", "stages": [14]},
        },
    ],
)
def test_a_choice_that_some_network_of_the_space_has_is_taken(choices):
    SearchSpace.model_validate(choices)


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("group", ["C4", "c4"]),
        ("layout", ["max2/2", "max2/2p0"]),
        ("backbone", ["2k3 *, 2k3", "2k3p1 * ,2k3"]),
        ("relaxation", ["+C1", "+C1"]),
        ("input_size", [8, 8]),
        ("streams", ["C4 & D1", "D1&C4"]),
        ("invariant_share", [0.5, 0.5]),
        ("augment", ["normal:30", "normal:0:30"]),
        ("dropout", {"kind": ["values"], "rate": [0.3, 0.3]}),
        ("restrict", {"after": ["none", None]}),
        ("equivariance_loss", {"kind": ["label+layerwise", "layerwise+label"]}),
        ("equivariance_loss", {"kind": ["latent"], "stages": ["1,2", "2,1"]}),
    ],
)
def test_a_choice_that_is_listed_twice_is_refused_and_read(key, choices):
    with pytest.raises(ValidationError, match="; choices are drawn equally often, so that the sec"):
        SearchSpace.model_validate({key: choices})
    SearchSpace.model_validate({key: choices}, context={"reading": True})


def test_a_share_that_no_group_could_pool_is_refused():
    for content in ({"invariant_share": [0, 0.5]}, {"backbone": "4k3i0.5, 4k3 *"}):
        with pytest.raises(ValidationError, match="share is 0.5, and no network of the space has"):
            SearchSpace.model_validate({**content, "family": "plain"})
        space = SearchSpace.model_validate({**content, "family": ["plain", "steerable"]})
        drawn = [proposal.architecture for proposal, _ in samples(space, 20)]
        assert all("i0.5" not in str(a) for a in drawn if a.family == "plain")
        assert any("i0.5" in str(a) for a in drawn)
