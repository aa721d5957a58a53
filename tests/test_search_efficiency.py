"""Searches on real trainings, recorded once (`equisearch record mnist_table
tests/assets/mnist_table.json.gz`): what ours needs, and others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from studies.config import load_study
from studies.replays.record import enumerate_space, read_table
from studies.replays.replay import full_volume, methods, replay
from studies.replays.steps import known

TABLES = ("mnist_table", "mnist_d4_table", "mnist_heldout_table")
SEEDS = 6


@pytest.fixture(scope="module", params=TABLES)
def named(request):
    return request.param, read_table(Path(__file__).parent / "assets" / f"{request.param}.json.gz")


@pytest.fixture(scope="module")
def table(named):
    return named[1]


@pytest.mark.parametrize("name", [*TABLES, "fashion_table", "mnist_soft_table"])
def test_the_recorded_table_is_the_whole_space_of_its_preset(name):
    table = read_table(Path(__file__).parent / "assets" / f"{name}.json.gz")
    preset = load_study(name)
    assert (table.study.space, table.study.search, table.study.training) == (
        preset.space,
        preset.search,
        preset.training,
    )
    assert [entry.key for entry in table.entries] == [
        p.key for p in enumerate_space(preset, table.channels, table.classes)
    ]
    assert all(len(entry.epochs) == preset.training.epochs for entry in table.entries)
    assert (
        Path(__file__).parent / "assets" / f"{name}.json.gz"
    ).stat().st_size < 2 * 2**20 and 0.5 < full_volume(table) < 1


def test_the_two_architectures_known_first_have_no_soft_choice():
    table = read_table(Path(__file__).parent / "assets" / "mnist_soft_table.json.gz")
    assert [str(candidate) for candidate in known(table)] == [
        "16px: 5k3@C4, 6k3 max2/2, 6k3, 6k3 max2/2, 6k3 augment=none",
        "16px: 11k3, 11k3 max2/2, 11k3, 12k3 max2/2, 12k3 head=none augment=none",
    ]


def test_exact_networks_have_equal_accuracies_in_the_recorded_table(table):
    group = Group.parse(table.study.symmetry.group)
    exact = [
        entry
        for entry in table.entries
        if verdict(Architecture.parse(entry.architecture), group).exact
    ]
    assert exact
    for entry in exact:
        assert all(
            accuracy == pytest.approx(symmetry, abs=1e-4) for accuracy, symmetry in entry.epochs
        )


def test_ours_needs_far_fewer_epochs_than_plain_searches(table):
    names = ("Optuna random", "MO-ASHA", "ours")
    random, asha, ours = (
        replay(table, method, SEEDS) for method in methods(table) if method.name in names
    )
    assert (random.name, asha.name, ours.name) == names
    assert ours.reached == SEEDS and ours.median <= 0.5 * min(random.median, asha.median)


def test_scores_at_the_rung_foretell_the_last_ones(named):
    """Batch norm statistics of the present weights make it so: with running averages it was 0.68
    and 0.34 on the first table.
    """
    from scipy.stats import spearmanr

    name, table = named
    rung = table.study.search.rungs[0]
    for score, least in enumerate(
        {
            "mnist_table": (0.75, 0.75),
            "mnist_d4_table": (0.7, 0.3),
            "mnist_heldout_table": (0.75, 0.55),
        }[name]
    ):
        early, late = (
            [entry.epochs[epoch - 1][score] for entry in table.entries]
            for epoch in (rung, table.study.training.epochs)
        )
        assert spearmanr(early, late).statistic > least
