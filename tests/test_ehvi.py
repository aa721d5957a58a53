"""The sampler `ehvi`: volumes against brute force, and what it takes into account."""

from __future__ import annotations

import numpy
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchspace.groups import Group
from studies.pareto import hypervolume
from studies.samplers.ehvi import ExpectedImprovement
from studies.samplers.enumeration import all_drafts
from studies.samplers.factory import make_sampler
from studies.samplers.initial_design import features_of_text
from studies.samplers.planned import as_key
from studies.samplers.volumes import boxes, improvements
from support import trivial

SPACE = {"space__equivariance_loss": {"kind": ["none", "layerwise"], "weight": 0.1}}
coordinate = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])


@st.composite
def fronts_and_points(draw):
    m = draw(st.integers(1, 4))
    point = st.tuples(*[coordinate] * m)
    return m, draw(st.lists(point, max_size=6)), draw(st.lists(point, min_size=1, max_size=4))


@given(fronts_and_points())
def test_what_a_point_adds_is_the_difference_of_hypervolumes(case):
    m, front, points = case
    found = improvements(numpy.array(points), *boxes(front, m))
    expected = [hypervolume([*front, point]) - hypervolume(front) for point in points]
    assert numpy.allclose(found, expected, atol=1e-12)


def study_of(**overrides):
    return trivial.study(search__sampler="ehvi", search__startup=1, **SPACE, **overrides)


class Trials:
    """An Optuna study filled by hand."""

    def __init__(self, study):
        self.study, self.declared = study, Group.parse(study.symmetry.group)
        self.optuna = optuna.create_study(
            directions=["maximize"] * len(study.objectives),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )

    def add(self, fixed, values=None, state=None, **attributes):
        self.optuna.enqueue_trial(fixed)
        trial = self.optuna.ask()
        trial.set_user_attr(
            "architecture", str(self.study.space.sample(trial, declared=self.declared))
        )
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        if values is not None or state is not None:
            self.optuna.tell(trial, values, state=state)
        return trial

    def planned(self, seed=0, count=1):
        planner, rng = ExpectedImprovement(self.study), numpy.random.default_rng(seed)
        return [planner.plan(self.optuna.get_trials(deepcopy=False), rng) for _ in range(count)]


def group_decides(trials, best="D4"):
    """Of every group two trials; one group is better than the others."""
    for group in ("C2", "C4", "D4"):
        for layout in ("max2/2", "avg3/2p1"):
            value = 0.8 if group == best else 0.3
            trials.add({"family": "steerable", "group": group, "layout": layout}, [value, value])


def groups_planned(trials):
    return [plan.get("group") for seed in range(8) for plan in trials.planned(seed)]


@pytest.mark.parametrize("best", ["C2", "D4"])
def test_proposes_more_of_what_was_better(best):
    trials = Trials(study_of())
    group_decides(trials, best)
    assert groups_planned(trials).count(best) >= 6


def test_all_of_a_small_space_is_compared_and_of_a_large_one_some():
    trials = Trials(study_of())
    group_decides(trials)
    shown = trials.optuna.get_trials(deepcopy=False)
    space = trials.study.space
    whole = all_drafts(space, trials.declared, 400)
    assert whole is not None and all_drafts(space, trials.declared, 3) is None
    planner = ExpectedImprovement(trials.study)
    candidates = planner._candidates(shown, numpy.random.default_rng(0))
    assert len(candidates) == len(whole) - len(shown)
    endless = trivial.study(**SPACE, space__learning_rate={"low": 0.001, "high": 0.1})
    assert all_drafts(endless.space, trials.declared, 400) is None


@pytest.mark.parametrize("early, expected", [(0.35, True), (0.05, False)])
def test_a_training_goes_on_where_it_promises_more_than_another(early, expected):
    """All but one of a small space were trained to the end, with scores at a rung that foretell the
    last; one more stands there with better or worse scores than one that stopped.
    """
    trials = Trials(study_of(search__rungs=[3]))
    *ended, (other, _), (last, _) = all_drafts(trials.study.space, trials.declared, 400)
    for place, (params, _) in enumerate(ended):
        value = 0.1 + 0.5 * place / len(ended)
        trials.add(params, [value, value], **rung_of(value / 2))
    number, planner = trials.add(last).number, ExpectedImprovement(trials.study)
    stopped = trials.add(other, state=optuna.trial.TrialState.PRUNED, **rung_of(0.3)).number
    shown = trials.optuna.get_trials(deepcopy=False)
    rngs = [numpy.random.default_rng(seed) for seed in range(5)]
    going = [planner.goes_on(shown, number, rung_of(early), [stopped], rng) for rng in rngs]
    assert (sum(going) > 2) == expected  # scores are drawn


def rung_of(score):
    scores = {"accuracy": score, "symmetry_accuracy": score}
    return {"rung 3": {"scores": scores, "decision": "stop"}}


@pytest.mark.parametrize(
    "ended", [{"values": [0.5, 0.5]}, {"state": optuna.trial.TrialState.PRUNED, "refused": True}]
)
def test_what_is_like_trials_that_broke_a_constraint_is_avoided(ended):
    """Trained and found too slow, or refused before training as too large: in both cases D4 is not
    worth a try.
    """
    trials = Trials(study_of())
    for layout in ("max2/2", "avg3/2p1", "max3/2"):
        trials.add(
            {"family": "steerable", "group": "D4", "layout": layout},
            **ended,
            constraints={"macs": 0.5},
        )
        trials.add(
            {"family": "steerable", "group": "C2", "layout": layout},
            [0.3, 0.3],
            constraints={"macs": -0.7},
        )
        trials.add(
            {"family": "steerable", "group": "C4", "layout": layout},
            [0.4, 0.4],
            constraints={"macs": -0.5},
        )
    planner, shown = ExpectedImprovement(trials.study), trials.optuna.get_trials(deepcopy=False)
    candidates = [
        features for features, _ in planner._candidates(shown, numpy.random.default_rng(0))
    ]
    chance = planner._feasibility(shown, candidates, numpy.random.default_rng(1))
    d4, others = (
        [c for c, features in zip(chance, candidates) if (features.choices[1] == "D4") == wanted]
        for wanted in (True, False)
    )
    assert numpy.median(d4) < 0.5 < numpy.median(others)
    assert groups_planned(trials).count("D4") < 4  # of 8, though it scores best
    assert all(
        seen.on_front == (seen.features.choices[1] != "D4") for seen in planner._observations(shown)
    )


def early(value, decision):
    return {
        f"rung {study_of().rungs[0]}": {
            "scores": {"accuracy": value, "symmetry_accuracy": value},
            "decision": decision,
        }
    }


def gain(planner, seen, pending, candidates):
    """The expected hypervolume improvement of each candidate, trained to the end."""
    prospects = planner._prospects(seen, pending, candidates, numpy.random.default_rng(1))
    return prospects.gains(numpy.arange(len(candidates)), [2], (64,)).mean(0)


def worth_of_d4(early_score):
    """Nothing of D4 was trained to the end, but three of its trainings were stopped with this score
    at the first rung.
    """
    trials = Trials(study_of())
    for n, layout in enumerate(("max2/2", "avg3/2p1", "max3/2")):
        for m, group in enumerate(("C2", "C4")):
            score = 0.3 + 0.1 * n + 0.15 * m
            trials.add(
                {"family": "steerable", "group": group, "layout": layout},
                [score, score],
                **early(score - 0.2, "continue"),
            )
        trials.add(
            {"family": "steerable", "group": "D4", "layout": layout},
            state=optuna.trial.TrialState.PRUNED,
            **early(early_score, "stop"),
        )
    planner, rng = ExpectedImprovement(trials.study), numpy.random.default_rng
    candidates = [features for features, _ in planner._candidates(trials.optuna.trials, rng(0))]
    worth = gain(planner, planner._observations(trials.optuna.trials), [], candidates)
    return numpy.mean([w for w, features in zip(worth, candidates) if features.choices[1] == "D4"])


def test_early_scores_of_stopped_trials_count():
    assert worth_of_d4(0.7) > 3 * worth_of_d4(0.05)


def test_a_training_that_got_a_second_chance_is_seen_once_at_each_rung():
    trials = Trials(study_of())
    fixed = {"family": "steerable", "group": "C4"}
    trials.add(fixed, state=optuna.trial.TrialState.PRUNED, **early(0.3, "stop"))
    trials.add(fixed, [0.5, 0.5], continues=0, **early(0.3, "continue"))
    seen = ExpectedImprovement(trials.study)._observations(trials.optuna.trials)
    assert [(s.rung, s.point) for s in seen] == [(0, (0.3, 0.3)), (2, (0.5, 0.5))]


def test_what_is_like_a_trial_that_runs_is_worth_less():
    trials = Trials(study_of())
    for n, group in enumerate(("C2", "C4", "D4")):
        for m, layout in enumerate(("max2/2", "avg3/2p1")):
            trials.add(
                {"family": "steerable", "group": group, "layout": layout},
                [0.4 + 0.1 * n, 0.4 + 0.2 * m],
            )
    planner, rng = ExpectedImprovement(trials.study), numpy.random.default_rng
    seen, candidates = (
        planner._observations(trials.optuna.trials),
        [features for features, _ in planner._candidates(trials.optuna.trials, rng(0))],
    )
    before = gain(planner, seen, [], candidates)
    best = int(before.argmax())
    after = gain(planner, seen, [candidates[best]], candidates)
    assert after[best] < 0.7 * before[best]
    unlike = [
        i
        for i, features in enumerate(candidates)
        if features.choices[0] == "plain" and candidates[best].choices[0] != "plain"
    ]
    assert unlike and numpy.median(after[unlike] / before[unlike]) > after[best] / before[best]


def test_a_training_like_one_that_runs_adds_nothing_to_the_front_that_is_expected():
    """Between two ends of the front lies what runs: the same once more would add nothing."""
    trials = Trials(study_of())
    for layout in ("max2/2", "avg3/2p1", "max3/2"):
        for group, values in (("C2", [0.9, 0.1]), ("C4", [0.1, 0.9])):
            trials.add({"family": "steerable", "group": group, "layout": layout}, values)
    trials.add({"family": "steerable", "group": "D4", "layout": "max2/2"})
    planner, shown = ExpectedImprovement(trials.study), trials.optuna.trials
    seen, running = planner._observations(shown), planner._pending(shown)
    before, after = (gain(planner, seen, pending, running)[0] for pending in ([], running))
    assert after < 0.4 * before


def test_candidates_are_drawn_at_random_and_from_neighbours_of_good_trials():
    """A neighbour keeps the exact weight of its parent's loss, which no random draft has."""
    trials = Trials(trivial.study(search__sampler="ehvi"))
    good = {"family": "steerable", "exact": False, "equivariance_loss": "layerwise"}
    trials.add({**good, "group": "C4", "loss_weight": 0.5}, [0.8, 0.8])
    planner, rng = ExpectedImprovement(trials.study), numpy.random.default_rng(0)
    plans = [plan for _, plan in planner._candidates(trials.optuna.trials, rng)]
    neighbours = sum(plan.get("loss_weight") == 0.5 for plan in plans)
    assert 0.2 < neighbours / len(plans) < 0.6


def test_trials_that_run_are_taken_into_account(monkeypatch):
    trials, taken = Trials(study_of()), []
    group_decides(trials)
    trials.add({"family": "steerable", "group": "C4"})
    prospects = ExpectedImprovement._prospects
    monkeypatch.setattr(
        ExpectedImprovement,
        "_prospects",
        lambda self, seen, pending, *others: (
            taken.append(len(pending)) or prospects(self, seen, pending, *others)
        ),
    )
    trials.planned()
    assert taken == [1]


def test_asked_again_it_plans_the_next_best_and_never_what_was_tried():
    trials = Trials(study_of())
    group_decides(trials)
    plans = trials.planned(count=60)
    keys = [as_key(plan) for plan in plans if plan]
    assert len(keys) > 20 and len(set(keys)) == len(keys)
    assert not set(keys) & {as_key(trial.params) for trial in trials.optuna.trials}


def test_without_scores_it_draws_at_random():
    assert Trials(study_of()).planned() == [{}]
    sampler = make_sampler(study_of(), 3)
    assert optuna.create_study(sampler=sampler).ask().suggest_float("x", 0, 1) >= 0


def test_earlier_studies_teach_but_are_not_on_the_front():
    """An earlier trial as good as can be would leave nothing to improve: every candidate would be
    worth nothing.
    """
    trials = Trials(study_of())
    for group in ("C2", "C4", "D4"):
        value = 1.0 if group == "C2" else 0.3
        for layout in ("max2/2", "avg3/2p1"):
            trials.add(
                {"family": "steerable", "group": group, "layout": layout},
                [value, value],
                warm_start=0,
            )
    assert groups_planned(trials).count("C2") >= 5


@pytest.mark.parametrize("objectives", [["accuracy"], ["accuracy", "symmetry_accuracy", "params"]])
def test_any_number_of_objectives(objectives):
    trials = Trials(study_of(objectives=objectives))
    for n, group in enumerate(("C2", "C4", "D4")):
        values = {"accuracy": 0.3 * n, "symmetry_accuracy": 0.3 * n, "params": 10_000 * (3 - n)}
        trials.add({"family": "steerable", "group": group}, [values[name] for name in objectives])
    assert groups_planned(trials).count("D4") >= 4


@pytest.mark.parametrize(("score", "continued"), [(0.75, True), (0.05, False)])
def test_a_stopped_training_goes_on_where_it_promises_more_than_a_new_one(score, continued):
    """It needs eight more epochs; a new one needs nine."""
    trials = Trials(study_of(search__rungs=[1]))
    for group, value in (("C2", 0.3), ("C4", 0.5), ("D4", 0.4)):
        for layout in ("max2/2", "avg3/2p1"):
            fixed = {"family": "steerable", "group": group, "layout": layout}
            trials.add(fixed, [value, value], **early(value - 0.1, "continue"))
    fixed = {"family": "steerable", "group": "C4", "layout": "max3/2"}
    pruned = optuna.trial.TrialState.PRUNED
    stopped = trials.add(fixed, state=pruned, **early(score, "stop"))
    planner, seen = ExpectedImprovement(trials.study), trials.optuna.get_trials(deepcopy=False)
    chosen = [
        planner.to_continue(seen, [stopped.number], numpy.random.default_rng(seed))
        for seed in range(5)
    ]
    assert chosen == [stopped.number if continued else None] * 5
    assert planner.to_continue(seen, [], numpy.random.default_rng(0)) is None


def test_an_exact_candidate_is_drawn_as_accurate_on_turned_images():
    objectives = ["accuracy", "symmetry_accuracy", "worst_symmetry_accuracy", "equivariance_error"]
    planner = ExpectedImprovement(study_of(objectives=objectives))
    drawn = numpy.random.default_rng(0).random((3, 2, 4))
    before = drawn.copy()
    declared = Group.parse("C4")
    exact, broken = (
        features_of_text(f"{size}px: 4k3@C4, 4k3 max2/2, 4k3", declared) for size in (28, 29)
    )
    planner._couple(drawn, [exact, broken])
    assert (drawn[:, 1] == before[:, 1]).all() and (drawn[:, 0, 0] == before[:, 0, 0]).all()
    assert (drawn[:, 0, 1] == drawn[:, 0, 0]).all() and (drawn[:, 0, 2] == drawn[:, 0, 0]).all()
    assert (drawn[:, 0, 3] == 1).all()
