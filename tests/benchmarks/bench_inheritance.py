"""Epochs until 95 % of the best hypervolume, with and without inherited weights: python
tests/benchmarks/bench_inheritance.py

The same evolutionary sampler searches a small space on scikit-learn's digits (upright, declared
C4) with `search.inherit` false and true, one seed after the other. Prints one line of JSON for each
seed: the epochs of each, and the final hypervolumes; then medians, and two-sided Wilcoxon tests
over seeds. Lines go to --out, where a second call goes on.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from benchmark_data import resumed
from scipy.stats import wilcoxon

from studies.config import parse
from studies.journal.reader import read_trials
from studies.pareto import front_volume
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process

STUDY = """
data: {name: digits, train: 400, validation: 300}
training: {epochs: 9, batch_size: 64, device: cpu}
symmetry: {group: C4}
space:
  backbone: "4k3, 4k3 *, 4k3"
  layout: [max2/2, max3/2, avg3/2p1]
  input_size: [12, 13]
  group: [C2, C4, D4, C1]
  restrict: {after: [none, 1, 2], to: [C1, C2]}
  head: group_mean
search: {sampler: evolution, rungs: [], startup: 6}
resources: {workers: 1}
"""


def curve(seed: int, trials: int, inherit: bool) -> list[tuple[int, float]]:
    """(epochs paid, hypervolume of the front) after each trial of a search."""
    changes = {"search.seed": seed, "search.trials": trials, "search.inherit": inherit}
    study = parse(STUDY, overrides=changes)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "study"
        with SearchDriver.create(place, study) as driver:
            run_in_process(driver)
        complete = [r for r in read_trials(place) if r.state == "complete" and r.values]
    paid, values, points = 0, [], []
    for record in sorted(complete, key=lambda r: r.order or 0):
        paid += study.training.epochs - record.inherited_epoch
        values.append(record.values)
        points.append((paid, front_volume(values, study.objectives)))
    return points


def pair(seed: int, trials: int) -> dict:
    """Epochs to 95 % of the better final hypervolume, None where not reached, and the last point of
    both searches.
    """
    curves = {
        "inherit" if inherit else "anew": curve(seed, trials, inherit) for inherit in (False, True)
    }
    goal = 0.95 * max(points[-1][1] for points in curves.values())
    return {
        "epochs": {
            name: next((epochs for epochs, volume in points if volume >= goal), None)
            for name, points in curves.items()
        },
        "final": {name: points[-1] for name, points in curves.items()},
    }


def summary(rows: list[dict]) -> str:
    """Medians of both ways, and tests; a goal that was not reached counts as all epochs paid."""
    lines = []
    for what, values in {
        "epochs": [
            [row["epochs"][w] or row["final"][w][0] for w in ("anew", "inherit")] for row in rows
        ],
        "final epochs": [[row["final"][w][0] for w in ("anew", "inherit")] for row in rows],
        "final volume": [[row["final"][w][1] for w in ("anew", "inherit")] for row in rows],
    }.items():
        anew, inherit = map(list, zip(*values))
        p = float(wilcoxon(anew, inherit).pvalue) if anew != inherit else 1.0
        lines.append(f"{what}: anew {median(anew):.4g}, inherited {median(inherit):.4g}, p={p:.2g}")
    missed = {w: sum(row["epochs"][w] is None for row in rows) for w in ("anew", "inherit")}
    return "\n".join([*lines, f"n={len(rows)}, goal missed: {missed}"])


def main() -> None:
    """Searches with every seed both ways and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--out", type=Path, default=Path("inheritance.jsonl"))
    options.add_argument("--minutes", type=float, default=1e4, help="no pair begins after them")
    given = options.parse_args()
    jobs = [{"seed": seed, "trials": given.trials} for seed in range(given.seeds)]
    rows = resumed(given.out, jobs, lambda job: pair(**job), given.minutes)
    print(summary(rows))


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
