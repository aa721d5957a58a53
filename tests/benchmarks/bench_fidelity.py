"""Which difference from the first paper explains which gap? Trains the networks of "Using and
Abusing Equivariance" (arXiv:2308.11316) on MNIST with one difference at a time, by hand.

    python tests/benchmarks/bench_fidelity.py --root DIR [--seeds 10] [--epochs 50] [--images 8000]

Variants of the training, each alone against `baseline` (what `equisearch reproduce` does):

    dropout    a rate of 0.3 after convolutions 1, 3, 4 and 5
    std        images normalised by mean 0.1308 and standard deviation 0.0435 (inputs seven times
               larger)
    normal20   images turned by angles of N(45, 20) degrees, one for each image
    normal20b  the same with one angle for each batch

Every network is tested twice: with black corners on turned images, and with images that are turned
after they are normalised (`mean`: corners have the mean grey). Upright training has no angles, so
`normal20b` is compared with `normal20`. One JSON line per training goes to --out, where a second
call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

VARIANTS = ("baseline", "dropout", "std", "normal20", "normal20b")
RATE = 0.3  # of dropout
MEAN, STD = 0.1308, 0.0435  # of the authors' loader
CORNERS = ("black", "mean")


def one(model: str, variant: str, seed: int, arguments: argparse.Namespace) -> dict:
    """The test accuracies of one training: upright, the mean of quarter turns, the mean of 36
    angles, the worst of them, for both kinds of corners.
    """
    from benchmark_data import load_or_exit

    from studies.results.reproduce import PAPER_MODELS, with_dropout
    from trainers.process import tune_process
    from trainers.settings import Augment, Data, Normal, Symmetry, Training
    from trainers.training import step as steps
    from trainers.training.config import TrainingConfig
    from trainers.training.train import start_training, train

    tune_process(1)
    architecture = with_dropout(PAPER_MODELS[model], RATE if variant == "dropout" else 0.0)
    data = Data(
        name="mnist_t10k",
        root=arguments.root,
        train=arguments.images,
        validation=arguments.images // 4,
        test=arguments.test,
    )
    splits = load_or_exit(data, architecture.size)
    if variant == "std":
        splits = replace(splits, mean=(MEAN,), std=(STD,))
    rotation = Normal(normal=(45, 20)) if variant.startswith("normal20") else "none"
    steps.transform_images = _one_angle_per_batch if variant == "normal20b" else _transform()
    training = Training(
        epochs=arguments.epochs,
        batch_size=arguments.batch,
        optimizer="adam",
        learning_rate=0.01,
        schedule="step",
        weight_decay=1e-5,
        augment=Augment(rotation=rotation),
        device="cpu",
    )
    config = TrainingConfig(data, training, Symmetry(group="C4", angles=10), seed)
    with tempfile.TemporaryDirectory() as folder:
        train(architecture, config, Path(folder), arguments.epochs, splits=splits)
        network = start_training(architecture, config, Path(folder), splits).network
    tested = {corners: _tested(network, splits, corners) for corners in CORNERS}
    return {"model": model, "variant": variant, "seed": seed, **tested}


def _transform():
    from trainers.data.augment import transform_images

    return transform_images


def _one_angle_per_batch(images, augment, group, generator):
    import torch

    from trainers.data.augment import rotate

    mean, deviation = augment.rotation.normal
    degrees = torch.randn(1, generator=generator, dtype=torch.float64) * deviation + mean
    return rotate(images, degrees.expand(len(images)))


def _tested(network, splits, corners: str) -> list[float]:
    from trainers.data.datasets import normalise
    from trainers.instruments.accuracy import accuracy_by_angle
    from trainers.networks.fold import scoring

    test = splits.test()
    pixels = test.pixels.float() / 255
    mean = splits.mean
    if corners == "mean":  # zero, which fills them, is the mean then
        pixels, mean = pixels - mean[0], (0.0,)
    curve = accuracy_by_angle(
        scoring(network),
        pixels,
        test.labels,
        step=10,
        normalise=partial(normalise, mean=mean, std=splits.std),
    )
    values = {round(d): a.value for d, a in zip(curve.degrees, curve.accuracies)}
    quarters = [values[turn] for turn in (0, 90, 180, 270)]
    angles = list(values.values())
    return [values[0], statistics.mean(quarters), statistics.mean(angles), min(angles)]


def table(rows: list[dict]) -> str:
    """Means and standard deviations in per cent, a line for each model, variant and corners."""
    lines = [
        "| model | training | corners | n | upright | quarter turns | 36 angles | worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, variant in dict.fromkeys((row["model"], row["variant"]) for row in rows):
        members = [r for r in rows if (r["model"], r["variant"]) == (model, variant)]
        for corners in CORNERS:
            cells = []
            for values in zip(*(member[corners] for member in members)):
                spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{100 * statistics.mean(values):.2f}{spread}")
            heading = [model, variant, corners, str(len(members))]
            lines.append(f"| {' | '.join(heading + cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains what is missing, seed by seed, so that an early stop leaves whole comparisons."""
    from studies.results.reproduce import PAPER_MODELS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--out", type=Path, default=Path("fidelity.jsonl"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument(
        "--models", nargs="+", default=list(PAPER_MODELS), choices=list(PAPER_MODELS)
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    done = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    rows = [json.loads(line) for line in done]
    trained = {(row["model"], row["variant"], row["seed"]) for row in rows}
    for seed in range(1, arguments.seeds + 1):
        for model in arguments.models:
            for variant in arguments.variants:
                if (model, variant, seed) not in trained:
                    rows.append(one(model, variant, seed, arguments))
                    with arguments.out.open("a") as out:
                        out.write(json.dumps(rows[-1]) + "\n")
                    print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
