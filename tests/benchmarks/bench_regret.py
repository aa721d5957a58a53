"""What a decision from a small study costs on the test split: python
tests/benchmarks/bench_regret.py RESULTS.jsonl --subsets 0 1 2

One study on 300 images of MNIST (or, with --data plankton, on a split of its 105 images, whose test
split of 25 is small) for each subset and each set of rules: those of the preset `folder`
(a least number of steps before the first rung, no stop for a difference that may be chance), and
those that it had before (`BEFORE`). What either study trained to its end is then trained on
training and validation images and tested. **Regret** is the best of these test scores minus that of
what the study chose: its best compromise (`knee`) or its member of best accuracy (`best`).
"common" retrains every choice alike, at the length of today's rules, so that only the choice
differs; "own" retrains the knee as its own study would have.

Writes one line of JSON for each subset to RESULTS.jsonl, and leaves out those that it holds.
`--summary` prints what the file holds: mean regrets with Student's interval, medians, and the
differences between the rules, paired by subset.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from benchmark_data import load_or_exit
from scipy.stats import t as student

from studies.config import Study, parse
from studies.evidence.front import best_compromise, front_members
from studies.journal.reader import read_trials
from studies.output import Column, note, print_table
from studies.results.retrain_job import Job, run_job
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from studies.workers.launch import with_least_steps

DATA = {
    "mnist": "{name: mnist, root: ../shared/data, train: 240, validation: 60, test: 2000}",
    "plankton": "{folder: ../shared/data/plankton, train: 64, validation: 16, test: 25}",
}
GROUPS = {"mnist": ("C4", "[C2, C4]"), "plankton": ("D4", "[C4, D1, D4]")}
STUDY = """
data: %(data)s
training: {epochs: 12, batch_size: 64, learning_rate: 0.01, device: cpu}
symmetry: {group: %(declared)s, angles: 90}
space:
  backbone: "8k3, 8k3 *, 16k3, 16k3"
  family: [steerable, plain]
  group: %(groups)s
  restrict: {after: [none, 2], to: [C1]}
  input_size: [16, 17]
  layout: [max2/2, avg3/2p1]
  head: group_mean
  width: {match: params, to: 5000}
search: {sampler: ehvi, trials: 12, eta: 2}
resources: {workers: 1}
"""
# the rules of the preset `folder`, and those that it had before
AFTER = {"search.rungs": [4, 8], "search.least_steps": 100, "search.confidence": 0.95}
# a confidence of almost 0 compares scores as they are and leaves the decision with halving
BEFORE = {"search.rungs": [2, 6], "search.least_steps": None, "search.confidence": 1e-9}
RULES = {"before": BEFORE, "after": AFTER}
SCORES = ("accuracy", "symmetry_accuracy")
# which score of which choice, and how it was retrained
MEASURES = {
    "knee, upright": ("knee", "common", "accuracy"),
    "knee, symmetry": ("knee", "common", "symmetry_accuracy"),
    "knee, both": ("knee", "common", "both"),
    "best, upright": ("best", "common", "accuracy"),
    "knee, both, own length": ("knee", "own", "both"),
}


def study_of(data: str, subset: int, rules: Mapping[str, Any]) -> Study:
    """The study on one subset under some rules, as `start` would begin it."""
    declared, groups = GROUPS[data]
    text = STUDY % {"data": DATA[data], "declared": declared, "groups": groups}
    seeds = {"data.seed": subset, "search.seed": subset}
    study = parse(text, overrides={**rules, **seeds})
    assert study.data.train is not None
    return with_least_steps(study, study.data.train)


def searched(study: Study, channels: int, classes: int) -> dict[str, Any]:
    """One search: what it chose, how its trials ended, and its seconds of processor time."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "study"
        with SearchDriver.create(place, study, channels=channels, classes=classes) as driver:
            run_in_process(driver)
        records = [record for record in read_trials(place) if record.kind == "search"]
    front = front_members(study, records)
    knee = best_compromise(study, front)
    assert knee is not None, "the first trials of a study train to the end"
    return {
        "knee": knee.architecture,
        "best": front[0].architecture,  # the front begins with the best first objective
        "front": [[record.architecture, *(record.values or ())] for record in front],
        "trials": len(records),
        "complete": [r.architecture for r in records if r.state == "complete"],
        "epochs": study.training.epochs,
        "seconds": round(time.process_time() - began, 1),
    }


def tested(study: Study, architecture: str, seeds: Sequence[int]) -> dict[str, float]:
    """Both test scores of an architecture that was trained on training and validation images as
    the study trains, means over the seeds, and the square root of their product.
    """
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            job = Job("candidate", architecture, seed, None, folder, merge=True)
            rows.append(run_job(job, study)["test"])
    scores = {name: sum(row[name] for row in rows) / len(rows) for name in SCORES}
    return {**scores, "both": both(scores)}


def both(scores: Mapping[str, float]) -> float:
    """What the knee maximises, in the unit of a score: the geometric mean of the two."""
    return math.sqrt(scores["accuracy"] * scores["symmetry_accuracy"])


def one_subset(data: str, subset: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Both searches of a subset, and the tests of all that they trained to the end."""
    studies = {rule: study_of(data, subset, changes) for rule, changes in RULES.items()}
    searches = {}
    for rule, study in studies.items():
        splits = load_or_exit(study.data, (16, 16))
        searches[rule] = searched(study, splits.channels, len(splits.classes))
        note(f"subset {subset}, {rule}: {json.dumps(searches[rule])}")
    began = time.process_time()
    ends = dict.fromkeys(text for search in searches.values() for text in search["complete"])
    common = {text: tested(studies["after"], text, seeds) for text in ends}
    own = {
        rule: tested(study, searches[rule]["knee"], seeds)
        if study.training.epochs != studies["after"].training.epochs
        else common[searches[rule]["knee"]]
        for rule, study in studies.items()
    }
    seconds = round(time.process_time() - began, 1)
    entry = {"data": data, "subset": subset, "seeds": list(seeds), "searches": searches}
    return {**entry, "common": common, "own": own, "test_seconds": seconds}


def regret(entry: Mapping[str, Any], rule: str, measure: str) -> float:
    """The best test score minus that of the choice, in points."""
    choice, retrained, score = MEASURES[measure]
    best = max(scores[score] for scores in entry["common"].values())
    chosen = entry["searches"][rule][choice]
    scores = entry["common"][chosen] if retrained == "common" else entry["own"][rule]
    return 100 * (best - scores[score])


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval."""
    mean, n = numpy.mean(values), len(values)
    half = student.ppf(0.975, n - 1) * numpy.std(values, ddof=1) / math.sqrt(n) if n > 1 else 0.0
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def summary(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row for each measure: mean and median regret by rule, and the paired difference."""
    for measure in MEASURES:
        values = {rule: [regret(e, rule, measure) for e in entries] for rule in RULES}
        gains = [b - a for b, a in zip(values["before"], values["after"], strict=True)]
        yield (
            measure,
            *(f"{interval(v)}, {numpy.median(v):.1f}" for v in values.values()),
            interval(gains),
            f"{sum(g > 0 for g in gains)} / {sum(g == 0 for g in gains)} / "
            f"{sum(g < 0 for g in gains)}",
        )


def print_summary(entries: Sequence[Mapping[str, Any]]) -> None:
    """The table, then what the searches did."""
    print(f"n = {len(entries)} subsets; regret in points: mean [95 %], median")
    heads = ("choice, score", "before", "after", "before - after", "better / same / worse")
    print_table([Column(head) for head in heads], list(summary(entries)))
    for rule in RULES:
        searches = [entry["searches"][rule] for entry in entries]
        counts = [{**search, "complete": len(search["complete"])} for search in searches]
        means = {k: numpy.mean([c[k] for c in counts]) for k in ("complete", "trials", "seconds")}
        declared = "@" + GROUPS[entries[0].get("data", "mnist")][0]
        exact = sum(declared in s["knee"] and "@C1" not in s["knee"] for s in searches)
        print(rule, {k: round(float(v), 1) for k, v in means.items()}, f"knees {declared}:", exact)


def main() -> None:
    """Adds the missing subsets to the file, or prints what it holds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("results", type=Path)
    options.add_argument("--data", choices=list(DATA), default="mnist")
    options.add_argument("--subsets", type=int, nargs="*", default=list(range(10)))
    options.add_argument("--seeds", type=int, nargs="*", default=[1])
    options.add_argument("--summary", action="store_true")
    given = options.parse_args()
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    every = [json.loads(line) for line in lines]
    entries = [entry for entry in every if entry.get("data", "mnist") == given.data]
    if given.summary:
        return print_summary(entries)
    for subset in sorted(set(given.subsets) - {entry["subset"] for entry in entries}):
        entry = one_subset(given.data, subset, given.seeds)
        with given.results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    return None


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
