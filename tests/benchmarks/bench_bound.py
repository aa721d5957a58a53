"""What a search could need at the least on recorded tables: python
tests/benchmarks/bench_bound.py tests/assets/*_table.json.gz

Two figures for each table, in epochs until the front has 95 % of the full hypervolume. `oracle`:
whole trainings of the smallest set of architectures whose front has that. `all others`: a search
that has trained every *other* architecture to the end: it trains whole architectures in the order
of their expected gain, each predicted by a Gaussian process from the final scores of all others
(leave one out), so that it lacks nothing but the training's own chance. A search without stops that
needs less has been lucky.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from statistics import median

import numpy

from searchspace.groups import Group
from studies.output import Column, Format, print_rows
from studies.pareto import front_volume, non_dominated
from studies.replays.record import RecordedTable, read_table
from studies.replays.replay import HYPERVOLUME_SHARE, OBJECTIVES, full_volume
from studies.replays.steps import known
from studies.samplers.ehvi import FeatureCoding
from studies.samplers.initial_design import features_of_text
from studies.samplers.volumes import boxes, improvements

SETTINGS = 300  # of the process, drawn from a broad prior; the likeliest is used
DRAWS = 256


def oracle(table: RecordedTable) -> int:
    """Epochs of the fewest whole trainings whose front is good enough."""
    points = non_dominated([entry.epochs[-1] for entry in table.entries])
    goal = HYPERVOLUME_SHARE * full_volume(table)
    for count in range(1, len(points) + 1):
        chosen = itertools.combinations(points, count)
        if any(front_volume(list(some), OBJECTIVES) >= goal for some in chosen):
            return count * table.study.training.epochs
    raise AssertionError("the whole front has the whole hypervolume")


def left_out(table: RecordedTable, features: list) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Mean and standard deviation (entries, 2) of final scores, predicted from all others."""
    rng, scores = numpy.random.default_rng(0), numpy.array([e.epochs[-1] for e in table.entries])
    centre, scale = scores.mean(0), scores.std(0)
    places = numpy.arange(len(scores))
    differences = FeatureCoding(table.study, features).differences(places, places)
    best: list[tuple] = [(-numpy.inf,), (-numpy.inf,)]
    for _ in range(SETTINGS):
        weights = 0.3 * numpy.exp(1.2 * rng.normal(size=len(differences)))
        noise = 0.05 * numpy.exp(1.2 * rng.normal())
        similar = numpy.exp(-numpy.tensordot(weights, differences, 1))
        inverse = numpy.linalg.inv(similar + noise * numpy.eye(len(scores)))
        for place in range(2):
            standard = (scores[:, place] - centre[place]) / scale[place]
            solved, own = inverse @ standard, 1 / numpy.diag(inverse)
            height = standard @ solved / len(scores)
            likely = numpy.linalg.slogdet(inverse)[1] - len(scores) * numpy.log(height)
            if likely > best[place][0]:
                best[place] = likely, standard - solved * own, numpy.sqrt(own * height)
    mean, deviation = (numpy.stack([b[k] for b in best], 1) * scale for k in (1, 2))
    return mean + centre, deviation


def all_others(table: RecordedTable, seeds: int, *, ends: bool) -> list[int]:
    """Epochs for each seed; `ends`: the known architectures are trained first."""
    group = Group.parse(table.study.symmetry.group)
    features = [features_of_text(entry.architecture, group) for entry in table.entries]
    mean, deviation = left_out(table, features)
    exact = numpy.array([f.surviving == 1 for f in features])
    place = {entry.key: i for i, entry in enumerate(table.entries)}
    goal, needed = HYPERVOLUME_SHARE * full_volume(table), []
    for seed in range(seeds):
        rng = numpy.random.default_rng(seed)
        trained = [place[c.key] for c in known(table)] if ends else []
        while True:
            front = [table.entries[i].epochs[-1] for i in trained]
            if front and front_volume(front, OBJECTIVES) >= goal:
                break
            drawn = numpy.clip(mean + deviation * rng.normal(size=(DRAWS, 1, 2)), 0, 1)
            drawn[:, exact, 1] = drawn[:, exact, 0]
            gain = improvements(drawn, *boxes(front, 2)).mean(0)
            gain[trained] = -1
            trained.append(int(gain.argmax()))
        needed.append(len(trained) * table.study.training.epochs)
    return needed


def main() -> None:
    """Prints both figures for every table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("tables", type=Path, nargs="+")
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--format", type=Format, default=Format.table)
    given, lines = options.parse_args(), []
    for path in given.tables:
        table = read_table(path)
        ends, free = (median(all_others(table, given.seeds, ends=e)) for e in (True, False))
        name = path.name.partition(".")[0]
        lines.append(
            {"table": name, "oracle": oracle(table), "all others": free, "ends first": ends}
        )
    columns = [Column("table"), *(Column(n, True) for n in ("oracle", "all others", "ends first"))]
    print_rows(lines, given.format, columns, [[str(v) for v in line.values()] for line in lines])


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
