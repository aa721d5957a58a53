"""One architecture, trained up to an epoch: calling again goes on where the last call ended, bit
for bit on the CPU.

Every random number comes from a generator seeded by (seed, epoch), and the learning rate is a
function of the step, so nothing but weights and optimizer state has to be kept
(`trainers.training.checkpoint`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from trainers.data.datasets import Images, Splits, batch, load_data, normaliser
from trainers.devices import pick_device, send
from trainers.files import partial_files, set_aside_odd
from trainers.networks.networks import Network, build
from trainers.networks.normalization import estimate_statistics
from trainers.precision import autocast
from trainers.scores import Scores
from trainers.seeds import derived_seed
from trainers.training import checkpoint
from trainers.training.checkpoint import CHECKPOINT, PREVIOUS, TrainingProgress
from trainers.training.class_balance import class_weights
from trainers.training.config import TrainingConfig, check_training
from trainers.training.cuda_graph import GraphedStep
from trainers.training.evaluate import EVALUATION_FILES, evaluate
from trainers.training.schedule import rate_at
from trainers.training.step import TrainingStep

# for the batch norm statistics before an evaluation, at most half of an epoch's
STATISTICS_IMAGES = 512
DROPOUT_STREAM = (
    1  # behind seed and epoch: dropout's numbers are not those of order and augmentation
)


class DivergedError(ValueError):
    """The loss is no longer a finite number."""


@dataclass
class TrainingRun:
    """One training under way: its step, its images, and how far it is."""

    step: TrainingStep
    graphed: GraphedStep  # the step, on a GPU replayed from a CUDA graph
    splits: Splits
    owner: str  # the fingerprint of its checkpoints
    progress: TrainingProgress

    @property
    def network(self) -> Network:
        """The network in training."""
        return self.step.network

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.progress.epoch

    def train_epoch(self, *, settle: bool = True) -> float:
        """Trains the next epoch and returns the mean training loss, equivariance loss included,
        nats.

        With `settle` the network is fit to be evaluated: it has batch norm statistics of its
        present weights, not lagging averages. Raises DivergedError if the loss is not finite.
        """
        began = time.perf_counter()
        config, images, device = self.step.config, self.splits.train, self.step.device
        training, count = config.training, len(images)
        steps = -(-count // training.batch_size)
        order = self._order(self.epoch)
        self.step.seed_dropout(derived_seed(self.step.config.seed, self.epoch, DROPOUT_STREAM))
        self.network.train()
        total = torch.zeros((), device=device)
        parts = send(order, images.pixels.device).split(training.batch_size)
        for number, chosen in enumerate(parts, start=self.epoch * steps):
            if len(chosen) < 2:  # batch norm needs two
                break
            pixels, labels = batch(images, chosen, device)
            rate = rate_at(training, config.peak_rate, number, training.epochs * steps)
            self.step.governing.schedule(number, training.epochs * steps)
            loss = self.graphed(self.step.augment(pixels), labels, rate)
            total.add_(loss, alpha=len(chosen))
        # a last batch of one image makes no step, and the schedule ends all the same
        self.step.governing.schedule((self.epoch + 1) * steps - 1, training.epochs * steps)
        if settle:
            self._settle(order)
        loss = float(total) / count
        self._count_epoch(loss, time.perf_counter() - began, settled=settle)
        return loss

    def _count_epoch(self, loss: float, seconds: float, *, settled: bool) -> None:
        done = self.progress
        epoch, seconds = done.epoch + 1, done.seconds + seconds
        row = {"epoch": epoch, "train_loss": loss, "seconds": seconds}
        self.progress = TrainingProgress(epoch, seconds, (*done.history, row), settled)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training loss is {loss} in epoch {epoch} at learning rate "
                f"{self.step.config.peak_rate:g}; try a lower learning rate"
            )

    def settle(self) -> None:
        """Makes the network fit to be evaluated where it stopped on the way to a later epoch."""
        if not self.progress.settled:
            self._settle(self._order(self.epoch - 1))
            self.progress = replace(self.progress, settled=True)

    def save(self, directory: Path) -> None:
        """Writes the checkpoint of the epochs done. Raises OSError."""
        step = self.step
        checkpoint.save_checkpoint(
            directory, self.owner, self.network, step.optimizer, self.progress, step.companions
        )

    def _order(self, epoch: int) -> Tensor:
        """The order of the training images in an epoch; seeds the step's generator for it."""
        seed = derived_seed(self.step.config.seed, epoch)
        return torch.randperm(
            len(self.splits.train), generator=self.step.generator.manual_seed(seed)
        )

    def _settle(self, order: Tensor) -> None:
        """Gives the network the batch norm statistics of its present weights, on the first images
        of an epoch.

        It is what makes scores at rungs comparable: after 3 of 9 epochs (1,000 MNIST images,
        onecycle, two seeds) an exact C4 network had 21 and 54 % with running averages and 42 and
        54 % with these, a plain one 57 and 42 % and 80 and 63 %.
        """
        step, images = self.step, self.splits.train
        chosen = order[: max(2, min(STATISTICS_IMAGES, len(order) // 2))]
        size = max(2, step.config.training.batch_size // step.config.batch_divisor)

        def batches() -> Iterator[Tensor]:
            for part in chosen.split(size):
                if len(part) > 1:
                    pixels = batch(images, send(part, images.pixels.device), step.device)[0]
                    with torch.no_grad():
                        pixels = step.deform(step.augment(pixels))
                    yield step.normalise(pixels)

        with autocast(step.precision, step.device):
            estimate_statistics(step.network, batches())


def train(
    architecture: Architecture,
    config: TrainingConfig,
    directory: Path,
    until_epoch: int,
    *,
    splits: Splits | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> Scores:
    """The scores of `architecture` on the validation images after training up to `until_epoch`
    (from 1 to the training's epochs). See `advance`, which it calls.
    """
    run = advance(architecture, config, directory, until_epoch, splits=splits, on_epoch=on_epoch)
    began = time.perf_counter()
    run.settle()
    scores = evaluate(
        run.network,
        run.splits,
        config,
        epoch=run.epoch,
        folder=directory,
        learned=run.step.learned or None,
    )
    return replace(scores, seconds=run.progress.seconds + time.perf_counter() - began)


def advance(
    architecture: Architecture,
    config: TrainingConfig,
    directory: Path,
    until_epoch: int,
    *,
    splits: Splits | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> TrainingRun:
    """The training of `architecture` after `until_epoch` epochs, not scored.

    Goes on from the checkpoint in `directory`, if there is one, and leaves one there after each
    epoch. `splits` are loaded as `config` says unless given. `on_epoch(epoch, row)` is called
    after each epoch's checkpoint; what it raises ends the training there. Raises DivergedError if
    the loss is not finite, ValueError if the checkpoint belongs to another training or the settings
    do not suit the images, OSError if the checkpoint cannot be written.
    """
    if not 1 <= until_epoch <= config.training.epochs:
        raise ValueError(
            f"cannot train until epoch {until_epoch}: the training has epochs 1 to "
            f"{config.training.epochs}; choose one of them"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for left in partial_files(directory):  # by a worker that was killed
        left.unlink(missing_ok=True)
    for place in set_aside_odd(directory, (CHECKPOINT, PREVIOUS, *EVALUATION_FILES)):
        warnings.warn(f"{place} was in the place of a file of the training", stacklevel=2)
    if splits is None:
        splits = load_data(config.data, architecture.size, merge=config.merge_validation)
    check_training(config.training, len(splits.train), min(architecture.size))
    run = start_training(
        architecture, config, directory, on_device(splits, pick_device(config.training.device))
    )
    while run.epoch < until_epoch:
        run.train_epoch(settle=run.epoch + 1 == until_epoch)
        run.save(directory)
        on_epoch(run.epoch, run.progress.history[-1])
    return run


def start_training(
    architecture: Architecture, config: TrainingConfig, directory: Path, splits: Splits
) -> TrainingRun:
    """The training in `directory`: that of its checkpoint, or one with a new network. Raises
    ValueError if the checkpoint belongs to another training, or the class weights do not fit the
    data.
    """
    device = pick_device(config.training.device)
    network = build(
        architecture, channels=splits.channels, classes=len(splits.classes), seed=config.seed
    ).to(device)
    step = TrainingStep.of(
        network,
        architecture,
        config,
        normaliser(splits.mean, splits.std, device, corners=config.corners),
        class_weights(config.training.class_weights, splits),
        splits.task,
    )
    owner = checkpoint.training_fingerprint(architecture, config)
    progress = checkpoint.restore(directory, owner, network, step.optimizer, step.companions)
    return TrainingRun(step, _graphed(step, splits), splits, owner, progress)


def _graphed(step: TrainingStep, splits: Splits) -> GraphedStep:
    """The step, with a CUDA graph for full batches where the configuration allows it.

    In a graph every image of the loss's part of a batch keeps its element; there must be room for
    all of them.
    """
    config = step.config
    full = min(config.training.batch_size, len(splits.train))
    allowed = (
        config.training.cuda_graphs
        and config.batch_divisor == 1
        and step.objective.most_elements <= step.equivariance_images(full)
        and not len(step.companions)
    )
    return GraphedStep(step, full, cuda_graph=allowed)


def on_device(splits: Splits, device: torch.device) -> Splits:
    """The splits with their training and validation images on `device`, moved once; on the CPU the
    splits themselves.
    """
    if device.type == "cpu":
        return splits

    def moved(images: Images) -> Images:
        return replace(images, pixels=images.pixels.to(device), labels=images.labels.to(device))

    return replace(splits, train=moved(splits.train), validation=moved(splits.validation))
