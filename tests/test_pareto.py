"""The front, its hypervolume against counting of cells, and the knee."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.pareto import front_volume, hypervolume, knee, larger_is_better, pareto, utilities

TWO = ("accuracy", "symmetry_accuracy")
MIXED = ("accuracy", "params", "equivariance_error")
share = st.integers(0, 5).map(lambda n: n / 5)


@given(st.lists(st.tuples(share, share), max_size=30))
def test_front_of_two_objectives_is_what_nobody_dominates(values):
    front = pareto(values, TWO, lambda v: v)
    expected = [
        v for v in values if not any(w != v and w[0] >= v[0] and w[1] >= v[1] for w in values)
    ]
    assert sorted(front) == sorted(expected)
    assert front == sorted(front, reverse=True)


@given(st.lists(st.tuples(share, st.integers(1, 9), share), max_size=30))
def test_front_with_mixed_directions_is_the_front_of_flipped_signs(values):
    front = pareto(values, MIXED, lambda v: v)
    flipped = [larger_is_better(v, MIXED) for v in values]
    expected = [
        v
        for v, f in zip(values, flipped)
        if not any(g != f and all(a >= b for a, b in zip(g, f)) for g in flipped)
    ]
    assert sorted(front) == sorted(expected)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_hypervolume_equals_the_number_of_dominated_cells(dimension, data):
    steps = 4
    corners = data.draw(st.lists(st.tuples(*[st.integers(0, steps)] * dimension), max_size=7))
    cells = sum(
        any(all(c < p for c, p in zip(cell, corner)) for corner in corners)
        for cell in itertools.product(range(steps), repeat=dimension)
    )
    volume = hypervolume([tuple(c / steps for c in corner) for corner in corners])
    assert volume == pytest.approx(cells / steps**dimension)


@given(
    st.lists(st.tuples(share, st.integers(1, 10**9)), max_size=20),
    st.tuples(share, st.integers(1, 10**9)),
)
def test_volume_never_shrinks_with_another_trial(values, another):
    names = ("accuracy", "params")
    assert front_volume([*values, another], names) >= front_volume(values, names) - 1e-12


def test_utilities_is_monotone_and_between_zero_and_one():
    for name, better, worse in (
        ("accuracy", 0.9, 0.8),
        ("params", 1e3, 1e6),
        ("macs", 1, 1e9),
        ("latency", 0.5, 20),
        ("equivariance_error", 0, 3),
    ):
        assert 1 >= utilities([better], [name])[0] > utilities([worse], [name])[0] >= 0


@pytest.mark.parametrize("name,worst", [("params", 10), ("macs", 14), ("latency", 7)])
def test_costs_count_by_their_logarithm_down_to_a_worst_that_is_the_same_in_every_study(
    name, worst
):
    powers = (0, worst / 2, worst - 1, worst, worst + 1)
    found = [utilities([10**power], [name])[0] for power in powers]
    assert found == pytest.approx([1, 0.5, 1 / worst, 0, 0])


def test_knee_is_the_bulge_of_the_front():
    values = [(0.9, 0.1), (0.8, 0.7), (0.1, 0.9), (0.85, 0.3)]
    assert values[knee(values, TWO)] == (0.8, 0.7)
    assert knee([(1.0, 0.5), (0.72, 0.72)], TWO) == 1  # the larger volume, not the larger sum
    assert knee([], TWO) is None
    assert knee([(0.5, 0.5)], TWO) == 0
    assert knee([(0.98, 0.23), (0.94, 0.94)], TWO) == 1


def test_looking_at_a_study_imports_nothing_heavy():
    code = (
        "import studies.pareto, studies.journal.reader, studies.config, sys; "
        "print([m for m in ('torch', 'optuna', 'ray', 'numpy', 'escnn') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
