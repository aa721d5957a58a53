"""Verdicts per second on one core, over padded P4CNN-like layouts: python
tests/benchmarks/bench_verdicts.py

Prints text to stderr and JSON to stdout. Every size x group x layout of the space is built as a
value and judged, as a search or a count does: `fresh` by processes that have judged nothing before
(the median of five), `warm` once more by the same ones. CPU time, so that neighbours do not count.
"""

import json
import platform
import subprocess
import sys
import time
from itertools import product
from statistics import median

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.grammar import parse_stages
from searchspace.layers import Stage

STEPS = (
    "max2/2",
    "max3/2",
    "max3/2p1",
    "avg2/2",
    "avg3/2p1",
    "conv3/2p1",
    "blur/2",
    "blurmax/2",
    "adaptive/2",
    "max2/2ceil",
)
GROUPS = ("C2", "C4", "D2", "D4")
SIZES = range(20, 41)
PROCESSES = 5


def candidates(sizes: range) -> list[tuple[tuple[int, int], tuple[Stage, ...]]]:
    """Every size x group x layout with one or two subsampling steps at P4CNN's places."""
    layouts = [
        parse_stages(f"10k3@{group}, 10k3 {first}, 10k3, 10k3 {second}, 10k3, 10k3, 10k4")[0]
        for group, first, second in product(GROUPS, STEPS, ("", *STEPS))
    ]
    return [((size, size), stages) for size, stages in product(sizes, layouts)]


def enumerate_once() -> dict[str, float]:
    """Verdicts per second of this process, the first time and the second."""
    points = candidates(SIZES)
    rates = {}
    for name in ("fresh", "warm"):
        started = time.process_time()
        exact = sum(verdict(Architecture(size, stages)).exact for size, stages in points)
        rates[name] = len(points) / (time.process_time() - started)
    return {"architectures": len(points), "exact": exact, **rates}


def main() -> None:
    if sys.argv[1:] == ["once"]:
        return print(json.dumps(enumerate_once()))
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "once"], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(PROCESSES)
    ]
    rates = {name: [round(run[name]) for run in found] for name in ("fresh", "warm")}
    for name, values in rates.items():
        print(
            f"{name:6} {round(median(values)):8,d} verdicts per second ({min(values):,} to "
            f"{max(values):,})",
            file=sys.stderr,
        )
    print(
        json.dumps(
            {
                "architectures": found[0]["architectures"],
                "exact": found[0]["exact"],
                "python": platform.python_version(),
                "verdicts_per_second": rates,
            }
        )
    )


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
