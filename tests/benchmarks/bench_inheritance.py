"""Epochs until 95 % of the best hypervolume, with and without inherited weights: python
tests/benchmarks/bench_inheritance.py

The same evolutionary sampler searches a small space on scikit-learn's digits (upright, declared
C4) with `search.inherit` false and true, one seed after the other. Prints one line of JSON for each
seed: the epochs of each, and the final hypervolumes.
"""

import argparse
import json
import tempfile
from pathlib import Path

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


def main() -> None:
    """Searches with every seed both ways and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--trials", type=int, default=20)
    given = options.parse_args()
    for seed in range(given.seeds):
        curves = {i: curve(seed, given.trials, i) for i in (False, True)}
        best = max(points[-1][1] for points in curves.values())
        needed = {
            "inherit" if i else "anew": next((e for e, v in points if v >= 0.95 * best), None)
            for i, points in curves.items()
        }
        final = {"inherit" if i else "anew": points[-1] for i, points in curves.items()}
        print(json.dumps({"seed": seed, "epochs": needed, "final": final}), flush=True)


if __name__ == "__main__":
    main()
