"""The network that an architecture describes: plain torch operations whose weights are made
equivariant by `filters`.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture, Filters
from searchspace.function.coordinates import extra_channels
from searchspace.function.heads import block_group
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage
from searchspace.subsampling import Subsampling
from trainers.networks import bases
from trainers.networks.convolution import Convolution, ConvolutionBlock, channels_last
from trainers.networks.dropout import DropoutLayer
from trainers.networks.filters import Parametrisation, expand
from trainers.networks.kernels import maxima
from trainers.networks.normalization import PoolWindow
from trainers.networks.orbit import averaged, orbit_of
from trainers.networks.plain import InvariantFields, Subsample, block_maxima, with_coordinates


def build(architecture: Architecture, *, channels: int, classes: int, seed: int = 0) -> Network:
    """A new network in training mode, initialised by its own generator from `seed`: torch's global
    one is not touched.

    `channels` are those of the images. Raises ValueError if a steerable basis is empty.
    """
    for name, value in (("channels", channels), ("classes", classes)):
        if value < 1:
            raise ValueError(f"a network needs at least one of its {name}, got {value}")
    network = Network(architecture, channels, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for convolution in network.convolutions:
            filters = convolution.filters
            deviations = convolution.parametrisation.deviations(convolution.fields_in)
            if deviations.numel() != filters.shape[1]:  # of free entries, all the same
                deviations = deviations[0]
            filters.copy_(torch.randn(filters.shape, generator=generator) * deviations)
        bound = network.linear.in_features**-0.5
        for parameter in network.linear.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
        _start_soft(network, generator)
    return network


def _start_soft(network: Network, generator: torch.Generator) -> None:
    """Initialises what relaxed weights have beside the filters; last, so that these are those of
    the network without relaxations.
    """
    for convolution in network.convolutions:
        if convolution.soft is not None:
            for part in convolution.soft.parts:
                drawn = torch.randn(part.filters.shape, generator=generator)
                part.filters.copy_(drawn * part.parametrisation.deviations(part.fields_in))
            convolution.soft.start(convolution.filters)


class MaximumThenReLU(nn.Module):
    """A maximum over windows, then ReLU; in training nothing if the convolution before did both
    (`done`).
    """

    def __init__(self, maximum: Subsample, done: bool) -> None:
        super().__init__()
        self.maximum, self.done = maximum, done

    def forward(self, maps: Tensor) -> Tensor:
        """The smaller maps."""
        return maps if self.training and self.done else F.relu_(self.maximum(maps))


class Network(nn.Module):
    """The trainable network of `architecture`, a plain torch module: it pickles, copies, compiles
    and moves to a GPU.

    Computes in channels-last layout. Under `torch.autocast(..., dtype=torch.bfloat16)` convolutions
    run in bfloat16, while filters, batch statistics and logits stay float32.
    """

    _made: list[Tensor] | None = None  # in `same_weights`

    def __init__(self, architecture: Architecture, channels: int, classes: int) -> None:
        super().__init__()
        self.architecture, self.channels, self.classes = architecture, channels, classes
        bases.load_bases(_bases(architecture))
        self.entry = (
            Subsample(step_spec(architecture.entry, channels)) if architecture.entry else None
        )
        self.stages, self.steps, self.pools, self.dropouts = (nn.ModuleList() for _ in range(4))
        seen = channels + extra_channels(architecture.coordinates)
        channels, source = seen, cast(Group | None, None)
        for stage in architecture.stages:
            if stage.stream:
                channels, source = seen, None
            self.stages.append(
                nn.ModuleList(_blocks(stage, channels, source, architecture.filters))
            )
            channels, source = stage.channels, stage.group
            self.steps.append(_step(stage, architecture.filters))
            pools = stage.invariant_fields, stage.group.order
            self.pools.append(InvariantFields(*pools) if pools[0] else nn.Identity())
            self.dropouts.append(
                DropoutLayer(stage.dropout, stage.group.order) if stage.dropout else nn.Identity()
            )
        self.order = architecture.group.order
        blocks = block_group(architecture.head)
        self.orders = tuple((blocks or stage.group).order for stage in architecture.lasts)
        # torch's own initialisation draws from the global generator
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(architecture.features, classes)
        self._register_constants()

    def _register_constants(self) -> None:
        """Groups the convolutions by parametrisation, so that the filters of each kind are expanded
        at once, and registers the constants of each kind.
        """
        self.convolutions = tuple(
            m
            for parts in zip(self.stages, self.steps)
            for part in parts
            for m in part.modules()
            if isinstance(m, Convolution)
        )
        # of each, the (convolution, part of its weight) that it computes
        self._kinds: dict[Parametrisation, list[tuple[int, int]]] = defaultdict(list)
        for number, convolution in enumerate(self.convolutions):
            for part, parametrisation in enumerate(convolution.parametrisations):
                self._kinds[parametrisation].append((number, part))
        self._kinds = dict(self._kinds)
        for number, parametrisation in enumerate(self._kinds):
            self.register_buffer(
                f"constants_{number}", parametrisation.constants(), persistent=False
            )

    @contextlib.contextmanager
    def same_weights(self) -> Iterator[None]:
        """Within it, the weights are made once for all who read them; the parameters must not
        change.
        """
        self._made = self.weights()
        try:
            yield
        finally:
            self._made = None

    def weights(self) -> list[Tensor]:
        """The weight of every convolution [channels out, channels in, k, k], in the order of
        `convolutions`: that of the forward pass.
        """
        if self._made is not None:
            return self._made
        expanded: list[dict[int, Tensor]] = [{} for _ in self.convolutions]
        # Autocast would multiply the basis in bfloat16 and blur what must be exact.
        with torch.autocast(self.linear.weight.device.type, enabled=False):
            for number, (parametrisation, members) in enumerate(self._kinds.items()):
                constants = getattr(self, f"constants_{number}")
                parameters: list[Tensor] = [
                    self.convolutions[member].parameters_of(part, constants)
                    for member, part in members
                ]
                joined = parameters[0] if len(parameters) == 1 else torch.cat(parameters)
                of_kind = expand(joined, parametrisation, constants, self.training)
                for (member, part), filters in zip(
                    members, of_kind.split([len(p) for p in parameters])
                ):
                    expanded[member][part] = filters
            return [
                convolution.weight(parts[0], [parts[n] for n in range(1, len(parts))])
                for convolution, parts in zip(self.convolutions, expanded)
            ]

    def forward(self, images: Tensor) -> Tensor:
        """The logits [batch, classes] of images [batch, channels, height, width]."""
        return self.forward_with_stages(images)[0]

    def forward_with_stages(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(logits, the feature maps after each stage and its subsampling, before its dropout).
        Raises ValueError for images of another size.

        Of an orbit average the maps are those of the images as they are. Images that are not square
        may come turned by a quarter, with height and width exchanged.
        """
        count = len(images)
        averages = self.architecture.orbit != TRIVIAL
        return self._run(images, lambda maps: (maps, maps[:count] if averages else maps))

    def forward_with_parts(
        self, images: Tensor, *parts: slice, block: int = 1
    ) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
        """(logits, for each stage the `maxima.compiled_block_maxima` of these parts of the batch):
        a loss on few images costs little backwards.
        """

        bounded = tuple(slice(*part.indices(len(images))) for part in parts)

        def cut(maps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            whole, *compared = maxima.of_parts(maps, bounded, block)
            return whole, tuple(compared)

        return self._run(images, cut)

    def _run(
        self, images: Tensor, keep: Callable[[Tensor], tuple[Tensor, Any]]
    ) -> tuple[Tensor, tuple]:
        expected = (self.channels, *self.architecture.size)
        if images.dim() != 4 or tuple(images.shape[1:]) not in (
            expected,
            (self.channels, *self.architecture.size[::-1]),
        ):
            raise ValueError(
                f"the network takes images [batch, {', '.join(map(str, expected))}], got "
                f"{list(images.shape)}"
            )
        # in one batch, so that the statistics of a training step are those of the whole orbit
        images = orbit_of(images, self.architecture.orbit)
        weights = iter(self.weights())
        maps = images if self.entry is None else self.entry(images)
        if self.architecture.coordinates != "none":
            maps = with_coordinates(maps, self.architecture.coordinates)
        entered = maps = channels_last(maps)
        outputs, ends = [], []
        parts = zip(self.architecture.stages, self.stages, self.steps, self.pools, self.dropouts)
        for stage, blocks, step, pool, dropout in parts:
            if stage.stream:
                ends.append(maps)
                maps = entered
            for block in cast(Iterable[ConvolutionBlock], blocks):
                maps = block(maps, weights)
            maps = step(maps, weights) if isinstance(step, ConvolutionBlock) else step(maps)
            maps, output = keep(pool(maps))
            outputs.append(output)
            maps = dropout(maps)
        return self._classify([*ends, maps]), tuple(outputs)

    def _classify(self, ends: list[Tensor]) -> Tensor:
        """The logits from the last maps of each stream."""
        features = [self._features(maps, order) for maps, order in zip(ends, self.orders)]
        joined = features[0] if len(features) == 1 else torch.cat(features, 1)
        with torch.autocast(joined.device.type, enabled=False):
            return averaged(self.linear(joined), self.architecture.orbit)

    def _features(self, maps: Tensor, order: int) -> Tensor:
        features = maps.mean((2, 3), dtype=self.linear.weight.dtype)
        if self.architecture.head == "none":
            return features
        if block_group(self.architecture.head) is not None:
            return block_maxima(features, order)
        fields = features.unflatten(1, (-1, order))
        return fields.amax(2) if self.architecture.head == "group_max" else fields.mean(2)


def step_spec(step: Subsampling, channels: int) -> dict:
    """`step` on maps of `channels` as `trainers.networks.plain` describes it."""
    return {
        "kind": step.kind,
        "kernel": step.kernel,
        "stride": step.stride,
        "padding": list(step.padding),
        "ceil": step.ceil,
        "output": step.output,
        "mode": step.mode,
        "channels": channels,
    }


def _blocks(
    stage: Stage, channels: int, source: Group | None, filters: Filters
) -> Iterator[ConvolutionBlock]:
    """The blocks of a stage whose input has `channels`, which are fields of `source` (None: an
    image).
    """
    for number in range(stage.repeats):
        stride = stage.stride if number == 0 else 1
        changes = (channels, source) != (stage.channels, stage.group)
        window = {
            "filters": filters,
            "kernel": stage.kernel,
            "padding": stage.padding,
            "dilation": stage.dilation,
            "mode": stage.padding_mode,
            "relaxation": stage.relaxation,
        }
        last = _relu_after_step(stage) and number == stage.repeats - 1
        first = Convolution(
            stage.fields,
            stage.group,
            channels,
            source,
            stride=stride,
            relu=not last,
            pool=_pooling(stage) if last else None,
            **window,
        )
        if not stage.residual:
            yield ConvolutionBlock([first], False, None)
        else:
            second = Convolution(stage.fields, stage.group, stage.channels, stage.group, **window)
            skip = None
            if changes or stride > 1:
                skip = Convolution(
                    stage.fields,
                    stage.group,
                    channels,
                    source,
                    filters,
                    kernel=1,
                    stride=stride,
                    relu=False,
                    relaxation=stage.relaxation,
                )
            yield ConvolutionBlock([first, second], True, skip)
        channels, source = stage.channels, stage.group


def _step(stage: Stage, filters: Filters) -> nn.Module:
    step = stage.subsampling
    if step is None:
        return nn.Identity()
    if not step.trained:
        subsample = Subsample(step_spec(step, stage.channels))
        return (
            MaximumThenReLU(subsample, _pooling(stage) is not None)
            if _relu_after_step(stage)
            else subsample
        )
    convolution = Convolution(
        stage.fields,
        stage.group,
        stage.channels,
        stage.group,
        filters,
        step.kernel,
        step.stride,
        step.padding,
        relaxation=stage.relaxation,
    )
    return ConvolutionBlock([convolution], False, None)


def _relu_after_step(stage: Stage) -> bool:
    """True if the stage's last ReLU comes after its maximum: the same values and gradients on a
    fraction of the pixels.
    """
    return not stage.residual and stage.subsampling is not None and stage.subsampling.pure_maximum


def _pooling(stage: Stage) -> PoolWindow | None:
    """The stage's maximum as torch's max_pool2d takes it; None for one that it cannot do."""
    step = stage.subsampling
    if step is None or not step.slides_maximum or step.padding[0] != step.padding[1]:
        return None
    return PoolWindow(step.kernel, step.stride, step.padding[0], 1, step.ceil)


def _bases(architecture: Architecture) -> set[tuple[Group, int]]:
    """The (group, kernel) of every steerable basis that the network needs."""
    if architecture.filters == "free":
        return set()
    return {
        (architecture.stages[layer.stage - 1].group, layer.kernel)
        for layer in architecture.layers
        if layer.weights is not None
    }
