"""The rung rule against a ranking by brute force, and the properties that a fair rule has."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.pareto import crowding, dominates, fronts
from studies.search.halving import keep, survivors

coordinate = st.integers(0, 6).map(float)


def points(dimension: int, least: int = 0):
    return st.lists(st.tuples(*[coordinate] * dimension), min_size=least, max_size=25)


def brute_force_fronts(items):
    left, found = list(items), []
    while left:
        best = [
            p for p in left if not any(all(a >= b for a, b in zip(q, p)) and q != p for q in left)
        ]
        found.append(sorted(best, reverse=True))
        left = [p for p in left if p not in best]
    return found


@pytest.mark.parametrize("dimension", [1, 2, 3])
@given(data=st.data())
def test_fronts_equal_repeated_peeling(dimension, data):
    items = data.draw(points(dimension))
    assert fronts(items) == brute_force_fronts(items)


@given(points(2), st.tuples(coordinate, coordinate), st.sampled_from([1.5, 2, 3, 4]))
def test_keep_equals_a_brute_force_count(peers, mine, eta):
    ranked = brute_force_fronts([*peers, mine])
    place = next(i for i, front in enumerate(ranked) if mine in front)
    room = crowding(ranked[place])
    better = sum(map(len, ranked[:place])) + sum(room[p] > room[mine] for p in ranked[place])
    assert keep(mine, peers, eta=eta) == (place == 0 or better < (len(peers) + 1) / eta)


@given(st.lists(coordinate, max_size=30), coordinate)
def test_one_score_is_classic_stopping_halving(peers, mine):
    better = sum(p > mine for p in peers)
    assert keep((mine,), [(p,) for p in peers], eta=3) == (
        better == 0 or better < (len(peers) + 1) / 3
    )


@given(st.lists(coordinate, max_size=30), coordinate)
def test_a_total_order_in_two_scores_is_the_same(peers, mine):
    assert keep((mine, mine), [(p, p) for p in peers]) == keep((mine,), [(p,) for p in peers])


@given(points(2), st.tuples(coordinate, coordinate), st.randoms())
def test_the_order_of_arrival_of_peers_does_not_matter(peers, mine, rng):
    shuffled = rng.sample(peers, len(peers))
    assert keep(mine, peers) == keep(mine, shuffled)


@given(points(2), st.tuples(coordinate, coordinate))
def test_nobody_undominated_is_stopped(peers, mine):
    if not any(dominates(peer, mine) for peer in peers):
        assert keep(mine, peers)


@given(points(2), st.tuples(coordinate, coordinate))
def test_scores_may_change_places(peers, mine):
    assert keep(mine, peers) == keep(mine[::-1], [p[::-1] for p in peers])


@given(points(2, least=2), st.tuples(coordinate, coordinate))
def test_only_the_order_of_values_decides_across_fronts(peers, mine):
    """Scaling a score scales every gap and the range alike."""
    assert keep(mine, peers) == keep((mine[0] * 8, mine[1]), [(p[0] * 8, p[1]) for p in peers])


def test_extremes_of_a_front_come_before_its_crowded_middle():
    middle, front = (2.0, 2.0), [(0.0, 4.0), (1.0, 3.0), (3.0, 1.0), (4.0, 0.0)]
    above = [(4.0, 4.0)]
    assert not keep(middle, front + above, eta=3)
    assert keep((0.0, 4.0), [middle, *front[1:], *above], eta=3)


def test_about_a_third_goes_on_when_quality_arrives_at_random():
    rng = random.Random(0)
    kept, peers = 0, []
    for _ in range(600):
        quality = rng.random()
        kept += keep((quality, quality), peers, eta=3)
        peers.append((quality, quality))
    assert 180 <= kept <= 240


def test_refuses_an_eta_that_stops_everybody():
    with pytest.raises(ValueError, match="above 1"):
        keep((1.0,), [], eta=1)


def test_refuses_points_of_unequal_length():
    with pytest.raises(ValueError, match="same scores"):
        keep((1.0, 2.0), [(1.0,)])


def test_a_thousand_peers_are_ranked():
    rng = random.Random(0)
    peers = [(rng.random(), rng.random()) for _ in range(1000)]
    assert keep((1.1, 0.0), peers) and not keep((-0.1, -0.1), peers)


@given(points(2), st.sampled_from([1.5, 2, 3, 4]))
def test_survivors_equal_a_brute_force_count(items, eta):
    ranked, kept = brute_force_fronts(items), set()
    for place, front in enumerate(ranked):
        room, above = crowding(front), sum(map(len, ranked[:place]))
        kept |= {
            point
            for point in front
            if place == 0 or above + sum(room[p] > room[point] for p in front) < len(items) / eta
        }
    assert survivors(dict(enumerate(items)), eta=eta) == sorted(
        (n for n, p in enumerate(items) if p in kept),
        key=lambda n: next(i for i, front in enumerate(ranked) if items[n] in front),
    )


@given(points(2))
def test_survivors_come_best_first(items):
    named = dict(enumerate(items))
    ranked = survivors(named, eta=1.0001)
    place = {
        name: next(i for i, front in enumerate(brute_force_fronts(items)) if named[name] in front)
        for name in named
    }
    assert [place[name] for name in ranked] == sorted(place[name] for name in ranked)


def test_crowding_is_the_gap_between_neighbours_as_a_share_of_the_range():
    front = [(0.0, 40.0), (1.0, 30.0), (3.0, 10.0), (4.0, 0.0)]
    ends = {front[0]: float("inf"), front[3]: float("inf")}
    assert crowding(front) == {**ends, front[1]: 0.75 + 0.75, front[2]: 0.75 + 0.75}
