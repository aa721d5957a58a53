"""What measuring symmetry costs, as ratios in one interleaved run and as seconds of the whole
measurement.

    python tests/benchmarks/bench_measures.py [--rounds 7] [--images 2000]
        [--parts layerwise whole] [--json FILE]
    python tests/benchmarks/bench_measures.py --short        # parity in full, few and small timings

Layerwise: the equivariance error of every stage under every element in one batched pass, against
forwards of x and of g x for each stage and element: of escnn's modules up to the stage and whole,
with escnn's own transforms, and of this project's unfolded network. One thread, in turn, in
reversed order every other round; ratios are medians over rounds with quartiles. Whole: every
instrument on a network of 25,000 parameters, exact and plain, on all cores. No time is printed
before all agree on networks with broken layouts.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

import torch
from bench_step import hardware, ratio
from bench_step import measure as in_turn
from escnn import nn as enn

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.groups import IDENTITY, Group
from support.escnn_reference import EscnnNetwork, copy_to_escnn
from trainers.actions import act, act_on_fields
from trainers.instruments.equivariance import equivariance_error
from trainers.instruments.measure import measure
from trainers.networks.convolution import channels_last
from trainers.networks.fold import scoring
from trainers.networks.networks import build
from trainers.process import tune_process

# of Edixhoven et al.
PADDED = "{size}px: {f}k3@{group}, {f}k3 max2/2, {f}k3, {f}k3, {f}k3, {f}k3, {f}k4p0"
# of Cohen & Welling
UNPADDED = "{size}px: {f}k3p0@{group}, {f}k3p0 max2/2, {f}k3p0, {f}k3p0, {f}k3p0, {f}k3p0, {f}k4p0"
FIELDS = {"C4": 10, "D4": 7}  # 40 and 56 channels
C4 = Group.parse("C4")


def networks(size: int, group: Group) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same network, ours and of escnn's modules, with weights and statistics that differ
    between channels.
    """
    shape = Architecture.parse(
        PADDED.format(size=size, f=FIELDS[str(group)], group=group) + " filters=basis"
    )
    mine, theirs = build(shape, channels=1, classes=10).eval(), EscnnNetwork(shape, 1, 10)
    generator = torch.Generator().manual_seed(1)
    for convolution in mine.convolutions:
        convolution.norm.running_mean.normal_(0, 0.2, generator=generator)
        convolution.norm.running_var.uniform_(0.5, 2, generator=generator)
    copy_to_escnn(mine, theirs)
    return mine, theirs.eval()


def relative(after, expected, reference) -> float:
    """The relative error as `trainers.instruments.equivariance` defines it."""
    return float(((after - expected).square().mean() / (2 * reference.var(0).mean())).sqrt())


@torch.no_grad()
def escnn_elements(network: EscnnNetwork, images: torch.Tensor, group: Group) -> dict:
    """What escnn calls each of the group's elements but the identity: what moves the
    images alike.
    """
    incoming = enn.GeometricTensor(images, network.image_type)
    found = {}
    for theirs in network.image_type.gspace.fibergroup.elements:
        moved = incoming.transform(theirs).tensor
        found |= {
            ours: theirs
            for ours in group.elements
            if ours != IDENTITY and torch.allclose(moved, act(images, ours), atol=1e-3)
        }
    assert len(found) == group.order - 1
    return found


@torch.no_grad()
def by_escnn(
    network: EscnnNetwork, images: torch.Tensor, group: Group, elements: dict, whole: bool
) -> dict:
    """The errors of every stage (0: logits) and element, each from two forwards of its own: whole,
    or up to the stage.
    """
    errors = {}
    incoming = enn.GeometricTensor(images, network.image_type)

    def forward(maps: enn.GeometricTensor, stage: int):
        if not stage:
            return network(maps.tensor)
        found = None
        for number, module in enumerate(network.stages, start=1):
            maps = module(maps)
            found = maps if number == stage else found
            if number == stage and not whole:
                return found
        features = maps.tensor.mean((2, 3)).unflatten(1, (-1, network.order)).amax(2)
        network.linear(features)
        return found

    for stage in range(len(network.stages) + 1):
        for ours, element in elements.items():
            index = group.index(ours)
            before, after = forward(incoming, stage), forward(incoming.transform(element), stage)
            if stage:
                errors[stage, index] = relative(
                    after.tensor, before.transform(element).tensor, before.tensor
                )
            else:
                errors[stage, index] = relative(after, before, before)
    return errors


@torch.no_grad()
def by_forwards(network, images: torch.Tensor, group: Group) -> dict:
    """The same of our network, unfolded: two whole forwards for every stage and element."""
    errors = {}
    for stage in range(len(network.stages) + 1):
        for index, element in enumerate(group.elements):
            if element != IDENTITY:
                before, after = (
                    (logits, *maps)[stage]
                    for logits, maps in map(
                        network.forward_with_stages, (images, act(images, element))
                    )
                )
                errors[stage, index] = relative(
                    after, act_on_fields(before, element, group) if stage else before, before
                )
    return errors


def batched(network, images: torch.Tensor, group: Group) -> dict:
    """The same as it is measured here: folded, one pass; the time to fold counts."""
    fields = {f"stage {n}": group for n in range(1, len(network.stages) + 1)}
    found = equivariance_error(
        scoring(network), images, group, fields=fields, normalise=channels_last
    )
    return {
        (n, group.index(e)): error
        for n, stage in enumerate((found.logits, *found.stages))
        for e, error in zip(stage.elements, stage.relative)
    }


def layerwise(name: str, rounds: int, count: int) -> dict:
    """Parity at a size that breaks the symmetry, then ratios at one that keeps it."""
    group = Group.parse(name)
    for size in (27, 28):
        mine, theirs = networks(size, group)
        images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
        known = escnn_elements(theirs, images[:1], group)
        variants = {
            "escnn, whole forwards": lambda: by_escnn(theirs, images, group, known, True),
            "escnn, forwards up to the stage": lambda: by_escnn(
                theirs, images, group, known, False
            ),
            "ours unfolded, whole forwards": lambda: by_forwards(mine, images, group),
            "batched": lambda: batched(mine, images, group),
        }
        results = {name: run() for name, run in variants.items()}
        for variant, errors in results.items():
            worst = max(abs(error - results["batched"][key]) for key, error in errors.items())
            broken = max(results["batched"].values())
            # escnn's transforms interpolate, also at quarter turns
            allowed = 1e-4 if variant.startswith("escnn") else 1e-5
            if (
                errors.keys() != results["batched"].keys()
                or not worst < allowed
                or (broken > 0.05) != (size == 27)
            ):
                raise SystemExit(
                    f"at {size} pixels {variant} and the batched pass differ by {worst:.1e} "
                    f"(largest error {broken:.1e}); no time is printed"
                )
    times = in_turn(variants, rounds)
    ratios = {
        variant: ratio(times, variant, "batched") for variant in times if variant != "batched"
    }
    seconds = {variant: statistics.median(t[1] for t in found) for variant, found in times.items()}
    print(
        f"\nLayerwise equivariance error, {count} images, {mine.architecture}: all agree at 27 "
        "(broken) and 28 pixels"
    )
    print(f"  {'batched':32} {seconds['batched']:7.3f} processor seconds")
    for variant, found in ratios.items():
        print(
            f"  {variant:32} {seconds[variant]:7.3f}   {found['median']:5.1f} times (quartiles "
            f"{found['low']:.1f} to {found['high']:.1f}; "
            f"processor time {found['processor']:.1f})"
        )
    return {
        "images": count,
        "rounds": rounds,
        "processor_seconds": seconds,
        "times_batched": ratios,
    }


def whole(rounds: int, count: int, threads: int) -> dict:
    """Seconds of every instrument on exact and plain networks of 25,000 parameters, and what the
    forwards by angle take at this machine's rate.
    """
    results, images = {}, torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 10
    shapes = {
        f"{kind} {layout}": Architecture.parse(text.format(size=28, f=fields, group=group))
        for layout, text in (("unpadded", UNPADDED), ("padded", PADDED))
        for kind, fields, group in (("P4CNN", 10, "C4"), ("Z2CNN", 20, "C1"))
    }
    for name, shape in shapes.items():
        network, macs = build(shape, channels=1, classes=10).eval(), cost(shape).macs
        one, all_cores = (
            measure_once(network, images[:200], labels[:200], n) for n in (1, threads)
        )
        if one != all_cores:
            raise SystemExit(
                f"the measurement of {name} on {threads} threads differs from that on one; no "
                "time is printed"
            )
        wall, processor, rate = [], [], []
        for _ in range(rounds):
            began, spent = time.perf_counter(), time.process_time()
            found = measure(network, images, labels, C4, threads=threads)
            wall.append(time.perf_counter() - began)
            processor.append(time.process_time() - spent)
            rate.append(forward_rate(network, macs))
        forwards = count * (9 if len(found.accuracy.shared) == 4 else 36)
        floor = forwards * macs / statistics.median(rate) / 1e9 / threads
        results[name] = {
            "wall_seconds": wall,
            "processor_seconds": processor,
            "forwards_by_angle": forwards,
            "macs": macs,
            "gmacs_per_second_and_core": rate,
            "floor_seconds": floor,
        }
        print(
            f"\nAll instruments, {name}, {count} images, C4 and 36 angles, {threads} threads: "
            f"{statistics.median(wall):.1f} s "
            f"({min(wall):.1f} to {max(wall):.1f}; processor {statistics.median(processor):.1f})"
        )
        print(
            f"  the {forwards} forwards by angle are {forwards * macs / 1e9:.0f} GMAC: "
            f"{floor:.1f} s at {statistics.median(rate):.1f} GMAC/s a core"
        )
    return results


def measure_once(network, images, labels, threads: int) -> dict:
    """A measurement as plain values, without its duration."""
    return {
        key: value
        for key, value in measure(network, images, labels, C4, threads=threads, step=30)
        .as_dict()
        .items()
        if key != "seconds"
    }


@torch.no_grad()
def forward_rate(network, macs: int) -> float:
    """GMAC/s of one core in the folded network's forward pass, the best of several."""
    folded, images, best = scoring(network), channels_last(torch.rand(128, 1, 28, 28)), float("inf")
    for _ in range(6):
        began = time.process_time()
        folded(images)
        best = min(best, time.process_time() - began)
    return 128 * macs / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=2000, help="of the whole measurement")
    parser.add_argument(
        "--parts", nargs="+", default=["layerwise", "whole"], choices=["layerwise", "whole"]
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.short:
        arguments.rounds, arguments.images = 2, 200
    tune_process(threads=1)
    about = hardware("cpu")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value is not None))
    results = {}
    if "layerwise" in arguments.parts:
        results["layerwise"] = {
            group: layerwise(group, arguments.rounds, 16 if arguments.short else 64)
            for group in FIELDS
        }
    if "whole" in arguments.parts:
        results["whole"] = whole(max(1, arguments.rounds // 3), arguments.images, about["cpus"])
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
