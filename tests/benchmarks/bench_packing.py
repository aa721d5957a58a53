"""How many trainings at once: trials per hour for every way of sharing a machine, as a share of the
best one found.

    python tests/benchmarks/bench_packing.py [--seconds 40] [--repeats 3] [--json FILE]
    # on one GPU; its busy share is read from nvidia-smi
    python tests/benchmarks/bench_packing.py --device cuda --workers 1 2 4 8

Each way starts its workers, lets each train once to warm up, and then counts epochs that all of
them finish in the given time, the evaluation at the end and checkpoints included; an hour's trials
are an hour's epochs over the epochs of a trial. Ways alternate in reversed order every other
repeat. `auto` is what `workers: auto` takes on this machine, and is measured as one of the ways.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

P4CNN = "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0"
EPOCHS = 5  # of a trial
Way = tuple[int, int]  # workers, threads of each


class Stopped(Exception):
    """The time is over."""


def worker(way: Way, arguments: argparse.Namespace, seed: int, ready, go, stop, epochs) -> None:
    """Trains one trial after the other until told to stop, and counts finished epochs."""
    from benchmark_data import load_or_exit

    from searchspace.architecture import Architecture
    from trainers.process import tune_process
    from trainers.settings import Data, Symmetry, Training
    from trainers.training.config import TrainingConfig
    from trainers.training.train import train

    tune_process(way[1])
    data = Data(
        name=arguments.data,
        root=arguments.root,
        train=arguments.images,
        validation=arguments.validation,
    )
    training = Training(epochs=EPOCHS, batch_size=128, learning_rate=0.01, device=arguments.device)
    architecture = Architecture.parse(arguments.architecture)
    splits = load_or_exit(data, architecture.size)

    def trial(number: int, until: int) -> None:
        def count(epoch, row) -> None:
            if stop.is_set():
                raise Stopped
            if go.is_set():
                with epochs.get_lock():
                    epochs.value += 1

        config = TrainingConfig(data, training, Symmetry(group="C4"), seed=number)
        with tempfile.TemporaryDirectory() as folder, suppress(Stopped):
            train(architecture, config, Path(folder), until, splits=splits, on_epoch=count)

    trial(seed, 1)
    ready.release()
    go.wait()
    while not stop.is_set():
        seed += 1000
        trial(seed, EPOCHS)


def epochs_per_second(way: Way, arguments: argparse.Namespace) -> tuple[float, float]:
    """(epochs a second of all workers together, mean share of the time that the GPU was busy, 0
    without one).
    """
    context = multiprocessing.get_context("spawn")
    ready, go, stop, epochs = (
        context.Semaphore(0),
        context.Event(),
        context.Event(),
        context.Value("l", 0),
    )
    workers = [
        context.Process(target=worker, args=(way, arguments, seed, ready, go, stop, epochs))
        for seed in range(way[0])
    ]
    for process in workers:
        process.start()
    for process in workers:
        while not ready.acquire(timeout=1):
            if not process.is_alive():
                sys.exit(process.exitcode or 1)  # it said why
    busy: list[float] = []
    began = time.perf_counter()
    go.set()
    watcher = threading.Thread(target=_watch, args=(busy, began + arguments.seconds), daemon=True)
    if arguments.device.startswith("cuda"):
        watcher.start()
    time.sleep(arguments.seconds)
    count, seconds = epochs.value, time.perf_counter() - began
    stop.set()
    for process in workers:
        process.join()
    return count / seconds, statistics.mean(busy) / 100 if busy else 0.0


def _watch(busy: list[float], until: float) -> None:
    while time.perf_counter() < until:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
        )
        if answer.returncode == 0:
            busy.append(float(answer.stdout.split()[0]))
        time.sleep(0.5)


def main() -> None:
    from bench_step import hardware

    from trainers.cores import available_cores

    cores = available_cores()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of counting, for each way and repeat"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=sorted({1, max(1, cores // 2), cores, 2 * cores})
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--architecture", default=P4CNN)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="where torchvision's MNIST lies",
    )
    parser.add_argument("--data", default="mnist", choices=("mnist", "mnist_t10k"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    automatic: Way = (cores, 1)
    ways = [
        (w, t)
        for w in arguments.workers
        for t in (arguments.threads if arguments.device == "cpu" else [1])
        if w * t <= 2 * cores or t == 1
    ]
    ways = list(dict.fromkeys([*ways, *([automatic] if arguments.device == "cpu" else [])]))
    about = hardware(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    rates: dict[Way, list[float]] = {way: [] for way in ways}
    shares: dict[Way, list[float]] = {way: [] for way in ways}
    for repeat in range(arguments.repeats):
        for way in ways if repeat % 2 == 0 else reversed(ways):
            rate, busy = epochs_per_second(way, arguments)
            print(
                f"{way[0]} workers of {way[1]} threads: {rate:.3f} epochs a second",
                file=sys.stderr,
                flush=True,
            )
            rates[way].append(rate)
            shares[way].append(busy)
    best = max(ways, key=lambda way: statistics.median(rates[way]))
    rows = []
    print(
        f"\n{arguments.images} training images an epoch, {EPOCHS} epochs a trial; median over "
        f"{arguments.repeats} repeats (lowest .. highest)"
    )
    for way in ways:
        hour = [3600 * rate / EPOCHS for rate in rates[way]]
        share = statistics.median(rates[way]) / statistics.median(rates[best])
        rows.append(
            {
                "workers": way[0],
                "threads": way[1],
                "trials_per_hour": statistics.median(hour),
                "low": min(hour),
                "high": max(hour),
                "share_of_best": share,
                "busy": statistics.median(shares[way]),
            }
        )
        note = "   <- workers: auto" if way == automatic and arguments.device == "cpu" else ""
        busy = f"   GPU busy {statistics.median(shares[way]):.0%}" if any(shares[way]) else ""
        print(
            f"  {way[0]} workers of {way[1]} threads  {statistics.median(hour):8.1f} trials an "
            f"hour ({min(hour):.1f} .. {max(hour):.1f})   "
            f"{share:.0%} of the best{busy}{note}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "ways": rows}, indent=1) + "\n")


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
