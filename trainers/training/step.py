"""`TrainingStep`: one optimizer step on a batch, with everything that it needs in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from trainers.data.augment import transform_images
from trainers.networks.dropout import dropouts
from trainers.networks.networks import Network
from trainers.networks.soft_weights import Pathway
from trainers.precision import Precision, autocast, resolve_precision
from trainers.settings import Task
from trainers.training.augmentation import LearnedAugmentation
from trainers.training.config import TrainingConfig
from trainers.training.governing import Governing
from trainers.training.losses import TASK_LOSSES
from trainers.training.objective import TrainingObjective
from trainers.training.weighting import AdaptedWeights


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """A function of a batch that makes one step: loss, gradients, the optimizer's update."""

    network: Network
    optimizer: torch.optim.Optimizer
    config: TrainingConfig
    objective: TrainingObjective  # the equivariance losses
    # what is trained beside the network: widths of augmentation, weights of losses
    companions: nn.ModuleDict
    governing: Governing  # of gamma of residual pathways
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
        class_weights: Tensor | None = None,
        task: Task = "classification",
    ) -> TrainingStep:
        """The step of a network on its device; `class_weights` [class] weigh the task's loss.
        Raises ValueError where the declared group has no
        element for the recipe's equivariance loss.
        """
        device = next(network.parameters()).device
        companions = companions_of(config).to(device)
        governing = Governing.of(network, config.recipe.gamma, config.training.epochs)
        return cls(
            network,
            build_optimizer(network, config, companions),
            config,
            TrainingObjective.of(
                config.recipe.losses,
                config.group,
                architecture.size,
                config.corners,
                None if class_weights is None else class_weights.to(device),
                task,
            ),
            companions,
            governing,
            normalise,
            resolve_precision(config.training.precision, device),
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
        self.governing.clear()
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
        self.governing.update()
        return total

    def batch_loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The loss [] of a batch: cross entropy, plus the weighted equivariance losses on the first
        `equivariance_images` of it.
        """
        terms = self.objective.terms(
            self.network,
            self.deform(pixels),
            labels,
            self.equivariance_images(len(pixels)),
            self.normalise,
            self.generator,
        )
        loss = self._weighted(terms)
        if "augmentation" in self.companions:
            loss = loss + cast(LearnedAugmentation, self.companions["augmentation"]).penalty()
        penalty = self.governing.penalty()
        return loss if penalty is None else loss + penalty

    def _weighted(self, terms: list[Tensor]) -> Tensor:
        """The weighted sum of the cross entropy and the equivariance losses."""
        if "weights" in self.companions:
            return self.companions["weights"](terms, self._shared())
        loss = terms[0]
        for term, of in zip(terms[1:], self.objective.losses):
            loss = loss + of.weight * term
        return loss

    def _shared(self) -> list[nn.Parameter]:
        """The trained parameters of the last stage on which every equivariance loss depends."""
        stages = list(self.network.stages)
        last = min((loss.stages[-1] for loss in self.objective.losses if loss.stages),
                   default=len(stages))  # fmt: skip
        return [p for p in stages[last - 1].parameters() if p.requires_grad]

    def deform(self, pixels: Tensor) -> Tensor:
        """Images in 0..1 moved by the learned augmentation; themselves where there is none."""
        if "augmentation" not in self.companions:
            return pixels
        return self.companions["augmentation"](pixels, self.generator)

    @property
    def learned(self) -> dict[str, float]:
        """What was trained beside the network, by name."""
        values: dict[str, float] = {}
        if "augmentation" in self.companions:
            values |= cast(LearnedAugmentation, self.companions["augmentation"]).learned()
        if "weights" in self.companions:
            names = [
                TASK_LOSSES[self.objective.task],
                *(loss.kind for loss in self.objective.losses),
            ]
            weights = cast(AdaptedWeights, self.companions["weights"]).weights.tolist()
            values |= {f"weight {name}": weight for name, weight in zip(names, weights)}
        if self.network.architecture.softened:
            values |= self.governing.values(self.network)
        return values

    def equivariance_images(self, count: int) -> int:
        """How many of a batch of `count` images the equivariance loss is measured on."""
        return max(1, round(self.config.training.equivariance_batch * count))

    def seed_dropout(self, seed: int) -> None:
        """Makes the masks of the next steps those of `seed`."""
        for generator in self.generators:
            generator.manual_seed(seed)

    def augment(self, pixels: Tensor) -> Tensor:
        """Images in 0..1 as training sees them."""
        config = self.config
        return transform_images(
            pixels, config.augment, config.group, self.generator, config.corners
        )


def _dropout_generators(network: Network) -> tuple[torch.Generator, ...]:
    """The generator that all dropouts of the network draw from henceforth, if it has any."""
    layers = dropouts(network)
    device = next(network.parameters()).device
    generator = torch.Generator(device if device.type == "cuda" else "cpu")
    for module in layers:
        module.generator = generator
    return (generator,) if layers else ()


def companions_of(config: TrainingConfig) -> nn.ModuleDict:
    """What the recipe trains beside the network: empty for most."""
    recipe = config.recipe
    companions = nn.ModuleDict()
    if recipe.augment is not None and recipe.augment.kind == "learned":
        companions["augmentation"] = LearnedAugmentation(
            recipe.augment.regularisation, config.corners
        )
    if recipe.weighting == "adapted":
        companions["weights"] = AdaptedWeights([1.0, *(loss.weight for loss in recipe.losses)])
    return companions


def build_optimizer(
    network: Network, config: TrainingConfig, companions: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, for all parameters of the network but gamma of
    residual pathways, which has steps of its own; those of the companions are not decayed.
    """
    training, rate = config.training, config.peak_rate
    governed = {id(c.soft.gamma) for c in network.convolutions if isinstance(c.soft, Pathway)}
    trained = [p for p in network.parameters() if id(p) not in governed]
    parameters: list[dict[str, Any]] = [{"params": trained}]
    if companions is not None and (beside := list(companions.parameters())):
        parameters.append({"params": beside, "weight_decay": 0.0})
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
