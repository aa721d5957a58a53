"""Proposals planned whole: drafts follow plans and never leave the space; what was tried is not
proposed again.
"""

from __future__ import annotations

import numpy
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchspace.groups import Group
from studies.journal.reader import read_trials
from studies.samplers.enumeration import all_candidates
from studies.samplers.planned import Draft, _tried, as_key, draw_planned
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

SMALL = {
    "space__input_size": [28, 29],
    "space__layout": ["max2/2", "max3/2"],
    "space__family": ["steerable"],
    "space__group": ["C4", "D4"],
    "space__equivariance_loss": {"kind": ["none"]},
}


def rng(seed=0):
    return numpy.random.default_rng(seed)


def test_a_draft_follows_its_plan_where_the_space_allows_it():
    plan = {"family": "steerable", "group": "D4", "layout": "max3/2", "exact": True}
    for seed in range(20):
        draft, candidate = draw_planned(trivial.study(), plan, rng(seed))
        assert plan.items() <= draft.params.items() and str(candidate.architecture.group) == "D4"


def test_a_draft_takes_a_choice_from_another_condition():
    draft = Draft({"input_size/25-33/2": 29}, rng())
    assert draft.suggest_int("input_size/25-29", 25, 29) == 29
    assert Draft({"input_size/25-33/2": 33}, rng()).suggest_int(
        "input_size/26-32/2", 26, 32, step=2
    ) in (26, 28, 30, 32)


@pytest.mark.parametrize("log", [False, True])
def test_numbers_without_a_plan_are_drawn_evenly_or_evenly_in_the_logarithm(log):
    random = rng()
    drawn = [Draft({}, random).suggest_float("rate", 0.01, 100.0, log=log) for _ in range(400)]
    shares = numpy.array(drawn)
    shares = (numpy.log10(shares) + 2) / 4 if log else (shares - 0.01) / 99.99
    assert numpy.allclose(
        numpy.quantile(shares, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.08
    )


def test_whole_numbers_without_a_plan_are_any_of_the_range():
    random = rng()
    drawn = [Draft({}, random).suggest_int("size", 25, 33, step=2) for _ in range(200)]
    assert sorted(set(drawn)) == [25, 27, 29, 31, 33]
    assert min(drawn.count(n) for n in set(drawn)) > 20


@given(
    st.integers(0, 10_000),
    st.floats(0.001, 100),
    st.integers(20, 40),
    st.sampled_from(["C1", "C4", "D4", "C17", ""]),
)
@settings(max_examples=60, deadline=None)
def test_a_draft_never_leaves_the_space(seed, weight, size, group):
    study = trivial.study()
    draft, candidate = draw_planned(
        study,
        {"loss_weight": weight, "input_size": size, "group": group, "layout": "max9/9"},
        rng(seed),
    )
    again = study.space.sample(
        Draft(draft.params, rng(seed + 1)), declared=Group.parse(study.symmetry.group)
    )
    architecture = candidate.architecture
    assert architecture.size[0] in study.space.pixels
    assert (
        str(again).split(":")[0] == str(candidate).split(":")[0]
        and again.recipe.losses == candidate.recipe.losses
        and again.architecture.group == architecture.group
    )
    if "loss_weight" in draft.params:
        assert 0.01 <= draft.params["loss_weight"] <= 10


def test_params_are_equal_whatever_their_order():
    assert as_key({"a": 1, "b": "x"}) == as_key({"b": "x", "a": 1}) != as_key({"a": 1, "b": "y"})


def test_a_running_trial_counts_with_the_choices_it_has_by_now():
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_categorical("group", ["C4"])
    assert _tried(study, study.trials) == {as_key({"group": "C4"}): 1}
    trial.suggest_categorical("head", ["none"])
    assert _tried(study, study.trials) == {as_key({"group": "C4", "head": "none"}): 1}


@pytest.mark.parametrize("sampler", ["tpe", "evolution", "ehvi"])
def test_a_small_space_is_searched_whole_without_repeats(tmp_path, sampler):
    options = {
        **SMALL,
        "search__sampler": sampler,
        "search__repeats": 1,
        "search__trials": 8,
        "search__startup": 2,
        "search__rungs": [],
    }
    with SearchDriver.create(tmp_path / "study", trivial.study(**options)) as driver:
        run_in_process(driver, trivial.trainable)
    records = read_trials(tmp_path / "study")
    complete = {r.architecture for r in records if r.state == "complete"}
    assert len(complete) == 8  # 2 groups, 2 layouts, 2 sizes
    refused = sum(r.state == "refused" for r in records)
    # TPE repeats itself, and a neighbour follows at once
    assert refused == 0 if sampler != "tpe" else refused <= 8


def test_a_finite_space_is_enumerated_and_an_infinite_or_large_one_is_not():
    study = trivial.study(**SMALL)
    candidates = all_candidates(study, 1, 10, most=200)
    assert candidates is not None and len(candidates) == len({c.key for c in candidates}) == 8
    drawn = {draw_planned(study, {}, rng(seed))[1].key for seed in range(100)}
    assert drawn == {candidate.key for candidate in candidates}
    assert all_candidates(study, 1, 10, most=7) is None
    assert all_candidates(trivial.study(), 1, 10, most=10_000) is None


@pytest.mark.parametrize("low, high, step", [(1, 9, 2), (25, 33, 4), (3, 12, 3), (0, 4, 1)])
def test_planned_numbers_are_taken_as_they_are(low, high, step):
    for value in range(low, high + 1):
        drafted = Draft({"n": value}, rng()).suggest_int("n", low, high, step=step)
        allowed = (value - low) % step == 0
        assert drafted == value if allowed else (drafted - low) % step == 0
