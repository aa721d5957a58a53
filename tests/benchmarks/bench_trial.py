"""What a whole trial costs: this engine against the program that a good user of escnn writes today,
as a ratio per core.

    python tests/benchmarks/bench_trial.py [--images 8000] [--validation 2000] [--epochs 5]
        [--repeats 2] [--json FILE]
    # about a minute; costs are linear in images
    python tests/benchmarks/bench_trial.py --images 1280 --validation 256 --epochs 1

Both train the same network (P4CNN over C4, the same parameters) on MNIST with uniform rotations,
one thread, and end with the validation accuracy of every epoch, the accuracy at 8 angles and the
equivariance error of every stage. The naive program is escnn modules, torchvision transforms per
sample, a DataLoader and one forward per angle; also with a bfloat16 autocast line. Each program
runs in a fresh process of one thread and is timed by processor time, so that only this engine has
the memory settings that belong to it. They alternate A B B A; imports and downloads are not
counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import torch
import torch.nn.functional as F
from bench_step import architecture, hardware, parity
from benchmark_data import load_or_exit, run
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from torchvision.transforms import functional as TF

from searchspace.groups import IDENTITY
from support.escnn_reference import EscnnNetwork
from trainers.actions import act, act_on_fields
from trainers.data.datasets import normalise
from trainers.instruments.predictions import predict_elements
from trainers.networks.fold import scoring
from trainers.process import tune_process
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate
from trainers.training.train import start_training

BATCH, ANGLES = 128, range(0, 360, 45)
NORMAL = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
BILINEAR = transforms.InterpolationMode.BILINEAR


def naive(arguments, reduced: bool) -> dict[str, float]:
    """Seconds of each part, and the accuracies, of the program that users write today."""
    seconds, began = {}, time.process_time()

    def lap(part: str) -> None:
        nonlocal began
        seconds[part] = seconds.get(part, 0.0) + time.process_time() - began
        began = time.process_time()

    def loader(indices, steps, shuffle=False):
        images = datasets.MNIST(
            arguments.root, train=True, transform=transforms.Compose([*steps, *NORMAL])
        )
        return DataLoader(Subset(images, indices), BATCH, shuffle=shuffle)

    def accuracy(batches) -> float:
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            return (
                sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / arguments.validation
            )

    training, held_out = (
        range(arguments.images),
        range(arguments.images, arguments.images + arguments.validation),
    )
    model = EscnnNetwork(
        architecture("p4cnn", "C4", "basis"), 1, 10, initialize=True, recompute=False
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = loader(
        training, [transforms.RandomRotation(180, interpolation=BILINEAR)], shuffle=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=arguments.epochs * len(batches)
    )
    lap("build")
    for _ in range(arguments.epochs):
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
        lap("train")
        upright = accuracy(loader(held_out, []))
        lap("validation")
    by_angle = [
        accuracy(loader(held_out, [lambda image, angle=angle: TF.rotate(image, angle, BILINEAR)]))
        for angle in ANGLES
    ]
    lap("angles")
    images = next(iter(loader(held_out, [])))[0][:64]
    group = model.architecture.group
    with torch.no_grad():
        _, stages = model.forward_with_stages(images)
        for element in group.elements[1:]:
            for before, after in zip(stages, model.forward_with_stages(act(images, element))[1]):
                (after - act_on_fields(before, element, group)).abs().mean()
    lap("equivariance")
    return {
        **seconds,
        "total": sum(seconds.values()),
        "accuracy": upright,
        "symmetry_accuracy": statistics.mean(by_angle),
    }


def images_of(arguments) -> Data:
    """The images that both programs train on."""
    return Data(
        name="mnist", root=arguments.root, train=arguments.images, validation=arguments.validation
    )


def engine(arguments, filters: str, precision: str) -> dict[str, float]:
    """Processor seconds of each part, and the accuracies, of the same trial here."""
    tune_process(threads=1)
    seconds, began = {}, time.process_time()

    def lap(part: str) -> None:
        nonlocal began
        seconds[part] = seconds.get(part, 0.0) + time.process_time() - began
        began = time.process_time()

    shape = architecture("p4cnn", "C4", filters)
    data = images_of(arguments)
    training = Training(
        epochs=arguments.epochs,
        batch_size=BATCH,
        learning_rate=0.01,
        precision=precision,
        augment=Augment(rotation="uniform"),
    )
    config = TrainingConfig(data, training, Symmetry(group="C8"))
    with tempfile.TemporaryDirectory() as folder:
        splits = load_or_exit(data, shape.size)
        run = start_training(shape, config, Path(folder), splits)
        lap("build")
        for _ in range(arguments.epochs):
            run.train_epoch()
            run.save(Path(folder))
            lap("train")
            found = predict_elements(
                scoring(run.network),
                splits.validation.pixels,
                [IDENTITY],
                share_exact=False,
                normalise=partial(normalise, mean=splits.mean, std=splits.std),
            )
            upright = float((found.classes[0] == splits.validation.labels).float().mean())
            lap("validation")
        scores = evaluate(run.network, splits, config, epoch=arguments.epochs)
        lap("angles and equivariance")
    return {
        **seconds,
        "total": sum(seconds.values()),
        "accuracy": upright,
        "symmetry_accuracy": scores.symmetry_accuracy,
    }


def alone(program: str, arguments) -> dict[str, float]:
    """What `program` gives in a fresh process, as a user's own script has one: only this engine
    sets up its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(program, arguments, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _send(program: str, arguments, sender) -> None:
    torch.set_num_threads(1)
    sender.send(PROGRAMS[program](arguments))


PROGRAMS = {
    "naive": partial(naive, reduced=False),
    "naive bf16": partial(naive, reduced=True),
    "engine basis float32": partial(engine, filters="basis", precision="float32"),
    "engine free float32": partial(engine, filters="free", precision="float32"),
    "engine basis bf16": partial(engine, filters="basis", precision="bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="where torchvision's MNIST lies",
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tune_process(threads=1)
    load_or_exit(images_of(arguments), (28, 28))  # what is missing is said before anything trains
    about = hardware("cpu")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    print("parity holds:", parity("p4cnn", "C4"))
    programs = list(PROGRAMS)
    if not about["fast_bfloat16"]:
        print("bfloat16 is slow on this processor: its programs are left out")
        programs = [name for name in programs if not name.endswith("bf16")]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for repeat in range(arguments.repeats):
        for name in programs if repeat % 2 == 0 else reversed(programs):
            runs[name].append(alone(name, arguments))
            print(
                f"{name:22} "
                + "  ".join(f"{part} {value:.3g}" for part, value in runs[name][-1].items()),
                flush=True,
            )
    print(
        "\nprocessor seconds, median over repeats, and how many times faster than the naive "
        "program:"
    )
    ratios = {}
    for name, found in runs.items():
        each = [a["total"] / b["total"] for a, b in zip(runs["naive"], found)]
        ratios[name] = {"median": statistics.median(each), "low": min(each), "high": max(each)}
        print(
            f"  {name:22} {statistics.median(r['total'] for r in found):8.1f} s   "
            f"{ratios[name]['median']:.2f} ({min(each):.2f}..{max(each):.2f})"
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "about": about,
                    "images": arguments.images,
                    "validation": arguments.validation,
                    "epochs": arguments.epochs,
                    "runs": runs,
                    "times_faster": ratios,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    run(main)
