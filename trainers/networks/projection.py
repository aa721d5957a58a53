"""The average of a convolution's weight over a group: its projection to the weights that are
equivariant by construction.

An element g moves the weight between regular fields as the convention of
`trainers.networks.filters` says,

    (g W)[g @ o, g @ h] = W[o, h] moved by g,

and P_G W is the mean of g W over the group. The moves only permute entries, so P_G is the
orthogonal projection to the weights that no element changes: those of group convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import repeat
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from searchspace.groups import Element, Group
from trainers.actions import act, permutation
from trainers.networks.convolution import Convolution, ConvolutionBlock
from trainers.networks.filters import aligned_channels
from trainers.networks.networks import Network


def project_weight(
    weight: Tensor, source: Group | None, fields: Group, group: Group | None = None
) -> Tensor:
    """P_G W: the equivariant weight nearest to `weight` [channels out, channels in, k, k].

    Channels out are regular fields of `fields`, channels in of `source` (None: an image's
    channels), field-major; the average is over `group`, a subgroup of both (None: `fields`). Raises
    ValueError where the channels are not whole fields or an element is not a quarter turn or flip.
    """
    group = fields if group is None else group
    _require_fields(len(weight), fields)
    if source is not None:
        _require_fields(weight.shape[1], source)
    if not group.on_grid:
        raise ValueError(
            f"weights cannot be averaged over {group}, which moves pixels off their grid; choose "
            f"its subgroup {group.grid}, or another of C1, C2, C4, D1, D2, D4"
        )
    return _average(weight, source, fields, group)


def equivariance_distance(
    weight: Tensor, source: Group | None, fields: Group, group: Group | None = None
) -> float:
    """How far a weight is from the equivariant ones: ||W - P_G W|| / ||W||, 0 to 1; 0 for a weight
    that is zero. Arguments and errors are those of `project_weight`.
    """
    weight = weight.detach().double()
    norm = float(weight.norm())
    return (
        float((weight - project_weight(weight, source, fields, group)).norm()) / norm
        if norm
        else 0.0
    )


def distances_squared(
    network: Network, group: Group, stages: Collection[int] | None = None
) -> Tensor:
    """The sum over convolutions, or those of some stages (from 1), of ||W - P_G W||^2 / ||W||^2 [],
    with its gradient.

    G are the quarter turns and flips of `group`. Where a stage's fields do not hold them, as in a
    plain network, every |G| channels count as a field, on which the elements that the stage has act
    as they do there (`filters.aligned_channels`); channels that are left stay in place.
    Convolutions that are equivariant by construction are 0 and cost nothing.
    """
    group = group.grid
    total = network.linear.weight.new_zeros(())
    chosen = [stage in stages for stage in _stages_of(network)] if stages else repeat(True)
    for convolution, weight, counts in zip(network.convolutions, network.weights(), chosen):
        if not counts:
            continue
        own, source = convolution.parametrisation.group, convolution.source
        held = group <= own  # a partial order: where not, `own` need not be within `group`
        if convolution.soft is None and held:
            continue
        if not held:
            weight = _read_as_fields(weight, 0, own, group)
        if source is not None and not group <= source:
            weight, source = _read_as_fields(weight, 1, source, group), group
        fields = own if held else group
        orbits = _orbits(tuple(weight.shape), source, fields, group, weight.device)
        total = total + _Distance.apply(weight, *orbits)
    return total


def _read_as_fields(weight: Tensor, axis: int, fields: Group, group: Group) -> Tensor:
    order = aligned_channels(weight.shape[axis], fields, group)
    return weight if order is None else weight[(slice(None),) * axis + (list(order),)]


def shared_entries(
    shape: tuple[int, ...], source: Group | None, fields: Group, group: Group | None = None
) -> Tensor:
    """Which entries of a weight of `shape` the group makes equal: of each entry, flat, the number
    of its orbit. The other arguments are those of `project_weight`.
    """
    return _orbits(shape, source, fields, fields if group is None else group, torch.device("cpu"))[
        1
    ]


def partition_distance(found: Tensor, planted: Tensor) -> int:
    """How many entries must change their part before two partitions of the same entries are one
    (Yeh et al., AISTATS 2022): their number less the largest sum of a matching of parts. Both
    [entries] hold numbers of parts; two groups are compared by their `shared_entries`.

    Raises ValueError where they are not of equally many entries.
    """
    if found.shape != planted.shape or found.dim() != 1:
        raise ValueError(
            f"partitions of {list(found.shape)} and {list(planted.shape)} entries cannot be "
            "compared; give both as numbers of parts [entries] of one weight"
        )
    from scipy.optimize import linear_sum_assignment

    (_, rows), (_, columns) = (torch.unique(p, return_inverse=True) for p in (found, planted))
    if not len(rows):
        return 0
    common = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1, dtype=torch.int64)
    common.index_put_((rows, columns), torch.ones_like(rows), accumulate=True)
    matched = linear_sum_assignment(common.numpy(), maximize=True)
    return len(found) - int(common[matched].sum())


class _Distance(torch.autograd.Function):
    """||W - P W||^2 / ||W||^2 [], P the mean over orbits of entries.

    (I - P) W is orthogonal to P W: the gradient of its square is twice itself.
    """

    @staticmethod
    def forward(ctx, weight, members, numbers):
        entries = weight.reshape(-1)
        means = entries.index_select(0, members.flatten()).view(members.shape).mean(0)
        outside = (entries - means.index_select(0, numbers)).view(weight.shape)
        size = weight.square().sum()
        share = outside.square().sum() / size
        ctx.save_for_backward(outside.addcmul_(weight, -share).mul_(2 / size))
        return share

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (direction,) = ctx.saved_tensors
        return grad * direction, None, None


@lru_cache(maxsize=64)
def _orbits(
    shape: tuple[int, ...], source: Group | None, fields: Group, group: Group, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(the entries of each orbit under the group, of a smaller one repeated [|G|, orbits]; of each
    entry of a flat weight, the number of its orbit), int32.
    """
    entries = torch.arange(math.prod(shape)).view(shape)
    members = torch.stack(
        [_moved(entries, source, fields, element).flatten() for element in group.elements]
    )
    first, numbers = torch.unique(members.amin(0), return_inverse=True)
    with torch.inference_mode(False):  # or they could not serve training later
        return (
            members[:, first].to(device, torch.int32, copy=True),
            numbers.to(device, torch.int32, copy=True),
        )


def _stages_of(network: Network) -> list[int]:
    """The stage of every convolution, in the order of `convolutions`."""
    return [
        number
        for number, parts in enumerate(zip(network.stages, network.steps), start=1)
        for part in parts
        for module in part.modules()
        if isinstance(module, Convolution)
    ]


def _average(weight: Tensor, source: Group | None, fields: Group, group: Group) -> Tensor:
    total = weight.clone()
    for element in group.elements[1:]:  # the first is the identity
        total += _moved(weight, source, fields, element)
    return total / group.order


def _moved(weight: Tensor, source: Group | None, fields: Group, element: Element) -> Tensor:
    """The weight moved by an element."""
    moved = act(weight, element)
    moved = moved.index_select(0, _channels(len(weight), fields, element, weight.device))
    if source is None:
        return moved
    return moved.index_select(1, _channels(weight.shape[1], source, element, weight.device))


@torch.no_grad()
def convolutions_of(network: Network) -> list[tuple[str, Convolution, Tensor]]:
    """(name, convolution, weight) of every convolution, such as `stage 2 conv1`, in the order
    of the forward pass.
    """
    names: list[str] = []
    for number, (blocks, step) in enumerate(zip(network.stages, network.steps), start=1):
        convolutions = 0
        for block_number, block in enumerate(cast(Iterable[ConvolutionBlock], blocks), start=1):
            for _ in block.layers:
                convolutions += 1
                names.append(f"stage {number} conv{convolutions}")
            if block.skip is not None:
                names.append(f"stage {number} skip{block_number}")
        if isinstance(step, ConvolutionBlock):
            names.append(f"stage {number} {network.architecture.stages[number - 1].subsampling}")
    return list(zip(names, network.convolutions, network.weights(), strict=True))


def _require_fields(count: int, fields: Group) -> None:
    if count % fields.order:
        raise ValueError(
            f"{count} channels are not a whole number of fields of {fields}, whose fields have "
            f"{fields.order} channels; name the group of the stage"
        )


@lru_cache(maxsize=1024)
def _channels(count: int, fields: Group, element: Element, device: torch.device) -> Tensor:
    """For each channel of regular fields, the one that `element` moves there; channels that are no
    whole field stay.
    """
    within, whole = permutation(fields, element.inverse), count // fields.order * fields.order
    moved = [start + n for start in range(0, whole, fields.order) for n in within]
    with torch.inference_mode(False):  # or it could not serve training later
        return torch.tensor([*moved, *range(whole, count)], device=device)
