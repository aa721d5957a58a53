"""What a training step costs: this engine against escnn and against a plain CNN of the same
channels, as ratios.

    python tests/benchmarks/bench_step.py [--rounds 9] [--groups C4 D8]
        [--networks p4cnn residual] [--json FILE]
    # parity in full, few and small timings: for CI, fails on parity only
    python tests/benchmarks/bench_step.py --short

The variants run in turn in one process set up as a training worker (one thread, memory kept), in
reversed order every other round; each ratio is the median over rounds of (variant / reference in
the same round), with quartiles. No speed is printed before parity with escnn and exactness hold,
and parity of every kind of layer in bfloat16 with float64. All take the same optimizer, Adam in one
fused call. On a CPU "basis, torch's" is the step with torch's convolutions instead of those in the
Fourier basis of the group or in Winograd's form. The step with an equivariance loss (layerwise, on
a fifth of the batch) is compared with the same step without.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
import torch.nn.functional as F
from torch import nn

from searchspace.architecture import Architecture
from searchspace.recipe import Loss, Recipe
from support import reduced_precision
from support.escnn_reference import EscnnNetwork, copy_to_escnn
from trainers.actions import act
from trainers.data.datasets import normaliser
from trainers.devices import wait
from trainers.networks import bases
from trainers.networks.convolution import channels_last
from trainers.networks.kernels import fourier, winograd
from trainers.networks.networks import build
from trainers.precision import fast_bfloat16
from trainers.process import tune_process
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.cuda_graph import WARM_UP_STEPS, GraphedStep
from trainers.training.step import TrainingStep

CLASSES = 10
FIELDS = {"C4": 10, "D4": 7, "C8": 7, "D8": 4}  # 40, 56, 56 and 64 channels
# fields of the residual network's first stage: 32 channels
WIDTHS = {"C4": 8, "D4": 4, "C8": 4, "D8": 2}
NETWORKS = ("p4cnn", "residual")


def architecture(network: str, group: str, filters: str) -> Architecture:
    """The shape of P4CNN (arXiv:1602.07576) on 28x28, or a residual network of 13 convolutions on
    33x33.
    """
    if network == "p4cnn":
        n = FIELDS[group]
        text = f"28px: {n}k3p0@{group}, {n}k3p0 max2/2, {n}k3p0, {n}k3p0, {n}k3p0, {n}k3p0, {n}k4p0"
    else:
        n = WIDTHS[group]
        text = f"33px: {n}k3@{group}, {n}k3x2r, {2 * n}k3s2x2r, {4 * n}k3s2x2r"
    return Architecture.parse(f"{text} filters={filters}")


class PlainFloor(nn.Module):
    """The plain CNN of the same channels: Conv2d, BatchNorm2d and ReLU in place, channels-last
    throughout.
    """

    def __init__(self, shape: Architecture, channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in shape.stages:
            parts, width = [], stage.channels
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                block = [
                    self.conv(channels, width, stage.kernel, stride, stage.padding[0]),
                    nn.BatchNorm2d(width),
                    nn.ReLU(True),
                ]
                if stage.residual:
                    block += [
                        self.conv(width, width, stage.kernel, 1, stage.padding[0]),
                        nn.BatchNorm2d(width),
                    ]
                    skip = (
                        nn.Identity()
                        if (channels, stride) == (width, 1)
                        else nn.Sequential(
                            self.conv(channels, width, 1, stride, 0), nn.BatchNorm2d(width)
                        )
                    )
                    parts.append(nn.ModuleList([nn.Sequential(*block), skip]))
                else:
                    parts.append(nn.Sequential(*block))
                channels = width
            if stage.subsampling:
                parts.append(nn.MaxPool2d(stage.subsampling.kernel, stage.subsampling.stride))
            self.stages.extend(parts)
        self.linear = nn.Linear(channels, CLASSES)
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def conv(into: int, out: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
        return nn.Conv2d(into, out, kernel, stride=stride, padding=padding, bias=False)

    def forward(self, images):
        maps = channels_last(images)
        for part in self.stages:
            maps = (
                F.relu(part[0](maps) + part[1](maps))
                if isinstance(part, nn.ModuleList)
                else part(maps)
            )
        return self.linear(maps.mean((2, 3)).float())


def relative(a, b) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def parity(network: str, group: str) -> dict[str, float]:
    """The errors that must be small before any speed counts. Raises SystemExit where one is not."""
    shape = architecture(network, group, "basis")
    channels = 1 if network == "p4cnn" else 3
    images = torch.randn(
        8, channels, *shape.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    mine, theirs = (
        build(shape, channels=channels, classes=CLASSES),
        EscnnNetwork(shape, channels, CLASSES),
    )
    copy_to_escnn(mine, theirs)
    errors = {"outputs_float32": relative(mine(images.float()), theirs(images.float()))}

    # escnn's float32 samples as they are, for float64 parity
    exact_on_grid = bases.exact_on_grid
    bases.exact_on_grid = lambda kernels, group: kernels
    bases.basis.cache_clear()
    mine, theirs = build(shape, channels=channels, classes=CLASSES).double(), theirs.double()
    bases.exact_on_grid = exact_on_grid
    bases.basis.cache_clear()
    copy_to_escnn(mine, theirs)
    outputs = mine(images), theirs(images)
    for output in outputs:
        output.square().sum().backward()
    errors["outputs_float64"] = relative(*outputs)
    errors["gradients_float64"] = max(
        relative(a.filters.grad.flatten(), b.weights.grad)
        for a, (b, _) in zip(mine.convolutions, theirs.parts())
    )

    kinds = ("basis", "free") if shape.group.on_grid else ("basis",)
    for filters in kinds:
        mine = build(
            architecture(network, group, filters), channels=channels, classes=CLASSES
        ).eval()
        logits = mine(images.float())
        errors[f"exactness_{filters}_float32"] = max(
            relative(mine(act(images.float(), g)), logits) for g in shape.group.grid.elements
        )
    limits = {"outputs_float32": 1e-5, "outputs_float64": 1e-10, "gradients_float64": 1e-10}
    bad = {name: error for name, error in errors.items() if not error < limits.get(name, 1e-5)}
    if bad:
        raise SystemExit(
            f"parity of {network} over {group} does not hold: {bad}; no speed is measured"
        )
    return errors


def parity_in_bfloat16() -> dict[str, float]:
    """The gradient's error of every kind of layer, pathways and other relaxed weights included.
    Raises SystemExit where an error is larger than rounding explains.
    """
    found = {kind: reduced_precision.errors(text) for kind, text in reduced_precision.KINDS.items()}
    wrong = {kind: error for kind, error in found.items() if reduced_precision.bad(error)}
    if wrong:
        raise SystemExit(f"parity in bfloat16 does not hold: {wrong}; no speed is measured")
    return {kind: error["gradients"] for kind, error in found.items()}


def variants(network: str, group: str, device: str) -> dict[str, tuple[nn.Module, bool]]:
    """Name -> (network in training mode, whether it runs under bfloat16 autocast)."""
    channels = 1 if network == "p4cnn" else 3
    shape = architecture(network, group, "basis")
    found = {"escnn": (EscnnNetwork(shape, channels, CLASSES, initialize=True), False)}
    found["escnn bf16"] = (found["escnn"][0], True)
    found["plain"] = (PlainFloor(shape, channels), False)
    found["plain bf16"] = (found["plain"][0], True)
    for filters in ("free", "basis") if shape.group.on_grid else ("basis",):
        found[filters] = (
            build(architecture(network, group, filters), channels=channels, classes=CLASSES),
            False,
        )
        found[f"{filters} bf16"] = (found[filters][0], True)
    return {name: (module.to(device).train(), reduced) for name, (module, reduced) in found.items()}


@dataclass(frozen=True)
class _Step:
    """A training step of any module."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    reduced: bool  # in bfloat16

    def __call__(self, pixels, classes):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.reduced):
            logits = self.network(pixels)
        loss = F.cross_entropy(logits.float(), classes)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def stepper(module: nn.Module, reduced: bool, images, labels, graph: bool = False):
    """A function that makes one training step and waits for it, with `graph` replayed from a CUDA
    graph as `trainers.training.train` does.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    step = GraphedStep(_Step(module, optimizer, reduced), len(images), cuda_graph=graph)

    def run() -> None:
        step(images, labels, 1e-3)
        wait(images.device)

    if graph:
        for _ in range(WARM_UP_STEPS + 1):
            run()
        if not step.replays:
            print("  a step is not replayed from a graph, and counts as it is", file=sys.stderr)
    return run


def loss_stepper(network: str, group: str, kind: str, images, labels):
    """A training step of the basis network with an equivariance loss of `kind`, or none, as
    `trainers.training.step` makes it.
    """
    shape, recipe = architecture(network, group, "basis"), Recipe((Loss(kind, 1.0),))
    module = build(shape, channels=images.shape[1], classes=CLASSES).to(images.device).train()
    training = Training(precision="float32", learning_rate=1e-3, weight_decay=0)
    config = TrainingConfig(Data(name="mnist"), training, Symmetry(group=group), recipe=recipe)
    normal = normaliser((0.0,) * images.shape[1], (1.0,) * images.shape[1], images.device)
    step = TrainingStep.of(module, shape, config, normal)

    def run() -> None:
        step(images, labels)
        wait(images.device)

    return run


def with_torchs(step):
    """The step with convolutions by torch, where the engine's are made in the Fourier basis of the
    group or in Winograd's form.
    """

    def run() -> None:
        libraries = fourier.fourier_library, winograd.winograd_library
        fourier.fourier_library = winograd.winograd_library = lambda: None
        try:
            step()
        finally:
            fourier.fourier_library, winograd.winograd_library = libraries

    return run


def measure(steps: dict, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall seconds, processor seconds) of every variant in every round."""
    for step in steps.values():
        step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
            wall, processor = time.perf_counter(), time.process_time()
            steps[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return times


def ratio(times, name: str, reference: str) -> dict[str, float]:
    """Median and quartiles over rounds of `name` / `reference`, and the same median of processor
    time.
    """
    wall = [a[0] / b[0] for a, b in zip(times[name], times[reference])]
    processor = [a[1] / b[1] for a, b in zip(times[name], times[reference])]
    low, middle, high = (
        statistics.quantiles(wall, n=4, method="inclusive") if len(wall) > 1 else wall * 3
    )
    return {"median": middle, "low": low, "high": high, "processor": statistics.median(processor)}


def expansion_share(module: nn.Module, step, rounds: int) -> float:
    """Making all weights and their gradients, as a share of a step."""

    def expand() -> None:
        weights = module.weights()
        torch.autograd.backward(weights, [torch.ones_like(w) for w in weights])

    times = measure({"step": step, "expand": expand}, rounds)
    return ratio(times, "expand", "step")["median"]


def network_ratios(network: str, group: str, rounds: int, batch: int, device: str) -> dict:
    """All ratios of one network over one group."""
    errors = parity(network, group)
    channels, size = (1, 28) if network == "p4cnn" else (3, 33)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, size, size, generator=generator).to(device)
    labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    modules = variants(network, group, device)
    steps = {
        name: stepper(module, reduced, images, labels)
        for name, (module, reduced) in modules.items()
    }
    if device == "cuda":
        graphs = {name: pair for name, pair in modules.items() if not name.startswith("escnn")}
        steps |= {
            f"{name} graph": stepper(copy.deepcopy(module), reduced, images, labels, True)
            for name, (module, reduced) in graphs.items()
        }
    if device == "cpu" and fourier.fourier_library() is not None:
        steps["basis, torch's"] = with_torchs(steps["basis"])
    losses = {
        f"basis, {kind}": loss_stepper(network, group, kind, images, labels)
        for kind in ("none", "layerwise")
    }
    if fast_bfloat16(device):
        times = measure({**steps, **losses}, rounds)
    else:  # its figures say nothing here, and take most of the time
        times = measure(
            {**{name: step for name, step in steps.items() if "bf16" not in name}, **losses}, rounds
        )
    result = {
        "network": network,
        "group": group,
        "batch": batch,
        "parity": errors,
        "milliseconds": {
            name: 1000 * statistics.median(t[0] for t in values) for name, values in times.items()
        },
        "of_escnn": {
            name: ratio(times, name, "escnn")
            for name in times
            if name != "escnn" and name not in losses
        },
        "escnn_over": {
            name: ratio(times, "escnn", name)
            for name in times
            if name.startswith(("free", "basis")) and name not in losses
        },
        "of_floor": {
            name: ratio(
                times, name, " ".join(["plain", *name.replace(", torch's", "").split()[1:]])
            )
            for name in times
            if name.startswith(("free", "basis")) and name not in losses
        },
        "layerwise_loss": ratio(times, "basis, layerwise", "basis, none"),
        "expansion_share": {
            name: expansion_share(modules[name][0], steps[name], rounds)
            for name in ("free", "basis")
            if name in modules
        },
    }
    print(
        f"\n{network} over {group}, batch {batch}: parity holds "
        f"({', '.join(f'{k} {v:.0e}' for k, v in errors.items())})"
    )
    print(f"  {'':14} {'ms':>8}   of escnn (quartiles)      of the floor (quartiles)")
    for name in times:
        cells = [
            f"{r['median']:.2f} ({r['low']:.2f}..{r['high']:.2f})"
            if (r := result[key].get(name))
            else ""
            for key in ("of_escnn", "of_floor")
        ]
        print(f"  {name:14} {result['milliseconds'][name]:8.1f}   {cells[0]:24}  {cells[1]}")
    with_loss = result["layerwise_loss"]
    print(
        "  escnn / ours: "
        + ", ".join(
            f"{name} {r['median']:.2f} ({r['low']:.2f}..{r['high']:.2f})"
            for name, r in result["escnn_over"].items()
        )
    )
    print(
        f"  with the layerwise loss / without: {with_loss['median']:.2f} "
        f"({with_loss['low']:.2f}..{with_loss['high']:.2f})"
    )
    print(
        "  expansion of all filters: "
        + ", ".join(
            f"{name} {share:.1%} of a step" for name, share in result["expansion_share"].items()
        )
    )
    noisy = [
        name
        for name, r in result["of_escnn"].items()
        if abs(r["median"] / r["processor"] - 1) > 0.15
    ]
    if noisy:
        print(
            f"  noisy machine: wall and processor ratios of {', '.join(noisy)} differ by more "
            "than 15 %; repeat on an idle one"
        )
    return result


def hardware(device: str) -> dict:
    """What the figures belong to."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "escnn": version("escnn"),
        "cpu": model,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": fast_bfloat16(device),
        "fourier": device == "cpu" and fourier.fourier_library() is not None,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--batch", type=int, default=128, help="images of a step; the residual network takes half"
    )
    parser.add_argument("--groups", nargs="+", default=list(FIELDS), choices=list(FIELDS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.short:
        arguments.rounds, arguments.batch = 2, 16
    tune_process(threads=1)
    about = hardware(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    reduced = parity_in_bfloat16()
    print(
        "parity in bfloat16 holds: gradients differ from float64 by at most "
        f"{max(reduced.values()):.2f} ({', '.join(reduced)})"
    )
    results = [
        network_ratios(
            network,
            group,
            arguments.rounds,
            arguments.batch // (2 if network == "residual" else 1),
            arguments.device,
        )
        for network in arguments.networks
        for group in arguments.groups
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
