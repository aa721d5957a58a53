"""What relaxations become on MNIST's sixes against the same turned by 180 degrees, which no network
that is exact under C4 tells apart, and on rotated MNIST, where gamma of a pathway should end at 0.

    python tests/benchmarks/bench_gamma.py sixes|rotated [--seeds 3] [--root ../shared/data]

15 px, five convolutions, 2,000 training and 1,000 validation images; one line for each training:
accuracy and symmetry accuracy as trained, and with gamma set to 0 and batch norm estimated anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from benchmark_data import load_or_exit

from searchspace.recipe import Candidate
from trainers.networks.soft_weights import Pathway
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate
from trainers.training.train import start_training, train

STAGES = "15px: 6k3@C4{}, 6k3, 6k3 max3/2, 6k3, 6k3{}"
SIXES = [("", ""), ("+C1", ""), ("|C1", ""), ("b2", ""), ("~0.3", ""), ("+C1", "resilient:1")]
ROTATED = [("+C1", "dual"), ("", "")]


def row(text: str, data: Data, group: str, rotation: str, epochs: int, seed: int) -> str:
    """The scores of one training, with its pathways and without, and what was learned."""
    candidate = Candidate.parse(text)
    splits = load_or_exit(data, candidate.architecture.size)
    training = Training(
        epochs=epochs, batch_size=64, precision="float32", augment=Augment(rotation=rotation)
    )
    config = TrainingConfig(data, training, Symmetry(group=group), seed, candidate.recipe)
    with tempfile.TemporaryDirectory() as folder:
        scores = train(candidate.architecture, config, Path(folder), epochs, splits=splits)
        run = start_training(candidate.architecture, config, Path(folder), splits)
    shown = [f"seed {seed} {text}: {scores.accuracy:.3f} {scores.symmetry_accuracy:.3f}"]
    pathways = [m for m in run.network.modules() if isinstance(m, Pathway)]
    if pathways:
        with torch.no_grad():
            for pathway in pathways:
                pathway.gamma.zero_()
        run.progress = type(run.progress)(run.epoch, settled=False)
        run.settle()
        without = evaluate(run.network, splits, config, epoch=epochs)
        shown.append(f"without {without.accuracy:.3f} {without.symmetry_accuracy:.3f}")
    kinds = ("gamma", "u", "alpha", "w", "distance")
    learned = (scores.learned or {}).items()
    return "  ".join(shown + [f"{k} {v:.3f}" for k, v in learned if k.split()[0] in kinds])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["sixes", "rotated"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    sixes = given.task == "sixes"
    data = Data(
        name="mnist6_180" if sixes else "mnist", root=given.root, train=2000, validation=1000
    )
    for seed in range(given.seeds):
        for relaxation, gamma in SIXES if sixes else ROTATED:
            text = STAGES.format(relaxation, f" gamma={gamma}" if gamma else "")
            settings = ("C1", "none", 4) if sixes else ("C4", "group", 12)
            print(row(text, data, *settings, seed), flush=True)


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
