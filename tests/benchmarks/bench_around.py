"""What stands around the stages, on real images: coordinates that make a task solvable which an
exact network cannot solve, and an orbit average in training against one after it.

    python tests/benchmarks/bench_around.py coordinates
    python tests/benchmarks/bench_around.py orbit
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from benchmark_data import load_or_exit, run, spread, trained

from searchspace.architecture import Architecture
from searchspace.function.coordinates import COORDINATES
from searchspace.groups import Group
from trainers.data.datasets import Splits
from trainers.networks.networks import Network
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate

EXACT = "28px: 6k3@C4, 6k3 max2/2, 8k3, 8k3 max2/2, 8k3"
PLAIN = "28px: 8k3 max2/2, 12k3 max2/2, 16k3"
EPOCHS = 6


def main() -> None:
    """Prints a line for each kind of coordinates, or for each way of averaging: accuracy, and
    symmetry accuracy under C4, in percent.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("coordinates", "orbit"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    run = _coordinates if arguments.what == "coordinates" else _orbit
    run(arguments.root, range(arguments.seeds))


def _coordinates(root: Path, seeds: range) -> None:
    data = Data(name="mnist6_180", root=root, train=2000, validation=1000)
    for kind in COORDINATES:
        architecture = replace(Architecture.parse(EXACT), coordinates=kind)
        _print(kind, [_trained(architecture, data, seed)[1] for seed in seeds])


def _orbit(root: Path, seeds: range) -> None:
    data = Data(name="mnist", root=root, train=1500, validation=1000)
    plain = Architecture.parse(PLAIN)
    average = replace(plain, orbit=Group.parse("C4"))
    runs = [_trained(plain, data, seed) for seed in seeds]
    _print("plain", [pair for _, pair in runs])
    _print("averaged after training", [_averaged(average, n, data) for n, _ in runs])
    _print("averaged in training", [_trained(average, data, seed)[1] for seed in seeds])


def _config(data: Data, seed: int) -> TrainingConfig:
    training = Training(epochs=EPOCHS, batch_size=64, learning_rate=0.01, device="cpu")
    return TrainingConfig(data, training, Symmetry(group="C4"), seed=seed)


def _trained(
    architecture: Architecture, data: Data, seed: int
) -> tuple[Network, tuple[float, float]]:
    """(the trained network, its accuracy and symmetry accuracy)."""
    network, scores = trained(architecture, _config(data, seed), _splits(data, architecture))
    return network, (scores.accuracy, scores.symmetry_accuracy)


def _averaged(architecture: Architecture, network: Network, data: Data) -> tuple[float, float]:
    """The scores of a trained network averaged over the orbit of `architecture`."""
    average = Network(architecture, network.channels, network.classes)
    average.load_state_dict(network.state_dict())
    splits = _splits(data, architecture)
    scores = evaluate(average.eval(), splits, _config(data, 0), epoch=EPOCHS)
    return scores.accuracy, scores.symmetry_accuracy


def _splits(data: Data, architecture: Architecture) -> Splits:
    return load_or_exit(data, architecture.size)


def _print(what: str, pairs: list[tuple[float, float]]) -> None:
    print(f"{what:24} {'  '.join(spread(values) for values in zip(*pairs))}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
