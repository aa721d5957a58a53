"""Scores of a network on validation images."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from searchspace.cost import cost
from searchspace.groups import IDENTITY, TRIVIAL, Element, Group
from trainers.data.augment import seen
from trainers.data.datasets import Images, Splits, batch, normalise
from trainers.data.tasks import Outputs
from trainers.instruments import correctness
from trainers.instruments.accuracy import SymmetryAccuracy, summarise
from trainers.instruments.equivariance import OF_CONSTANT, equivariance_error
from trainers.instruments.feature_maps import Normalise, pixels
from trainers.instruments.predictions import Predictions, predict_elements
from trainers.instruments.tasks.elements import ELEMENT_SCORES, ElementScores, write_element_scores
from trainers.instruments.tasks.replicates import REPLICATES, Replicates, write_replicates
from trainers.instruments.tasks.scoring import means_over, side_scores
from trainers.networks.fold import fold, mean_network, scoring
from trainers.networks.networks import Network
from trainers.scores import MAIN_SCORES, Scores
from trainers.training.class_balance import class_scores, symmetry_class_scores
from trainers.training.losses import task_loss

if TYPE_CHECKING:
    from trainers.training.config import TrainingConfig

ERROR_IMAGES = 64  # images that the equivariance error is measured on
# what an evaluation writes into a training's folder
EVALUATION_FILES = (correctness.CORRECT, ELEMENT_SCORES, REPLICATES)
# images per forward that the latency is taken from, and how many of them at most
LATENCY_BATCH, LATENCY_BATCHES = 128, 3


def evaluate(
    network: Network | Sequence[Network],
    splits: Splits,
    config: TrainingConfig,
    *,
    epoch: int,
    images: Images | None = None,
    folder: Path | None = None,
    learned: Mapping[str, float] | None = None,
) -> Scores:
    """The scores of `network` after `epoch` epochs, on the validation images unless others are
    given; of several networks of one architecture, those of their mean probabilities. `learned` is
    what was trained beside it.

    The folded network is what is scored: that is what a user will run, and its latency is taken as
    it will run. Which images it classifies correctly goes into `folder`, if one is given
    (`trainers.instruments.correctness`). Of logits that do not vary over the images, and of stages
    that do not, the equivariance error is 1 (`OF_CONSTANT`). Raises ValueError where a score is not
    finite.
    """
    members = (network,) if isinstance(network, Network) else tuple(network)
    architecture = members[0].architecture
    price = cost(architecture, splits.channels, len(splits.classes))
    subject = _Subject(
        mean_network(map(scoring, members), splits.task),
        partial(normalise, mean=splits.mean, std=splits.std, corners=config.corners),
        len(members) * price.params,
        len(members) * price.macs,
        lambda: mean_network(map(fold, members), splits.task),
        {f"stage {n}": stage.group for n, stage in enumerate(architecture.stages, start=1)},
    )
    trained_on = seen(config.augment, config.group, degrees_learned(learned))
    images = splits.validation if images is None else images
    return _scores(subject, splits, config, images, epoch, trained_on, folder, learned)


def evaluate_model(
    model: nn.Module, splits: Splits, config: TrainingConfig, *, epoch: int, folder: Path
) -> Scores:
    """The scores of any module that takes images in 0..1 and gives logits, as `evaluate` takes
    those of a network, as if it had trained `epoch` epochs; what training it has seen is not known.

    Multiply-accumulates are those of its convolutions and matrix products. Which images it
    classifies correctly goes into `folder`. Raises ValueError as `evaluate` does.
    """
    params = sum(p.numel() for p in model.parameters())
    macs = count_macs(model, splits.validation.pixels[:1])
    subject = _Subject(model.eval(), lambda images: images, params, macs, lambda: model)
    return _scores(subject, splits, config, splits.validation, epoch, (), folder, None)


@torch.no_grad()
def count_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of the convolutions and matrix products of a module for one image."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # one that is returned as it is ends the counter (torch 2.15)
            parameter.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(pixels(images[:1], model))
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    scored: nn.Module
    normal: Normalise
    params: int
    macs: int
    timed: Callable[[], nn.Module]  # what latency is taken of
    fields: Mapping[str, Group] | None = None  # of its stages; None: the logits are the only one


def _scores(
    subject: _Subject,
    splits: Splits,
    config: TrainingConfig,
    images: Images,
    epoch: int,
    trained_on: tuple[Element, ...],
    folder: Path | None,
    learned: Mapping[str, float] | None,
) -> Scores:
    began = time.perf_counter()
    declared, over, task = config.group, config.symmetry.scored, splits.task
    predictions = predict_elements(
        subject.scored,
        images.pixels,
        declared.elements,
        normalise=subject.normal,
        corners=config.corners,
        keep_logits=True,
    )
    symmetry = summarise(predictions, images.labels, declared, trained_on, over=over, task=task)
    assert predictions.upright is not None  # every group holds the identity
    loss = float(task_loss(task, predictions.upright, images.labels.cpu()))
    errors = _errors(subject, images, config)
    rows = by_element(symmetry, predictions, images.labels.cpu(), splits.outputs)
    if folder is not None:
        _keep(predictions, symmetry, images, epoch, folder)
        kept = _values_by_element(rows)
        write_element_scores(ElementScores(epoch, len(images.labels), kept), folder)
    return Scores(
        epoch=epoch,
        equivariance_error=errors[0],
        equivariance_error_features=errors[1],
        loss=loss,
        params=subject.params,
        macs=subject.macs,
        latency=_latency(subject.timed(), images, subject.normal),
        seconds=time.perf_counter() - began,
        learned=None if learned is None else dict(learned),
        num_images=len(images.labels),
        **_shares(symmetry),
        **of_task(symmetry, predictions, images.labels.cpu(), splits.outputs, rows),
    )


def _keep(
    predictions: Predictions, symmetry: SymmetryAccuracy, images: Images, epoch: int, folder: Path
) -> None:
    """Writes into `folder` what two networks are compared by."""
    keep = save_correctness if symmetry.resampled is None else save_replicates
    keep(predictions, symmetry, images, epoch, folder)


def save_correctness(
    predictions: Predictions, symmetry: SymmetryAccuracy, images: Images, epoch: int, folder: Path
) -> None:
    """Writes into `folder` which images are classified correctly under each declared element."""
    labels = images.labels.cpu()
    rows = [predictions.of(element)[0] == labels for element in symmetry.elements]
    correctness.write_correctness(
        correctness.packed(epoch, torch.stack(rows), labels, symmetry.elements, symmetry.scored),
        folder,
    )


def degrees_learned(learned: Mapping[str, float] | None) -> float:
    """The largest angle in degrees by which a learned augmentation turns images; 0 without one."""
    return math.degrees((learned or {}).get("width rotation", 0.0)) / 2


def save_replicates(
    predictions: Predictions, symmetry: SymmetryAccuracy, images: Images, epoch: int, folder: Path
) -> None:
    """Writes into `folder` the main scores on resamples of the images."""
    digest = hashlib.sha256(images.labels.cpu().numpy().tobytes()).hexdigest()[:16]
    rows = {name: row[1:].tolist() for name, row in _resampled(symmetry).items()}
    scores = {name: tuple(values) for name, values in rows.items()}
    write_replicates(Replicates(epoch, len(images.labels), digest, scores), folder)


def _resampled(symmetry: SymmetryAccuracy) -> dict[str, Tensor]:
    """The three main scores on the images and on each resample, by the names of `Scores`."""
    return {
        "accuracy": symmetry.rows([IDENTITY]),
        "symmetry_accuracy": symmetry.rows(symmetry.scored),
        "symmetry_accuracy_worst": symmetry.rows([symmetry.worst[0]]),
    }


def _shares(symmetry: SymmetryAccuracy) -> dict[str, Any]:
    """The accuracies among the scores."""
    return {
        "accuracy": symmetry.accuracy.value,
        "symmetry_accuracy": symmetry.mean.value,
        "symmetry_accuracy_worst": symmetry.worst[1].value,
        "symmetry_accuracy_exact": _value(symmetry, "exact"),
        "symmetry_accuracy_interpolated": _value(symmetry, "interpolated"),
        "unseen_symmetry_accuracy": _value(symmetry, "mean_unseen"),
    }


def by_element(
    symmetry: SymmetryAccuracy, predictions: Predictions, labels: Tensor, outputs: Outputs
) -> dict[Element, dict[str, float | None]]:
    """What `trainers.instruments.correctness` does not say of each element: its scores over
    classes, or its main score that is no accuracy.
    """
    if outputs.task != "classification":
        return {e: {"accuracy": float(symmetry.rows([e])[0])} for e in symmetry.elements}
    assert predictions.logits is not None
    forward = dict(zip(predictions.elements, predictions.forwards))
    scored = {n: class_scores(predictions.logits[n], labels) for n in set(forward.values())}
    return {e: scored[forward[e]] for e in symmetry.elements}


def _values_by_element(
    rows: Mapping[Element, Mapping[str, float | None]],
) -> dict[str, dict[str, float]]:
    """Score -> element -> value, without standard errors, of the scores that all elements have."""
    names = [name for name in next(iter(rows.values())) if not name.endswith("_error")]
    found = {name: {str(e): row[name] for e, row in rows.items()} for name in names}
    return {
        name: {e: value for e, value in values.items() if value is not None}
        for name, values in found.items()
        if None not in values.values()
    }


def of_task(
    symmetry: SymmetryAccuracy,
    predictions: Predictions,
    labels: Tensor,
    outputs: Outputs,
    elements: Mapping[Element, Mapping[str, float | None]],
) -> dict[str, Any]:
    """The scores that only one task has: those over classes, or what stands beside a main score
    that is no accuracy. `elements` is what `by_element` gives.
    """
    assert predictions.upright is not None and predictions.logits is not None
    if outputs.task == "classification":
        means = symmetry_class_scores([elements[e] for e in symmetry.scored])
        return {**elements[IDENTITY], **means}
    forwards = [predictions.forwards[predictions.elements.index(e)] for e in symmetry.scored]
    rows = {n: side_scores(outputs, predictions.logits[n], labels) for n in dict.fromkeys(forwards)}
    errors = {f"{name}_error": float(row[1:].std()) for name, row in _resampled(symmetry).items()}
    found = {
        "score": MAIN_SCORES[outputs.task],
        **errors,
        "beside": side_scores(outputs, predictions.upright, labels),
        "symmetry_beside": means_over([rows[n] for n in forwards]),
    }
    if outputs.task == "regression":
        return found
    names = {"auroc": "accuracy", "symmetry_auroc": "symmetry_accuracy"}
    return found | {
        **{name: float(_resampled(symmetry)[of][0]) for name, of in names.items()},
        **{f"{name}_error": errors[f"{of}_error"] for name, of in names.items()},
    }


def _value(symmetry: SymmetryAccuracy, name: str) -> float | None:
    share = getattr(symmetry, name)
    return None if share is None else share.value


def _errors(subject: _Subject, images: Images, config: TrainingConfig) -> tuple[float, float]:
    """Of the logits and of the features; 0 for the trivial group."""
    if config.group == TRIVIAL:
        return 0.0, 0.0
    few = images.pixels[:: max(1, len(images.pixels) // ERROR_IMAGES)][:ERROR_IMAGES]
    error = equivariance_error(
        subject.scored,
        few,
        config.group,
        stages=() if subject.fields is None else None,
        fields=subject.fields,
        normalise=subject.normal,
        corners=config.corners,
        of_constant=OF_CONSTANT,
    )
    features = error.logits.mean if subject.fields is None else error.features
    return error.logits.mean, features or 0.0


@torch.no_grad()
def _latency(folded: torch.nn.Module, images: Images, normal) -> float:
    """Milliseconds per image of a forward pass from pixels to classes: the median over a few
    batches.
    """
    times, device = [], next(folded.parameters()).device
    for index in torch.arange(
        min(len(images.labels), LATENCY_BATCHES * LATENCY_BATCH), device=images.pixels.device
    ).split(LATENCY_BATCH):
        began = time.perf_counter()
        # which waits for a GPU
        folded(normal(batch(images, index, device)[0])).argmax(1).cpu()
        times.append((time.perf_counter() - began) / len(index))
    return 1000 * median(times)
