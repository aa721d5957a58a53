"""What an architecture costs, known without building it: parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from searchspace.architecture import Architecture


@dataclass(frozen=True)
class Cost:
    """Parameters that are trained, those of the plain network that it folds to, and work per image."""

    params: int  # trained values
    # of the folded network: convolution weights with one bias per channel, and the linear layer
    expanded_params: int
    # multiply-accumulates of one image's forward pass: convolutions and the linear layer
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
    for layer in architecture.layers:
        if layer.weights is None:
            continue
        stage = architecture.stages[layer.stage - 1]
        kernel = layer.kernel
        channels_in, channels_out = layer.weights[0] or channels, layer.weights[1]
        taps = kernel * kernel if architecture.filters == "free" else basis_size(kernel)
        # filters, and scale and shift of the norm
        params += stage.fields * channels_in * taps + 2 * stage.fields
        expanded += channels_out * channels_in * kernel * kernel + channels_out
        macs += channels_out * channels_in * kernel * kernel * layer.size_out[0] * layer.size_out[1]
    last = architecture.stages[-1]
    features = last.channels if architecture.head == "none" else last.fields
    linear = (features + 1) * classes
    return Cost(params + linear, expanded + linear, macs + features * classes)
