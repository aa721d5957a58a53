"""Implicit equivariance (arXiv:2111.14157) on rotated MNIST beside what else makes a plain network
equivariant and a steerable one, at equal parameters and at equal multiply-accumulates.

    python tests/benchmarks/bench_ien.py --train 1500 --epochs 8 [--seeds 3] [--out ien.jsonl]

The networks are the paper's CNNBasic, narrower. For each training: accuracy on validation images
and on test images of rotated MNIST, on the quarter turns of the test images, on upright digits that
rotated MNIST does not train on, and for plain networks the same three where logits are averaged
over C4 after training. One line of JSON for each goes to --out, where a second call goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import numpy as np
import torch
from benchmark_data import load_or_exit, row_parser, run, spread, trained, trained_rows
from torchvision.datasets import MNIST

from searchspace.cost import cost
from searchspace.groups import Group
from searchspace.recipe import Candidate
from trainers.data.datasets import Images
from trainers.networks.networks import Network
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate

PLAIN = "28px: 8k7p1, 12k5 max2/2, 16k5, 23k5 max2/2, 24k5, 32k5p0"
WIDE = "28px: 17k7p1, 25k5 max2/2, 33k5, 50k5 max2/2, 51k5, 68k5p0"  # the MACs of P4
ROWS = {
    "plain": PLAIN,
    "augmentation": f"{PLAIN} augment=group",
    "orbit average": f"{PLAIN} orbit=C4",
    "layerwise 0.01": f"{PLAIN} loss=layerwise:0.01",
    "layerwise 0.1": f"{PLAIN} loss=layerwise:0.1",
    "layerwise 1": f"{PLAIN} loss=layerwise:1",
    "layerwise 0.1 and label 1": f"{PLAIN} loss=layerwise:0.1+label:1",
    "heterogeneous R4-2-1, 0.1": f"{PLAIN} loss=layerwise:0.1@R4-2-1",
    "P4": "28px: 5k7p1@C4, 6k5 max2/2, 8k5, 12k5 max2/2, 12k5, 15k5p0",
    "plain, MACs of P4": WIDE,
    "augmentation, MACs of P4": f"{WIDE} augment=group",
    "layerwise 0.1, MACs of P4": f"{WIDE} loss=layerwise:0.1",
}


def upright(root: Path, number: int = 2000) -> Images:
    """Digits as they are, drawn from those that `open_rotated_mnist` turns for its test split."""
    parts = [MNIST(str(root), train=train) for train in (True, False)]
    pixels, labels = (torch.cat([getattr(part, a) for part in parts]) for a in ("data", "targets"))
    chosen = np.random.default_rng(2007).permutation(len(labels))[12000 : 12000 + number]
    return Images(pixels[chosen][:, None], labels[chosen])


def row(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """The scores of one training, and what it costs."""
    candidate = Candidate.parse(ROWS[job["row"]])
    architecture = candidate.architecture
    data = Data(name="rotated_mnist", root=root, train=job["train"], validation=500, test=2000)
    training = Training(
        epochs=job["epochs"],
        batch_size=64,
        learning_rate=0.005,
        weight_decay=1e-7,
        equivariance_batch=1.0,
        precision="float32",
        device="cpu",
    )
    splits = load_or_exit(data, architecture.size)
    config = TrainingConfig(data, training, Symmetry(group="C4"), job["seed"], candidate.recipe)
    network, scores = trained(architecture, config, splits)
    test, as_they_are = splits.test(), upright(root)

    def tested(network: Network) -> list[float]:
        found, other = (
            evaluate(network.eval(), splits, config, epoch=job["epochs"], images=images)
            for images in (test, as_they_are)
        )
        return [found.accuracy, found.symmetry_accuracy, other.accuracy]

    result = {"validation": scores.accuracy, "test": tested(network)}
    if architecture.stages[0].group.order == 1 and architecture.orbit.order == 1:
        average = replace(architecture, orbit=Group.parse("C4"))
        averaged = Network(average, network.channels, network.classes)
        averaged.load_state_dict(network.state_dict())
        result["averaged"] = tested(averaged)
    price = cost(architecture)
    return {**result, "params": price.params, "macs": price.macs, "seconds": scores.seconds}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds, in per cent, a line for each row."""
    lines = []
    for name in ROWS:
        of = [row for row in rows if row["row"] == name]
        if not of:
            continue
        columns = [[row["validation"] for row in of], *zip(*(row["test"] for row in of))]
        if "averaged" in of[0]:
            columns += [[row["averaged"][i] for row in of] for i in (0, 2)]
        figures = " | ".join(map(spread, columns))
        price = f"{of[0]['params']} | {of[0]['macs'] / 1e6:.1f}M"
        lines.append(f"| {name} | {len(of)} | {price} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Trains what is missing, seed by seed, and prints the table."""
    parser = row_parser(__doc__, ROWS, train=10000, epochs=30, out="ien.jsonl")
    given = parser.parse_args()
    print(table(trained_rows(given, given.rows, row)))


if __name__ == "__main__":
    run(main)
