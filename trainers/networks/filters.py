"""Filter parametrisations: few parameters -> the weight of an ordinary convolution that is
equivariant by construction.

A group convolution between regular fields is an ordinary convolution whose weight satisfies

    weight[g @ o, g @ h] = weight[o, h] moved by g

for all g of the group, output elements o and input elements h
(escnn's convention; channels are field-major, elements in the order of `Group.elements`). The row
of the identity therefore determines all rows, which are computed per pair of an outgoing and an
incoming field:

    free   the row itself is the parameter [|G_in|, k, k], moved by quarter turns and flips: any
           kernel size, no band limit
    basis  coefficients of escnn's sampled basis (Weiler & Cesa, arXiv:1911.08251): any C_N and D_N

An image channel is a scalar field: one channel that every element leaves in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from searchspace.architecture import Filters
from searchspace.groups import TRIVIAL, Group
from trainers.actions import act, permutation
from trainers.networks.bases import basis


@dataclass(frozen=True)
class Parametrisation:
    """How the filters between two fields are computed from their parameters."""

    filters: Filters
    group: Group  # of the outgoing regular fields, and of the incoming ones
    kernel: int  # pixels
    lifting: bool  # True: the incoming fields are scalar (an image's channels)

    @property
    def incoming(self) -> int:
        """Channels of an incoming field."""
        return 1 if self.lifting else self.group.order

    @property
    def size(self) -> int:
        """Parameters of a pair of fields."""
        if self.filters == "free":
            return self.incoming * self.kernel**2
        return len(basis(self.group, self.kernel, self.lifting).deviations)

    @property
    def expanded_shape(self) -> tuple[int, int, int, int]:
        """The filters of a pair of fields: (outgoing element, incoming channel, row, column)."""
        return self.group.order, self.incoming, self.kernel, self.kernel

    def deviations(self, fields_in: int) -> Tensor:
        """The standard deviations [size] of He's initialisation for a convolution from `fields_in`
        fields.

        For the basis escnn's generalisation of it (`generalized_he_init`); for free filters
        sqrt(2 / fan in), arXiv:1502.01852, equation 10.
        """
        if self.filters == "basis":
            return basis(self.group, self.kernel, self.lifting).deviations / fields_in**0.5
        return torch.full((self.size,), (2 / (fields_in * self.size)) ** 0.5)

    def constants(self) -> Tensor:
        """What `expand` needs besides the parameters: for free filters the indices [2, entries] of
        every entry's parameter and of every parameter's entries; otherwise the basis [size,
        entries].
        """
        if self.filters == "free":
            sources = _sources(self)
            return torch.stack([sources, torch.argsort(sources, stable=True)])
        return basis(self.group, self.kernel, self.lifting).kernels.flatten(1)


def expand(
    parameters: Tensor, parametrisation: Parametrisation, constants: Tensor, training: bool = True
) -> Tensor:
    """The filters [pairs, |G|, incoming, k, k] of the pairs of fields whose parameters are [pairs,
    size].

    Not `training`, every operation also has a forward-mode derivative and batching rules
    (torch.func).
    """
    if parametrisation.filters == "basis":
        expanded = parameters @ constants
    elif parametrisation.group == TRIVIAL:  # every entry is a parameter, in its place
        expanded = parameters
    elif training:
        expanded = _Gather.apply(parameters, constants[0], constants[1])
    else:
        expanded = parameters.index_select(1, constants[0])
    return expanded.view(-1, *parametrisation.expanded_shape)


def average(
    free: Tensor, parametrisation: Parametrisation, constants: Tensor, training: bool = True
) -> Tensor:
    """The parameters [pairs, size] whose filters are the mean over the group of the free filters
    [pairs, |G| x incoming x k x k]: `expand` of them is the projection of `free`.
    """
    order = parametrisation.group.order
    if training:
        return _Average.apply(free, constants[0], constants[1], order)
    return _mean_of_copies(free, constants[1], order)


def _mean_of_copies(entries: Tensor, copies: Tensor, order: int) -> Tensor:
    return entries.index_select(1, copies).unflatten(1, (-1, order)).mean(2)


def arrange(filters: Tensor, fields_out: int) -> Tensor:
    """Filters [pairs, |G|, incoming, k, k] as a convolution's weight [fields_out x |G|, fields_in x
    incoming, k, k].
    """
    _, order, incoming, height, width = filters.shape
    by_field = filters.view(fields_out, -1, order, incoming, height, width)
    return by_field.transpose(1, 2).reshape(fields_out * order, -1, height, width)


@cache
def restricted_order(group: Group, subgroup: Group) -> tuple[int, ...]:
    """Where the channels of regular fields of `subgroup` lie in one regular field of `group`.

    Seen from the subgroup, a field falls into |group| / |subgroup| fields: the cosets {h @ c for h
    in subgroup}, in the order of their first elements; entry n is the channel of `group` that is
    channel n of these fields.
    """
    order: list[int] = []
    for element in group.elements:
        if group.index(element) not in order:
            order.extend(group.index(h @ element) for h in subgroup.elements)
    return tuple(order)


@cache
def aligned_channels(channels: int, fields: Group, group: Group) -> tuple[int, ...] | None:
    """The order in which the channels of regular fields of `fields` are read as blocks of |group|
    channels, each a regular field of `group`, so that what the two groups share acts on both alike;
    None where that is the order in which they are. Channels behind the last whole block stay there.
    """
    common = fields & group
    within = restricted_order(fields, common)
    ordered = [start + n for start in range(0, channels, fields.order) for n in within]
    places = restricted_order(group, common)
    order = list(ordered)
    for start in range(0, channels - group.order + 1, group.order):
        for position, place in enumerate(places):
            order[start + place] = ordered[start + position]
    return None if order == list(range(channels)) else tuple(order)


@cache
def _sources(parametrisation: Parametrisation) -> Tensor:
    """For every entry of the expanded filters of a pair of fields, the free parameter that it is,
    flat [|G| x size].
    """
    row = torch.arange(parametrisation.size).view(
        1, parametrisation.incoming, parametrisation.kernel, parametrisation.kernel
    )
    rows = []
    for element in parametrisation.group.elements:
        moved = act(row, element)
        rows.append(
            moved
            if parametrisation.lifting
            else moved[:, list(permutation(parametrisation.group, element.inverse))]
        )
    return torch.cat(rows).flatten()


class _Average(torch.autograd.Function):
    """The mean over the copies of each parameter; its gradient is a gather too, as that of
    `_Gather`.
    """

    @staticmethod
    def forward(entries, sources, copies, order):
        return _mean_of_copies(entries, copies, order)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.sources, _, ctx.order = inputs

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return (grad / ctx.order).index_select(1, ctx.sources), None, None, None


class _Gather(torch.autograd.Function):
    """parameters.index_select(1, sources), where every parameter has equally many copies, listed in
    `copies`.

    So the gradient is a gather and a sum, the same in every run: index_select's own gradient adds
    atomically, in any order.
    """

    @staticmethod
    def forward(parameters, sources, copies):
        return parameters.index_select(1, sources)

    @staticmethod
    def setup_context(ctx, inputs, output):
        parameters, ctx.sources, ctx.copies = inputs
        ctx.size = parameters.shape[1]

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.index_select(1, ctx.copies).unflatten(1, (ctx.size, -1)).sum(2), None, None
