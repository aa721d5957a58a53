"""Training one architecture under a study's data and training, outside a search: `equisearch
train`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.geometry import counted
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.journal.directory import require_writable_place
from studies.journal.lock import StudyLock
from studies.tasks import beside_text, score_name, with_task
from studies.workers.corners import with_corners

if TYPE_CHECKING:
    from trainers.data.datasets import Splits
    from trainers.networks.networks import Network
    from trainers.settings import Symmetry


def train_one(
    study: Study,
    candidate: Candidate,
    *,
    seed: int = 0,
    out: Path | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Scores, accuracy by angle (validation images) and cost of `candidate`, trained for all
    epochs of the study.

    `out` keeps the checkpoint, from which the next call goes on; without it nothing is kept.
    `note` receives what a user should know of the images and of the settings. Raises StudyError
    where `out` cannot be written, LockedError while another process trains there, ValueError for
    settings under which nothing can be learned.
    """
    from trainers.data.datasets import DataWarning, load_data
    from trainers.data.describing import describe
    from trainers.process import tune_process
    from trainers.training.config import check_training
    from trainers.training.train import start_training, train

    if out is not None:
        require_writable_place(out, "give another folder with --out")
    candidate.recipe.check(Group.parse(study.symmetry.group), study.training.epochs)
    study = with_corners(with_task(study, note), [str(candidate)], note)
    tune_process(int(study.resources.cpus_per_trial))
    config = study.training_config(seed, candidate.recipe)
    architecture = candidate.architecture
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # `describe` says it
        splits = load_data(study.data, architecture.size)
    warned = check_training(study.training, len(splits.train), min(architecture.size))
    for line in [*describe(splits), *warned]:
        note(line)
    with _folder(out) as directory:
        scores = train(
            architecture, config, directory, study.training.epochs, splits=splits, on_epoch=on_epoch
        )
        network = start_training(architecture, config, directory, splits).network
    return {
        "architecture": str(candidate),
        "scores": scores.as_dict(),
        "accuracy_by_angle": _accuracy_by_angle(network, splits, study.symmetry),
        "seconds": scores.seconds,
        "epochs": scores.epoch,
        "seed": seed,
        "num_validation": len(splits.validation.labels),
    }


def _accuracy_by_angle(network: Network, splits: Splits, symmetry: Symmetry) -> dict[str, float]:
    """Accuracy on the validation images turned by multiples of `symmetry.angles`."""
    from trainers.data.datasets import normalise
    from trainers.instruments.accuracy import accuracy_by_angle

    filling = symmetry.filling
    curve = accuracy_by_angle(
        network,
        splits.validation.pixels,
        splits.validation.labels,
        step=symmetry.angles,
        normalise=partial(normalise, mean=splits.mean, std=splits.std, corners=filling),
        corners=filling,
        task=splits.task,
    )
    return {f"{degrees:g}": share.value for degrees, share in zip(curve.degrees, curve.accuracies)}


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """`out`, made where it is missing and locked meanwhile; a temporary folder for None."""
    if out is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    out.mkdir(parents=True, exist_ok=True)
    with closing(StudyLock(out)):
        yield out


def train_lines(result: dict[str, Any]) -> list[str]:
    """The result of `train_one` as text."""
    from studies.output import percent

    scores, angles = result["scores"], result["accuracy_by_angle"]
    name = score_name(scores)
    lines = [
        result["architecture"],
        f"  {counted(result['epochs'], 'epoch')} in {result['seconds']:.1f} s, seed "
        f"{result['seed']}, "
        f"{counted(result['num_validation'], 'validation image')}",
        f"  {name} {percent(scores['accuracy'])} %; symmetry {name} "
        f"{percent(scores['symmetry_accuracy'])} % "
        f"(worst {percent(scores['symmetry_accuracy_worst'])} %)",
        *([f"  beside it: {beside_text(scores)}"] if scores.get("beside") else []),
        f"  equivariance error: logits {scores['equivariance_error']:.3g}, features "
        f"{scores['equivariance_error_features']:.3g} "
        "(0 exact, 1 as much as another image)",
        f"  {scores['params']:,} parameters, {scores['macs']:,} MACs and "
        f"{scores['latency']:.3g} ms per image",
        f"  {name} % by angle:",
    ]
    width = 6
    names = list(angles)
    for begin in range(0, len(names), 12):
        row = names[begin : begin + 12]
        lines += [
            "    " + "".join(f"{name + '°':>{width + 1}}" for name in row),
            "    " + "".join(f"{100 * angles[name]:>{width + 1}.1f}" for name in row),
        ]
    return lines
