"""`TrainingStep`: one optimizer step on a batch, with everything that it needs in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.groups import Element
from trainers.data.augment import transform
from trainers.networks.dropout import dropouts
from trainers.networks.networks import Network
from trainers.precision import Precision, autocast, resolve
from trainers.training.config import TrainingConfig
from trainers.training.losses import LOSSES, Views, draw, move, usable_elements


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """A function of a batch that makes one step: loss, gradients, the optimizer's update."""

    network: Network
    optimizer: torch.optim.Optimizer
    config: TrainingConfig
    elements: tuple[Element, ...]  # that move images for it
    normalise: Callable[[Tensor], Tensor]  # images in 0..1 to what the network takes
    precision: Precision
    # of order, augmentation and the loss's elements; seeded anew for every epoch
    generator: torch.Generator
    # of dropout, on the network's device, likewise; none where nothing is dropped
    generators: tuple[torch.Generator, ...] = ()

    @classmethod
    def of(
        cls,
        network: Network,
        architecture: Architecture,
        config: TrainingConfig,
        normalise: Callable[[Tensor], Tensor],
    ) -> TrainingStep:
        """The step of a network on its device. Raises ValueError where the declared group has no
        element for the recipe's equivariance loss.
        """
        kind = config.recipe.loss.kind
        moves = kind in LOSSES and LOSSES[kind].moves
        return cls(
            network,
            build_optimizer(network, config),
            config,
            usable_elements(config.group, architecture.size) if moves else (),
            normalise,
            resolve(config.training.precision, next(network.parameters()).device),
            torch.Generator(),
            _dropout_generators(network),
        )

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def __call__(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The loss [] of a batch in 0..1 [B, C, H, W], detached, after one step on it, computed in
        the configuration's `batch_divisor` parts.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        size = max(2, -(-len(pixels) // self.config.batch_divisor))
        for images, classes in zip(pixels.split(size), labels.split(size)):
            if len(images) < 2:  # batch norm needs two
                continue
            with autocast(self.precision, self.device):
                loss = self.batch_loss(images, classes)
            share = len(images) / len(pixels)
            (loss * share).backward()
            total.add_(loss.detach(), alpha=share)
        self.optimizer.step()
        return total

    def batch_loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The loss [] of a batch: cross entropy, plus the weighted equivariance loss on the first
        `equivariance_images` of it.
        """
        term = self.config.recipe.loss
        if term.kind == "none":
            return _cross_entropy(self.network(self.normalise(pixels)), labels)
        loss, group, count = LOSSES[term.kind], self.config.group, len(pixels)
        size = self.equivariance_images(count)
        parts = draw(self.elements, size, self.generator) if loss.moves else []
        moved = [move(pixels[:size], parts)] if loss.moves else []
        images = self.normalise(torch.cat([pixels, *moved]))
        compared = (slice(size), slice(count, None)) if loss.moves else (slice(size),)
        if loss.stages:
            block = group.order if loss.pools else 1
            logits, stages = self.network.forward_with_parts(images, *compared, block=block)
        else:
            logits, stages = self.network(images), ()
        views = Views(group, parts, labels[:size], tuple(logits[part] for part in compared), stages)
        return _cross_entropy(logits[:count], labels) + term.weight * loss.function(views)

    def equivariance_images(self, count: int) -> int:
        """How many of a batch of `count` images the equivariance loss is measured on."""
        return max(1, round(self.config.training.equivariance_batch * count))

    def seed_dropout(self, seed: int) -> None:
        """Makes the masks of the next steps those of `seed`."""
        for generator in self.generators:
            generator.manual_seed(seed)

    def augment(self, pixels: Tensor) -> Tensor:
        """Images in 0..1 as training sees them."""
        return transform(pixels, self.config.training.augment, self.config.group, self.generator)


def _dropout_generators(network: Network) -> tuple[torch.Generator, ...]:
    """The generator that all dropouts of the network draw from henceforth, if it has any."""
    found = dropouts(network)
    device = next(network.parameters()).device
    generator = torch.Generator(device if device.type == "cuda" else "cpu")
    for module in found:
        module.generator = generator
    return (generator,) if found else ()


def build_optimizer(network: Network, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, for all parameters of the network."""
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


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), labels)
