"""Relaxed weights: how the filters of several parts become the weight of one convolution
(`searchspace.weights.relaxation` has the formulas).

Each kind is a module that holds what a convolution has beside its own `filters`. Its `parts` are
the filters that the network expands, with those of all convolutions, and `combine` makes the weight
of what they became.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from searchspace.groups import Group
from searchspace.weights.relaxation import GAMMA_AT_START, Relaxation
from trainers.networks.filters import Parametrisation, arrange, restricted_order


@dataclass(frozen=True)
class Shape:
    """Between which fields a convolution lies."""

    fields: int  # outgoing, of `group`
    group: Group
    channels_in: int
    source: Group | None  # of the incoming fields; None: an image's channels
    kernel: int  # pixels

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.fields * self.group.order

    def pairs(self, parametrisation: Parametrisation) -> int:
        """Pairs of fields of the parametrisation's group."""
        fields_out = self.channels // parametrisation.group.order
        return fields_out * (self.channels_in // parametrisation.incoming)


def channel_order(fields: int, group: Group, subgroup: Group) -> Tensor | None:
    """Where each channel of `fields` regular fields of `group` lies among those of the fields of
    `subgroup` that they fall into; None: it stays in place.
    """
    if group == subgroup or subgroup.order == 1:
        return None
    starts = torch.arange(fields)[:, None] * group.order
    # channel n of the subgroup's fields lies at order[n]; channel c at the inverse permutation's
    return torch.argsort((starts + torch.tensor(restricted_order(group, subgroup))).flatten())


class SubgroupFilters(nn.Module):
    """Filters of a subgroup H between the fields of a larger group: E_H as a weight."""

    rows: Tensor | None
    columns: Tensor | None

    def __init__(self, shape: Shape, group: Group) -> None:
        super().__init__()
        self.parametrisation = Parametrisation(
            "free", group, shape.kernel, lifting=shape.source is None
        )
        self.fields = shape.channels // group.order
        self.fields_in = shape.channels_in // self.parametrisation.incoming
        self.filters = nn.Parameter(
            torch.empty(self.fields * self.fields_in, self.parametrisation.size)
        )
        source = shape.source
        columns = None
        if source is not None:
            columns = channel_order(shape.channels_in // source.order, source, group)
        self.register_buffer(
            "rows", channel_order(shape.fields, shape.group, group), persistent=False
        )
        self.register_buffer("columns", columns, persistent=False)

    def arrange(self, filters: Tensor) -> Tensor:
        """The weight [channels out, channels in, k, k] of expanded filters."""
        weight = arrange(filters, self.fields)
        weight = weight if self.rows is None else weight.index_select(0, self.rows)
        return weight if self.columns is None else weight.index_select(1, self.columns)


class SoftWeight(nn.Module):
    """What a relaxed convolution has beside its own filters."""

    def __init__(self, relaxation: Relaxation, shape: Shape) -> None:
        super().__init__()
        self.relaxation, self.shape = relaxation, shape
        self.further = nn.ModuleList(SubgroupFilters(shape, group) for group in self._groups())

    def _groups(self) -> Sequence[Group]:
        """The groups of the further parts."""
        return self.relaxation.chain

    @property
    def parts(self) -> list[SubgroupFilters]:
        """The further parts, whose filters the network expands."""
        return [part for part in self.further if isinstance(part, SubgroupFilters)]

    def start(self, filters: Tensor) -> None:
        """Remembers what must be known of the filters as they are initialised."""

    def combine(self, weight: Tensor, further: Sequence[Tensor], filters: Tensor) -> Tensor:
        """The weight [channels out, channels in, k, k]: `weight` is E_G of the convolution's own
        `filters`, `further` are the expanded filters of the parts. Without a part, `weight` itself.
        """
        return weight

    @property
    def idle(self) -> bool:
        """True if the weight is that of the constraint, and nothing trains that would change it."""
        return False

    def state(self) -> dict[str, float]:
        """What the relaxation has become, for reports."""
        return {}


class Pathway(SoftWeight):
    """E_G(theta) + gamma E_H(phi). `multiplier` is the dual variable of gamma where a recipe
    governs it by one.
    """

    multiplier: Tensor

    def __init__(self, relaxation: Relaxation, shape: Shape) -> None:
        super().__init__(relaxation, shape)
        self.gamma = nn.Parameter(torch.tensor(GAMMA_AT_START))
        self.register_buffer("multiplier", torch.zeros(()))

    def combine(self, weight: Tensor, further: Sequence[Tensor], filters: Tensor) -> Tensor:
        """E_G(theta) + gamma E_H(phi)."""
        return torch.addcmul(weight, self.gamma, self.parts[0].arrange(further[0]))

    @property
    def idle(self) -> bool:
        """True at gamma 0, unless it trains."""
        return not _trains(self.gamma) and float(self.gamma.detach()) == 0

    def state(self) -> dict[str, float]:
        """gamma and its dual variable."""
        return {"gamma": float(self.gamma.detach()), "lambda": float(self.multiplier)}


class Mixed(SoftWeight):
    """The sum over a chain of groups of softmax(alpha)_H n_H E_H(theta_H / ||theta_H||)."""

    norms: Tensor

    def __init__(self, relaxation: Relaxation, shape: Shape) -> None:
        super().__init__(relaxation, shape)
        self.alpha = nn.Parameter(torch.zeros(1 + len(relaxation.chain)))
        self.register_buffer("norms", torch.ones(1 + len(relaxation.chain)))  # n_H

    def _sizes(self, filters: Tensor) -> Tensor:
        return torch.stack([p.norm() for p in (filters, *(part.filters for part in self.parts))])

    @torch.no_grad()
    def start(self, filters: Tensor) -> None:
        """Freezes the norms."""
        self.norms.copy_(self._sizes(filters))

    def combine(self, weight: Tensor, further: Sequence[Tensor], filters: Tensor) -> Tensor:
        """The sum of the parts."""
        shares = torch.softmax(self.alpha, 0) * (self.norms / self._sizes(filters))
        total = weight * shares[0]
        for number, (part, expanded) in enumerate(zip(self.parts, further), start=1):
            total = torch.addcmul(total, shares[number], part.arrange(expanded))
        return total

    @property
    def idle(self) -> bool:
        """True if all weight lies on the largest group, unless alpha trains."""
        return not _trains(self.alpha) and float(torch.softmax(self.alpha, 0)[0]) == 1

    def state(self) -> dict[str, float]:
        """The share of each group: softmax(alpha)."""
        names = map(str, (self.shape.group, *self.relaxation.chain))
        shares = torch.softmax(self.alpha.detach(), 0).tolist()
        return {f"alpha {name}": share for name, share in zip(names, shares)}


class Banks(SoftWeight):
    """The sum over banks of w_b(h) psi_b(g^-1 h); h is the incoming element, of a convolution of
    an image the outgoing one.
    """

    def __init__(self, relaxation: Relaxation, shape: Shape) -> None:
        super().__init__(relaxation, shape)
        self.weights = nn.Parameter(torch.ones(relaxation.banks, shape.group.order))

    def _groups(self) -> Sequence[Group]:
        return [self.shape.group] * (self.relaxation.banks - 1)

    def combine(self, weight: Tensor, further: Sequence[Tensor], filters: Tensor) -> Tensor:
        """The sum of the banks."""
        total: Tensor | None = None
        banks = [weight, *(part.arrange(e) for part, e in zip(self.parts, further))]
        for bank, factors in zip(banks, self._factors()):
            term = bank * factors
            total = term if total is None else total + term
        assert total is not None
        return total

    def _factors(self) -> Tensor:
        """w_b as it multiplies the channels: [banks, channels out or 1, channels in or 1, 1, 1]."""
        shape = self.shape
        if shape.source is None:
            return self.weights.repeat(1, shape.fields)[:, :, None, None, None]
        cosets = shape.channels_in // shape.group.order
        channels = self.weights.repeat(1, cosets)
        columns = self.parts[0].columns
        channels = channels if columns is None else channels.index_select(1, columns)
        return channels[:, None, :, None, None]

    def state(self) -> dict[str, float]:
        """How much the weights of the banks vary: their standard deviation over the elements, as a
        share of their mean size, over all banks; 0 is the constraint.
        """
        weights = self.weights.detach().double()
        spread = (weights - weights.mean(1, keepdim=True)).square().mean().sqrt()
        size = weights.square().mean().sqrt()
        return {"w spread": float(spread / size) if size else 0.0}


class Soft(SoftWeight):
    """P_G W + s (W - P_G W): the convolution's own filters are W, `weight` is P_G W."""

    def damp(self, projected: Tensor, free: Tensor) -> Tensor:
        """Expanded filters whose part outside P_G is damped, before channels are arranged; at s = 1
        they are W bit for bit.
        """
        return torch.lerp(projected, free.view_as(projected), self.relaxation.softness)

    def state(self) -> dict[str, float]:
        """The softness, which is not trained."""
        return {"softness": self.relaxation.softness}


def _trains(parameter: Tensor) -> bool:
    return parameter.requires_grad and torch.is_grad_enabled()


SOFT_KINDS: dict[str, type[SoftWeight]] = {
    "pathway": Pathway,
    "mixed": Mixed,
    "banks": Banks,
    "softness": Soft,
}


def soft_weight(relaxation: Relaxation, shape: Shape) -> SoftWeight:
    """The module of a relaxation."""
    return SOFT_KINDS[relaxation.kind](relaxation, shape)
