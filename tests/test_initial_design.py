"""How a search begins: first proposals cover the degrees of equivariance."""

from __future__ import annotations

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.samplers.initial_design import candidate_distance, features_of
from studies.search.driver import SearchDriver
from support import trivial

D4 = Group.parse("D4")


def proposals(path, start, seed, number=6):
    """The first candidates of a study, none of them finished yet."""
    options = {
        "search__start": start,
        "search__seed": seed,
        "search__startup": 8,
        "search__sampler": "tpe",
        "search__rungs": [],
    }
    with SearchDriver.create(path, trivial.study(**options)) as driver:
        return [Candidate.parse(driver.next().architecture) for _ in range(number)]


def covered(candidates):
    """Exact steerable, broken steerable and plain: which of them are there."""
    group = Group.parse(trivial.study().symmetry.group)
    shares = [features_of(c, group).surviving for c in candidates]
    return {
        "plain" if c.architecture.family == "plain" else "exact" if share == 1 else "broken"
        for c, share in zip(candidates, shares)
    }


def test_a_spread_start_meets_every_degree_of_equivariance(tmp_path):
    spread = [len(covered(proposals(tmp_path / f"s{seed}", "spread", seed))) for seed in range(8)]
    chance = [len(covered(proposals(tmp_path / f"r{seed}", "random", seed))) for seed in range(8)]
    assert min(spread) == 3 and sum(spread) > sum(chance)


def test_a_spread_start_sees_known_architectures_that_come_first(tmp_path):
    study = trivial.study(search__sampler="tpe", search__rungs=[])
    with SearchDriver.create(
        tmp_path / "study", study, enqueue=["28px: 10k3@D4, 10k3 max2/2, 10k4p0"]
    ) as driver:
        first, second = (Candidate.parse(driver.next().architecture) for _ in range(2))
    assert str(first.architecture.group) == "D4" and features_of(second, D4).surviving < 0.5


def test_distance_is_zero_for_equals_symmetric_and_grows_with_what_differs():
    exact, broken, plain = (
        features_of(Candidate.parse(text), D4)
        for text in (
            "28px: 10k3@D4, 10k3 max2/2, 10k4p0",
            "29px: 10k3@D4, 10k3 max2/2, 10k4p0",
            "28px: 20k3, 20k3 max2/2, 20k4p0",
        )
    )
    assert candidate_distance(exact, exact, 8) == 0
    assert (
        candidate_distance(exact, plain, 8)
        == candidate_distance(plain, exact, 8)
        > candidate_distance(exact, broken, 8)
        > 0.5
    )
    weighted = [
        features_of(Candidate.parse(f"29px: 10k3@D4, 10k3 max2/2, 10k4p0 loss=layerwise:{w}"), D4)
        for w in (0.1, 0.2, 5)
    ]
    assert (
        0
        < candidate_distance(weighted[0], weighted[1], 8)
        < candidate_distance(weighted[0], weighted[2], 8)
    )
    dropped = [
        features_of(Candidate.parse(f"28px: 10k3@D4drop{r}, 10k3 max2/2, 10k4p0"), D4)
        for r in (0.1, 0.2, 0.6)
    ]
    assert (
        0
        < candidate_distance(dropped[0], dropped[1], 8)
        < candidate_distance(dropped[0], dropped[2], 8)
    )
    sizes = [features_of(Candidate.parse(f"{n}px: 10k3, 10k3, 10k4p0"), D4) for n in (28, 29, 34)]
    near, far, beyond = (
        candidate_distance(sizes[0], other, 8) for other in (sizes[1], sizes[2], sizes[2])
    )
    assert 0 < near < far and candidate_distance(sizes[0], sizes[2], 2) > beyond


def test_the_first_six_proposals_do_not_depend_on_scores_and_later_ones_do(tmp_path):
    def proposed(name, score):
        study = trivial.study(search__sampler="ehvi", search__rungs=[])
        with SearchDriver.create(tmp_path / name, study) as driver:
            for _ in range(11):
                assignment = driver.next()
                value = score(len(assignment.architecture))
                scores = {"epoch": 9, "accuracy": value, "symmetry_accuracy": value}
                driver.report(assignment.number, 9, scores)
                driver.finish(assignment.number, "complete")
                yield assignment.architecture

    long, short = (
        list(proposed(name, score))
        for name, score in (("long", lambda n: n / 200), ("short", lambda n: 1 - n / 200))
    )
    assert long[:6] == short[:6] and long[6:] != short[6:]


def test_dropout_of_another_kind_is_another_choice():
    one, other, none = (
        features_of(Candidate.parse(f"28px: 10k3@D4{kind}, 10k3 max2/2, 10k4p0"), D4)
        for kind in ("drop0.1", "fielddrop0.1", "")
    )
    assert candidate_distance(one, other, 8) > 0
    assert candidate_distance(one, none, 8) > candidate_distance(one, one, 8)


def test_what_survives_of_the_symmetry_is_a_share():
    shares = [
        features_of(Candidate.parse(text), D4).surviving
        for text in ("28px: 10k3@D4, 10k3 max2/2", "28px: 10k3@C4, 10k3 max2/2", "28px: 20k3")
    ]
    assert shares == [1.0, 0.5, 0.125]
