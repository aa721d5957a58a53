"""What an architecture costs without being built, parameters and multiply-accumulates, and widths
that match a cost: comparisons of groups and layouts are fair at equal params, MACs or fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

from searchspace.architecture import Architecture
from searchspace.function.coordinates import extra_channels

Match = Literal["params", "macs", "fields"]


@dataclass(frozen=True)
class Cost:
    """Trained parameters, those of the plain network that it folds to, and work per image."""

    params: int  # trained values
    # of the folded network: convolution weights with one bias per channel, and the linear layer
    expanded_params: int
    # multiply-accumulates of one image's forward pass: convolutions and the linear layer, as many
    # times as an orbit average runs them
    macs: int


@cache
def basis_size(kernel: int) -> int:
    """The number of steerable kernels of `kernel` pixels from one scalar to one regular field, in
    escnn's default basis.

    From one regular field to another it is |G| times as many, for every group. Rings lie at 0, 1, 2
    ... pixels from the centre; a ring at r carries circular harmonics up to min(2r, 2) on the
    border of the kernel, 2r - (r + 1) mod 2 inside, and the ring at 0 has no pixel in even kernels
    (escnn 1.0.11, `compute_basis_params`). 0: the basis is empty.
    """
    total = kernel % 2
    for radius in range(1, (kernel - 1) // 2 + 1):
        total += (
            2 * min(2 * radius, 2 if radius == kernel // 2 else 2 * radius - (radius + 1) % 2) + 1
        )
    return total


def cost(architecture: Architecture, channels: int = 1, classes: int = 10) -> Cost:
    """The cost of `architecture` on images with `channels`, telling `classes` apart. Pooling and
    activations count nothing.
    """
    params = expanded = macs = 0
    channels += extra_channels(architecture.coordinates)
    for layer in architecture.layers:
        if layer.weights is None:
            continue
        stage = architecture.stages[layer.stage - 1]
        kernel = layer.kernel
        channels_in, channels_out = layer.weights[0] or channels, layer.weights[1]
        taps = kernel * kernel if architecture.filters == "free" else basis_size(kernel)
        filters = stage.fields * channels_in * taps
        if stage.relaxation is not None:
            filters = stage.relaxation.parameters(stage.group, filters * stage.group.order)
        params += filters + 2 * stage.fields  # scale and shift of the norm
        expanded += channels_out * channels_in * kernel * kernel + channels_out
        macs += channels_out * channels_in * kernel * kernel * layer.size_out[0] * layer.size_out[1]
    features = architecture.features
    linear = (features + 1) * classes
    macs = (macs + features * classes) * architecture.orbit.order
    return Cost(params + linear, expanded + linear, macs)


@lru_cache(maxsize=65536)
def widened(
    architecture: Architecture, match: Match, to: int, channels: int = 1, classes: int = 10
) -> Architecture:
    """`architecture` with all fields scaled alike until its params, macs or the fields of its first
    stage come closest to `to`.

    Without residual stages, single stages then gain a field where that comes closer still: scaling
    all of them at once leaves steps of 10 % at 25,000 parameters. (Residual stages of unequal
    fields would need projections.)
    """
    if match == "fields":
        factor = to / architecture.stages[0].fields
        return _with_fields(architecture, _times(architecture, factor))

    def measured(candidate: Architecture) -> int:
        return getattr(cost(candidate, channels, classes), match)

    def distance(candidate: Architecture) -> int:
        return abs(measured(candidate) - to)

    @cache  # far fewer fields than factors
    def reaches(fields: tuple[int, ...]) -> bool:
        try:
            return measured(_with_fields(architecture, fields)) >= to
        except ValueError:  # wider than any network may be
            return True

    low, high = 0.0, 1.0
    while not reaches(_times(architecture, high)):
        high *= 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(_times(architecture, middle)) else (middle, high)
    best = _with_fields(architecture, _times(architecture, low))
    if any(stage.residual for stage in architecture.stages):
        with contextlib.suppress(ValueError):
            wider = _with_fields(architecture, _times(architecture, high))
            best = min(best, wider, key=distance)
        return best
    for number in reversed(range(len(best.stages))):
        fields = [stage.fields + (n == number) for n, stage in enumerate(best.stages)]
        with contextlib.suppress(ValueError):
            best = min(best, _with_fields(best, fields), key=distance)
    return best


def _times(architecture: Architecture, factor: float) -> tuple[int, ...]:
    """The fields of each stage times `factor`, one at least."""
    return tuple(max(1, round(stage.fields * factor)) for stage in architecture.stages)


def _with_fields(architecture: Architecture, fields: Sequence[int]) -> Architecture:
    """The architecture with these fields. Raises ValueError for a network that is too wide."""
    stages = tuple(replace(s, fields=n) for s, n in zip(architecture.stages, fields))
    return replace(architecture, stages=stages)


def matched_share(
    architecture: Architecture, match: Match, to: int, channels: int, classes: int
) -> float:
    """What the widened architecture has of what it should match: 1 is met, 2 is twice as much."""
    wide = widened(architecture, match, to, channels, classes)
    if match == "fields":
        return wide.stages[0].fields / to
    return getattr(cost(wide, channels, classes), match) / to
