"""The merge barrier of trained networks under the mirror, beside that of two trainings: python
tests/benchmarks/bench_merging.py

Three networks of equal channels on MNIST: plain, plain trained on mirrored images too, and D1; each
is trained with two seeds. Prints one line of JSON for each.
"""

import argparse
import json
from functools import partial

from benchmark_data import load_or_exit, run, trained

from searchspace.architecture import Architecture
from searchspace.groups import Element
from trainers.data.datasets import Splits, normalise
from trainers.instruments.merging import merge_barrier
from trainers.networks.networks import Network
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training.config import TrainingConfig

NETWORKS = {
    "plain": ("28px: 16k3 max2/2, 16k3 max2/2, 16k3", False),
    "plain, mirrored images": ("28px: 16k3 max2/2, 16k3 max2/2, 16k3", True),
    "D1": ("28px: 8k3@D1 max2/2, 8k3 max2/2, 8k3", False),
}


def seeded(text: str, mirror: bool, seed: int, epochs: int, splits: Splits) -> Network:
    """The network after training with that seed."""
    training = Training(epochs=epochs, batch_size=64, device="cpu", augment=Augment(mirror=mirror))
    config = TrainingConfig(splits.data, training, Symmetry(group="D1"), seed=seed)
    return trained(Architecture.parse(text), config, splits)[0]


def main() -> None:
    """Trains, merges and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", default="../shared/data")
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--epochs", type=int, default=4)
    given = options.parse_args()
    data = Data(name="mnist", root=given.root, train=given.images, validation=1000)
    splits = load_or_exit(data, (28, 28))
    for name, (text, mirror) in NETWORKS.items():
        network, other = (seeded(text, mirror, s, given.epochs, splits) for s in (0, 1))
        found = merge_barrier(
            network,
            splits.validation.pixels[:500],
            splits.validation.labels[:500],
            Element.parse("m"),
            calibration=splits.train.pixels[:512],
            normalise=partial(normalise, mean=splits.mean, std=splits.std),
            control=other,
        )
        print(json.dumps({"network": name, **found.as_dict()}), flush=True)


if __name__ == "__main__":
    run(main)
