"""What a training step lowers: the loss of the task and the weighted equivariance losses.

The losses share one forward pass: the batch, and behind it some of its images moved by elements of
each group that a loss names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from searchspace.groups import TRIVIAL, Element, Group
from searchspace.training.losses import Blocks, Loss
from trainers.networks.filters import aligned_channels
from trainers.networks.networks import Network
from trainers.settings import Corners, Task
from trainers.training.losses import (
    LOSSES,
    Views,
    draw_elements,
    maxima_of,
    move_images,
    task_loss,
    usable_elements,
)

Parts = list[tuple[Element, slice]]


@dataclass(frozen=True)
class TrainingObjective:
    """The equivariance losses of a recipe on images of one size, and what they need."""

    losses: tuple[Loss, ...]
    declared: Group
    # of the groups that move images, by group
    elements: dict[Group, tuple[Element, ...]]
    corners: Corners = "black"  # of images that are moved by an angle off the grid
    class_weights: Tensor | None = None  # of the loss of the task [class]; None: all 1
    task: Task = "classification"

    @classmethod
    def of(
        cls,
        losses: tuple[Loss, ...],
        declared: Group,
        size: tuple[int, int],
        corners: Corners = "black",
        class_weights: Tensor | None = None,
        task: Task = "classification",
    ) -> TrainingObjective:
        """The objective on images of `size` (height, width). Raises ValueError where a loss's group
        has no element that keeps them in shape.
        """
        moving = [loss.elements_group(declared) for loss in losses if LOSSES[loss.kind].moves]
        elements = {group: usable_elements(group, size) for group in moving}
        return cls(losses, declared, elements, corners, class_weights, task)

    @property
    def most_elements(self) -> int:
        """Elements of the largest group that moves images; 0 where none does."""
        return max(map(len, self.elements.values()), default=0)

    def terms(
        self,
        network: Network,
        pixels: Tensor,
        labels: Tensor,
        size: int,
        normalise: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """The loss of the task [] of a batch in 0..1 [B, C, H, W], then each equivariance loss,
        unweighted, on the first `size` images of it.
        """
        if not self.losses:
            return [self._loss(network(normalise(pixels)), labels)]
        reads_weights = any(loss.kind == "projection" for loss in self.losses)
        with network.same_weights() if reads_weights else contextlib.nullcontext():
            return self._with_losses(network, pixels, labels, size, normalise, generator)

    def _with_losses(
        self,
        network: Network,
        pixels: Tensor,
        labels: Tensor,
        size: int,
        normalise: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        count = len(pixels)
        parts = {
            g: draw_elements(elements, size, generator) for g, elements in self.elements.items()
        }
        moved = [move_images(pixels[:size], each, self.corners) for each in parts.values()]
        images = normalise(torch.cat([pixels, *moved]))
        starts = {group: count + size * n for n, group in enumerate(parts)}
        compared = (slice(size), *(slice(s, s + size) for s in starts.values()))
        block = self._common_block(network)
        if any(LOSSES[loss.kind].stages for loss in self.losses):
            logits, stages = network.forward_with_parts(images, *compared, block=block)
        else:
            logits, stages = network(images), ()
        of_parts = tuple(logits[part] for part in compared)
        places = {group: n for n, group in enumerate(parts, start=1)}
        return [
            self._loss(logits[:count], labels),
            *(
                LOSSES[loss.kind].function(
                    self._views(loss, network, parts, places, labels[:size], of_parts, stages)
                )
                for loss in self.losses
            ),
        ]

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return task_loss(self.task, outputs, labels, self.class_weights)

    def _common_block(self, network: Network) -> int:
        """Channels of a block where all losses that read stages compare the same maxima of channels
        in their order: the network takes them as it runs. Else 1, and each loss takes its own.
        """
        reading = [loss for loss in self.losses if LOSSES[loss.kind].stages]
        orders = {self._blocks_order(loss) for loss in reading}
        aligned = all(
            stage.group == TRIVIAL or stage.group == self._blocks(loss)
            for loss in reading
            for stage in network.architecture.stages
        )
        return orders.pop() if len(orders) == 1 and aligned else 1

    def _blocks(self, loss: Loss) -> Group | Blocks:
        return self.declared if loss.group is None else loss.group

    def _blocks_order(self, loss: Loss) -> int:
        blocks = self._blocks(loss)
        return blocks.order if LOSSES[loss.kind].pools and isinstance(blocks, Group) else 1

    def _views(
        self,
        loss: Loss,
        network: Network,
        parts: dict[Group, Parts],
        places: dict[Group, int],
        labels: Tensor,
        logits: tuple[Tensor, ...],
        stages: tuple[tuple[Tensor, ...], ...],
    ) -> Views:
        """What the loss compares of the forward pass."""
        kind, group = LOSSES[loss.kind], loss.elements_group(self.declared)
        chosen = [0, places[group]] if kind.moves else [0]
        numbers = loss.stages or ((len(stages),) if kind.last else range(1, len(stages) + 1))
        blocks, common = self._blocks(loss), self._common_block(network)

        def taken(number: int, place: int) -> Tensor:
            maps = stages[number - 1][place]
            if common > 1:
                return maps
            if isinstance(blocks, Group):
                fields = network.architecture.stages[number - 1].group
                order = aligned_channels(maps.shape[1], fields, blocks)
                maps = maps if order is None else maps[:, list(order)]
            return maxima_of(maps, blocks) if kind.pools else maps

        read = numbers if kind.stages else ()
        return Views(
            group,
            parts[group] if kind.moves else [],
            labels,
            tuple(logits[n] for n in chosen),
            tuple(tuple(taken(n, place) for place in chosen) for n in read),
            network,
            loss.stages,
            self.class_weights,
            self.task,
        )
