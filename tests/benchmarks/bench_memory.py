"""What a worker that trains on MNIST takes of the machine's memory, step by step.

    python tests/benchmarks/bench_memory.py [--batches 128 256] [--architectures TEXT ...]
        [--json FILE]

Each worker is a fresh process that imports what a worker imports, trains one epoch, scores, and
trains a second one. `peak` is the kernel's high-water mark of resident memory (VmHWM), in MB of 1e6
bytes; the mapped data set, which all workers share, is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

ARCHITECTURES = (
    "28px: 10k3p0@C4, 10k3p0 max2/2, 10k3p0, 10k3p0, 10k3p0, 10k3p0, 10k4p0",
    "29px: 10k3@D4, 10k3 max3/2p1, 10k3, 10k3, 10k3, 10k3, 10k4p0 loss=layerwise:1",
)


def memory(field: str) -> float:
    """A field of this process's status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e6


def worker(text: str, batch: int, root: str) -> dict[str, float]:
    """Resident memory, MB, after each step of a worker's life, and its peak."""
    found = {"python": memory("VmRSS")}
    from benchmark_data import load_or_exit

    from searchspace.recipe import Candidate
    from studies.workers.worker import run_trial  # noqa: F401  what a worker imports
    from trainers.process import tune_process
    from trainers.settings import Augment, Data, Symmetry, Training
    from trainers.training.config import TrainingConfig
    from trainers.training.train import train

    tune_process(threads=1)
    found["imports"] = memory("VmRSS")
    candidate = Candidate.parse(text)
    architecture = candidate.architecture
    data = Data(name="mnist", root=root, train=8000, validation=2000)
    splits = load_or_exit(data, architecture.size)
    found["data"] = memory("VmRSS")
    config = TrainingConfig(
        data,
        Training(epochs=2, batch_size=batch, augment=Augment(rotation="uniform")),
        Symmetry(group="D4"),
        recipe=candidate.recipe,
    )
    with tempfile.TemporaryDirectory() as folder:

        def trained(epoch: int, row: dict) -> None:
            found[f"epoch {epoch}"] = memory("VmHWM")

        for epoch in (1, 2):
            train(architecture, config, Path(folder), epoch, splits=splits, on_epoch=trained)
            found[f"scores {epoch}"] = memory("VmHWM")
    return {**found, "peak": memory("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument(
        "--root",
        default=str(ROOT.parent / "shared" / "data"),
        help="where torchvision's MNIST lies",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("TEXT", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker[0], int(arguments.worker[1]), arguments.root)))
        return
    results = []
    for text in arguments.architectures:
        for batch in arguments.batches:
            command = [
                sys.executable,
                __file__,
                "--root",
                arguments.root,
                "--worker",
                text,
                str(batch),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr.strip(), file=sys.stderr)
                raise SystemExit(done.returncode)
            results.append(
                {
                    "architecture": text,
                    "batch": batch,
                    "megabytes": json.loads(done.stdout.splitlines()[-1]),
                }
            )
            print(
                f"batch {batch}, {text}\n  "
                + "  ".join(
                    f"{name} {value:.0f}" for name, value in results[-1]["megabytes"].items()
                ),
                flush=True,
            )
    if arguments.json:
        from bench_step import hardware

        arguments.json.write_text(
            json.dumps({"about": hardware("cpu"), "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
