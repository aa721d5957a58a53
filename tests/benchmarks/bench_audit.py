"""Audits of anybody's networks: are their claims what is measured? python
tests/benchmarks/bench_audit.py [--only torchvision|presets|random] [--modules 500] [--first-seed 0]
[--sizes]

torchvision's image models at the size that they are used at and at an exact one, the published
networks rebuilt as plain modules, and random modules. Prints one line of JSON for each network of
torchvision and of the presets, and one for the random modules together; exit status 1 where a claim
is not what is measured.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from searchspace.published import PUBLISHED
from support.random_modules import random_module
from trainers import audit, build, fold

USUAL = 224
TORCHVISION = {
    # name: sizes
    "alexnet": (224, 63),
    "vgg11_bn": (224, 32),
    "resnet18": (224, 225),
    "resnet50": (224, 225),
    "wide_resnet50_2": (224, 225),
    "resnext50_32x4d": (224, 225),
    "regnet_y_400mf": (224, 225),
    "regnet_x_800mf": (224, 225),
    "mobilenet_v2": (224, 225),
    "mobilenet_v3_large": (224, 225),
    "mobilenet_v3_small": (224, 225),
    "mnasnet1_0": (224, 225),
    "efficientnet_b0": (224, 225),
    "efficientnet_v2_s": (224, 225),
    "densenet121": (224, 221),
    "squeezenet1_0": (224, 227),
    "squeezenet1_1": (224, 223),
    "shufflenet_v2_x1_0": (224, 225),
    "googlenet": (224, 237),
    "inception_v3": (299, 299),
    "convnext_tiny": (224, 256),
    "vit_b_32": (224,),
    "swin_t": (224,),
    "maxvit_t": (224,),
}
LATE = ("googlenet", "inception_v3")  # whose slow initialisation is left out


def told(module: nn.Module, size: int, channels: int, name: str, sizes: bool) -> dict:
    """What one audit claims and measures."""
    began = time.perf_counter()
    found = audit(module, size, channels=channels, name=name, sizes=sizes)
    others = [f for f in found.findings if str(f.element) != "e"]
    return {
        "model": name,
        "size": size,
        "claims": dict(Counter(f.claim for f in others)),
        "disagree": [str(f.element) for f in others if f.agrees is False],
        "not_measured": sum(f.agrees is None for f in others),
        "kept": [str(e) for e in found.surviving],
        "own": [str(e) for e in found.symmetric],
        "lost_at": sorted({f.lost[0].layer for f in others if f.lost}),
        "exact_sizes": list(found.exact_sizes),
        "unread": list(found.unread[:2]),
        "seconds": round(time.perf_counter() - began, 1),
    }


def of_torchvision(names: list[str] | None, sizes: bool) -> Iterator[dict]:
    """The models at their sizes."""
    for name in names or TORCHVISION:
        options = {"init_weights": False} if name in LATE else {}
        torch.manual_seed(0)
        module = getattr(torchvision.models, name)(weights=None, **options)
        for number, size in enumerate(TORCHVISION[name]):
            yield told(module, size, 3, name, sizes and number == 0)


def of_presets() -> Iterator[dict]:
    """The published networks, folded to plain convolutions, at their size and one pixel more."""
    for name, published in PUBLISHED.items():
        architecture = published.architecture
        for height in (architecture.size[0], architecture.size[0] + 1):
            moved = architecture.with_size(height, height)
            network = build(moved, channels=published.channels, classes=published.classes)
            yield told(fold(network), height, published.channels, name, False)


def of_random(modules: int, first: int) -> dict:
    """Random modules, together."""
    claims, disagree, unread = Counter(), [], 0
    for seed in range(first, first + modules):
        module, size, channels = random_module(seed)
        row = told(module, size, channels, f"random {seed}", False)
        claims.update(row["claims"])
        unread += bool(row["unread"])
        disagree += [f"{seed}: {element}" for element in row["disagree"]]
    return {
        "model": f"{modules} random modules from seed {first}",
        "claims": dict(claims),
        "disagree": disagree,
        "not_known_modules": unread,
    }


def main() -> int:
    """Audits and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=("torchvision", "presets", "random"))
    options.add_argument("--modules", type=int, default=500)
    options.add_argument("--first-seed", type=int, default=0, help="of the random modules")
    options.add_argument("--names", nargs="*", help="models of torchvision; else all in the list")
    options.add_argument("--sizes", action="store_true", help="look for exact sizes too")
    given = options.parse_args()
    failed = False
    for what in ("torchvision", "presets", "random"):
        if given.only in (None, what):
            rows = (
                of_torchvision(given.names, given.sizes) if what == "torchvision"
                else of_presets() if what == "presets"
                else [of_random(given.modules, given.first_seed)]
            )  # fmt: skip
            for row in rows:
                failed |= bool(row["disagree"])
                print(json.dumps(row), flush=True)
    return int(failed)


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
