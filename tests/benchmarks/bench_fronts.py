"""What soft choices add to exact and broken constraints, every architecture trained anew for each
seed: the hypervolume of fronts at equal epochs, with a test over seeds.

    python tests/benchmarks/bench_fronts.py sixes|folder|mnist [--seeds 6] [--out fronts.jsonl]

`sixes`: MNIST's sixes against the same turned by 180 degrees, accuracy and parameters. `folder`:
colour images of ../shared/data/cifar10_small, C4 declared, accuracy and symmetry accuracy. `mnist`:
the same architectures on upright MNIST. Eight architectures without soft choices and eight with
them; the front of the former is compared with that of all sixteen, and with eight drawn from the
sixteen (mean of all draws: equal epochs); each architecture's line says in how many seeds it is on
the front of all. One line of JSON for each training goes to --out, where a second call goes on.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from benchmark_data import load_or_exit, resumed, row_parser, run, spread, trained
from scipy.stats import wilcoxon

from searchspace.recipe import Candidate
from studies.pareto import front_volume, pareto
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig


def _chain(width: int, relation: str = "", options: str = "", pool: str = "max3/2") -> str:
    first, then = f"{width}k3{relation}", f"{width}k3"
    return f"15px: {first}, {then}, {then} {pool}, {then}, {then}{options}"


HARD = {
    "sixes": [
        _chain(3, "@C4"),
        _chain(6, "@C4"),
        _chain(6, "@C4", pool="max2/2"),
        _chain(4, "@D1"),
        "15px: 3k3@C4, 3k3, 3k3 max3/2, 12k3@C1, 12k3",
        _chain(4),
        _chain(8),
        _chain(12),
    ],
    "folder": [
        _chain(6, "@C4"),
        _chain(6, "@C4", pool="max2/2"),
        _chain(4, "@D4"),
        _chain(8, "@C2"),
        _chain(8, "@D1"),
        "15px: 4k3@C4, 4k3, 4k3 max3/2, 14k3@C1, 14k3",
        _chain(12),
        _chain(20),
    ],
}
SOFT = {
    "sixes": [
        *(_chain(width, f"@C4{soft}") for soft in ("+C1", "|C1", "b2") for width in (3, 6)),
        _chain(3, "@C4~0.3"),
        _chain(3, "@C4", " coordinates=xy"),
    ],
    "folder": [
        _chain(3, "@C4+C1"),
        _chain(3, "@C4|C1"),
        _chain(4, "@C4b2"),
        _chain(6, "@C4~0.3"),
        _chain(12, "", " orbit=C4"),
        _chain(12, "", " augment=group"),
        _chain(12, "", " loss=label:1"),
        _chain(6, "@C4", " orbit=C4", pool="max2/2"),
    ],
}
HARD["mnist"], SOFT["mnist"] = HARD["folder"], SOFT["folder"]
BOTH = ("accuracy", "symmetry_accuracy")
OBJECTIVES = {"sixes": ("accuracy", "params"), "folder": BOTH, "mnist": BOTH}


def row(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """The scores of one training on the validation images."""
    candidate = Candidate.parse(job["text"])
    where = {
        "sixes": {"name": "mnist6_180", "root": root},
        "folder": {"folder": root / "cifar10_small"},
        "mnist": {"name": "mnist", "root": root},
    }[job["task"]]
    data = Data(train=job["train"], validation=600, **where)
    training = Training(
        epochs=job["epochs"],
        batch_size=32,
        learning_rate=0.01,
        precision="float32",
        device="cpu",
    )
    splits = load_or_exit(data, candidate.architecture.size)
    symmetry = Symmetry(group="C1" if job["task"] == "sixes" else "C4")
    config = TrainingConfig(data, training, symmetry, job["seed"], candidate.recipe)
    _, scores = trained(candidate.architecture, config, splits)
    return {name: getattr(scores, name) for name in ("accuracy", "symmetry_accuracy", "params")}


def volumes(rows: Sequence[dict[str, Any]], task: str) -> tuple[float, float, float]:
    """Hypervolumes of one seed: without soft choices, of as many of all, of all."""
    points = {row["text"]: [row[name] for name in OBJECTIVES[task]] for row in rows}

    def volume(texts: Sequence[str]) -> float:
        return front_volume([points[text] for text in texts], OBJECTIVES[task])

    draws = itertools.combinations(points, len(HARD[task]))
    return volume(HARD[task]), mean(map(volume, draws)), volume(list(points))


def summary(rows: Sequence[dict[str, Any]], task: str) -> str:
    """Scores by architecture, and hypervolumes over those seeds that are complete."""
    lines = []
    number = len(HARD[task]) + len(SOFT[task])
    of_seeds = [[row for row in rows if row["seed"] == s] for s in {row["seed"] for row in rows}]
    complete = [of for of in of_seeds if len(of) == number]
    fronts = [
        pareto(of, OBJECTIVES[task], lambda row: [row[s] for s in OBJECTIVES[task]])
        for of in complete
    ]
    for text in (*HARD[task], *SOFT[task]):
        of = [row for row in rows if row["text"] == text]
        if not of:
            lines.append(f"missing {text}")
            continue
        accuracies = " | ".join(spread([row[s] for row in of]) for s in BOTH)
        seeds = [row["seed"] for front in fronts for row in front if row["text"] == text]
        lines.append(f"{accuracies} | {of[0]['params']} | {text} | front of {seeds}")
    found = [volumes(of, task) for of in complete]
    columns = list(zip(*found))
    for name, values in zip(("without soft", "as many of all", "all"), columns):
        deviation = stdev(values) if len(values) > 1 else 0.0
        p = wilcoxon(values, columns[0]).pvalue if values != columns[0] else 1.0
        lines.append(f"{name}: {mean(values):.4f} +- {deviation:.4f} n={len(values)} p={p:.2g}")
    return "\n".join(lines)


def main() -> None:
    """Trains what is missing, seed by seed, and prints scores and hypervolumes."""
    parser = row_parser(__doc__, (), train=1000, epochs=5, out="fronts.jsonl")
    parser.add_argument("task", choices=list(HARD))
    parser.set_defaults(seeds=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"task": given.task, "train": given.train, "epochs": given.epochs}
    texts = (*HARD[given.task], *SOFT[given.task])
    jobs = [{"text": t, "seed": s, **settings} for s in range(given.seeds) for t in texts]
    rows = resumed(given.out, jobs, lambda job: row(job, given.root), given.minutes)
    print(summary(rows, given.task))


if __name__ == "__main__":
    run(main)
