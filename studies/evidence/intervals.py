"""How sure the scores of a study are: 95 % intervals over validation images and over seeds, and
which trials cannot be told apart. Nothing here imports torch, optuna or ray.

An accuracy is a share of images: Wilson's interval. A symmetry accuracy is a mean over elements of
the *same* images, so that its n is the number of images too: an exact network is right or wrong
under all elements of an image at once, and images times elements would halve or third the interval
without any new image. For networks that fail under elements independently it is wider than need be,
never too narrow. The main score of another task is no share of images: its interval comes from
resamples of the images, a difference from equal resamples. Intervals of a worst element do not
account for its having been chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from studies.config import Study
from studies.evidence.paired import Difference, Z, over_values, paired_difference, unpaired
from studies.journal.folders import TRIALS
from studies.journal.reader import study_attributes
from studies.journal.trial import TrialRecord
from studies.output import is_number
from studies.pareto import OVER_CLASSES, SCORE_OF
from trainers.instruments import correctness
from trainers.instruments.correctness import Correctness
from trainers.instruments.proportions import proportion
from trainers.instruments.tasks.elements import read_element_scores
from trainers.instruments.tasks.replicates import Replicates, error_of, read_replicates

INTERVAL_SCORES = (
    "accuracy",
    "symmetry_accuracy",
    "symmetry_accuracy_worst",
    "symmetry_accuracy_exact",
    "symmetry_accuracy_interpolated",
    "unseen_symmetry_accuracy",
)
# scores that are not shares of images come with their standard error over images
ERRORS = {name: f"{name}_error" for name in OVER_CLASSES}
MOST_PAIRED = 12  # of a front, whose pairs are compared image by image for `status`
USUAL = 0.9  # the accuracy that `status` assumes while there is no front


def interval(
    scores: Mapping[str, Any], name: str, images: int | None
) -> tuple[float, float] | None:
    """The 95 % interval of a score over `images` validation images; None where there is none."""
    value, count = scores.get(name), scores.get("num_images") or images
    if not is_number(value) or not 0 <= value <= 1:
        return None
    if name in INTERVAL_SCORES and count and not scores.get("score"):
        share = proportion(value, count)
        return share.low, share.high
    error = scores.get(f"{name}_error")
    if is_number(error):
        return max(0.0, value - Z * error), min(1.0, value + Z * error)
    return None


def intervals(scores: Mapping[str, Any] | None, images: int | None) -> dict[str, dict[str, float]]:
    """Score -> {"low", "high"} for each score of a trial that has an interval over images."""
    ranges = {name: interval(scores or {}, name, images) for name in (*INTERVAL_SCORES, *ERRORS)}
    return {name: {"low": i[0], "high": i[1]} for name, i in ranges.items() if i is not None}


@dataclass(frozen=True)
class Evidence:
    """What is known about the images behind a study's scores."""

    directory: Path | None = None  # where trials keep which images they classified correctly
    images: int | None = None  # validation images of trials that do not say how many
    _read: dict[int, Correctness | None] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, directory: Path) -> Evidence:
        """The evidence of the study in `directory`, which must hold a journal."""
        images = (study_attributes(directory).get("data") or {}).get("images") or {}
        return cls(directory, images.get("validation"))

    def count(self, record: TrialRecord) -> int | None:
        """The number of validation images of a trial; None where an old study does not say."""
        return (record.scores or {}).get("num_images") or self.images

    def correctness(self, record: TrialRecord) -> Correctness | None:
        """Which images a trial classified correctly, at its last scores; None if not stored."""
        if self.directory is None or record.scores is None:
            return None
        if record.number not in self._read:
            folder = self.directory / TRIALS / f"{record.number:05d}"
            answers = correctness.read_correctness(folder, record.scores.get("epoch"))
            self._read[record.number] = answers
        return self._read[record.number]

    def replicates(self, record: TrialRecord) -> Replicates | None:
        """A trial's scores on resamples of the images, at its last scores; None if not stored."""
        if self.directory is None or record.scores is None:
            return None
        folder = self.directory / TRIALS / f"{record.number:05d}"
        return read_replicates(folder, record.scores.get("epoch"))

    def element_scores(self, record: TrialRecord) -> Mapping[str, Mapping[str, float]]:
        """Score -> element -> value, of the scores that no count of correct images gives; empty
        where a trial does not keep them.
        """
        if self.directory is None or record.scores is None:
            return {}
        folder = self.directory / TRIALS / f"{record.number:05d}"
        found = read_element_scores(folder, record.scores.get("epoch"))
        return {} if found is None else found.scores

    def difference(self, a: TrialRecord, b: TrialRecord, score: str) -> Difference | None:
        """Trial `a` minus trial `b` in a score: paired over images where both keep which they
        classified correctly, else unpaired; None where nothing says how sure it is.
        """
        name = SCORE_OF.get(score, score)
        first, second = (a.scores or {}).get(name), (b.scores or {}).get(name)
        if not (is_number(first) and is_number(second)):
            return None
        if (a.scores or {}).get("score"):
            found = self._resampled(a, b, name, first - second)
            if found is not None:
                return found
        elif name in INTERVAL_SCORES:
            mine, theirs = self.correctness(a), self.correctness(b)
            if mine is not None and theirs is not None:
                paired = paired_difference(mine, theirs, name)
                if paired is not None:
                    return paired
            counts = self.count(a), self.count(b)
            if counts[0] and counts[1]:
                return unpaired(first, second, counts[0], counts[1])
        errors = [(r.scores or {}).get(f"{name}_error") for r in (a, b)]
        numbers = [error for error in errors if is_number(error)]
        if len(numbers) == 2:
            half, value, count = Z * math.hypot(*numbers), first - second, self.count(a) or 0
            return Difference(value, value - half, value + half, count, "images, unpaired")
        return None

    def _resampled(
        self, a: TrialRecord, b: TrialRecord, name: str, value: float
    ) -> Difference | None:
        """The difference of a score that is no share of images, by its values on equal resamples of
        them; None where a trial does not keep these.
        """
        mine, theirs = (self.replicates(record) for record in (a, b))
        if mine is None or theirs is None or not mine.comparable(theirs):
            return None
        if name not in mine.scores or name not in theirs.scores:
            return None
        changes = [x - y for x, y in zip(mine.scores[name], theirs.scores[name], strict=True)]
        half = Z * error_of(changes)
        return Difference(value, value - half, value + half, mine.images, "images")

    def tied(self, objectives: Iterable[str], a: TrialRecord, b: TrialRecord) -> bool:
        """Whether two trials cannot be told apart in any objective.

        A share of images tells them apart where the 95 % interval of the difference excludes zero;
        any other objective where the values differ.
        """
        for name, mine, theirs in zip(objectives, a.values or (), b.values or ()):
            between = self.difference(a, b, name)
            if between.distinct if between is not None else mine != theirs:
                return False
        return True

    def ties(self, study: Study, front: Sequence[TrialRecord]) -> dict[int, list[int]]:
        """Member -> the other members of the front that it cannot be told apart from.

        Each pair has its own 95 %: among many pairs some are told apart by chance.
        """
        tied: dict[int, list[int]] = {record.number: [] for record in front}
        for a, b in combinations(front, 2):
            if self.tied(study.objectives, a, b):
                tied[a.number].append(b.number)
                tied[b.number].append(a.number)
        return tied

    def resolution(
        self, front: Sequence[TrialRecord], score: str = "accuracy"
    ) -> dict[str, Any] | None:
        """What a percentage point of accuracy is in images, and the difference between two trials
        below which they cannot be told apart; None where the number of images is not known.

        The difference is half the 95 % interval: paired, the median over the front, where the
        images are stored, else that of two accuracies `near` the front's median. Of another main
        `score` only the difference is known, and only from a front of two.
        """
        count = self.images or next((c for c in map(self.count, front) if c), None)
        if not count:
            return None
        widths = [
            self.difference(a, b, "accuracy") for a, b in combinations(front[:MOST_PAIRED], 2)
        ]
        halves = [d.half for d in widths if d is not None and d.over == "images"]
        if score != "accuracy":
            about = {"validation_images": count, "score": score, "paired": True}
            return {**about, "smallest_difference": median(halves)} if halves else None
        scores = [(r.scores or {}).get("accuracy") for r in front]
        shares = [score for score in scores if is_number(score)]
        share = min(1 - 1 / count, max(1 / count, median(shares) if shares else USUAL))
        smallest = median(halves) if halves else Z * math.sqrt(2 * share * (1 - share) / count)
        return {
            "validation_images": count,
            "images_per_point": count / 100,
            "smallest_difference": smallest,
            "paired": bool(halves),
            "near": None if halves else share,
        }


def resolution_text(value: Mapping[str, Any]) -> str:
    """`Evidence.resolution` in a sentence."""
    if "score" in value:
        return (
            f"on {value['validation_images']:,} validation images, resampled alike for all trials, "
            f"differences of {value['score']} below about "
            f"{100 * value['smallest_difference']:.1f} points cannot be told apart (95 %)"
        )
    point, images = value["images_per_point"], f"{value['validation_images']:,} validation images"
    how = "compared image by image, " if value["paired"] else ""
    near = "" if value["paired"] else f" between accuracies near {value['near']:.0%}"
    return (
        f"one percentage point is {point:,.3g} of {images}; {how}differences below about "
        f"{100 * value['smallest_difference']:.1f} points{near} cannot be told apart (95 %)"
    )


def over_seeds(records: Iterable[TrialRecord]) -> dict[str, dict[str, dict[str, Any]]]:
    """Key of a candidate -> score -> its mean over trainings with other seeds, with Student's 95 %
    interval, for those that were trained to the end two times or more.
    """
    groups: dict[str, dict[int, TrialRecord]] = {}
    for record in records:
        if record.state == "complete" and record.key and record.whole and record.scores:
            groups.setdefault(record.key, {})[record.seed] = record
    means: dict[str, dict[str, dict[str, Any]]] = {}
    for key, trainings in groups.items():
        if len(trainings) < 2:
            continue
        for name in (*INTERVAL_SCORES, *ERRORS):
            scores = [(r.scores or {}).get(name) for r in trainings.values()]
            values = [score for score in scores if is_number(score)]
            if len(values) == len(trainings):
                mean = over_values(values, "seeds")
                low, high = max(0.0, mean.low), min(1.0, mean.high)
                entry = {"mean": mean.value, "low": low, "high": high, "n": mean.count}
                means.setdefault(key, {})[name] = entry
    return means
