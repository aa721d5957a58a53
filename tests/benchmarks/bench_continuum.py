"""What soft choices add to a space of exact constraints: python
tests/benchmarks/bench_continuum.py tests/assets/mnist_soft_table.json.gz

Prints, for a recorded table, the hypervolume of the front of all of it and of what is left without
soft choices, beside that of as many architectures drawn from all; the members of the whole front,
each with the hypervolume that is lost without it; and the hypervolume that this project's search
has after shares of the whole table's epochs, on each space, tested against the whole one (paired by
seed, two-sided Wilcoxon). A table has one training for each architecture.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from scipy.stats import wilcoxon

from searchspace.recipe import Candidate
from studies.output import Column, note, print_table
from studies.pareto import front_volume, non_dominated
from studies.replays.record import RecordedTable, TableEntry, read_table
from studies.replays.replay import OBJECTIVES, Method, full_volume, methods

DRAWS = 2000
SOFT: dict[str, dict[str, Any]] = {  # each soft choice, and the space that has none of it
    "relaxed weights": {"space.relaxation": ["none"]},
    "orbit averages": {"space.orbit": ["C1"]},
    "augmentation": {"space.augment": ["none"]},
    "loss": {"space.equivariance_loss": {"kind": ["none"], "weight": 1.0}},
}
WHOLE = "whole space"
SPACES: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    **{f"no {name}": (name,) for name in SOFT},
    "neither of the first two": ("relaxed weights", "orbit averages"),
    "none of them": tuple(SOFT),
}


def softness(entry: TableEntry) -> set[str]:
    """The soft choices, keys of `SOFT`, that an entry has."""
    candidate = Candidate.parse(entry.architecture)
    architecture, recipe = candidate.architecture, candidate.recipe
    turns = recipe.augment is not None and recipe.augment.kind != "none"
    has = (architecture.softened, architecture.orbit.order > 1, turns, bool(recipe.losses))
    return {name for name, there in zip(SOFT, has, strict=True) if there}


def without(table: RecordedTable, excluded: Sequence[str]) -> RecordedTable:
    """The table's entries that have none of these soft choices."""
    kept = tuple(entry for entry in table.entries if not softness(entry) & set(excluded))
    return replace(table, entries=kept)


def drawn(table: RecordedTable, count: int) -> tuple[float, float, float]:
    """Mean, and 2.5 and 97.5 per cent quantiles, of the hypervolume of `count` random entries."""
    rng, points = numpy.random.default_rng(0), [entry.epochs[-1] for entry in table.entries]
    places = (rng.choice(len(points), count, replace=False) for _ in range(DRAWS))
    volumes = [front_volume([points[i] for i in some], OBJECTIVES) for some in places]
    low, high = numpy.quantile(volumes, (0.025, 0.975))
    return float(numpy.mean(volumes)), float(low), float(high)


def searched(
    table: RecordedTable, changes: Mapping[str, Any], budgets: Sequence[int], seed: int
) -> list[float]:
    """The hypervolume of fully trained trials when the search has paid each of the budgets, in
    epochs, ascending. A space that is used up keeps what it has.
    """
    ours = next(method for method in methods(table) if method.name == "ours")
    steps = Method("", changes={**(ours.changes or {}), **changes}).steps(table, seed)
    volumes, front, epochs = [], [], 0
    for step in steps:
        epochs += step.epochs
        while len(volumes) < len(budgets) and epochs > budgets[len(volumes)]:
            volumes.append(front_volume(front, OBJECTIVES))
        if len(volumes) == len(budgets):
            break
        if step.scores is not None:
            front.append(step.scores)
    return volumes + [front_volume(front, OBJECTIVES)] * (len(budgets) - len(volumes))


def print_fronts(table: RecordedTable) -> None:
    """The fronts of the whole table and of what is left without soft choices, then its members."""
    cells = []
    for name, excluded in SPACES.items():
        left = without(table, excluded)
        mean, low, high = drawn(table, len(left.entries))
        volume = f"{full_volume(left):.4f}"
        drawing = f"{mean:.4f} ({low:.4f} to {high:.4f})"
        cells.append([name, str(len(left.entries)), volume, drawing])
    titles = ("architectures", "hypervolume", "as many drawn from all, mean (95 %)")
    print_table([Column("space"), *(Column(title, True) for title in titles)], cells)
    cells, front = [], non_dominated([entry.epochs[-1] for entry in table.entries])
    for entry in sorted(table.entries, key=lambda entry: entry.epochs[-1]):
        if entry.epochs[-1] in front:
            others = replace(table, entries=tuple(e for e in table.entries if e is not entry))
            scores = (f"{100 * score:.1f}" for score in entry.epochs[-1])
            lost = f"{full_volume(table) - full_volume(others):.4f}"
            soft = ", ".join(sorted(softness(entry))) or "none"
            cells.append([*scores, lost, soft, entry.architecture])
    numbers = ("accuracy %", "symmetry accuracy %", "lost without it")
    columns = [*(Column(n, True) for n in numbers), Column("soft choices"), Column("architecture")]
    print_table(columns, cells)


def print_searches(table: RecordedTable, given: argparse.Namespace) -> None:
    """Hypervolumes of searches at equal epochs, and tests of each space against the whole one."""
    whole = len(table.entries) * table.study.training.epochs
    budgets, reached = [round(share * whole) for share in sorted(given.shares)], {}
    for name in (WHOLE, *(name for name in given.spaces if name != WHOLE)):
        changes = {key: value for soft in SPACES[name] for key, value in SOFT[soft].items()}
        runs = [searched(table, changes, budgets, seed) for seed in range(given.seeds)]
        reached[name] = numpy.array(runs)
        note(f"{name}: medians {numpy.median(reached[name], 0).round(4)}")
    cells = [[name, *map(_cell, volumes.T, reached[WHOLE].T)] for name, volumes in reached.items()]
    columns = [Column("search on"), *(Column(f"{budget} epochs", True) for budget in budgets)]
    print_table(columns, cells)


def _cell(values: numpy.ndarray, whole: numpy.ndarray) -> str:
    low, middle, high = numpy.quantile(values, (0.25, 0.5, 0.75))
    test: Any = wilcoxon(values, whole) if (values != whole).any() else None
    p = "" if test is None else f" p={test.pvalue:.2g}"
    return f"{middle:.4f} ({low:.4f} to {high:.4f}){p}"


def main() -> None:
    """Prints the fronts, and the searches."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("table", type=Path)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--spaces", nargs="+", choices=list(SPACES), default=list(SPACES))
    options.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    given = options.parse_args()
    table = read_table(given.table)
    print_fronts(table)
    print_searches(table, given)


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
