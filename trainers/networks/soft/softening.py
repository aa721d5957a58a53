"""Softness of a trained network: its weights keep their part that is equivariant under a group, and
a share of the rest.

The equivariant part of a weight W is P_G W, the average over G (`trainers.networks.projection`),
and the softened weight P_G W + s (W - P_G W): s = 0 is strict, s = 1 the trained network bit for
bit (tunable soft equivariance, CVPR 2026). Where a stage has fields of a group that contains G, G
acts on them; a plain stage is read as fields of G, blocks of |G| channels, as losses and heads here
have it. What batch norm and classifier do to single channels of a field is softened alike.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.function.heads import block_group
from searchspace.groups import TRIVIAL, Group
from trainers.networks.convolution import Convolution
from trainers.networks.networks import Network
from trainers.networks.normalization import FieldNorm, estimate_statistics
from trainers.networks.plain import PlainNetwork
from trainers.networks.projection import project_weight
from trainers.networks.relaxing import plain_twin


class Action(NamedTuple):
    """What the channels of a convolution are regular fields of: those that come in (None: an
    image's) and those that go out.
    """

    source: Group | None
    fields: Group


def actions(network: Network, group: Group) -> list[Action]:
    """How `group` acts on the channels of every convolution, in their order. Raises ValueError
    where it does not.
    """
    _check(network.architecture)
    return [
        Action(
            None if c.source is None else _fields(network, c.source, c.channels_in, group),
            _fields(network, c.parametrisation.group, c.fields * c.norm.order, group),
        )
        for c in network.convolutions
    ]


def _check(architecture: Architecture) -> None:
    if architecture.orbit != TRIVIAL or architecture.coordinates != "none":
        raise ValueError(
            f"'{architecture}' averages over an orbit or sees coordinates, and its weights alone "
            "do not decide its symmetry; soften a network without"
        )


def _fields(network: Network, group: Group, channels: int, wanted: Group) -> Group:
    """What `channels` of a stage of `group` are fields of. Raises ValueError."""
    if wanted <= group:
        return group
    if group != TRIVIAL:
        common = group & wanted
        under = "" if common == TRIVIAL else f"under {common}, or "
        raise ValueError(
            f"a stage has fields of {group}, on which the elements of {wanted} do not act; soften "
            f"{under}a network whose stages are plain"
        )
    blocks = block_group(network.architecture.head)
    fields = blocks if blocks is not None and wanted <= blocks else wanted
    if channels % fields.order:
        raise ValueError(
            f"a plain stage has {channels} channels, which are not blocks of {fields.order} on "
            f"which {fields} acts; soften a network whose channels are multiples of that"
        )
    return fields


@torch.no_grad()
def soften_network(
    network: Network, group: Group, softness: float, images: Tensor | None = None
) -> Network:
    """The network in evaluation with `softness` (0 to 1) of what its weights have outside of those
    that are equivariant under `group`; at 1 a copy of it.

    With `images` [batch, channel, height, width] of the training data, as the network takes them,
    batch norm gets their statistics under the new weights. Raises ValueError for a softness outside
    of 0 to 1, and where the group does not act on the network's channels.
    """
    _check_softness(softness)
    acting = actions(network, group)
    if softness == 1:
        return copy.deepcopy(network).eval()
    twin = plain_twin(network)
    for convolution, action in zip(twin.convolutions, acting):
        weight = _weight(convolution)
        part = project_weight(weight.double(), action.source, action.fields, group).to(weight)
        convolution.filters.copy_(torch.lerp(part, weight, softness).view_as(convolution.filters))
        for value in (convolution.norm.weight, convolution.norm.bias):
            value.copy_(_damped(value, action.fields.order, softness))
    if twin.linear.in_features == sum(
        s.channels for s in twin.architecture.lasts
    ):  # none is pooled
        weight = twin.linear.weight
        weight.copy_(_damped(weight, acting[-1].fields.order, softness))
    if images is not None:
        estimate_statistics(twin, [images])
    for before, convolution, action in zip(network.convolutions, twin.convolutions, acting):
        _settle(convolution.norm, before.norm.order, 0.0)
        _settle(convolution.norm, action.fields.order, softness)
    return twin.eval()


@torch.no_grad()
def soften_folded(
    folded: PlainNetwork, acting: Sequence[Action], group: Group, softness: float
) -> PlainNetwork:
    """A copy of a folded network with `softness` (0 to 1) of what its weights have outside of those
    that are equivariant under `group`; `acting` are the actions of its convolutions.

    What was batch norm is in the weights, so that no statistics are measured again. Raises
    ValueError for a softness outside of 0 to 1.
    """
    _check_softness(softness)
    twin = copy.deepcopy(folded)
    if softness == 1:
        return twin
    convolutions = [m for m in twin.modules() if isinstance(m, nn.Conv2d)]
    for convolution, action in zip(convolutions, acting, strict=True):
        weight, bias = convolution.weight, convolution.bias
        assert bias is not None, "every convolution of a folded network has a bias"
        part = project_weight(weight.double(), action.source, action.fields, group).to(weight)
        weight.copy_(torch.lerp(part, weight, softness))
        bias.copy_(_damped(bias, action.fields.order, softness))
    linear = twin.head.linear
    if linear.in_features == len(convolutions[-1].weight):
        linear.weight.copy_(_damped(linear.weight, acting[-1].fields.order, softness))
    return twin


def _check_softness(softness: float) -> None:
    if not 0 <= softness <= 1:
        raise ValueError(
            f"softness is {softness:g}; it must be from 0 (the constraint) to 1 (the network as it "
            "was trained)"
        )


def _weight(convolution: Convolution) -> Tensor:
    kernel = convolution.kernel
    return convolution.filters.view(convolution.fields, -1, kernel, kernel)


def _damped(values: Tensor, block: int, softness: float) -> Tensor:
    """Values [..., channels] with `softness` of their deviations from the mean of their block."""
    blocks = values.unflatten(-1, (-1, block))
    mean = blocks.double().mean(-1, keepdim=True).to(values).expand_as(blocks)
    return torch.lerp(mean, blocks, softness).flatten(-2)


def _settle(norm: FieldNorm, block: int, softness: float) -> None:
    """Gives the channels of a block the statistics of all of its values, and `softness` of how
    theirs differ.
    """
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    means = mean.view(-1, block)
    between = means.var(1, unbiased=False, keepdim=True).expand_as(means).flatten()
    pooled = _damped(variance, block, 0.0) + between
    norm.running_mean.copy_(torch.lerp(_damped(mean, block, 0.0), mean, softness))
    norm.running_var.copy_(torch.lerp(pooled, variance, softness))
