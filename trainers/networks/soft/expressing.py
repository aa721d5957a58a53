"""Networks that another trained one becomes without training, as networks of an architecture of
their own (`searchspace.weights.softened`): softened ones, orbit averages, and mixed layers that are
held to one group of their chain.

Held to a group H, a mixed layer keeps the part of its whole weight that is equivariant under H,
P_H W: nothing is lost where H is the last of the chain, and less than the branches of the smaller
groups otherwise, since these hold equivariant parts too (EquiNAS's discretisation, which keeps the
branch of H alone, loses them).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.groups import TRIVIAL, Group
from searchspace.weights.softened import Softened, meet
from trainers.networks.convolution import Convolution
from trainers.networks.networks import Network, build
from trainers.networks.normalization import estimate_statistics
from trainers.networks.projection import convolutions_of, project_weight
from trainers.networks.relaxing import field_order, filters_of, plain_twin, require_same_function
from trainers.networks.soft.softening import actions, soften_network
from trainers.networks.soft_weights import Mixed

WEIGHT_ROUNDING = 1e-6  # of a weight, up to which nothing of it was lost


@torch.no_grad()
def softened_network(
    network: Network, how: Softened, images: Tensor, *, check: bool = True
) -> Network:
    """The network that `network` becomes, in evaluation, of the architecture `how.architecture`.

    `images` [batch, channel, height, width] are training images as the network takes them, for the
    statistics of batch norm. Raises ValueError where there is no such architecture, or the group
    does not act on the channels; `check` compares the function with that of the softened weights.
    """
    architecture = how.architecture(network.architecture)
    if how.kind == "orbit":
        averaged = Network(architecture, network.channels, network.classes).to(
            network.linear.weight
        )
        averaged.load_state_dict(network.state_dict())
        return averaged.eval()
    if how.kind == "held":
        return _held(network, architecture, images)
    softened = soften_network(network, how.groups[0], how.softness, images)
    if how.softness == 1:
        return softened
    acting = actions(network, how.groups[0])
    made = express(softened, [a.fields for a in acting], [a.source for a in acting], architecture)
    if check:
        require_same_function(softened, made, images[:8])
    return made


def _held(network: Network, architecture: Architecture, images: Tensor) -> Network:
    """The network with the part of each weight that is equivariant under its new group."""
    twin = plain_twin(network)
    after = dict(
        build(architecture, channels=network.channels, classes=network.classes).named_modules()
    )
    fields, sources, lost = [], [], 0.0
    for (name, before), plain in zip(_convolutions(network), twin.convolutions):
        fields.append(before.parametrisation.group)
        sources.append(before.source)
        module = after.get(name)
        if not isinstance(module, Convolution):
            raise ValueError(f"'{architecture}' has no layer {name}, whose weights would be lost")
        group = module.parametrisation.group
        weight = plain.filters.view(before.norm.order * before.fields, -1, *[before.kernel] * 2)
        part = project_weight(weight.double(), before.source, fields[-1], group)
        lost = max(lost, float((part - weight).norm() / weight.norm()))
        plain.filters.copy_(part.to(weight).view_as(plain.filters))
    made = express(twin, fields, sources, architecture)
    if lost > WEIGHT_ROUNDING:
        estimate_statistics(made, [images])
    return made.eval()


def held_groups(network: Network) -> tuple[Group, ...] | None:
    """For each stage the group of its chain to which most of alpha points, over the convolutions of
    the stage, or what the stage before is held to where that is smaller; None without mixed layers.
    """
    shares: dict[int, dict[Group, float]] = {}
    for name, convolution, _ in convolutions_of(network):
        soft = convolution.soft
        if isinstance(soft, Mixed):
            groups = (soft.shape.group, *soft.relaxation.chain)
            of_stage = shares.setdefault(int(name.split()[1]), dict.fromkeys(groups, 0.0))
            for group, share in zip(groups, torch.softmax(soft.alpha.detach(), 0).tolist()):
                of_stage[group] = of_stage.get(group, 0.0) + share
    if not shares:
        return None
    chosen = [
        max(shares[number], key=lambda g: shares[number][g]) if number in shares else stage.group
        for number, stage in enumerate(network.architecture.stages, start=1)
    ]
    return meet(chosen)


def _convolutions(network: Network) -> list[tuple[str, Convolution]]:
    """The convolutions with their names, in the order of `network.convolutions`."""
    names = {module: name for name, module in network.named_modules()}
    return [(names[convolution], convolution) for convolution in network.convolutions]


@torch.no_grad()
def express(
    twin: Network,
    fields: Sequence[Group],
    sources: Sequence[Group | None],
    architecture: Architecture,
) -> Network:
    """A network of `architecture` in evaluation with the weights and statistics of `twin`, whose
    convolutions have no group: the channels of each are `fields`, those that come in `sources`
    (None: an image's). What is expressed must be equivariant under the groups of `architecture`.
    """
    made = build(architecture, channels=twin.channels, classes=twin.classes).to(twin.linear.weight)
    theirs = dict(made.named_modules())
    for (name, plain), group, source in zip(_convolutions(twin), fields, sources):
        module = theirs.get(name)
        if not isinstance(module, Convolution):
            raise ValueError(f"'{architecture}' has no layer {name}, whose weights would be lost")
        _set(module, plain, group, source)
    weight = twin.linear.weight
    made.linear.weight.copy_(_linear(weight, made.linear.in_features, architecture, fields[-1]))
    made.linear.bias.copy_(twin.linear.bias)
    return made.eval()


def _set(module: Convolution, plain: Convolution, fields: Group, source: Group | None) -> None:
    own, kernel = module.parametrisation.group, plain.kernel
    weight = plain.filters.view(plain.fields, -1, kernel, kernel)
    rows = field_order(len(weight), fields, own).to(weight.device)
    weight = weight[rows]
    if source is not None and module.source is not None:
        columns = field_order(weight.shape[1], source, module.source)
        weight = weight[:, columns.to(weight.device)]
    module.filters.copy_(filters_of(weight, module).view_as(module.filters))
    values = plain.norm.state_dict()
    for name, value in module.norm.state_dict().items():
        if value.ndim:
            value.copy_(values[name][rows].view(-1, own.order)[:, 0])


def _linear(weight: Tensor, features: int, architecture: Architecture, fields: Group) -> Tensor:
    """The weight of the classifier [classes, features] of a head that reads more channels, or the
    mean of blocks of them.
    """
    before = weight.shape[1]
    if features > before:
        copies = features // before
        return weight.repeat_interleave(copies, 1) / copies
    if features < before:
        return weight.unflatten(1, (features, -1)).sum(-1)
    if architecture.head == "none" and architecture.group != TRIVIAL:
        return weight[:, field_order(before, fields, architecture.group).to(weight.device)]
    return weight
