"""The merge barrier: what is lost when a network is averaged with its own moved copy, after
matching their channels.

The moved copy has every kernel moved by a group element: it says of moved images what the network
says of images. If the network is a group convolution network in disguise, the copy is the network
itself up to a permutation of channels, and their average loses nothing (Bokman and Kahl, NeurIPS
2023). Two networks that were trained independently are averaged in the same way, as a control: a
network whose barrier is as high as theirs has nothing of the symmetry in its layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.function.heads import block_group
from searchspace.groups import IDENTITY, Element
from trainers.actions import act
from trainers.instruments.feature_maps import Forward, Normalise, measuring, pixels
from trainers.instruments.layerwise import channel_correlations, match
from trainers.instruments.predictions import predict_elements
from trainers.networks.convolution import Convolution, ConvolutionBlock, channels_last
from trainers.networks.fold import fold
from trainers.networks.networks import Network
from trainers.networks.relaxing import plain_twin


@dataclass(frozen=True)
class MergeBarrier:
    """Accuracies, 0 to 1, of a network, its moved copy and their average at each step of repair."""

    element: Element
    original: float
    moved: float  # of the copy whose kernels are moved, on moved images
    unaligned: float  # average without matching channels
    aligned: float  # average after matching channels
    reset: float  # and the statistics of batch norm measured again
    # and the outputs of every block given the mean and std between those of both networks
    # (REPAIR, arXiv:2211.08403)
    repaired: float
    # the barrier between the network and one that was trained independently of it
    control: float | None = None

    @property
    def barrier(self) -> float:
        """Mean accuracy of both networks, each on its own images, less that of the repaired
        average: about 0 for a network that is layerwise equivariant.
        """
        return (self.original + self.moved) / 2 - self.repaired

    @property
    def lost(self) -> float:
        """Accuracy of the original less that of the repaired average."""
        return self.original - self.repaired

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("original", "moved", "unaligned", "aligned", "reset", "repaired", "barrier")
        names += ("lost", "control")
        return {"element": str(self.element), **{name: getattr(self, name) for name in names}}


def _control_barrier(
    plain: Network, control: Network, batch: Tensor, accuracy: Callable[[Forward], float]
) -> float:
    """The barrier between a network and another training of its architecture."""
    other = _same_shape(plain_twin(control), plain).to(batch.device).eval()
    joined = _merged(plain, other, batch)[2]
    return (accuracy(plain) + accuracy(other)) / 2 - accuracy(joined)


@torch.no_grad()
def merge_barrier(
    network: Network,
    images: Tensor,
    labels: Tensor,
    element: Element,
    *,
    calibration: Tensor | None = None,
    normalise: Normalise | None = None,
    control: Network | None = None,
) -> MergeBarrier:
    """The merge barrier of a network, with groups or without, under a quarter turn or flip.

    `calibration` are images [batch, channel, height, width] for matching channels and measuring
    statistics, best from the training data: one batch, so some hundred to a thousand; None takes
    the first 512 of `images`. `control` is a network of the same architecture that was trained
    independently. Raises ValueError for asymmetric padding, an element off the grid and a control
    of another shape.
    """
    _check(network, element)
    prepare = normalise or (lambda batch: batch)
    images = images.to(network.linear.weight.device)  # which repaired networks do not know

    def accuracy(model: Forward, moved: Element = IDENTITY) -> float:
        scored = fold(model) if isinstance(model, Network) else model
        classes, _ = predict_elements(
            scored,
            images,
            [moved],
            normalise=lambda batch: channels_last(prepare(batch)),
            share_exact=False,
        ).of(moved)
        return float((classes == labels.cpu()).double().mean())

    with measuring(network):
        batch = prepare(pixels(images[:512] if calibration is None else calibration, network))
        plain = plain_twin(network)
        copied = moved_copy(plain, element)
        merged, reset, repaired = _merged(plain, copied, batch)
        unaligned, original = _average(plain, copied), accuracy(plain)
        between = None if control is None else _control_barrier(plain, control, batch, accuracy)
    return MergeBarrier(
        element=element,
        original=original,
        moved=accuracy(copied, element),
        unaligned=accuracy(unaligned),
        aligned=accuracy(merged),
        reset=accuracy(reset),
        repaired=accuracy(repaired),
        control=between,
    )


def _merged(network: Network, other: Network, batch: Tensor) -> tuple[Network, Network, Forward]:
    """The average of two plain networks after matching the other's channels on `batch`: as it is,
    with its statistics measured again, and with its outputs repaired, too.
    """
    original_maps, other_maps = _maps(network, batch), _maps(other, batch)
    spaces = _spaces(network)
    permutations = {
        name: _match_blocks(
            torch.stack(
                [channel_correlations(original_maps[m], other_maps[m]) for m in members]
            ).mean(0),
            pooled_channels(network) if name == spaces.last else 1,
        )
        for name, members in spaces.members.items()
    }
    merged = _average(network, permuted(other, spaces, permutations))
    reset = _with_measured_statistics(merged, batch)
    goals = {
        m: _between(original_maps[m], other_maps[m][:, permutations[name]])
        for name, members in spaces.members.items()
        for m in members
        if m in spaces.blocks
    }
    return merged, reset, _repaired(reset, batch, goals)


def pooled_channels(network: Network) -> int:
    """How many channels of the last stage the head makes one feature of."""
    architecture = network.architecture
    if (blocks := block_group(architecture.head)) is not None:
        return blocks.order
    return architecture.stages[-1].channels // network.linear.in_features


def _match_blocks(similarities: Tensor, block: int) -> Tensor:
    """The permutation [channel] of columns with the largest sum of similarities that moves whole
    blocks of channels, and channels inside of them: what a head that pools blocks allows.
    """
    if block == 1:
        return match(similarities)
    count = len(similarities) // block
    whole = count * block
    rest = whole + match(similarities[whole:, whole:])  # of a last smaller block
    pairs = similarities[:whole, :whole].reshape(count, block, count, block).transpose(1, 2)
    inner = [[match(pair) for pair in row] for row in pairs]
    rows = torch.arange(block)
    gained = [[float(p[rows, i].sum()) for p, i in zip(*row)] for row in zip(pairs, inner)]
    blocks = match(torch.tensor(gained)).tolist()
    moved = [other * block + inner[mine][other] for mine, other in enumerate(blocks)]
    return torch.cat([*moved, rest])


def _same_shape(control: Network, network: Network) -> Network:
    """The control. Raises ValueError if it cannot be averaged with the network."""
    shapes = [{n: v.shape for n, v in m.state_dict().items()} for m in (control, network)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the control of the merge barrier is '{control.architecture}', whose weights have "
            f"other shapes than those of '{network.architecture}'; take another training of the "
            "same architecture"
        )
    return control


def _check(network: Network, element: Element) -> None:
    if not isinstance(network, Network):
        raise ValueError(
            "the merge barrier needs a network built here; measure others by layerwise_equivariance"
        )
    if network.architecture.coordinates != "none":
        raise ValueError(
            "the merge barrier moves kernels, which does not move coordinate channels; take "
            "coordinates=none"
        )
    if len(network.architecture.lasts) > 1:
        raise ValueError(
            "the merge barrier follows the channels of one stream; measure networks with streams "
            "by layerwise_equivariance"
        )
    if not element.on_grid or element == IDENTITY:
        raise ValueError(
            f"moving kernels by {element} measures nothing; name a quarter turn or flip, such as "
            "r90 or m"
        )
    if uneven := next((c for c in network.convolutions if c.padding[0] != c.padding[1]), None):
        raise ValueError(
            f"a convolution has padding {uneven.padding[0]}:{uneven.padding[1]}, which moving "
            "its kernel does not move; use equal padding"
        )


def moved_copy(network: Network, element: Element) -> Network:
    """A copy of a plain network with every kernel moved: its maps for moved images are the moved
    maps, if its layout is exact.
    """
    copied = copy.deepcopy(network)
    for convolution in copied.convolutions:
        convolution.filters.data = act(_weight(convolution), element).reshape(
            convolution.filters.shape
        )
    return copied


def _weight(convolution: Convolution) -> Tensor:
    return convolution.filters.data.view(
        convolution.fields, -1, convolution.kernel, convolution.kernel
    )


@dataclass
class _Spaces:
    """Which sets of channels share one permutation: names of modules by space, and every
    convolution's (incoming, outgoing) space.
    """

    members: dict[str, list[str]] = field(default_factory=dict)
    convolutions: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)
    last: str = ""  # that the classifier reads


def _spaces(network: Network) -> _Spaces:
    """A residual stream, with all blocks that add to it, is one space; every other convolution's
    output is its own.
    """
    spaces = _Spaces()
    for name, block in _blocks(network):
        incoming = spaces.last or None
        if not block.residual:
            spaces.convolutions[f"{name}.convolutions.0"] = (incoming, name)
            outgoing = name
        else:
            inside = f"{name}.convolutions.0"
            outgoing = name if block.skip is not None or incoming is None else incoming
            spaces.convolutions[inside] = (incoming, inside)
            spaces.convolutions[f"{name}.convolutions.1"] = (inside, outgoing)
            spaces.members[inside] = [inside]
            if block.skip is not None:
                spaces.convolutions[f"{name}.skip"] = (incoming, outgoing)
        spaces.members.setdefault(outgoing, []).append(name)
        spaces.blocks.add(name)
        spaces.last = outgoing
    return spaces


def _blocks(network: Network) -> Iterator[tuple[str, ConvolutionBlock]]:
    """The blocks in the order they run, with their names."""
    for number, (blocks, step) in enumerate(zip(network.stages, network.steps)):
        yield from (
            (f"stages.{number}.{n}", block)
            for n, block in enumerate(blocks.children())
            if isinstance(block, ConvolutionBlock)
        )
        if isinstance(step, ConvolutionBlock):
            yield f"steps.{number}", step


def _maps(network: Network, batch: Tensor) -> dict[str, Tensor]:
    """The outputs of all blocks and convolutions, by name."""
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, arguments, output: maps.__setitem__(name, output.clone())

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, (ConvolutionBlock, Convolution)):
                stack.callback(module.register_forward_hook(keep(name)).remove)
        network(batch)
    return maps


def permuted(network: Network, spaces: _Spaces, permutations: dict[str, Tensor]) -> Network:
    """A copy with the same logits whose channel c in every space is what was channel
    permutation[c]; what the head pools stays together.
    """
    result = copy.deepcopy(network)
    for name, (incoming, outgoing) in spaces.convolutions.items():
        convolution, rows = result.get_submodule(name), permutations[outgoing]
        assert isinstance(convolution, Convolution)
        weight = _weight(convolution)[rows]
        if incoming is not None:
            weight = weight[:, permutations[incoming]]
        convolution.filters.data = weight.reshape(convolution.filters.shape)
        for values in (*convolution.norm.parameters(), *convolution.norm.buffers()):
            values.data = values.data[rows]
    block = pooled_channels(network)
    columns = permutations[spaces.last][::block] // block  # of blocks, which stay whole
    result.linear.weight.data = result.linear.weight.data[:, columns]
    return result


def _average(first: Network, second: Network) -> Network:
    result = copy.deepcopy(first)
    other = second.state_dict()
    result.load_state_dict(
        {
            name: (value + other[name]) / 2 if value.is_floating_point() else value
            for name, value in first.state_dict().items()
        }
    )
    return result


def _with_measured_statistics(network: Network, batch: Tensor) -> Network:
    """A copy whose batch norms have the statistics of `batch`, layer after layer."""
    result = copy.deepcopy(network)

    def note(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(arguments[0], (0, 2, 3))
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)

    with ExitStack() as stack:
        for convolution in result.convolutions:
            stack.callback(convolution.norm.register_forward_pre_hook(note).remove)
        result(batch)
    return result


def _between(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over two outputs of their channels' means and standard deviations."""
    (std, mean), (other_std, other_mean) = (
        torch.std_mean(first, (0, 2, 3)),
        torch.std_mean(second, (0, 2, 3)),
    )
    return (mean + other_mean) / 2, (std + other_std) / 2


def _repaired(
    network: Network, batch: Tensor, goals: dict[str, tuple[Tensor, Tensor]]
) -> Callable[[Tensor], Tensor]:
    """The network with an affine map after every block that gives its channels their goal for
    `batch`, block after block.
    """
    affine: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(name: str, output: Tensor) -> Tensor:
        std, mean = torch.std_mean(output, (0, 2, 3))
        scale = torch.where(
            std > 0,
            goals[name][1] / std.clamp_min(torch.finfo(std.dtype).tiny),
            torch.ones_like(std),
        )
        affine[name] = scale, goals[name][0] - scale * mean
        return apply(name, output)

    def apply(name: str, output: Tensor) -> Tensor:
        scale, shift = affine[name]
        return output * scale[:, None, None] + shift[:, None, None]

    def forward(images: Tensor, change: Callable[[str, Tensor], Tensor] = apply) -> Tensor:
        def changing(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            return lambda module, arguments, output: change(name, output)

        with ExitStack() as stack:
            for name in goals:
                hook = network.get_submodule(name).register_forward_hook(changing(name))
                stack.callback(hook.remove)
            return network(images)

    forward(batch, measure)
    return forward
