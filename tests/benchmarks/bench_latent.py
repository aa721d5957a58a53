"""The latent loss with and without a head that takes the maximum over blocks of channels: accuracy
on upright images and over the quarter turns that training has not seen.

    python tests/benchmarks/bench_latent.py --epochs 15 --train 2000 --share 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark_data import load_or_exit, run, spread, trained

from searchspace.recipe import Candidate
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig

NETWORK = "14px: 12k3, 16k3 max2/2, 32k3"
HEADS = ("none", "block_max:C4")


def main() -> None:
    """Prints one line for each head and weight: mean and standard deviation over seeds, percent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.2, help="of a batch, for the loss")
    parser.add_argument("--weights", type=float, nargs="+", default=(0, 1, 3, 10))
    parser.add_argument("--heads", nargs="+", default=HEADS)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    data = Data(name="mnist", root=arguments.root, train=arguments.train, validation=1000)
    training = Training(
        epochs=arguments.epochs,
        batch_size=64,
        equivariance_batch=arguments.share,
        device="cpu",
    )
    splits = load_or_exit(data, (14, 14))
    for head in arguments.heads:
        for weight in arguments.weights:
            candidate = Candidate.parse(f"{NETWORK} head={head} loss=latent:{weight}")
            upright, turned = [], []
            for seed in range(arguments.seeds):
                config = TrainingConfig(data, training, Symmetry(), seed, candidate.recipe)
                _, scores = trained(candidate.architecture, config, splits)
                upright.append(scores.accuracy)
                turned.append(scores.symmetry_accuracy)
            print(f"{head:14} {weight:4g}  {spread(upright)}  {spread(turned)}", flush=True)


if __name__ == "__main__":
    run(main)
