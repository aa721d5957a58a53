"""Equivariance losses on ordinary training batches: what is added to the cross entropy, before its
weight.

With g drawn anew for each image from the non-identity elements of the declared group G:

    layerwise   sum over stages l of MSE(P_l(x), g^-1 P_l(g x)), P_l = maximum over blocks of |G| channels
                (IEN, arXiv:2111.14157; the mean over all values, not normalised)
    latent      MSE(rho(g) z(x), z(g x)), z = spatial mean of the last stage, rho = the regular representation on blocks of |G|
                channels, the identity on what is left (parameter-free approximate equivariance, Ali et al. 2025)
    label       cross entropy of f(g x) against the label of x (REMUL, arXiv:2410.17878)

IEN's own training also labels the moved images; here that is the loss `label`, or `augment:
{rotation: group}`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as functional
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act, permutation


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


def draw(
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


def move(images: Tensor, parts: list[tuple[Element, slice]]) -> Tensor:
    """The images [B, C, H, W], each moved by the element of its part."""
    return torch.cat([act(images[where], element) for element, where in parts])


def pooled(kind: str, group: Group) -> int:
    """The channels of a block over which `equivariance_loss` takes the maximum of its stages
    (`maxima.block_maxima`); 1: none.
    """
    return group.order if kind == "layerwise" else 1


def equivariance_loss(
    kind: str,
    group: Group,
    parts: list[tuple[Element, slice]],
    stages: tuple[Tensor, ...],
    moved_stages: tuple[Tensor, ...],
    moved_logits: Tensor,
    labels: Tensor,
) -> Tensor:
    """The scalar loss of `kind` between images and the same images moved by `parts`.

    `stages` and `moved_stages` hold the output [B, C_l, H_l, W_l] of every stage for both, with one
    channel for each block that is `pooled`; `moved_logits` [B, classes] and `labels` [B] belong to
    the moved ones. Raises ValueError for an unknown kind.
    """
    if kind == "label":
        return functional.cross_entropy(moved_logits.float(), labels)
    if kind == "latent":
        return _latent(group, parts, stages[-1], moved_stages[-1])
    if kind == "layerwise":
        return sum(
            (_layer(parts, before, after) for before, after in zip(stages, moved_stages)),
            start=moved_logits.new_zeros((), dtype=torch.float32),
        )
    raise ValueError(f"there is no equivariance loss '{kind}'; choose layerwise, latent or label")


def _layer(parts: list[tuple[Element, slice]], before: Tensor, after: Tensor) -> Tensor:
    before, after = before.float(), after.float()
    back = torch.cat([act(after[where], element.inverse) for element, where in parts])
    return functional.mse_loss(before, back)


def _latent(
    group: Group, parts: list[tuple[Element, slice]], before: Tensor, after: Tensor
) -> Tensor:
    before, after = before.float().mean((-2, -1)), after.float().mean((-2, -1))
    whole = before.shape[1] // group.order * group.order
    expected = []
    for element, where in parts:
        block = before[where]
        fields = (
            block[:, :whole]
            .unflatten(1, (-1, group.order))
            .index_select(2, _sources(group, element, block.device))
        )
        expected.append(torch.cat([fields.flatten(1), block[:, whole:]], 1))
    return functional.mse_loss(torch.cat(expected), after)


@lru_cache(maxsize=256)
def _sources(group: Group, element: Element, device: torch.device) -> Tensor:
    """Which channel of a regular field each comes from that `element` moves [|G|], made once on the
    device.
    """
    return torch.tensor(permutation(group, element.inverse), device=device)
