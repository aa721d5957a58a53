"""Do two ways of training end with the same scores? Trains both with the same seeds and prints
paired differences.

    # equivariance loss on a fifth of a batch, or on all of it
    python tests/benchmarks/bench_scores.py estimator [--data mnist] [--seeds 5]
    # bfloat16, or float32
    python tests/benchmarks/bench_scores.py precision [--data digits] [--seeds 5]

Each seed has its own split, weights and order: with one split for all, a few of its images would
decide in all pairs alike. A difference is "within noise" where the 95 % interval of its mean over
seeds (paired, Student's t) holds zero; the interval itself says how large a difference could have
been missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

SIZES = {"mnist": "28px", "digits": "16px"}
COMPARED = {
    "estimator": (
        {"equivariance_batch": 0.2},
        {"equivariance_batch": 1.0},
        "{size}: 20k3, 20k3 max2/2, 20k3, 20k3, 20k3 loss=layerwise:{weight}",
    ),
    "precision": (
        {"precision": "bfloat16"},
        {"precision": "float32"},
        "{size}: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3",
    ),
}
SHOWN = (
    "accuracy",
    "symmetry_accuracy",
    "equivariance_error",
    "equivariance_error_features",
    "seconds",
)


def one(architecture: str, options: dict, data: dict, epochs: int, seed: int) -> dict[str, float]:
    """The validation scores of one training."""
    from searchspace.architecture import Architecture
    from searchspace.recipe import Candidate
    from trainers.process import tune_process
    from trainers.settings import Data, Symmetry, Training
    from trainers.training.config import TrainingConfig
    from trainers.training.train import train

    tune_process(1)
    config = TrainingConfig(
        Data(**data, seed=seed),
        Training(epochs=epochs, batch_size=64, learning_rate=0.01, **options),
        Symmetry(group="C4"),
        seed=seed,
        recipe=Candidate.parse(architecture).recipe,
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(Architecture.parse(architecture), config, Path(folder), epochs).as_dict()


def paired(first: list[float], second: list[float]) -> dict[str, float]:
    """Means of both, and the mean difference with its 95 % interval."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(first, second)]
    mean, n = statistics.mean(differences), len(differences)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return {
        "first": statistics.mean(first),
        "second": statistics.mean(second),
        "spread": statistics.stdev(second),
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "n": n,
    }


def main() -> None:
    from bench_step import hardware
    from benchmark_data import load_or_exit

    from trainers.settings import Data

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("compare", choices=sorted(COMPARED))
    parser.add_argument("--data", choices=sorted(SIZES), default="mnist")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weight", type=float, default=0.3, help="of the equivariance loss")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="where torchvision's MNIST lies",
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be 2 or more: a difference without a spread says nothing")
    data = (
        {"name": "digits"}
        if arguments.data == "digits"
        else {
            "name": "mnist",
            "root": arguments.root,
            "train": arguments.images,
            "validation": 1000,
        }
    )
    first, second, text = COMPARED[arguments.compare]
    architecture = text.format(size=SIZES[arguments.data], weight=arguments.weight)
    load_or_exit(Data(**data), (16, 16))  # what is missing is said before anything trains
    about = hardware("cpu")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    print(
        f"{architecture} on {arguments.data}, {arguments.epochs} epochs, {arguments.seeds} "
        f"seeds: {first} against {second}"
    )
    with ProcessPoolExecutor(
        arguments.workers, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        futures = [
            [
                pool.submit(one, architecture, options, data, arguments.epochs, seed)
                for options in (first, second)
            ]
            for seed in range(arguments.seeds)
        ]
        runs = [[future.result() for future in pair] for pair in futures]
    rows = {
        name: paired(*([pair[side][name] for pair in runs] for side in (0, 1))) for name in SHOWN
    }
    for name, row in rows.items():
        verdict = (
            ""
            if name == "seconds"
            else "within noise"
            if row["low"] <= 0 <= row["high"]
            else "DIFFERENT"
        )
        print(
            f"  {name:28} {row['first']:.4f} against {row['second']:.4f} ± {row['spread']:.4f}  "
            f" difference {row['difference']:+.4f} "
            f"(95 % {row['low']:+.4f} .. {row['high']:+.4f})  {verdict}"
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "about": about,
                    "architecture": architecture,
                    "data": arguments.data,
                    "epochs": arguments.epochs,
                    "compared": [first, second],
                    "scores": rows,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
