"""Seconds that one epoch of each architecture of a recorded table takes, written into the table:
python tests/benchmarks/bench_seconds.py tests/assets/mnist_table.json.gz --minutes 9

For tables that were recorded by versions which noted none. The second epoch of a training with the
table's own study is measured, in processor seconds of one thread, so that other programs disturb it
little; scoring is left out. Entries that have seconds keep them, and each is written at once, so
that a second call goes on. Nothing else in the file changes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from searchspace.recipe import Candidate
from studies.replays.record import RecordedTable, read_table
from trainers.files import write_whole


def epoch_seconds(table: RecordedTable, place: int) -> float:
    """Processor seconds of the second epoch of the training of the entry at `place`."""
    from trainers.training.train import advance

    candidate = Candidate.parse(table.entries[place].architecture)
    candidate = candidate.with_learning_rate(table.entries[place].learning_rate)
    config = table.study.training_config(table.study.search.seed, candidate.recipe)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        advance(
            candidate.architecture,
            config,
            Path(folder),
            2,
            on_epoch=lambda epoch, row: ends.append(time.process_time()),
        )
    return ends[1] - ends[0]


def timed(path: Path, until: float) -> tuple[int, int]:
    """Measures entries of the table until that time (`time.monotonic`) and writes them; how many
    have seconds, of how many.
    """
    table, content = read_table(path), json.loads(gzip.decompress(path.read_bytes()))
    rows = content["entries"]
    for place, row in enumerate(rows):
        if row.get("seconds") is None and time.monotonic() < until:
            row["seconds"] = float(f"{epoch_seconds(table, place):.3g}")
            text = json.dumps(content, separators=(",", ":"))
            write_whole(path, gzip.compress(text.encode(), mtime=0))
    return sum(row.get("seconds") is not None for row in rows), len(rows)


def main() -> None:
    """Measures every table and says how far it is."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("tables", type=Path, nargs="+")
    options.add_argument("--minutes", type=float, default=60.0, help="nothing begins after them")
    given = options.parse_args()
    until = time.monotonic() + 60 * given.minutes
    for path in given.tables:
        done, total = timed(path, until)
        print(f"{path.name}: {done} of {total} have seconds")


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
