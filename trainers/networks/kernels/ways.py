"""The way in which a convolution of given maps and weight is computed: in the Fourier basis of the
group, in Winograd's form, or torch's, whichever is fastest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from searchspace.groups import Group
from trainers.networks.kernels import fourier, winograd

# order of a group up to which Winograd's form saves more products of a 3 x 3 kernel than the
# Fourier basis does
SMALL_GROUP = 2


def convolve(
    maps: Tensor,
    weight: Tensor,
    window: tuple[int, int, int],
    group: Group,
    source: Group | None,
    equivariant: Callable[[], bool],
    bias: Tensor | None = None,
) -> Tensor:
    """conv2d(maps, weight, bias), equal to rounding; `window` is (stride, padding, dilation).

    The channels are regular fields of `group` and of `source` (None: an image's);
    `equivariant` says whether the weight, and its gradient if one is taken, is that of these
    fields. It is asked only where that matters.
    """
    stride, padding, dilation = window
    free = winograd.suits(maps, weight, *window)
    if (
        source is not None
        and not (free and group.grid.order <= SMALL_GROUP)
        and fourier.suits(group, maps, weight, *window)
        and equivariant()
    ):
        shared = fourier.transform_of(group, source, maps.shape[1], len(weight), weight.shape[-1])
        return fourier.convolve(maps, weight, shared, *window, bias=bias)
    if free:
        return winograd.convolve(maps, weight, padding, bias)
    return F.conv2d(maps, weight, bias, stride=stride, padding=padding, dilation=dilation)
