"""Every sampler, on the trivial study; and the evolutionary one's moves."""

from __future__ import annotations

import random

import numpy
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from searchspace.architecture import Architecture
from searchspace.groups import Group
from studies.journal.reader import read_trials
from studies.pareto import pareto
from studies.samplers.evolution import (
    Mutation,
    SubgroupEvolution,
    _tournament,
    lattice_neighbours,
)
from studies.samplers.factory import SAMPLERS, derived_seed, make_sampler
from studies.samplers.tpe import BEST, NEWEST, informative
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

FINITE = {"space__equivariance_loss": {"kind": ["none", "layerwise"], "weight": 0.1}}


def run(path, **overrides):
    with SearchDriver.create(path, trivial.study(**overrides)) as driver:
        run_in_process(driver, trivial.trainable)
    return read_trials(path, parameters=True)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_runs_a_study_of_conditional_choices(tmp_path, sampler, recwarn):
    records = run(tmp_path / "study", search__sampler=sampler, search__startup=4, **FINITE)
    assert sum(r.state != "refused" for r in records) == 12
    assert len({r.architecture for r in records}) >= 9
    assert not [
        w for w in recwarn if "optuna" in str(w.filename) or "Experimental" in w.category.__name__
    ]


@pytest.mark.parametrize(
    "sampler", ["tpe", "ehvi", "nsga2", "nsga3", "evolution", "random", "qmc", "grid"]
)
def test_a_resumed_study_proposes_what_an_undisturbed_one_does(tmp_path, sampler):
    options = {"search__sampler": sampler, "search__startup": 4, **FINITE}
    run(tmp_path / "whole", **options)
    for trials in (5, 7, 12):
        study = trivial.study(**options, search__trials=trials)
        driver = (
            SearchDriver.create(tmp_path / "parts", study)
            if trials == 5
            else SearchDriver.open(tmp_path / "parts", study)
        )
        with driver:
            run_in_process(driver, trivial.trainable)
    # their population grows with the number of trials that were planned
    if sampler.startswith("nsga"):
        assert len(trivial.ended(tmp_path / "parts")) == len(trivial.ended(tmp_path / "whole"))
    else:
        assert trivial.ended(tmp_path / "parts") == trivial.ended(tmp_path / "whole")


@pytest.mark.parametrize("sampler", ["tpe", "ehvi", "nsga2", "nsga3", "gp", "evolution"])
def test_samplers_learn_constraints(tmp_path, sampler):
    records = run(
        tmp_path / "study",
        search__sampler=sampler,
        search__startup=4,
        search__trials=8,
        constraints__params=15_000,
        **FINITE,
    )
    assert all(r.feasible for r in records if r.state == "complete")
    assert any(r.state == "refused" and not r.feasible for r in records)


def test_seeds_differ_by_study_and_trial_and_stay():
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000 and derived_seed(0, 0) == derived_seed(0, 0)


def test_sampler_of_a_trial_depends_on_its_number():
    study = trivial.study(search__sampler="random")
    values = []
    for number in (0, 0, 1):
        optuna_study = optuna.create_study(sampler=make_sampler(study, number))
        values.append(optuna_study.ask().suggest_float("x", 0, 1))
    assert values[0] == values[1] != values[2]


def test_lattice_neighbours_are_one_edge_away():
    choices = ["C1", "C2", "C4", "D1", "D4"]
    assert lattice_neighbours("C4", choices) == ["C2", "D4"]
    assert lattice_neighbours("C1", choices) == ["C2", "D1"]
    assert lattice_neighbours("D4", choices) == ["C4", "D1"]
    assert lattice_neighbours("C4", ["C4"]) == []


def children(number=300):
    """Proposals of the evolutionary sampler from one completed parent, as (parameters,
    architecture).
    """
    study = trivial.study(search__sampler="evolution", search__startup=1)
    space, declared = study.space, Group.parse(study.symmetry.group)
    optuna_study = optuna.create_study(directions=["maximize", "maximize"])
    fixed = {
        "family": "steerable",
        "group": "C4",
        "exact": False,
        "layout": "max3/2",
        "equivariance_loss": "layerwise",
        "loss_weight": 0.5,
    }
    optuna_study.enqueue_trial(fixed)
    parent = optuna_study.ask()
    space.sample(parent, declared=declared)
    optuna_study.tell(parent, [0.5, 0.5])
    for seed in range(number):
        optuna_study.sampler = make_sampler(study, 1 + seed)
        trial = optuna_study.ask()
        yield (
            parent.params,
            trial.params if (proposal := space.sample(trial, declared=declared)) else {},
            proposal.architecture,
        )


def test_children_are_neighbours_inside_the_space():
    moved, single = {}, 0
    for parent, child, architecture in children():
        assert (
            Architecture.parse(str(architecture)) == architecture
            and 25 <= architecture.size[0] <= 33
        )
        changed = {name for name in parent if name in child and child[name] != parent[name]}
        single += len(changed) == 1
        for name in changed:
            moved.setdefault(name.partition("/")[0], set()).add(child[name])
        if "group" in changed:
            a, b = Group.parse(parent["group"]), Group.parse(child["group"])
            assert a <= b or b <= a
        for name in changed:
            if name.startswith("input_size"):
                assert abs(child[name] - parent[name]) <= 4  # two steps of two pixels
    assert set(moved) >= {
        "family",
        "group",
        "layout",
        "input_size",
        "equivariance_loss",
        "loss_weight",
    }
    assert moved["group"] == {"C2", "D4"} and single > 150


@pytest.mark.parametrize("sampler", ["evolution", "ehvi"])
def test_what_learns_finds_more_than_chance(tmp_path, sampler):
    """A landscape with one best choice each: neighbours of the best are better than chance."""

    def landscape(study, assignment, report):
        a = Architecture.parse(assignment.architecture)
        value = (
            (a.size[0] - 24) / 9 * 0.5
            + 0.25 * (str(a.group) == "D4")
            + 0.25 * ("avg3" in assignment.architecture)
        )
        for epoch in study.rungs:
            if report({"epoch": epoch, "accuracy": value, "symmetry_accuracy": value}) == "stop":
                return

    def best_found(sampler, seed):
        path = tmp_path / f"{sampler}{seed}"
        options = {
            "search__sampler": sampler,
            "search__seed": seed,
            "search__trials": 30,
            "search__startup": 8,
            "search__repeats": 1,
        }
        with SearchDriver.create(path, trivial.study(**options, **FINITE)) as driver:
            run_in_process(driver, landscape)
            return driver.volume

    assert sum(best_found(sampler, s) for s in range(5)) > sum(
        best_found("random", s) for s in range(5)
    )


def test_tpe_sees_the_best_and_the_newest_and_all_of_a_small_study():
    def trial(number, state, values=None, excess=-1.0):
        return optuna.trial.create_trial(
            state=state,
            values=values,
            user_attrs={"number": number, "constraints": {"params": excess}},
        )

    states, rng = optuna.trial.TrialState, random.Random(0)
    trials = []
    for number in range(600):
        kind = number % 3
        made = (
            trial(number, states.PRUNED)
            if kind == 0
            else trial(
                number,
                states.COMPLETE,
                [rng.random(), rng.random()],
                excess=1.0 if kind == 1 else -1.0,
            )
        )
        made.number = number
        trials.append(made)
    running = optuna.trial.FrozenTrial(
        600, states.RUNNING, None, None, None, {}, {}, {}, {}, {}, 600
    )
    objectives = ("accuracy", "symmetry_accuracy")
    assert informative(trials[: BEST + NEWEST], objectives) == trials[: BEST + NEWEST]
    shown = informative([*trials, running], objectives)
    numbers = [t.number for t in shown]
    assert (
        numbers == sorted(numbers)
        and numbers[-1] == 600
        and set(range(600 - NEWEST, 600)) <= set(numbers)
    )
    assert len(shown) == BEST + NEWEST + 1
    older = [
        t
        for t in trials[:-NEWEST]
        if t.state == states.COMPLETE and t.user_attrs["constraints"]["params"] <= 0
    ]
    front = {t.number for t in pareto(older, objectives, lambda t: t.values)}
    assert front <= set(numbers) and all(trials[n] in older for n in numbers[:BEST])


def completed(study, fixed, value):
    """An Optuna study with one complete trial for each of the parameters `fixed` and its values."""
    optuna_study = optuna.create_study(
        directions=["maximize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for parameters, score in zip(fixed, value):
        optuna_study.enqueue_trial(parameters)
        trial = optuna_study.ask()
        study.space.sample(trial, declared=Group.parse(study.symmetry.group))
        optuna_study.tell(trial, score)
    return optuna_study.get_trials(deepcopy=False)


def plans(study, trials, number=200):
    rng = numpy.random.default_rng(0)
    return [SubgroupEvolution(study).plan(trials, rng) for _ in range(number)]


def layouts(study, order, number=200):
    """How often children have the layout of good trials; `order` says which of 24 are good.

    One trial dominates all others, so that only what each has alone tells these apart.
    """
    fixed = [{"family": "plain", "layout": "max2/2" if good else "avg3/2p1"} for good in order]
    scores = [(0.6, 0.6) if good else (0.3, 0.3) for good in order]
    trials = completed(
        study, [*fixed, {"family": "plain", "layout": "max2/2"}], [*scores, (0.9, 0.9)]
    )
    return sum(plan["layout"] == "max2/2" for plan in plans(study, trials, number)) / number


def test_children_have_few_and_good_parents_wherever_these_came():
    """Random trials first and good ones last, or the other way round."""
    study = trivial.study(search__sampler="evolution")
    for order in ([False] * 20 + [True] * 4, [True] * 4 + [False] * 20):
        assert layouts(study, order) > 0.5


def test_what_the_front_would_lose_counts_more_than_what_a_trial_has_alone():
    study = trivial.study(search__sampler="evolution")
    dominated = [(0.9 - n / 100, 0.3 - n / 100) for n in range(1, 5)]  # more alone than the last
    scores = [*dominated, (0.9, 0.3), (0.1, 0.99)]
    trials = completed(study, [{"family": "plain"}] * len(scores), scores)
    best = [tuple(trial.values) for trial in SubgroupEvolution(study).parents(trials)]
    assert best == [(0.9, 0.3), (0.1, 0.99), *dominated[:2]]


@pytest.mark.parametrize("value, near", [(25, {27, 29}), (27, {25, 29, 31}), (33, {29, 31})])
def test_a_mutated_whole_number_moves_one_or_two_steps_inside_its_range(value, near):
    mutation = Mutation(numpy.random.default_rng(0))
    distribution = IntDistribution(25, 33, step=2)
    moved = [mutation._neighbour("input_size", value, distribution) for _ in range(200)]
    assert set(moved) == near


def test_some_children_are_crossed_from_two_parents():
    """C2 and D4 are two edges apart, and a mutated weight is never exactly another's."""
    study = trivial.study(search__sampler="evolution")
    common = {"family": "steerable", "exact": False, "equivariance_loss": "layerwise"}
    first, second = {"group": "C2", "loss_weight": 0.02}, {"group": "D4", "loss_weight": 5.0}
    trials = completed(study, [{**common, **first}, {**common, **second}], [(0.9, 0.5), (0.5, 0.9)])
    crossed = sum(
        (plan["group"], plan["loss_weight"]) in (("C2", 5.0), ("D4", 0.02))
        for plan in plans(study, trials)
    )
    assert 5 < crossed < 60


def test_a_mutated_number_moves_by_a_share_of_its_range():
    """Not of the numbers' size: a narrow range of small rates is searched like a wide one."""
    for low, high, log in ((0.003, 0.03, False), (0.003, 0.03, True), (10.0, 20.0, False)):
        mutation = Mutation(numpy.random.default_rng(0))
        distribution = FloatDistribution(low, high, log=log)
        middle = (low * high) ** 0.5 if log else (low + high) / 2
        moved = numpy.array([mutation._near(middle, distribution) for _ in range(2000)])
        assert low <= moved.min() and moved.max() <= high
        spread = numpy.log(moved / middle) / numpy.log(high / low) if log else moved - middle
        assert numpy.std(spread / (1 if log else high - low)) == pytest.approx(0.15, rel=0.08)


def test_a_mutated_group_is_one_edge_away_where_the_space_has_such_a_group():
    mutation = Mutation(numpy.random.default_rng(0))
    for choices, near in ((("C1", "C2", "C4", "C8"), {"C2", "C8"}), (("C1", "C4"), {"C1"})):
        distribution = CategoricalDistribution(choices)
        moved = {mutation._neighbour("group", "C4", distribution) for _ in range(50)}
        assert moved == near


@pytest.mark.parametrize("parents", [0, 1, 2, 5])
def test_every_parent_has_its_turn(parents):
    firsts = []
    for seed in range(100):
        order = _tournament(parents, numpy.random.default_rng(seed))
        assert sorted(order) == list(range(parents))
        firsts += order[:1]
    assert firsts.count(0) >= firsts.count(parents - 1)  # the better of two
