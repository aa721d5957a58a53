"""Published experiments, repeated: "Using and Abusing Equivariance" (Edixhoven et al. 2023,
arXiv:2308.11316) on MNIST.

8,000 training and 2,000 validation images come from MNIST's t10k file, the test images from its
60,000; P4CNN at 27, 28 and 29 px and Z2CNN at 28 px; Adam at 0.01, weight decay 1e-5, halved every
fifth of 50 epochs, batches of 256. What differs from the paper: no dropout unless it is asked for
(its rate is not given), one input channel instead of three equal ones, one angle per image instead
of one per batch, images normalised by their own standard deviation, turned ones with black corners
(`tests/benchmarks/bench_fidelity.py` tries these, each alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from searchspace.architecture import Architecture
from searchspace.training.dropout import Dropout
from studies.config import Study, dump, parse
from studies.errors import StudyError
from studies.evidence.paired import student
from studies.journal.directory import STUDY as STUDY_FILE
from studies.journal.directory import require_writable_place
from studies.output import Column
from studies.results.retrain import MeanStd
from studies.results.retrain_job import Job
from studies.workers.executors import require_cluster
from studies.workers.launch import images_of
from trainers.files import write_whole

SHIFTS = {
    "upright": "none",
    "normal20": "{normal: [45, 20]}",
    "normal40": "{normal: [45, 40]}",
    "uniform": "uniform",
}
PAPER_MODELS = {
    "P4 28 px": "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0",
    "P4 27 px": "27px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0",
    "P4 29 px": "29px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0",
    "Z2 28 px": "28px: 20k3, 20k3 max2/2, 20k3, 20k3, 20k3, 20k3, 20k4p0",
}
DROPPED = (1, 3, 4, 5)  # convolutions with dropout in the paper's network, counted from 1
STUDY = """
data: {{name: mnist_t10k, root: {root}, train: 8000, validation: 2000{test}}}
training:
  epochs: {epochs}
  batch_size: {batch}
  optimizer: adam
  learning_rate: 0.01
  schedule: step
  weight_decay: 1.0e-5
  augment: {{rotation: {rotation}}}
symmetry: {{group: C4, angles: 10, corners: black}}
space: {{backbone: 10k3, layout: max2/2}}
"""


@dataclass(frozen=True)
class PublishedRow:
    """Published accuracies in per cent: means over the paper's runs."""

    upright: float  # 0 degrees
    upright_std: float
    quarter_turn_mean: float  # over 0, 90, 180, 270 degrees
    angle_mean: float  # over 36 angles
    angle_worst: float
    runs: int = 100


PUBLISHED_ROWS: dict[str, dict[str, PublishedRow]] = {
    "upright": {
        "P4 28 px": PublishedRow(97.69, 0.17, 97.69, 87.22, 72.7),
        "P4 27 px": PublishedRow(98.52, 0.26, 77.55, 66.17, 38.1),
        "P4 29 px": PublishedRow(98.42, 0.25, 77.81, 66.29, 38.2),
        "Z2 28 px": PublishedRow(98.47, 0.17, 44.59, 42.79, 15.9),
    },
}
"""By training shift and model. The paper gives the other shifts as plots: they have no numbers."""


def study_of(
    shift: str,
    *,
    root: str,
    epochs: int,
    test: int | None,
    batch: int = 256,
    resources: Mapping[str, Any] | None = None,
) -> Study:
    """The study of one training shift; `resources` are dotted keys. Raises StudyError for a shift
    that is not the paper's.
    """
    if shift not in SHIFTS:
        raise StudyError(
            f"'{shift}' is not a training shift of the paper; choose one of {', '.join(SHIFTS)}"
        )
    text = STUDY.format(
        root=root,
        epochs=epochs,
        batch=batch,
        rotation=SHIFTS[shift],
        test=f", test: {test}" if test else "",
    )
    return parse(text, name=f"reproduction '{shift}'", overrides=resources)


def jobs(
    shift: str,
    directory: Path,
    study: Study,
    *,
    seeds: int = 10,
    models: Sequence[str] | None = None,
    dropout: float = 0.0,
) -> list[Job]:
    """Every training of the reproduction, seed by seed, so that an early stop leaves whole
    comparisons. As in the paper, validation images stay out of training. `dropout` is the rate
    after the convolutions that have it there. Raises ValueError for another rate than 0 to below 1.
    """
    training = study.training
    suffix = f"-dropout{dropout!r}" if dropout else ""
    return [
        Job(
            name,
            str(with_dropout(PAPER_MODELS[name], dropout)),
            seed,
            None,
            str(
                directory.absolute()
                / shift
                / name.replace(" ", "")
                / f"epochs{training.epochs}-batch{training.batch_size}-seed{seed}{suffix}"
            ),
        )
        for seed in range(1, seeds + 1)
        for name in (models or PAPER_MODELS)
    ]


def with_dropout(model: str, rate: float) -> Architecture:
    """The architecture of a text, with dropout where the paper's network has it."""
    architecture, dropout = Architecture.parse(model), Dropout("values", rate)
    stages = tuple(
        replace(stage, dropout=dropout) if number in DROPPED else stage
        for number, stage in enumerate(architecture.stages, start=1)
    )
    return replace(architecture, stages=stages)


def shift_folder(shift: str, directory: Path, study: Study) -> Path:
    """The folder of one shift's trainings, with its study file, by which workers recognise it.
    Raises StudyError where it cannot be written, or images or a cluster are missing.
    """
    require_writable_place(directory)
    require_cluster(study.resources)
    images_of(study)
    place = directory.absolute() / shift
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / STUDY_FILE, dump(study))
    return place


def beside_published(
    shift: str, rows: Sequence[dict[str, Any]]
) -> tuple[list[Column], list[list[str]]]:
    """The measured rows (`studies.results.retrain.summarise_seeds`) beside the published ones, as a
    table in per cent.
    """
    columns = [
        Column("model"),
        Column("n", True),
        *(
            Column(title, True)
            for title in ("0", "90", "180", "270", "C4 mean", "36 angles", "worst angle")
        ),
    ]
    cells = []
    for row in rows:
        picks = (
            "turn_0",
            "turn_90",
            "turn_180",
            "turn_270",
            "quarter_turn_mean",
            "angle_mean",
            "angle_worst",
        )
        cells.append([row["name"], str(row["n"]), *(row[pick].percent() for pick in picks)])
        published = PUBLISHED_ROWS.get(shift, {}).get(row["name"])
        if published:
            cells.append(
                [
                    "  published",
                    str(published.runs),
                    f"{published.upright:.2f} ± {published.upright_std:.2f}",
                    "",
                    "",
                    "",
                    f"{published.quarter_turn_mean:.2f}",
                    f"{published.angle_mean:.2f}",
                    f"{published.angle_worst:.1f}",
                ]
            )
    return columns, cells


@dataclass(frozen=True)
class PaperClaim:
    """One statement of the paper, and whether the measured rows agree."""

    statement: str
    measured: str
    holds: bool  # of the means over seeds
    settled: bool  # whether all of the difference's 95 % interval says the same

    def __str__(self) -> str:
        answer = "holds" if self.holds else "DOES NOT HOLD"
        return f"{answer if self.settled else 'not settled':>13}  {self.statement}: {self.measured}"


@dataclass(frozen=True)
class MeanDifference:
    """How far the mean of one row lies above another's, in percentage points."""

    points: float
    half: float  # of its 95 % interval by Student; infinite for a single training
    n: int  # seeds of the smaller row

    @classmethod
    def of(cls, left: MeanStd, right: MeanStd) -> MeanDifference:
        """Of independent trainings: the variances of the two means add up."""
        n = min(left.n, right.n)
        error = 100 * math.sqrt(left.std**2 / left.n + right.std**2 / right.n)
        half = student(n - 1) * error if n > 1 else math.inf
        return cls(100 * (left.mean - right.mean), half, n)

    def claim(self, statement: str, low: float, high: float = math.inf) -> PaperClaim:
        """The claim that the difference lies above `low` and not above `high`."""
        ends = self.points - self.half, self.points + self.half
        inside = [low < end <= high for end in ends]
        outside = ends[1] <= low or ends[0] > high
        spread = f" ± {self.half:.2f}" if self.n > 1 else ""
        measured = f"{self.points:+.2f}{spread} points, n = {self.n}"
        return PaperClaim(statement, measured, low < self.points <= high, all(inside) or outside)


def claims(shift: str, rows: Sequence[dict[str, Any]]) -> list[PaperClaim]:
    """What the paper says of this shift, held against those models that have rows; only `upright`
    has statements with figures, and all compare with `P4 28 px`.
    """
    by_name = {row["name"]: row for row in rows}
    if shift != "upright" or "P4 28 px" not in by_name:
        return []
    exact = by_name["P4 28 px"]
    turns = [exact[f"turn_{turn}"].mean for turn in (0, 90, 180, 270)]
    statements = [
        PaperClaim(
            "28 px: the same on every quarter turn",
            f"spread {100 * (max(turns) - min(turns)):.3f} points",
            max(turns) == min(turns),
            True,
        )
    ]
    for name in [name for name in ("P4 27 px", "P4 29 px") if name in by_name]:
        row = by_name[name]
        better = MeanDifference.of(row["turn_0"], exact["turn_0"])
        worse = MeanDifference.of(exact["quarter_turn_mean"], row["quarter_turn_mean"])
        statements.append(better.claim(f"{name}: better than 28 px upright", 0))
        statements.append(worse.claim(f"{name}: 15 to 25 points worse over quarter turns", 15, 25))
    return statements
