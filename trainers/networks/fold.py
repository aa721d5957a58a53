"""A trained network folded to Conv2d, ReLU, pooling and Linear (`trainers.networks.plain`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from searchspace.function.heads import block_group
from searchspace.groups import TRIVIAL, Group
from trainers.networks.convolution import Convolution, ConvolutionBlock
from trainers.networks.kernels.ways import convolve
from trainers.networks.networks import Network, step_spec
from trainers.networks.plain import MeanNetwork, PlainNetwork
from trainers.settings import Task


def fold(network: Network) -> PlainNetwork:
    """The network in evaluation as plain torch modules: filters expanded once, batch norms folded
    into weight and bias.

    Same device and dtype, same outputs to rounding, its own copy of the weights.
    `description(network)` and the state dict are all that `trainers/networks/plain.py`, which needs
    nothing but torch, takes to build it again.
    """
    reference = network.linear.weight
    # torch's modules draw initial weights from the global generator
    with torch.random.fork_rng(devices=[]):
        folded = PlainNetwork(description(network)).to(reference)
    with torch.no_grad():
        weights = dict(zip(network.convolutions, network.weights()))
        for convolution, module in zip(network.convolutions, _convolutions(folded), strict=True):
            scale, shift = convolution.norm.scale_and_shift()
            assert module.bias is not None, "every convolution of a folded network has a bias"
            module.weight.copy_(weights[convolution].double() * scale[:, None, None, None])
            module.bias.copy_(shift)
        folded.head.linear.load_state_dict(network.linear.state_dict())
    # Weights in this layout lead torch to keep the maps in it too: 1.8 times as many images a
    # second (2 cores, torch 2.15).
    return folded.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def scoring(network: Network) -> PlainNetwork:
    """The folded network to be run in this process: the same outputs to rounding, with convolutions
    in the Fourier basis or in Winograd's form where they are faster.

    Its latency is not that of the network which a user exports.
    """
    folded = fold(network)
    for convolution, (parent, name) in zip(network.convolutions, _places(folded), strict=True):
        fields = convolution.parametrisation.group, convolution.source
        fast = _FastConvolution(getattr(parent, name), *fields, convolution.equivariant)
        setattr(parent, name, fast)
    return folded


def mean_network(
    members: Iterable[PlainNetwork], task: Task = "classification"
) -> PlainNetwork | MeanNetwork:
    """The mean of the members' probabilities (of targets, of their values) as one network; of a
    single one, the network itself.
    """
    networks = list(members)
    return networks[0] if len(networks) == 1 else MeanNetwork(networks, task).eval()


def to_units(folded: nn.Module, shift: Sequence[float], scale: Sequence[float]) -> None:
    """Gives every folded network the results that it has times `scale` plus `shift`, one number of
    each for an output: its last layer does it.
    """
    factor, constant = (torch.tensor(values, dtype=torch.float64) for values in (scale, shift))
    for network in (m for m in folded.modules() if isinstance(m, PlainNetwork)):
        linear = network.head.linear
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        linear.weight.data.copy_(weight * factor[:, None])
        linear.bias.data.copy_(bias * factor + constant)


class _FastConvolution(nn.Module):
    """A Conv2d with bias between fields, computed in the fastest way: scaling whole fields, as a
    folded norm does, keeps an `equivariant` weight so.
    """

    def __init__(
        self, conv: nn.Conv2d, group: Group, source: Group | None, equivariant: bool
    ) -> None:
        super().__init__()
        self.conv, self.group, self.source, self.equivariant = conv, group, source, equivariant
        # never a word such as "same": `trainers.networks.plain.convolution` gives pixels
        self.window = conv.stride[0], int(conv.padding[0]), conv.dilation[0]

    def forward(self, maps: Tensor) -> Tensor:
        conv, fields = self.conv, (self.group, self.source)
        return convolve(
            maps, conv.weight, self.window, *fields, lambda: self.equivariant, conv.bias
        )


def description(network: Network) -> dict[str, Any]:
    """What `trainers.networks.plain.PlainNetwork` is built from: a dict of numbers and strings that
    JSON can hold.
    """
    architecture, channels = network.architecture, network.channels
    stages = []
    for stage, blocks, step in zip(architecture.stages, network.stages, network.steps):
        spec: dict | None = None
        if isinstance(step, ConvolutionBlock):
            spec = _convolution(step.layers[0])
        elif stage.subsampling is not None:
            spec = step_spec(stage.subsampling, stage.channels)
        described_stage: dict[str, Any] = {
            "blocks": [_block(block) for block in cast(Iterable[ConvolutionBlock], blocks)],
            "step": spec,
        }
        if stage.invariant_fields:
            described_stage["invariant"] = [stage.invariant_fields, stage.group.order]
        stages.append(described_stage)
    blocks = block_group(architecture.head)
    head = {
        "kind": architecture.head if blocks is None else "block_max",
        "order": network.orders[0] if len(network.orders) == 1 else list(network.orders),
        "features": network.linear.in_features,
        "classes": network.classes,
    }
    described = {
        "channels": channels,
        "size": list(architecture.size),
        "stages": stages,
        "head": head,
        "entry": step_spec(architecture.entry, channels) if architecture.entry else None,
    }
    # left out where absent: descriptions of earlier versions stay what they are
    if len(network.orders) > 1:
        described["streams"] = [len(stream.stages) for stream in architecture.streams]
    if architecture.coordinates != "none":
        described["coordinates"] = architecture.coordinates
    if architecture.orbit != TRIVIAL:
        described["orbit"] = [[e.mirror, e.quarter_turns] for e in architecture.orbit.elements]
    return described


def _block(block: ConvolutionBlock) -> dict[str, Any]:
    skip = (
        None
        if not block.residual
        else "identity"
        if block.skip is None
        else _convolution(block.skip)
    )
    return {"convolutions": [_convolution(c) for c in block.layers], "skip": skip}


def _convolution(convolution: Convolution) -> dict[str, Any]:
    return {
        "in": convolution.channels_in,
        "out": convolution.fields * convolution.norm.order,
        "kernel": convolution.kernel,
        "stride": convolution.stride,
        "padding": list(convolution.padding),
        "dilation": convolution.dilation,
        "mode": convolution.mode,
    }


def _convolutions(folded: PlainNetwork) -> list[nn.Conv2d]:
    return [module for module in folded.modules() if isinstance(module, nn.Conv2d)]


def _places(folded: PlainNetwork) -> list[tuple[nn.Module, str]]:
    """(parent, name in it) of each convolution, in their order."""
    paths = [
        path.rpartition(".")
        for path, module in folded.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    return [(folded.get_submodule(parent), name) for parent, _, name in paths]
