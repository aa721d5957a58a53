"""Convolutions in the Fourier basis of the group (`trainers.networks.kernels.fourier`), or of any
weight in Winograd's form (group C1, `trainers.networks.kernels.winograd`), against torch's with the
same weight, as ratios: torch / ours.

    python tests/benchmarks/bench_convolution.py [--rounds 7] [--groups C4 D4] [--json FILE]

Each ratio is the median over interleaved rounds of processor time, of the forward pass, of the
gradient of the maps and of that of the weight, one thread, channels-last. No speed is printed
before values and gradients agree to 1e-5. Above 1 means that ours is faster; the column `used` says
what their `suits` decides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import torch
import torch.nn.functional as F
from bench_step import hardware

from searchspace.groups import Group
from trainers.networks.filters import Parametrisation, arrange, expand
from trainers.networks.kernels import fourier, winograd
from trainers.process import tune_process

# (channels in and out, kernel, images, side, stride, padding): as in the networks of bench_step,
# then at the edges of what is used
SHAPES = [
    ((32, 32), 3, 64, 33, 1, 1),
    ((64, 64), 3, 64, 17, 1, 1),
    ((128, 128), 3, 64, 9, 1, 1),
    ((32, 64), 3, 64, 33, 2, 1),
    ((64, 128), 3, 64, 17, 2, 1),
    ((40, 40), 3, 128, 26, 1, 0),
    ((40, 40), 3, 128, 11, 1, 0),
    ((56, 56), 3, 128, 26, 1, 0),
    ((16, 16), 3, 128, 28, 1, 1),
    ((24, 24), 3, 128, 28, 1, 1),
    ((16, 16), 3, 128, 7, 1, 1),
    ((40, 40), 3, 128, 5, 1, 0),
    ((24, 24), 3, 128, 13, 1, 1),
    ((80, 80), 3, 64, 13, 1, 1),
    ((48, 48), 3, 64, 13, 1, 1),
    ((256, 256), 3, 32, 8, 1, 1),
    ((40, 40), 3, 128, 12, 1, 0),
    ((40, 40), 3, 128, 7, 1, 0),
    ((40, 40), 5, 128, 24, 1, 2),
    ((40, 40), 7, 32, 24, 1, 3),
    ((8, 8), 3, 128, 28, 1, 1),
    ((64, 64), 3, 1, 17, 1, 1),
    ((40, 40), 3, 8, 9, 1, 1),
]


def measure(group: Group, shape: tuple, rounds: int) -> dict:
    """The ratios of one convolution. Raises SystemExit where it does not agree with torch's."""
    (into, out), kernel, images, side, stride, padding = shape
    generator = torch.Generator().manual_seed(0)
    parametrisation = Parametrisation(
        "free" if group.on_grid else "basis", group, kernel, lifting=False
    )
    pairs = (into // group.order, out // group.order)
    weight = arrange(
        expand(
            torch.randn(pairs[0] * pairs[1], parametrisation.size, generator=generator),
            parametrisation,
            parametrisation.constants(),
        ),
        pairs[1],
    )
    maps = torch.randn(images, pairs[0] * group.order, side, side, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    expected = F.conv2d(maps, weight, stride=stride, padding=padding)
    direction = torch.randn(expected.shape, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    free = group.order == 1
    shared = (
        None if free else fourier.transform_of(group, group, maps.shape[1], len(weight), kernel)
    )
    laid_out = weight.contiguous(memory_format=torch.channels_last)

    def gradients(way, of_maps: bool, of_weight: bool):
        a, b = (
            maps.detach().requires_grad_(of_maps),
            (weight if way is ours else laid_out).detach().requires_grad_(of_weight),
        )
        result = way(a, b)
        return lambda: torch.autograd.grad(
            result, [t for t in (a, b) if t.requires_grad], direction, retain_graph=True
        )

    def ours(a, b):
        if shared is None:
            return winograd.convolve(a, b, padding)
        return fourier.convolve(a, b, shared, stride, padding)

    def torchs(a, b):
        return F.conv2d(a, b, stride=stride, padding=padding)

    errors = [
        (ours(maps, weight), expected),
        (gradients(ours, True, False)()[0], gradients(torchs, True, False)()[0]),
    ]
    parity = max(float((a - b).abs().max() / b.abs().max()) for a, b in errors)
    # at the rows of the identity, and at all: equal along the weight
    mine, theirs = (gradients(way, False, True)()[0] for way in (ours, torchs))
    parity = max(
        parity,
        abs(float((mine * weight).sum() - (theirs * weight).sum()))
        / float(theirs.norm() * weight.norm()),
    )
    if not parity < 1e-5:
        raise SystemExit(
            f"{group} {shape}: differs from torch's by {parity:.1e}; no speed is measured"
        )
    steps = {
        "forward": [lambda: ours(maps, weight), lambda: torchs(maps, laid_out)],
        "maps": [gradients(way, True, False) for way in (ours, torchs)],
        "weight": [gradients(way, False, True) for way in (ours, torchs)],
    }
    ratios = {}
    for name, pair in steps.items():
        times = [[], []]
        for number in range(rounds + 1):
            for way in (0, 1) if number % 2 else (1, 0):
                began = time.process_time()
                pair[way]()
                times[way].append(time.process_time() - began)
        ratios[name] = statistics.median(b / a for a, b in zip(times[0][1:], times[1][1:]))
    return {
        "group": str(group),
        "shape": shape,
        "parity": parity,
        "used": winograd.suits(maps, weight, stride, padding, 1)
        if free
        else fourier.suits(group, maps, weight, stride, padding, 1),
        **ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--groups", nargs="+", default=["C1", "C2", "D2", "C4", "D4", "C8", "D8"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tune_process(threads=1)
    about = hardware("cpu")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    if fourier.fourier_library() is None:
        raise SystemExit(f"convolutions are torch's: {fourier.fourier_status()[1]}")
    results = []
    print(
        f"{'group':6}{'channels':>10}{'kernel':>7}{'images':>7}{'side':>5}{'stride':>7}"
        f"{'used':>6}   "
        "torch / ours: forward, gradient of maps, of weight"
    )
    for name in arguments.groups:
        for shape in SHAPES:
            if (
                min(shape[0]) < Group.parse(name).order
                or (shape[1] > 5 and not Group.parse(name).on_grid)
                or (name == "C1" and (shape[1] != 3 or shape[4] > 1 or min(shape[0]) < 16))
            ):
                continue
            found = measure(Group.parse(name), shape, arguments.rounds)
            results.append(found)
            (into, out), kernel, images, side, stride, _ = shape
            print(
                f"{name:6}{into:>5} "
                f"{out:>4}{kernel:>7}{images:>7}{side:>5}{stride:>7}"
                f"{'yes' if found['used'] else 'no':>6}   "
                f"{found['forward']:.2f}  {found['maps']:.2f}  {found['weight']:.2f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
