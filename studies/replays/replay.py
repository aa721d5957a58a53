"""Searches replayed on a recorded table: how many epochs until the front is almost as good as the
best there is.

The cost of a search is the epochs it trains; what it has trained before is free, for every search.
Compared are those of `studies.replays.rivals` and this project's driver, as a user runs it, with
each of its parts left out once. All try the same known architectures first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from searchspace.recipe import Candidate
from studies.errors import StudyError
from studies.output import Column
from studies.pareto import front_volume
from studies.replays.record import RecordedTable, TableEntry
from studies.replays.rivals import RIVALS, optuna_steps
from studies.replays.steps import WORST_SCORES, SearchStep, changed, known, rungs, trained_step
from studies.search.assignments import Assignment
from studies.search.driver import SearchDriver

HYPERVOLUME_SHARE = 0.95  # of the whole table's hypervolume
OBJECTIVES = ("accuracy", "symmetry_accuracy")


@dataclass(frozen=True)
class Method:
    """A way of searching: plain Optuna with a sampler, the driver with changes to its study, or
    any other, as the steps of a search with a seed.
    """

    name: str
    optuna: str | None = None  # of `studies.replays.rivals.optuna_steps`
    changes: Mapping[str, Any] | None = None
    other: Callable[[RecordedTable, int], Iterator[SearchStep]] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's driver."""
        return self.optuna is None and self.other is None

    def steps(self, table: RecordedTable, seed: int) -> Iterator[SearchStep]:
        """The steps of the search with `seed`."""
        if self.other is not None:
            return self.other(table, seed)
        if self.optuna is not None:
            return optuna_steps(table, self.optuna, seed)
        return _driver_steps(table, self.changes or {}, seed)


def methods(table: RecordedTable) -> tuple[Method, ...]:
    """What is compared by default: the rivals, ours with several samplers, and ours without each
    of its parts.
    """
    ours = {
        "search.rungs": rungs(table),
        "search.sampler": "ehvi",
        "search.repeats": 1,
        "search.start": "spread",
        "space.size_by": "exactness",
    }
    return (
        *(
            Method(name, other=lambda table, seed, key=key, run=run: run(table, key, seed))
            for name, (key, run) in RIVALS.items()
        ),
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
    # the same in epochs of the architecture with the table's median MACs: a proxy of the time
    work: tuple[float, ...] = ()
    ours: bool = field(default=False, compare=False)
    # the same in seconds of training; empty where the table does not say them
    seconds: tuple[float, ...] = ()

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


def full_volume(table: RecordedTable) -> float:
    """The hypervolume of the front of the whole table, at its last epoch."""
    return front_volume([entry.epochs[-1] for entry in table.entries], OBJECTIVES)


def replay(
    table: RecordedTable, method: Method, seeds: int, *, share: float = HYPERVOLUME_SHARE
) -> Replayed:
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
    needed = [_needed(goal, budget, method.steps(table, seed)) for seed in range(seeds)]
    return Replayed(
        method.name,
        tuple(min(epochs, budget) for epochs, *_ in needed),
        sum(epochs <= budget for epochs, _, _ in needed),
        tuple(round(work, 1) for _, work, _ in needed),
        method.is_ours,
        tuple(round(seconds, 2) for *_, seconds in needed) if table.is_timed else (),
    )


def as_dicts(rows: Sequence[Replayed]) -> list[dict[str, Any]]:
    """Plain values for JSON and CSV. `share_of_best_plain`: the median, relative to that of the
    best rival.
    """
    best = min((row.median for row in rows if not row.ours), default=float("nan"))
    return [
        {
            "name": row.name,
            "median": row.median,
            "quartiles": list(row.quartiles),
            "reached": row.reached,
            "share_of_best_plain": row.median / best,
            "epochs": list(row.epochs),
            "work": list(row.work),
            "seconds": list(row.seconds),
        }
        for row in rows
    ]


def summary(
    table: RecordedTable, rows: Sequence[Replayed], seeds: int, share: float
) -> dict[str, Any]:
    """All of a comparison as plain values for JSON."""
    return {
        "architectures": len(table.entries),
        "epochs": table.study.training.epochs,
        "hypervolume": full_volume(table),
        "share": share,
        "seeds": seeds,
        "methods": as_dicts(rows),
    }


def comparison_table(rows: Sequence[Replayed], seeds: int) -> tuple[list[Column], list[list[str]]]:
    """The comparison as a table."""
    titles = ("epochs, median", "quartiles", "of the best rival", "reached")
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


def _needed(goal: float, budget: int, steps: Iterator[SearchStep]) -> tuple[int, float, float]:
    """Epochs, their work and their seconds, until the front of the scores reaches `goal`; more
    than `budget` epochs where it does not.
    """
    epochs, work, seconds, front = 0, 0.0, 0.0, []
    for step in steps:
        epochs, work = epochs + step.epochs, work + step.work
        seconds += step.seconds
        if step.scores is not None:
            front.append(step.scores)
            if front_volume(front, OBJECTIVES) >= goal:
                return epochs, work, seconds
        if epochs > budget:
            break
    return budget + 1, work, seconds


def _driver_steps(
    table: RecordedTable, changes: Mapping[str, Any], seed: int
) -> Iterator[SearchStep]:
    """The driver itself, one trial at a time, with scores that are looked up."""
    study = changed(
        table.study,
        {
            "search.first": [str(candidate) for candidate in known(table)],
            **changes,
            "search.seed": seed,
            "search.trials": table.total * 20,
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
                if rung <= before:
                    continue
                accuracy, symmetry = WORST_SCORES if entry is None else entry.epochs[rung - 1]
                scores = {"accuracy": accuracy, "symmetry_accuracy": symmetry, "num_images": images}
                decision = driver.report(assignment.number, rung, scores)
                trained[assignment.number] = rung
                if decision == "stop":
                    break
            driver.finish(assignment.number, "pruned" if decision == "stop" else "complete")
            if entry is None:
                yield SearchStep(0, 0.0, None)
            else:
                epochs = trained[assignment.number] - before
                scores = None if decision == "stop" else entry.epochs[-1]
                yield trained_step(table, entry, epochs, scores)


def _entry(entries: Mapping[str, TableEntry], assignment: Assignment) -> TableEntry | None:
    candidate = Candidate.parse(assignment.architecture)
    return entries.get(candidate.with_learning_rate(assignment.learning_rate).key)
