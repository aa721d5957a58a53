"""What relaxations become on MNIST's sixes against the same turned by 180 degrees, which no network
that is exact under C4 tells apart, and on rotated MNIST, where gamma of a pathway should end at 0.

    python tests/benchmarks/bench_gamma.py sixes|rotated [--seeds 3] [--out gamma.jsonl]

15 px, five convolutions, 2,000 training and 1,000 validation images; accuracy and symmetry accuracy
as trained, and with gamma set to 0 and batch norm estimated anew. One line of JSON for each
training goes to --out, where a second call goes on; then a line of a table for each network, and
what was learned of each of its layers, means and standard deviations over seeds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from benchmark_data import load_or_exit, row_parser, run, trained_rows

from searchspace.recipe import Candidate
from trainers.networks.soft_weights import Pathway
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate
from trainers.training.train import start_training, train

STAGES = "15px: 6k3@C4{}, 6k3, 6k3 max3/2, 6k3, 6k3{}"
RELAXATIONS = {
    "sixes": [("", ""), ("+C1", ""), ("|C1", ""), ("b2", ""), ("~0.3", ""), ("+C1", "resilient:1")],
    "rotated": [("+C1", "dual"), ("", "")],
}
ROWS = {
    task: [
        f"{task} " + STAGES.format(soft, f" gamma={gamma}" if gamma else "") for soft, gamma in of
    ]
    for task, of in RELAXATIONS.items()
}
EPOCHS = {"sixes": 4, "rotated": 12}


def result(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """The scores of one training, with its pathways and without, and what was learned."""
    task, _, text = job["row"].partition(" ")
    candidate = Candidate.parse(text)
    name, group, rotation = {
        "sixes": ("mnist6_180", "C1", "none"),
        "rotated": ("mnist", "C4", "group"),
    }[task]
    data = Data(name=name, root=root, train=job["train"], validation=1000)
    splits = load_or_exit(data, candidate.architecture.size)
    training = Training(
        epochs=job["epochs"], batch_size=64, precision="float32", augment=Augment(rotation=rotation)
    )
    config = TrainingConfig(data, training, Symmetry(group=group), job["seed"], candidate.recipe)
    with tempfile.TemporaryDirectory() as folder:
        scores = train(candidate.architecture, config, Path(folder), job["epochs"], splits=splits)
        run = start_training(candidate.architecture, config, Path(folder), splits)
    found = {"scores": [scores.accuracy, scores.symmetry_accuracy]}
    pathways = [m for m in run.network.modules() if isinstance(m, Pathway)]
    if pathways:
        with torch.no_grad():
            for pathway in pathways:
                pathway.gamma.zero_()
        run.progress = type(run.progress)(run.epoch, settled=False)
        run.settle()
        without = evaluate(run.network, splits, config, epoch=job["epochs"])
        found["without"] = [without.accuracy, without.symmetry_accuracy]
    return {**found, "learned": scores.learned}


def by_seed(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Accuracy (symmetry accuracy) of each seed, in per cent."""
    of = [row[name] for row in rows if name in row]
    return ", ".join(f"{100 * a:.1f} ({100 * s:.1f})" for a, s in of)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each network: scores by seed, without the pathway, and the lowest and highest of
    what was learned over its convolutions and seeds.
    """
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        of = [row for row in rows if row["row"] == name]
        learned = [item for row in of for item in (row["learned"] or {}).items()]
        kinds = dict.fromkeys(key.split(" stage")[0] for key, _ in learned)
        values = {k: [v for key, v in learned if key.split(" stage")[0] == k] for k in kinds}
        beside = ", ".join(f"{k} {min(v):.4f} to {max(v):.4f}" for k, v in values.items())
        figures = " | ".join(by_seed(of, column) for column in ("scores", "without"))
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {len(of)} | {figures} | {beside} |")
    return "\n".join(lines)


def readings(rows: Sequence[dict[str, Any]]) -> str:
    """Of each network and kind of reading, a line with its values from the first convolution to
    the last.
    """
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        learned = [row["learned"] or {} for row in rows if row["row"] == name]
        for kind in dict.fromkeys(key.split(" stage")[0] for key in learned[0]):
            layers = [key for key in learned[0] if key.split(" stage")[0] == kind]
            values = [[of[layer] for of in learned] for layer in layers]
            deviations = [stdev(v) if len(v) > 1 else 0.0 for v in values]
            figures = ", ".join(f"{mean(v):.3f} ± {d:.3f}" for v, d in zip(values, deviations))
            lines.append(f"{name}: {kind}: {figures}")
    return "\n".join(lines)


def main() -> None:
    """Trains what is missing, seed by seed, and prints the table."""
    parser = row_parser(__doc__, (), train=2000, epochs=0, out="gamma.jsonl")
    parser.add_argument("task", choices=list(ROWS))
    given = parser.parse_args()
    given.epochs = given.epochs or EPOCHS[given.task]
    rows = trained_rows(given, ROWS[given.task], result)
    print(table(rows), readings(rows), sep="\n\n")


if __name__ == "__main__":
    run(main)
