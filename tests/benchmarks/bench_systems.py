"""What published systems of soft and learned equivariance are expected to show, at length on MNIST
at 15 px: where the quick tests of tests/README.md hold a property, this gives its figure.

    python tests/benchmarks/bench_systems.py [--seeds 3] [--rows NAME ...] [--out systems.jsonl]

One line of JSON for each training goes to --out, where a second call goes on; then a line of a
table for each row: accuracy on validation images, symmetry accuracy over C4, the logits'
equivariance error, the layerwise loss under quarter turns (sum over stages, whether it was trained
or not), the correlation of maps of turned images with turned maps (mean over stages), the
effective invariance, and what was learned beside the weights, means and standard deviations over
seeds.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch
from benchmark_data import load_or_exit, row_parser, run, trained, trained_rows

from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.training.losses import parse_losses
from trainers.data.datasets import Images, Splits
from trainers.instruments.accuracy import effective_invariance, predict_elements
from trainers.instruments.equivariance import equivariance_error
from trainers.networks.networks import Network
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.objective import TrainingObjective

C4 = Group.parse("C4")
PLAIN = "15px: 12k3, 12k3, 12k3 max3/2, 12k3, 12k3"
EXACT = "15px: 6k3@C4, 6k3, 6k3 max3/2, 6k3, 6k3"
MIXED = EXACT.replace("@C4", "@C4|C1")
PATHWAY = EXACT.replace("@C4", "@C4+C1")
STREAMS = "15px: " + " & ".join(
    f"{width}k3{group}, {width}k3, {width}k3 max3/2, {width}k3, {width}k3"
    for width, group in ((3, "@C4"), (3, "@D1"), (6, "@C1"))
)


class Row(NamedTuple):
    """A training: its data, images turned by quarter turns or not, and its candidate."""

    data: str
    turned: bool
    text: str


ROWS = {
    "IEN: no loss, turned": Row("mnist", True, PLAIN),  # REMUL's augmentation beside the penalty
    "IEN: layerwise 1, turned": Row("mnist", True, f"{PLAIN} loss=layerwise:1"),
    "mixed layer, turned": Row("mnist", True, MIXED),
    "mixed layer, sixes": Row("mnist6_180", False, MIXED),
    "REMUL: label 0, upright": Row("mnist", False, PLAIN),
    "REMUL: label 0.3, upright": Row("mnist", False, f"{PLAIN} loss=label:0.3"),
    "REMUL: label 1, upright": Row("mnist", False, f"{PLAIN} loss=label:1"),
    "REMUL: label 3, upright": Row("mnist", False, f"{PLAIN} loss=label:3"),
    "REMUL: label 10, upright": Row("mnist", False, f"{PLAIN} loss=label:10"),
    "exact, turned": Row("mnist", True, EXACT),
    "triangle, turned": Row("mnist", True, f"{PATHWAY} gamma=triangle"),
    "triangle with 0.1, turned": Row("mnist", True, f"{PATHWAY} gamma=triangle:0.1"),
    "triangle with 0.3, turned": Row("mnist", True, f"{PATHWAY} gamma=triangle:0.3"),
    "triangle with 1, turned": Row("mnist", True, f"{PATHWAY} gamma=triangle:1"),
    "exact, upright": Row("mnist", False, EXACT),
    "broken at 15 px, upright": Row("mnist", False, EXACT.replace("max3", "max2")),
    "broken at 16 px, upright": Row("mnist", False, EXACT.replace("15px", "16px")),
    "triangle, upright": Row("mnist", False, f"{PATHWAY} gamma=triangle"),
    "triangle with 0.3, upright": Row("mnist", False, f"{PATHWAY} gamma=triangle:0.3"),
    # the augmentation of a candidate stands in place of the study's: digits turned once for all
    "learned widths, turned": Row("rotated_mnist", False, f"{PLAIN} augment=learned"),
    "learned widths 0.1, turned": Row("rotated_mnist", False, f"{PLAIN} augment=learned:0.1"),
    "learned widths 0.3, turned": Row("rotated_mnist", False, f"{PLAIN} augment=learned:0.3"),
    "learned widths, upright": Row("mnist", False, f"{PLAIN} augment=learned"),
    "learned widths 0.1, upright": Row("mnist", False, f"{PLAIN} augment=learned:0.1"),
    "learned widths 0.3, upright": Row("mnist", False, f"{PLAIN} augment=learned:0.3"),
    "learned widths, sixes": Row("mnist6_180", False, f"{PLAIN} augment=learned"),
    "learned widths 0.1, sixes": Row("mnist6_180", False, f"{PLAIN} augment=learned:0.1"),
    "learned widths 0.3, sixes": Row("mnist6_180", False, f"{PLAIN} augment=learned:0.3"),
    "capacity: 4 channels, turned": Row("mnist", True, PLAIN.replace("12k", "4k")),
    "capacity: 36 channels, turned": Row("mnist", True, PLAIN.replace("12k", "36k")),
    "exact and coordinates, sixes": Row("mnist6_180", False, f"{EXACT} coordinates=xy"),
    "exact, sixes": Row("mnist6_180", False, EXACT),
    "streams C4 & D1 & C1, turned": Row("mnist", True, STREAMS),
    "invariant share 0.5, turned": Row("mnist", True, EXACT.replace("3@C4", "3i0.5@C4")),
}


@torch.no_grad()
def layerwise(network: Network, splits: Splits, images: Images) -> float:
    """The layerwise loss of IEN under C4, summed over stages, of a trained network."""
    objective = TrainingObjective.of(parse_losses("layerwise:1"), C4, network.architecture.size)
    pixels = images.pixels[:256].float() / 255
    draws = torch.Generator().manual_seed(0)
    mean, std = splits.mean[0], splits.std[0]
    terms = objective.terms(
        network.eval(), pixels, images.labels[:256], 256, lambda x: (x - mean) / std, draws
    )
    return terms[1].item()


def correlation(network: Network, splits: Splits) -> float:
    """How alike the maps of turned images and the turned maps are, -1 to 1, mean over stages: it
    does not depend on the scale of channels (Bruintjes et al., CVPRW 2023).
    """
    mean, std = splits.mean[0], splits.std[0]
    pixels = splits.validation.pixels[:64]
    error = equivariance_error(network, pixels, C4, normalise=lambda x: (x - mean) / std)
    return statistics.mean(stage.mean_correlation for stage in error.stages)


def invariance(network: Network, splits: Splits) -> float:
    """The effective invariance of 500 validation images under C4, which needs no labels (Deng et
    al., NeurIPS 2022).
    """
    mean, std = splits.mean[0], splits.std[0]
    images = splits.validation.pixels[:500]
    return effective_invariance(
        predict_elements(network, images, C4.elements, normalise=lambda x: (x - mean) / std)
    )


def result(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """The scores of one training, and what it learned."""
    row = ROWS[job["row"]]
    candidate = Candidate.parse(row.text)
    data = Data(name=row.data, root=root, train=job["train"], validation=1000)
    splits = load_or_exit(data, candidate.architecture.size)
    training = Training(
        epochs=job["epochs"],
        batch_size=64,
        equivariance_batch=1.0,
        precision="float32",
        device="cpu",
        augment=Augment(rotation="group" if row.turned else "none"),
    )
    config = TrainingConfig(data, training, Symmetry(group="C4"), job["seed"], candidate.recipe)
    network, scores = trained(candidate.architecture, config, splits)
    found = {
        name: getattr(scores, name)
        for name in ("accuracy", "symmetry_accuracy", "equivariance_error", "learned", "seconds")
    }
    return {
        **found,
        "layerwise": layerwise(network, splits, splits.validation),
        "correlation": correlation(network, splits),
        "invariance": invariance(network, splits),
    }


def _over(values: Sequence[float], scale: float = 1.0) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.3g} ± {scale * deviation:.2g}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds, accuracies in per cent."""
    lines = []
    for name in ROWS:
        of = [row for row in rows if row["row"] == name]
        if not of:
            continue
        shares = [_over([r[s] for r in of], 100) for s in ("accuracy", "symmetry_accuracy")]
        measures = ("equivariance_error", "layerwise", "correlation", "invariance")
        others = [_over([r[s] for r in of]) for s in measures]
        learned = (of[0]["learned"] or {}).keys()
        beside = ", ".join(f"{k} {_over([r['learned'][k] for r in of])}" for k in learned)
        lines.append(f"| {' | '.join([name, str(len(of)), *shares, *others, beside])} |")
    return "\n".join(lines)


def main() -> None:
    """Trains what is missing, seed by seed, and prints the table."""
    parser = row_parser(__doc__, ROWS, train=2000, epochs=8, out="systems.jsonl")
    given = parser.parse_args()
    print(table(trained_rows(given, given.rows, result)))


if __name__ == "__main__":
    run(main)
