"""Everything that only a GPU can show, in one run: parity with the CPU, steps with and without CUDA
graphs, how many trials share one GPU best, a search with two trainings at once, and an export.

    python tests/benchmarks/bench_gpu.py --root DIR --out OUT [--seconds 480]
    # the same sections on a CPU, a tenth as long: whether the program itself works
    python tests/benchmarks/bench_gpu.py --root DIR --out OUT --device cpu

Needs neither Ray nor the network: gpu_requirements.txt lists the packages that a machine with torch
lacks. `--root` is a folder with torchvision's MNIST (the test images are enough). Each section runs
in a process of its own with a share of the time; one that fails or runs out of time does not end
the others. OUT holds each section's output, what it measured as JSON, and summary.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(HERE)]

NETWORKS = (
    "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0",
    "17px: 6k3@D4, 5k3 max3/2p1, 5k3, 5k3 max3/2p1, 6k3",
    "28px: 4k5@D8, 4k5 max2/2, 4k3 avg2/2, 4k3 head=group_mean",
    "33px: 8k3@C4, 8k3x2r, 8k3s2x2r, 16k3s2x2r",
    "28px: 8k3@D4, 8k3 max2/2, 8k3@D1, 8k3",
    "28px: 8k3@C4+C1, 8k3 max2/2, 8k3, 8k3",
    "28px: 8k3@D4|C4|C1, 8k3 max2/2, 8k3, 8k3",
    "28px: 8k3@C4b2, 8k3 max2/2, 8k3, 8k3",
    "28px: 8k3@C4~0.3, 8k3 max2/2, 8k3, 8k3",
    "28px: 16k3, 16k3 max2/2, 16k3 orbit=C4",
    "28px: 10k3@C4, 10k3 max2/2 & 10k3@D1, 10k3 max2/2",
)


@dataclass(frozen=True)
class Section:
    """One program of the run."""

    name: str
    command: list[str]
    share: float  # of the time


def sections(arguments: argparse.Namespace) -> list[Section]:
    """What is run, in order: the cheapest evidence first."""
    gpu = arguments.device != "cpu"
    out, device = arguments.out, arguments.device
    step = ["--rounds", "5" if gpu else "1", "--batch", "128" if gpu else "16", "--device", device]
    groups = ["C4", "D4", "C8", "D8"] if gpu else ["C4"]
    packing = ["--workers", *(["1", "2", "4", "8"] if gpu else ["1", "2"]), "--repeats", "1"]
    seconds = ["--seconds", "12" if gpu else "3", "--threads", "1", "--data", "mnist_t10k"]
    seconds += ["--images", "2000" if gpu else "128", "--validation", "500" if gpu else "128"]
    root = ["--root", str(arguments.root)]
    here = str(HERE / "bench_gpu.py")
    return [
        Section("parity", [here, "--section", "parity", "--device", device], 0.15),
        Section(
            "steps",
            [str(HERE / "bench_step.py"), *step, "--groups", *groups]
            + ["--json", str(out / "steps.json")],
            0.35,
        ),
        Section(
            "packing",
            [str(HERE / "bench_packing.py"), *packing, *seconds, *root, "--device", device]
            + ["--json", str(out / "packing.json")],
            0.25,
        ),
        Section("search", [here, "--section", "search", "--device", device]
                + ["--out", str(out)], 0.25),
    ]  # fmt: skip


def run_section(section: Section, arguments: argparse.Namespace) -> dict:
    """Runs a section within its share of the time and says how it ended."""
    limit = section.share * arguments.seconds
    began = time.perf_counter()
    log = arguments.out / f"{section.name}.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *section.command], cwd=ROOT, env=environment, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            status = "out of time"
    tail = log.read_text(errors="replace").splitlines()[-25:]
    took = round(time.perf_counter() - began, 1)
    print(f"== {section.name}: status {status} after {took} s", *tail, sep="\n", flush=True)
    return {"section": section.name, "status": status, "seconds": took}


def parity(device: str) -> int:
    """Compares each network's logits, gradients and invariance on the device with the CPU's; the
    number of networks that differ.
    """
    import torch

    from searchspace.architecture import Architecture
    from trainers.networks.networks import build

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failed = 0
    for text in NETWORKS:
        shape = Architecture.parse(text)
        torch.manual_seed(0)
        network = build(shape, channels=1, classes=10)
        images = torch.rand(4, 1, *shape.size)
        errors = {}
        for kind, limit in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
            expected = _outputs(network.to("cpu", kind), images.to(kind))
            got = _outputs(network.to(device, kind), images.to(device, kind))
            errors[str(kind)[6:]] = max(
                float((a.cpu() - b).abs().max() / (b.abs().max() + 1e-12))
                for a, b in zip(got, expected)
            )
            failed += errors[str(kind)[6:]] > limit
        values = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"{text}\n    largest relative difference: {values}")
    print(f"{len(NETWORKS)} networks, {failed} comparisons beyond the limits (1e-9, 1e-3)")
    return failed


def _outputs(network, images) -> list:
    """Logits and the gradients of their squares' sum."""
    import torch

    network.eval()
    network.zero_grad(set_to_none=True)
    logits = network(images)
    logits.square().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [logits.detach(), torch.cat([g.flatten() for g in gradients])]


def search(device: str, out: Path) -> int:
    """Two searches at once, so that two trainings share the GPU; then the front of the first, and
    its best network in all formats, verified. The number of commands that failed.
    """
    trials, epochs = ("16", "8") if device != "cpu" else ("3", "2")
    program = [sys.executable, "-m", "studies.cli.main"]
    settings = [f"training.device={device}", f"training.epochs={epochs}", "controls=none"]
    settings += ["resources.executor=in_process", "search.rungs=[1]"]
    options = [part for setting in settings for part in ("--set", setting)]
    began = time.perf_counter()
    studies = [out / f"study{seed}" for seed in (0, 1)]
    running = [
        subprocess.Popen(
            [*program, "start", "quickstart", str(directory), "--trials", trials, "--no-probe"]
            + [*options, "--set", f"search.seed={seed}"]
        )
        for seed, directory in enumerate(studies)
    ]
    failed = sum(process.wait() != 0 for process in running)
    print(f"two searches of {trials} trials at once: {time.perf_counter() - began:.1f} s")
    if failed:
        return failed
    bundle = str(out / "bundle")
    first = str(studies[0])
    for command in (
        ["front", first],
        ["export", first, _best(first), "--out", bundle],
        ["verify", bundle, "--run-code"],
    ):
        failed += subprocess.run([*program, *command]).returncode != 0
    return failed


def _best(directory: str) -> str:
    """The number of the front's most accurate trial."""
    program = [sys.executable, "-m", "studies.cli.main"]
    command = [*program, "front", directory, "--best", "accuracy", "--format", "json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    row = rows[0] if isinstance(rows, list) else rows
    return str(row.get("trial", row.get("number")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=480, help="of all sections together")
    parser.add_argument("--section", choices=("parity", "search"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section == "parity":
        sys.exit(min(parity(arguments.device), 1))
    if arguments.section == "search":
        sys.exit(min(search(arguments.device, arguments.out), 1))
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU: torch.cuda.is_available() is false; --device cpu tries the rest")
    arguments.out.mkdir(parents=True, exist_ok=True)
    from bench_step import hardware

    about = hardware(arguments.device)
    print(about, flush=True)
    endings = [run_section(section, arguments) for section in sections(arguments)]
    summary = {"about": about, "sections": endings}
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    sys.exit(any(ending["status"] != 0 for ending in endings))


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
