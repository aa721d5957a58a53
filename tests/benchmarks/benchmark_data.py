"""What benchmarks of trainings share: their data, or one sentence and exit status 2 where they are
missing; a training in a folder of its own; figures over seeds as text; a file of results that a
second call goes on with; the command line of a benchmark that trains named rows.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from searchspace.architecture import Architecture
from studies.errors import StudyError
from trainers.data.datasets import Splits, load_data
from trainers.networks.networks import Network
from trainers.scores import Scores
from trainers.settings import Data
from trainers.training.config import TrainingConfig
from trainers.training.train import start_training, train


def load_or_exit(data: Data, size: tuple[int, int]) -> Splits:
    """The images of `data` at `size`; ends the program where they cannot be read."""
    try:
        return load_data(data, size)
    except (ValueError, OSError) as error:
        raise _unusable(error) from None


def run(main: Callable[[], int | None]) -> None:
    """Runs a benchmark's `main` and ends the program with its status; with one sentence and status
    2 where its data, its tables or an optional package are missing.
    """
    try:
        status = main()
    except (OSError, ImportError, StudyError) as error:
        raise _unusable(error) from None
    raise SystemExit(status)


def _unusable(error: Exception) -> SystemExit:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return SystemExit(2)


def trained(
    architecture: Architecture, config: TrainingConfig, splits: Splits
) -> tuple[Network, Scores]:
    """The network of `architecture` after a whole training by `config`, and its scores."""
    epochs = config.training.epochs
    with tempfile.TemporaryDirectory() as folder:
        scores = train(architecture, config, Path(folder), epochs, splits=splits)
        return start_training(architecture, config, Path(folder), splits).network, scores


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in per cent; 0 for a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):5.1f} +- {100 * deviation:4.1f}"


def resumed(
    out: Path,
    jobs: Iterable[dict[str, Any]],
    result: Callable[[dict[str, Any]], dict[str, Any]],
    minutes: float,
) -> list[dict[str, Any]]:
    """The results of `jobs`, each the job and what `result` adds to it: one line of JSON for each
    in `out`, where those of earlier calls are not done again. None begins after `minutes`, so that
    results may be missing.
    """
    lines = out.read_text().splitlines() if out.exists() else []
    rows, ends = [json.loads(line) for line in lines], time.monotonic() + 60 * minutes
    found = []
    for job in jobs:
        row = next((row for row in rows if job.items() <= row.items()), None)
        if row is None and time.monotonic() < ends:
            row = {**job, **result(job)}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        found += [] if row is None else [row]
    return found


def row_parser(
    description: str | None, rows: Collection[str], *, train: int, epochs: int, out: str
) -> argparse.ArgumentParser:
    """The command line of a benchmark of named rows, each trained on several seeds: `train` images,
    `epochs` and the file `out` are what holds unless told. Without `rows` there is no `--rows`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=train, help="training images")
    parser.add_argument("--epochs", type=int, default=epochs)
    if rows:
        parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--minutes", type=float, default=1e4, help="no training begins after them")
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    return parser


def trained_rows(
    given: argparse.Namespace,
    rows: Iterable[str],
    result: Callable[[dict[str, Any], Path], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The results of `rows`, seed by seed, on one thread, with what is missing trained first.
    `result` takes a job (row, seed, train, epochs) and the folder of the data.
    """
    torch.set_num_threads(1)
    lengths = {"train": given.train, "epochs": given.epochs}
    jobs = [{"row": r, "seed": s, **lengths} for s in range(given.seeds) for r in rows]
    return resumed(given.out, jobs, lambda job: result(job, given.root), given.minutes)
