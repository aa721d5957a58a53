"""What benchmarks of trainings share: their data, or one sentence and exit status 1 where they are
missing; a training in a folder of its own; figures over seeds as text.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from searchspace.architecture import Architecture
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
        raise SystemExit(f"error: {error}") from None


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
