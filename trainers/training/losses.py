"""The loss of a task, and equivariance losses on ordinary training batches: what is added to it,
before its weight.

With g drawn anew for each image from the non-identity elements of the loss's group G (the declared
one unless the loss names its own):

    layerwise   sum over stages l of MSE(P_l(x), g^-1 P_l(g x)), P_l = maximum over blocks of |G|
                channels (IEN, arXiv:2111.14157; the mean over all values, not normalised); with
                heterogeneous blocks such as R8-4-2-1, over blocks of 8, 4, 2 and 1 channels, of
                which the channels are in the ratio 32:8:2:1, g from the largest rotation group
    latent      sum over the named stages (the last) of MSE(rho(g) z(x), z(g x)), z = spatial mean,
                rho = the regular representation on blocks of |G| channels, the identity on what is
                left (parameter-free approximate equivariance, Ali et al. 2025)
    label       the loss of the task (of classes the cross entropy) of f(g x) against the label of x
                (REMUL, arXiv:2410.17878)
    projection  sum over convolutions l of ||W_l - P_G W_l||^2 / ||W_l||^2, P_G the average over the
                quarter turns and flips of G: no image is moved (arXiv:2601.05028)

Where a stage has regular fields of another group, its channels are read as blocks of |G| in the
order in which the elements of both act alike (`trainers.networks.filters.aligned_channels`), so
that no loss works against what the stage keeps by construction.

IEN's own training also labels the moved images; here that is the loss `label`, or `augment:
{rotation: group}`.

A new loss is a name in `searchspace.training.losses` (`LossKind`), and here a function of `Views`
and its line in `LOSSES`; one that reads weights takes them from `Views.network`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from searchspace.groups import IDENTITY, Element, Group
from searchspace.training.losses import Blocks
from trainers.actions import act, permutation
from trainers.networks.kernels.maxima import compiled_block_maxima
from trainers.networks.networks import Network
from trainers.networks.projection import distances_squared
from trainers.settings import Corners, Task


@dataclass(frozen=True, eq=False)
class Views:
    """What an equivariance loss compares: some images of a batch, and the same images moved."""

    group: Group  # the loss's
    # by which element the images were moved, and which of them; empty for a loss that moves none
    parts: list[tuple[Element, slice]]
    labels: Tensor  # [B]
    # logits [B, classes] of (the images, the moved images), or of the images alone
    logits: tuple[Tensor, ...]
    # the same of the maps [B, C, H, W] after each stage that the loss reads, for one that pools
    # the maxima over its blocks of channels
    stages: tuple[tuple[Tensor, ...], ...]
    network: nn.Module | None = None  # for a loss that reads weights
    numbers: tuple[int, ...] = ()  # of the stages that the loss names, from 1; empty: all
    class_weights: Tensor | None = None  # of the loss of the task [classes]
    task: Task = "classification"


@dataclass(frozen=True)
class EquivarianceLoss:
    """A loss and what it needs: the training step computes nothing else for it."""

    function: Callable[[Views], Tensor]  # the scalar loss
    stages: bool = False  # reads the maps after each stage
    # of those maps, the maximum over each block of |G| channels (`maxima.compiled_block_maxima`)
    pools: bool = False
    moves: bool = True  # compares the images with moved ones
    last: bool = False  # without named stages it reads the last alone


def usable_elements(group: Group, size: tuple[int, int]) -> tuple[Element, ...]:
    """The non-identity elements of `group` that keep an image of `size` (height, width) in shape.

    Raises ValueError if there is none: a loss under the trivial group, or under a quarter turn of
    images that are not square.
    """
    square = size[0] == size[1]
    elements = tuple(
        e for e in group.elements if e != IDENTITY and (square or not e.on_grid or not e.swaps_axes)
    )
    if not elements:
        raise ValueError(
            f"an equivariance loss under {group} on images of {size[0]}x{size[1]} has no "
            "element to compare with; "
            "declare a larger symmetry group, or take loss=none"
        )
    return elements


def draw_elements(
    elements: tuple[Element, ...], count: int, generator: torch.Generator
) -> list[tuple[Element, slice]]:
    """A random element for each of `count` images, as (element, where) with equal elements side by
    side.

    Each element gets an equal share, the remainder going to elements drawn at random, so that a
    batch holds few distinct ones and each moves in one call.
    """
    order = torch.randperm(len(elements), generator=generator).tolist()
    base, extra = divmod(count, len(elements))
    parts, start = [], 0
    for position, index in enumerate(order):
        length = base + (position < extra)
        if length:
            parts.append((elements[index], slice(start, start + length)))
            start += length
    return parts


def move_images(
    images: Tensor, parts: list[tuple[Element, slice]], corners: Corners = "black"
) -> Tensor:
    """The images [B, C, H, W], each moved by the element of its part, with `corners` outside."""
    return torch.cat([act(images[where], element, corners) for element, where in parts])


def maxima_of(maps: Tensor, blocks: Blocks | Group) -> Tensor:
    """The maximum over each block of channels of maps [B, C, H, W]: of |G| channels, or of the
    orders of heterogeneous blocks.
    """
    if isinstance(blocks, Group):
        return compiled_block_maxima(maps, blocks.order)
    parts, start = [], 0
    for channels, block in blocks.split(maps.shape[1]):
        if channels:
            parts.append(compiled_block_maxima(maps[:, start : start + channels], block))
        start += channels
    return torch.cat(parts, 1)


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The mean [] over images of the cross entropy of logits [B, class], in nats, each image's
    multiplied by the weight of its class [class], if there are any.
    """
    if class_weights is None:
        return functional.cross_entropy(logits.float(), labels)
    # not the weighted mean of torch: parts of a batch must add up to the batch
    each = functional.cross_entropy(logits.float(), labels, reduction="none")
    return (each * class_weights[labels]).mean()


TASK_LOSSES = {
    "classification": "cross entropy",
    "multilabel": "binary cross entropy",
    "regression": "squared error",
}
"""What the loss of each task is called."""


def task_loss(
    task: Task, outputs: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """The mean [] over images of the loss of the task: `cross_entropy`; the binary cross entropy of
    outputs [B, K] against 0 and 1, mean over labels, images with a label weighing `class_weights`
    [K] times as much; the squared error of standardised targets [B, K], mean over targets.
    """
    if task == "classification":
        return cross_entropy(outputs, labels, class_weights)
    if task == "multilabel":
        return functional.binary_cross_entropy_with_logits(
            outputs.float(), labels, pos_weight=class_weights
        )
    return functional.mse_loss(outputs.float(), labels)


def _label(views: Views) -> Tensor:
    return task_loss(views.task, views.logits[1], views.labels, views.class_weights)


def _layerwise(views: Views) -> Tensor:
    total = views.logits[1].new_zeros((), dtype=torch.float32)
    for before, after in views.stages:
        back = torch.cat([act(after[where], element.inverse) for element, where in views.parts])
        total = total + functional.mse_loss(before.float(), back.float())
    return total


def _latent(views: Views) -> Tensor:
    return torch.stack([_latent_of(views, maps) for maps in views.stages]).sum()


def _latent_of(views: Views, maps: tuple[Tensor, ...]) -> Tensor:
    before, after = (each.float().mean((-2, -1)) for each in maps)
    order = views.group.order
    whole = before.shape[1] // order * order
    expected = []
    for element, where in views.parts:
        block = before[where]
        fields = (
            block[:, :whole]
            .unflatten(1, (-1, order))
            .index_select(2, _sources(views.group, element, block.device))
        )
        expected.append(torch.cat([fields.flatten(1), block[:, whole:]], 1))
    return functional.mse_loss(torch.cat(expected), after)


def _projection(views: Views) -> Tensor:
    assert isinstance(views.network, Network), "the projection loss reads a network's weights"
    return distances_squared(views.network, views.group, views.numbers)


LOSSES = {
    "layerwise": EquivarianceLoss(_layerwise, stages=True, pools=True),
    "latent": EquivarianceLoss(_latent, stages=True, last=True),
    "label": EquivarianceLoss(_label),
    "projection": EquivarianceLoss(_projection, moves=False),
}
"""The loss of each kind but `none`."""


@lru_cache(maxsize=256)
def _sources(group: Group, element: Element, device: torch.device) -> Tensor:
    """For each channel of a regular field [|G|], the channel that `element` moves there; on the
    device.
    """
    return torch.tensor(permutation(group, element.inverse), device=device)
