"""Search scores beside test scores: how much the search flatters what it chose.

A trial reaches the front partly by its architecture and partly by luck: of its seed, and of the
validation images that chose it. Retrained with new seeds and tested on images that chose nothing,
it loses the luck. Where it is retrained on the validation images too, more images work against
that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.evidence.paired import Z, student
from studies.output import Column, is_number
from studies.results.retrain import MeanStd
from studies.results.tables import open_records
from studies.tasks import in_words, score_name

TEST_SCORES = {"accuracy": "accuracy", "symmetry_accuracy": "symmetry"}


@dataclass(frozen=True)
class Ranged:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self, *, signed: bool = False) -> str:
        """`93.42 [92.10, 94.50]` for a share."""
        numbers = (f"{100 * n:+.2f}" if signed else f"{100 * n:.2f}" for n in self._numbers())
        return "{} [{}, {}]".format(*numbers)

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def _numbers(self) -> tuple[float, float, float]:
        return self.value, self.low, self.high


def over_images(value: float, images: int, error: float | None = None) -> Ranged:
    """A share of so many images with its Wilson interval; of a score that is no share, whose
    standard `error` over images is given, the normal one.
    """
    if error is not None:
        half = Z * error
        return Ranged(value, max(0.0, value - half), min(1.0, value + half))
    from trainers.instruments.proportions import proportion

    ranged = proportion(value, images)
    return Ranged(ranged.value, ranged.low, ranged.high)


def mean_over_seeds(score: MeanStd, images: int, error: float | None = None) -> Ranged:
    """The mean test score of `n` seeds, with an interval over images and, from two seeds on, over
    seeds.

    The two are independent and are added in squares, each on its side of the mean (the method of
    variance estimates recovery, Zou and Donner 2008), Student's t for the few seeds.
    """
    images_alone = over_images(score.mean, images, error)
    seeds = _of_seeds(score, 1 / score.n)
    return Ranged(
        score.mean,
        max(0.0, score.mean - math.hypot(score.mean - images_alone.low, seeds)),
        min(1.0, score.mean + math.hypot(images_alone.high - score.mean, seeds)),
    )


def change_from_search(
    found: float,
    validation: int,
    score: MeanStd,
    test: int,
    errors: tuple[float | None, float | None] = (None, None),
) -> Ranged:
    """Test score minus search score `found` (one training, on `validation` images), with its
    interval; positive: the search was too pessimistic.

    It holds the chance of both sets of images, and of the seeds of both, as far as the spread of
    the test scores shows it.
    """
    searched = over_images(found, validation, errors[0])
    tested = over_images(score.mean, test, errors[1])
    seeds = _of_seeds(score, 1 + 1 / score.n)
    value = score.mean - found
    return Ranged(
        value,
        max(-1.0, value - math.hypot(score.mean - tested.low, searched.high - found, seeds)),
        min(1.0, value + math.hypot(tested.high - score.mean, found - searched.low, seeds)),
    )


def _of_seeds(score: MeanStd, variances: float) -> float:
    if score.n < 2:
        return 0.0
    return student(score.n - 1) * score.std * math.sqrt(variances)


def with_selection(directory: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `studies.results.retrain.summarise_seeds` of a study, each with `selection`: by
    score, `search` (the trial's, on validation images), `test` and `change_from_search`, plain
    values.
    """
    _, records = open_records(directory, reading=True)
    return [_compared(row, records[_number(row)].scores or {}) for row in rows]


def _compared(row: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `selection`; its validation images are those that the trial's scores are means
    over: with folds, all of them.
    """
    images = scores.get("num_images")
    counted = {**row, "num_validation": images} if is_number(images) else {**row}
    return {**counted, "selection": _selection(scores, counted)}


def _number(row: Mapping[str, Any]) -> int:
    return int(row["name"].removeprefix("trial "))


def _selection(scores: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    validation, test = row["num_validation"], row["num_test"]
    chosen = {}
    for name in TEST_SCORES:
        if is_number(scores.get(name)) and validation:
            errors = scores.get(f"{name}_error"), (row.get("errors") or {}).get(name)
            changed = change_from_search(scores[name], validation, row[name], test, errors)
            chosen[name] = {
                "search": over_images(scores[name], validation, errors[0]).as_dict(),
                "test": mean_over_seeds(row[name], test, errors[1]).as_dict(),
                "difference": changed.as_dict(),
            }
    return chosen


def selection_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Column], list[list[str]]]:
    """Columns and cells: search score, test score over n seeds, and their difference."""
    columns = [
        Column("trial"),
        Column("score"),
        Column("search %", True),
        Column("test %, mean over seeds", True),
        Column("n", True),
        Column("difference, points", True),
    ]
    cells = []
    for row in rows:
        for name, title in TEST_SCORES.items():
            if name in row["selection"]:
                parts = {k: Ranged(**v) for k, v in row["selection"][name].items()}
                cells.append(
                    [
                        row["name"].removeprefix("trial "),
                        in_words(title, score_name(row)),
                        parts["search"].percent(),
                        parts["test"].percent(),
                        str(row["n"]),
                        parts["difference"].percent(signed=True),
                    ]
                )
    return columns, cells


def selection_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table says, in sentences."""
    first = rows[0]
    lines = [
        f"95 % intervals over {first['num_validation']} validation and {first['num_test']} test "
        + ("images and over seeds." if first["n"] > 1 else "images; one seed shows no spread.")
    ]
    for name, title in TEST_SCORES.items():
        changes = [r["selection"][name]["difference"] for r in rows if name in r["selection"]]
        if not changes:
            continue
        mean = sum(change["value"] for change in changes) / len(changes)
        clear = sum(change["high"] < 0 for change in changes)
        level = abs(mean) < 5e-5
        where = "level with" if level else f"{100 * abs(mean):.2f} points "
        where += "" if level else "below" if mean < 0 else "above"
        lines.append(
            f"{in_words(title, score_name(first))}: test scores are {where} search scores on "
            f"average over {len(changes)} "
            f"trial{'' if len(changes) == 1 else 's'}; {clear} clearly below."
        )
    if first["trained_on"] != "train":
        lines.append(
            "Retrained on validation images too: the difference holds what more images gain "
            "(--keep-validation leaves them out)."
        )
    return lines
