"""Verdicts per second on one core, over padded P4CNN-like layouts: python tests/benchmarks/bench_verdicts.py

Prints text to stderr and JSON to stdout. `verdict` makes each architecture as a value and judges it, as a search does;
`enumerate` asks `kept_axes` alone, as the count of a space does; `first` is the former in a fresh process. CPU time, so that neighbours do
not count.
"""

import json
import platform
import random
import sys
import time
from itertools import product
from statistics import median

from searchspace.architecture import Architecture, Stage
from searchspace.exactness import verdict
from searchspace.grammar import parse_stages

STEPS = ("max2/2", "max3/2", "max3/2p1", "avg2/2", "avg3/2p1", "conv3/2p1", "blur/2", "blurmax/2", "adaptive/2", "max2/2ceil")
POINTS = 4000       # drawn from 9,240
GROUPS = ("C2", "C4", "D2", "D4")


def candidates(sizes: range) -> list[tuple[tuple[int, int], tuple[Stage, ...]]]:
    """Every size x group x layout with one or two subsampling steps at P4CNN's places."""
    layouts = [parse_stages(f"10k3@{group}, 10k3 {first}, 10k3, 10k3 {second}, 10k3, 10k3, 10k4")[0]
               for group, first, second in product(GROUPS, STEPS, ("", *STEPS))]
    found = [((size, size), stages) for size, stages in product(sizes, layouts)]
    return random.Random(0).sample(found, POINTS)


def per_second(judge, points) -> float:
    started = time.process_time()
    for size, stages in points:
        judge(size, stages)
    return len(points) / (time.process_time() - started)


def main() -> None:
    def judged(size, stages):
        return verdict(Architecture(size, stages)).exact

    points = candidates(range(20, 41))
    first = per_second(judged, points)
    rates = {"first": [first], "verdict": [], "enumerate": []}
    for _ in range(3):
        rates["verdict"].append(per_second(judged, points))
        rates["enumerate"].append(per_second(judged, points))
    exact = sum(judged(*point) for point in points)
    result = {"architectures": len(points), "exact": exact, "python": platform.python_version(),
              "verdicts_per_second": {name: round(median(values)) for name, values in rates.items()}}
    for name, rate in result["verdicts_per_second"].items():
        print(f"{name:10} {rate:8,d} verdicts per second", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
