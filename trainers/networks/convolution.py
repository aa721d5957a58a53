"""The layers with weights of a trainable network: a group convolution with its batch norm and ReLU,
and a block of one or two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Filters
from searchspace.groups import Group
from searchspace.weights.relaxation import Relaxation
from trainers.networks.filters import Parametrisation, arrange, average
from trainers.networks.kernels.ways import convolve
from trainers.networks.lifting import fits, lift
from trainers.networks.normalization import FieldNorm, PoolWindow
from trainers.networks.plain import Pad
from trainers.networks.soft_weights import Shape, Soft, channel_order, soft_weight


class Convolution(nn.Module):
    """A group convolution's parameters, its batch norm over fields and, with `relu`, the ReLU after
    it.

    `filters` are [fields out x fields in, parameters of a pair of fields], of a soft convolution
    all entries of the pair's filters. `source` is the group of
    the incoming regular fields, None for an image; a larger source is read as more fields of
    `group`. Sizes are pixels; padding is (before, after) on both axes.
    """

    restriction: (
        Tensor | None
    )  # [channels in]: where the subgroup's channels lie among the source's

    def __init__(
        self,
        fields: int,
        group: Group,
        channels_in: int,
        source: Group | None,
        filters: Filters,
        kernel: int,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        dilation: int = 1,
        mode: str = "zeros",
        relu: bool = True,
        pool: PoolWindow | None = None,
        relaxation: Relaxation | None = None,
    ) -> None:
        super().__init__()
        self.parametrisation = Parametrisation(filters, group, kernel, lifting=source is None)
        self.fields, self.fields_in = fields, channels_in // self.parametrisation.incoming
        self.channels_in, self.kernel, self.stride = channels_in, kernel, stride
        self.padding, self.dilation, self.mode, self.pool = padding, dilation, mode, pool
        self.soft = None
        if relaxation is not None:
            self.soft = soft_weight(relaxation, Shape(fields, group, channels_in, source, kernel))
        size = self.parametrisation.size * (group.order if isinstance(self.soft, Soft) else 1)
        self.filters = nn.Parameter(torch.empty(self.fields * self.fields_in, size))
        self.norm = FieldNorm(fields, group.order, relu)
        self.source = source
        equal_zeros = padding[0] == padding[1] and mode == "zeros"
        self.pad = None if equal_zeros else Pad(padding, mode)
        restriction = None
        if source is not None:
            restriction = channel_order(channels_in // source.order, source, group)
        self.register_buffer("restriction", restriction, persistent=False)

    @property
    def parametrisations(self) -> list[Parametrisation]:
        """Those of its own filters and of the further parts of a relaxed weight."""
        further = () if self.soft is None else self.soft.parts
        return [self.parametrisation, *(part.parametrisation for part in further)]

    def parameters_of(self, part: int, constants: Tensor) -> Tensor:
        """What is expanded for a part (0: the own filters) [pairs, size]."""
        if part and self.soft is not None:
            return self.soft.parts[part - 1].filters
        if isinstance(self.soft, Soft):
            return average(self.filters, self.parametrisation, constants, self.training)
        return self.filters

    def weight(self, filters: Tensor, further: Sequence[Tensor] = ()) -> Tensor:
        """The convolution's weight [channels out, channels in, k, k] from expanded filters [pairs,
        |G|, incoming, k, k], and from those of the `further` parts of a relaxed weight.
        """
        if isinstance(self.soft, Soft):
            filters = self.soft.damp(filters, self.filters)
        weight = arrange(filters, self.fields)
        if self.restriction is not None:
            weight = weight.index_select(1, self.restriction)
        if self.soft is None:
            return weight
        return self.soft.combine(weight, further, self.filters)

    def forward(self, maps: Tensor, weight: Tensor, skip: Tensor | None = None) -> Tensor:
        """The feature maps after norm, plus `skip`, and ReLU; in training, with a `pool`, after
        that too.
        """
        padding = self.padding[0]
        if self.pad is not None:
            maps, padding = channels_last(self.pad(maps)), 0
        if self.training and self.parametrisation.lifting and skip is None and fits(maps, weight):
            maps = lift(maps, weight, self.norm, self.stride, padding, self.dilation)
            return maps if self.pool is None else F.relu_(F.max_pool2d(maps, *self.pool))
        if self.training and self.pool is not None:
            signs = self.norm.signs()
            positive = (
                weight.unflatten(0, (self.fields, -1)) * signs.view(-1, 1, 1, 1, 1)
            ).flatten(0, 1)
            return self.norm.pooled(self.convolve(maps, positive, padding), signs, self.pool)
        return self.norm(self.convolve(maps, weight, padding), skip)

    @property
    def equivariant(self) -> bool:
        """True if the weight, and its gradient if one is taken, is that of the constraint: nothing
        is relaxed, or what is has no strength. Waits for the device.
        """
        return self.soft is None or self.soft.idle

    def convolve(self, maps: Tensor, weight: Tensor, padding: int) -> Tensor:
        """conv2d(maps, weight) of padded maps, in the fastest way."""
        window = (self.stride, padding, self.dilation)
        group = self.parametrisation.group
        return convolve(maps, weight, window, group, self.source, lambda: self.equivariant)

    def extra_repr(self) -> str:
        p = self.parametrisation
        fields = f"{self.channels_in} -> {self.fields} fields of {p.group}"
        relaxed = "" if self.soft is None else f"{self.soft.relaxation}"
        return f"{fields}{relaxed}, {p.filters}, kernel={self.kernel}, stride={self.stride}"


class ConvolutionBlock(nn.Module):
    """One convolution, or a residual block of two and a skip connection
    (`searchspace.layers.Stage`).
    """

    def __init__(
        self, convolutions: list[Convolution], residual: bool, skip: Convolution | None
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.residual, self.skip = residual, skip

    @property
    def layers(self) -> list[Convolution]:
        """The convolutions in their order, without that of the skip."""
        return cast(list[Convolution], list(self.convolutions))

    def forward(self, maps: Tensor, weights: Iterator[Tensor]) -> Tensor:
        """The feature maps after the last ReLU; takes its weights from the iterator, the skip's
        last.
        """
        if not self.residual:
            return self.convolutions[0](maps, next(weights))
        first, second = self.convolutions
        out, weight = first(maps, next(weights)), next(weights)
        return second(out, weight, maps if self.skip is None else self.skip(maps, next(weights)))


def channels_last(maps: Tensor) -> Tensor:
    """The maps in channels-last layout.

    One channel lies the same in both layouts, so that `contiguous` changes nothing and torch goes
    on in the other one from the first convolution on; hence the strides are written out.
    """
    maps = maps.contiguous(memory_format=torch.channels_last)
    if maps.shape[1] > 1:
        return maps
    _batch, _, height, width = maps.shape
    return maps.as_strided(maps.shape, (height * width, 1, width, 1))
