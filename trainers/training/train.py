"""One architecture, trained up to an epoch: calling again goes on where the last call ended, bit
for bit on the CPU.

Every random number comes from a generator seeded by (seed, epoch), and the learning rate is a
function of the step, so nothing but weights and optimizer state has to be kept. A checkpoint is
written to a temporary name and moved into place after each epoch.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.groups import Group
from searchspace.recipe import Candidate, Recipe
from trainers.data.augment import transform
from trainers.data.datasets import Splits, batch, load, normaliser
from trainers.devices import pick_device, send
from trainers.files import partial_files, write_whole
from trainers.networks.networks import Network, build
from trainers.networks.normalization import estimate_statistics
from trainers.precision import autocast, resolve
from trainers.scores import Scores
from trainers.settings import Data, Symmetry, Training
from trainers.training.cuda_graph import Steps
from trainers.training.evaluate import evaluate
from trainers.training.losses import draw, equivariance_loss, move, pooled, usable_elements

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
# share of a onecycle schedule in which the learning rate rises (Smith & Topin 2017, torch's
# default)
WARM_UP = 0.3
# for the batch norm statistics before an evaluation, at most half of an epoch's
STATISTICS_IMAGES = 512
# the step schedule halves every fifth (arXiv:2308.11316: every 10 of 50 epochs)
STEP_EVERY, STEP_FACTOR = 0.2, 0.5


@dataclass(frozen=True)
class Config:
    """Everything beside the architecture that decides what a training gives."""

    data: Data
    training: Training
    symmetry: Symmetry
    seed: int = 0  # of weights, order and augmentation
    recipe: Recipe = field(default_factory=Recipe)
    # parts that a batch is computed in, gradients summed: less memory, the same step size
    batch_divisor: int = 1

    @property
    def peak_rate(self) -> float:
        """The learning rate that the schedule scales."""
        rate = self.recipe.learning_rate
        return self.training.learning_rate if rate is None else rate

    @property
    def group(self) -> Group:
        """The declared group: under which the model will be used."""
        return Group.parse(self.symmetry.group)


class Diverged(ValueError):
    """The loss is no longer a finite number."""


@dataclass
class _State:
    network: Network
    optimizer: torch.optim.Optimizer
    # seeded anew for every epoch
    generator: torch.Generator = field(default_factory=torch.Generator)
    steps: Steps | None = None  # from the first epoch on
    settled: bool = True  # whether batch norm has the statistics of the present weights
    epoch: int = 0  # epochs done
    seconds: float = 0.0  # of all calls
    history: tuple[dict[str, float], ...] = ()


def train(
    architecture: Architecture,
    config: Config,
    directory: Path,
    until_epoch: int,
    *,
    splits: Splits | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> Scores:
    """The scores of `architecture` after training up to `until_epoch` (from 1 to the training's
    epochs).

    Goes on from the checkpoint in `directory`, if there is one, and leaves one there after each
    epoch. `splits` are loaded from `config.data` unless given. `on_epoch(epoch, row)` is called
    after each epoch's checkpoint; what it raises ends the training there. Raises Diverged if the
    loss is not finite, ValueError if the checkpoint belongs to another training, OSError if it
    cannot be written.
    """
    if not 1 <= until_epoch <= config.training.epochs:
        raise ValueError(
            f"asked to train until epoch {until_epoch}; the training has epochs 1 to "
            f"{config.training.epochs}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for left in partial_files(directory):  # by a worker that was killed
        left.unlink(missing_ok=True)
    splits = load(config.data, architecture.size) if splits is None else splits
    state = start(architecture, config, directory, splits)
    device = next(state.network.parameters()).device
    splits = splits if device.type == "cpu" else on_device(splits, device)
    while state.epoch < until_epoch:
        began = time.perf_counter()
        loss = train_epoch(
            state, architecture, config, splits, settle=state.epoch + 1 == until_epoch
        )
        state.epoch += 1
        state.seconds += time.perf_counter() - began
        row = {"epoch": state.epoch, "train_loss": loss, "seconds": state.seconds}
        state.history += (row,)
        if not math.isfinite(loss):
            raise Diverged(
                f"the training loss is {loss} in epoch {state.epoch} at learning rate "
                f"{config.peak_rate:g}; try a lower learning rate"
            )
        save(state, _fingerprint(architecture, config), directory)
        on_epoch(state.epoch, row)
    began = time.perf_counter()
    if not state.settled:  # it had been stopped here on the way to a later epoch
        _settle(state, config, splits, _order(state, config, splits, state.epoch - 1))
    scores = evaluate(state.network, splits, config, epoch=state.epoch)
    return replace(scores, seconds=state.seconds + time.perf_counter() - began)


def start(architecture: Architecture, config: Config, directory: Path, splits: Splits) -> _State:
    """The state of the training in `directory`: that of its checkpoint, or a new network."""
    device = pick_device(config.training.device)
    network = build(
        architecture, channels=splits.channels, classes=len(splits.classes), seed=config.seed
    ).to(device)
    state = _State(network, _optimizer(network, config))
    # the previous one serves if the last was torn by a crash of the machine
    for name in (CHECKPOINT, PREVIOUS):
        saved = _read(directory / name, device)
        if saved is None:
            continue
        if saved["fingerprint"] != _fingerprint(architecture, config):
            raise ValueError(
                f"{directory / name} belongs to another training; give an empty directory. It "
                f"holds {saved['fingerprint']}"
            )
        network.load_state_dict(saved["network"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.epoch, state.seconds, state.history = (
            saved["epoch"],
            saved["seconds"],
            tuple(saved["history"]),
        )
        state.settled = saved.get("settled", True)
        break
    return state


def save(state: _State, fingerprint: str, directory: Path) -> None:
    """Writes the checkpoint so that at every moment one whole checkpoint lies in `directory`."""
    content = {
        "fingerprint": fingerprint,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": state.epoch,
        "settled": state.settled,
        "seconds": state.seconds,
        "history": list(state.history),
    }
    # torch's own writer reports a full disk as RuntimeError, or ends the process
    whole = io.BytesIO()
    try:
        torch.save(content, whole)
        write_whole(directory / CHECKPOINT, whole.getbuffer(), previous=directory / PREVIOUS)
    except OSError as error:
        raise OSError(
            f"the checkpoint of epoch {state.epoch} could not be written to {directory}: {error}; "
            "free some space, then resume: nothing before this epoch is lost"
        ) from error


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # torn: a zip file cut anywhere fails in many ways
        return None


def _fingerprint(architecture: Architecture, config: Config) -> str:
    training = config.training.model_dump(mode="json", exclude={"device", "cuda_graphs"})
    # where the data lies may change
    data = config.data.model_dump(mode="json", exclude={"download", "root", "folder"})
    return json.dumps(
        {
            "architecture": str(Candidate(architecture, config.recipe).with_learning_rate(None)),
            "seed": config.seed,
            "learning_rate": config.peak_rate,
            "training": training,
            "data": data,
            "group": config.symmetry.group,
        },
        sort_keys=True,
    )


def train_epoch(
    state: _State,
    architecture: Architecture,
    config: Config,
    splits: Splits,
    *,
    settle: bool = True,
) -> float:
    """Trains the state's next epoch and returns the mean training loss, equivariance loss included,
    nats.

    With `settle` the network is fit to be evaluated: it has batch norm statistics of its present
    weights, not lagging averages.
    """
    training, network = config.training, state.network
    device = next(network.parameters()).device
    count = len(splits.train.labels)
    steps = -(-count // training.batch_size)
    order = _order(state, config, splits, state.epoch)
    if state.steps is None:
        state.steps = _steps(state, architecture, config, splits)
    network.train()
    total = torch.zeros((), device=device)
    for step, chosen in enumerate(
        send(order, splits.train.pixels.device).split(training.batch_size)
    ):
        if len(chosen) < 2:  # batch norm needs two
            break
        pixels, labels = batch(splits.train, chosen, device)
        pixels = transform(pixels, training.augment, config.group, state.generator)
        rate = rate_at(
            training, config.peak_rate, state.epoch * steps + step, training.epochs * steps
        )
        total.add_(state.steps(pixels, labels, rate), alpha=len(chosen))
    state.settled = False
    if settle:
        _settle(state, config, splits, order)
    return float(total) / count


def _order(state: _State, config: Config, splits: Splits, epoch: int) -> Tensor:
    """The order of the training images in an epoch; seeds the state's generator for it."""
    return torch.randperm(
        len(splits.train.labels), generator=state.generator.manual_seed(seed_of(config.seed, epoch))
    )


def _steps(state: _State, architecture: Architecture, config: Config, splits: Splits) -> Steps:
    """What makes the training's steps: on a batch, in the parts that the configuration asks for."""
    training, network, optimizer = config.training, state.network, state.optimizer
    device = next(network.parameters()).device
    precision = resolve(training.precision, device)
    elements = (
        usable_elements(config.group, architecture.size)
        if config.recipe.loss.kind != "none"
        else ()
    )
    normal = normaliser(splits.mean, splits.std, device)
    full = min(training.batch_size, len(splits.train.labels))

    def step(pixels: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total, size = (
            torch.zeros((), device=device),
            max(2, -(-len(pixels) // config.batch_divisor)),
        )
        for images, classes in zip(pixels.split(size), labels.split(size)):
            if len(images) < 2:
                continue
            with autocast(precision, device):
                loss = training_loss(
                    network,
                    config,
                    images,
                    classes,
                    normal,
                    elements,
                    state.generator,
                )
            share = len(images) / len(pixels)
            (loss * share).backward()
            total.add_(loss.detach(), alpha=share)
        optimizer.step()
        return total

    # In a graph every image of the loss's part of a batch keeps its element; there must be room for
    # all of them.
    capture = (
        training.cuda_graphs
        and config.batch_divisor == 1
        and len(elements) <= equivariance_images(config.training, full)
    )
    return Steps(step, network, optimizer, full, capture=capture)


def _settle(state: _State, config: Config, splits: Splits, order: Tensor) -> None:
    """Gives the network the batch norm statistics of its present weights, on the first images of an
    epoch.

    It is what makes scores at rungs comparable: after 3 of 9 epochs (1,000 MNIST images, onecycle,
    two seeds) an exact C4 network had 21 and 54 % with running averages and 42 and 54 % with these,
    a plain one 57 and 42 % and 80 and 63 %.
    """
    training, network = config.training, state.network
    device = next(network.parameters()).device
    precision, normal = (
        resolve(training.precision, device),
        normaliser(splits.mean, splits.std, device),
    )
    chosen = order[: max(2, min(STATISTICS_IMAGES, len(order) // 2))]

    def batches() -> Iterator[Tensor]:
        for part in chosen.split(max(2, training.batch_size // config.batch_divisor)):
            if len(part) > 1:
                pixels = transform(
                    batch(splits.train, send(part, splits.train.pixels.device), device)[0],
                    training.augment,
                    config.group,
                    state.generator,
                )
                yield normal(pixels)

    with autocast(precision, device):
        estimate_statistics(network, batches())
    state.settled = True


def training_loss(
    network: Network,
    config: Config,
    pixels: Tensor,
    labels: Tensor,
    normal: Callable[[Tensor], Tensor],
    elements: tuple,
    generator: torch.Generator,
) -> Tensor:
    """The loss of a batch: cross entropy of images in 0..1 [B, C, H, W], plus the recipe's
    equivariance loss.

    `normal` normalises images. The equivariance loss is measured on the first `equivariance_batch`
    of the batch, under `elements` drawn from `generator`.
    """
    penalised = config.recipe.loss
    if penalised.kind == "none":
        logits = network(normal(pixels))
        return functional.cross_entropy(logits.float(), labels)
    count, size = len(pixels), equivariance_images(config.training, len(pixels))
    parts = draw(elements, size, generator)
    together = torch.cat([pixels, move(pixels[:size], parts)])
    kind = penalised.kind
    logits, stages = network.forward_with_parts(
        normal(together), slice(size), slice(count, None), block=pooled(kind, config.group)
    )
    penalty = equivariance_loss(
        kind, config.group, parts, *zip(*stages), logits[count:], labels[:size]
    )
    return functional.cross_entropy(logits[:count].float(), labels) + penalised.weight * penalty


def equivariance_images(training: Training, count: int) -> int:
    """How many of a batch of `count` images the equivariance loss is measured on."""
    return max(1, round(training.equivariance_batch * count))


def rate_at(training: Training, peak: float, step: int, total: int) -> float:
    """The learning rate of `step` (from 0) of `total`: a pure function, so that resuming needs no
    scheduler state.
    """
    share = step / max(1, total)
    if training.schedule == "constant":
        return peak
    if training.schedule == "step":
        return peak * STEP_FACTOR ** int(share / STEP_EVERY + 1e-9)
    if training.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * share)) / 2
    low, last = peak / 25, peak / 250_000
    if share < WARM_UP:
        return peak + (low - peak) * (1 + math.cos(math.pi * share / WARM_UP)) / 2
    return last + (peak - last) * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


def _optimizer(network: Network, config: Config) -> torch.optim.Optimizer:
    training, rate = config.training, config.peak_rate
    parameters = list(network.parameters())
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,
        )
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=training.weight_decay, fused=True)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers; different numbers give unrelated seeds."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1


def on_device(splits: Splits, device: torch.device) -> Splits:
    """The splits with their training and validation images on `device`, moved once."""

    def moved(images):
        return replace(images, pixels=images.pixels.to(device), labels=images.labels.to(device))

    return replace(splits, train=moved(splits.train), validation=moved(splits.validation))
