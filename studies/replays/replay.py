"""Searches replayed on a recorded table: how many epochs until the front is almost as good as the
best there is.

The cost of a search is the epochs it trains. Compared are plain Optuna (random, TPE, NSGA-II; every
trial trained to the end, a proposal that comes again trained again, as Optuna does) and this
project's driver, with each of its parts left out once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study, dump, parse
from studies.errors import StudyError
from studies.output import Column
from studies.pareto import front_volume
from studies.replays.record import Table, TableEntry
from studies.search.assignments import Assignment
from studies.search.driver import SearchDriver

SHARE = 0.95  # of the whole table's hypervolume
OBJECTIVES = ("accuracy", "symmetry_accuracy")
WORST = (0.0, 0.0)  # of an architecture that an unfinished recording lacks
# of plain Optuna for each architecture of the space: it proposes again what it had before
PROPOSALS = 100


@dataclass(frozen=True)
class Method:
    """A way of searching: plain Optuna with a sampler, or the driver with changes to its study."""

    name: str
    optuna: str | None = None  # random, tpe or nsga2: plain Optuna
    changes: Mapping[str, Any] | None = None


def methods(table: Table) -> tuple[Method, ...]:
    """What is compared by default: three plain searches, ours with several samplers, and ours
    without each of its parts.
    """
    rungs = [rung for rung in table.study.search.rungs if rung < table.study.training.epochs]
    ours = {
        "search.rungs": rungs,
        "search.sampler": "ehvi",
        "search.repeats": 1,
        "search.start": "spread",
        "space.size_by": "exactness",
    }
    return (
        Method("Optuna random", optuna="random"),
        Method("Optuna TPE", optuna="tpe"),
        Method("Optuna NSGA-II", optuna="nsga2"),
        Method("ours", changes=ours),
        Method("ours, evolution", changes={**ours, "search.sampler": "evolution"}),
        Method("ours, TPE", changes={**ours, "search.sampler": "tpe"}),
        Method("ours, random", changes={**ours, "search.sampler": "random"}),
        Method("ours without rungs", changes={**ours, "search.rungs": []}),
        Method("ours with confidence 0.95", changes={**ours, "search.confidence": 0.95}),
        Method("ours without promotions", changes={**ours, "search.second_chances": False}),
        Method("ours without spread start", changes={**ours, "search.start": "random"}),
        Method(
            "ours without exactness",
            changes={**ours, "search.start": "random", "space.size_by": "pixels"},
        ),
        Method("ours with repeats", changes={**ours, "search.repeats": 2}),
    )


@dataclass(frozen=True)
class Replayed:
    """Epochs that a method needed, over seeds."""

    name: str
    epochs: tuple[int, ...]  # until the share was reached; the whole budget where it never was
    reached: int  # seeds that reached it

    @property
    def median(self) -> float:
        """Median over seeds."""
        return median(self.epochs)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile over seeds."""
        if len(self.epochs) < 2:
            return float(self.median), float(self.median)
        low, _, high = quantiles(self.epochs, n=4, method="inclusive")
        return low, high


def full_volume(table: Table) -> float:
    """The hypervolume of the front of the whole table, at its last epoch."""
    return front_volume([entry.epochs[-1] for entry in table.entries], OBJECTIVES)


def replay(table: Table, method: Method, seeds: int, *, share: float = SHARE) -> Replayed:
    """Epochs until the front of fully trained trials has `share` of the whole table's hypervolume,
    for seeds 0, 1, 2 ...

    The budget is that of training the whole table. What an unfinished recording lacks has the worst
    scores and costs nothing. Raises StudyError for a table without entries.
    """
    if not table.entries:
        raise StudyError(
            "the table holds no architecture yet; `equisearch record STUDY FILE` continues it"
        )
    goal = share * full_volume(table)
    budget = len(table.entries) * table.study.training.epochs
    needed = []
    for seed in range(seeds):
        steps = (
            _optuna_steps(table, method.optuna, seed)
            if method.optuna
            else _driver_steps(table, method.changes or {}, seed)
        )
        needed.append(_epochs_until(goal, budget, steps))
    return Replayed(
        method.name, tuple(min(n, budget) for n in needed), sum(n <= budget for n in needed)
    )


def as_dicts(rows: Sequence[Replayed]) -> list[dict[str, Any]]:
    """Plain values for JSON and CSV. `share_of_best_plain`: the median, relative to the best of
    plain Optuna, which the first three of `methods` are.
    """
    best = min(row.median for row in rows[:3])
    return [
        {
            "name": row.name,
            "median": row.median,
            "quartiles": list(row.quartiles),
            "reached": row.reached,
            "share_of_best_plain": row.median / best,
            "epochs": list(row.epochs),
        }
        for row in rows
    ]


def summary(table: Table, rows: Sequence[Replayed], seeds: int, share: float) -> dict[str, Any]:
    """All of a comparison as plain values for JSON."""
    return {
        "architectures": len(table.entries),
        "epochs": table.study.training.epochs,
        "hypervolume": full_volume(table),
        "share": share,
        "seeds": seeds,
        "methods": as_dicts(rows),
    }


def compared(rows: Sequence[Replayed], seeds: int) -> tuple[list[Column], list[list[str]]]:
    """The comparison as a table."""
    titles = ("epochs, median", "quartiles", "of the best plain search", "reached")
    columns = [Column("search"), *(Column(title, True) for title in titles)]
    cells = [
        [
            row["name"],
            f"{row['median']:g}",
            "{:g} to {:g}".format(*row["quartiles"]),
            f"{row['share_of_best_plain']:.2f}",
            f"{row['reached']} of {seeds}",
        ]
        for row in as_dicts(rows)
    ]
    return columns, cells


def _epochs_until(
    goal: float, budget: int, steps: Iterator[tuple[int, tuple[float, float] | None]]
) -> int:
    """Sums epochs of (epochs spent, scores if trained to the end) until the front of the scores
    reaches `goal`.
    """
    spent, front = 0, []
    for epochs, scores in steps:
        spent += epochs
        if scores is not None:
            front.append(scores)
            if front_volume(front, OBJECTIVES) >= goal:
                return spent
        if spent > budget:
            break
    return budget + 1


def _optuna_steps(
    table: Table, sampler: str, seed: int
) -> Iterator[tuple[int, tuple[float, float] | None]]:
    """Plain Optuna, asked for pixels: every trial to the end, what comes again trained again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }[sampler]()
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=made)
    space = _changed(table.study, {"space.size_by": "pixels"}).space
    entries, declared = table.by_key, Group.parse(table.study.symmetry.group)
    for _ in range(PROPOSALS * table.total):
        trial = study.ask()
        proposal = space.sample(
            trial, channels=table.channels, classes=table.classes, declared=declared
        )
        entry = entries.get(proposal.key)
        scores = WORST if entry is None else entry.epochs[-1]
        study.tell(trial, scores)
        yield (0, None) if entry is None else (table.study.training.epochs, scores)


def _driver_steps(
    table: Table, changes: Mapping[str, Any], seed: int
) -> Iterator[tuple[int, tuple[float, float] | None]]:
    """The driver itself, one trial at a time, with scores that are looked up."""
    study = _changed(
        table.study,
        {
            **changes,
            "search.seed": seed,
            "search.trials": table.total * 2,
            "resources.executor": "in_process",
        },
    )
    entries, images = table.by_key, table.study.data.validation
    trained: dict[int, int] = {}  # trial -> epochs
    with (
        tempfile.TemporaryDirectory() as folder,
        SearchDriver.create(
            Path(folder) / "study", study, channels=table.channels, classes=table.classes
        ) as driver,
    ):
        while (assignment := driver.next()) is not None:
            entry, decision = _entry(entries, assignment), "continue"
            before = 0 if assignment.continues is None else trained[assignment.continues]
            for rung in study.rungs:
                accuracy, symmetry = WORST if entry is None else entry.epochs[rung - 1]
                scores = {"accuracy": accuracy, "symmetry_accuracy": symmetry, "num_images": images}
                decision = driver.report(assignment.number, rung, scores)
                trained[assignment.number] = rung
                if decision == "stop":
                    break
            driver.finish(assignment.number, "pruned" if decision == "stop" else "complete")
            if entry is None:
                yield 0, None
            else:
                scores = None if decision == "stop" else entry.epochs[-1]
                yield trained[assignment.number] - before, scores


def _entry(entries: Mapping[str, TableEntry], assignment: Assignment) -> TableEntry | None:
    candidate = Candidate.parse(assignment.architecture)
    return entries.get(candidate.with_learning_rate(assignment.learning_rate).key)


def _changed(study: Study, changes: Mapping[str, Any]) -> Study:
    return parse(dump(study), name="the recorded study", overrides=changes)
