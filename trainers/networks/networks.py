"""The network that an architecture describes: plain torch operations whose weights are made
equivariant by `filters`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture, Filters, Stage
from searchspace.groups import Group
from searchspace.subsampling import Subsampling
from trainers.networks import bases
from trainers.networks.filters import Parametrisation, arrange, expand, restricted_order
from trainers.networks.kernels import fourier, maxima
from trainers.networks.lifting import fits, lift
from trainers.networks.normalization import FieldNorm, Pooling
from trainers.networks.plain import Pad, Subsample


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
            deviations = convolution.parametrisation.deviations(convolution.fields_in)
            convolution.filters.copy_(
                torch.randn(convolution.filters.shape, generator=generator) * deviations
            )
        bound = network.linear.in_features**-0.5
        for parameter in network.linear.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
    return network


class Convolution(nn.Module):
    """A group convolution's parameters, its batch norm over fields and, with `relu`, the ReLU after
    it.

    `filters` are [fields out x fields in, parameters of a pair of fields]. `source` is the group of
    the incoming regular fields, None for an image; a larger source is read as more fields of
    `group`.
    """

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
        pool: Pooling | None = None,
    ) -> None:
        super().__init__()
        self.parametrisation = Parametrisation(filters, group, kernel, lifting=source is None)
        self.fields, self.fields_in = fields, channels_in // self.parametrisation.incoming
        self.channels_in, self.kernel, self.stride, self.padding = (
            channels_in,
            kernel,
            stride,
            padding,
        )
        self.dilation, self.mode, self.pool = dilation, mode, pool
        self.filters = nn.Parameter(
            torch.empty(self.fields * self.fields_in, self.parametrisation.size)
        )
        self.norm = FieldNorm(fields, group.order, relu)
        self.source = source
        equal_zeros = padding[0] == padding[1] and mode == "zeros"
        self.pad = None if equal_zeros else Pad(padding, mode)
        if source is not None and source != group:
            order = torch.tensor(restricted_order(source, group))
            fields_before = torch.arange(channels_in // source.order)[:, None] * source.order
            # Channel n, seen as the subgroup's fields, lies at order[n]; so the weight of channel c
            # is that of order's inverse.
            self.register_buffer(
                "restriction", torch.argsort((fields_before + order).flatten()), persistent=False
            )
        else:
            self.restriction = None

    def weight(self, filters: Tensor) -> Tensor:
        """The convolution's weight [channels out, channels in, k, k] from expanded filters [pairs,
        |G|, incoming, k, k].
        """
        weight = arrange(filters, self.fields)
        return weight if self.restriction is None else weight.index_select(1, self.restriction)

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

    def convolve(self, maps: Tensor, weight: Tensor, padding: int) -> Tensor:
        """conv2d(maps, weight) of padded maps, in the Fourier basis of the group where that is
        faster.
        """
        group = self.parametrisation.group
        if self.source is not None and fourier.suits(
            group, maps, weight, self.stride, padding, self.dilation
        ):
            shared = fourier.transform(
                group, self.source, self.channels_in, len(weight), self.kernel
            )
            return fourier.convolve(maps, weight, shared, self.stride, padding, self.dilation)
        return F.conv2d(maps, weight, stride=self.stride, padding=padding, dilation=self.dilation)

    def extra_repr(self) -> str:
        p = self.parametrisation
        return f"{self.channels_in} -> {self.fields} fields of {p.group}, {p.filters}, kernel={self.kernel}, stride={self.stride}"


class Block(nn.Module):
    """One convolution, or a residual block of two and a skip connection
    (`searchspace.architecture.Stage`).
    """

    def __init__(
        self, convolutions: list[Convolution], residual: bool, skip: Convolution | None
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.residual, self.skip = residual, skip

    def forward(self, maps: Tensor, weights: Iterator[Tensor]) -> Tensor:
        """The feature maps after the last ReLU; takes its weights from the iterator, the skip's
        last.
        """
        if not self.residual:
            return self.convolutions[0](maps, next(weights))
        first, second = self.convolutions
        out, weight = first(maps, next(weights)), next(weights)
        return second(out, weight, maps if self.skip is None else self.skip(maps, next(weights)))


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

    def __init__(self, architecture: Architecture, channels: int, classes: int) -> None:
        super().__init__()
        self.architecture, self.channels, self.classes = architecture, channels, classes
        bases.load(_bases(architecture))
        self.entry = (
            Subsample(step_spec(architecture.entry, channels)) if architecture.entry else None
        )
        self.stages, self.steps = nn.ModuleList(), nn.ModuleList()
        source: Group | None = None
        for stage in architecture.stages:
            self.stages.append(
                nn.ModuleList(_blocks(stage, channels, source, architecture.filters))
            )
            channels, source = stage.channels, stage.group
            self.steps.append(_step(stage, architecture.filters))
        self.order = architecture.group.order
        features = channels if architecture.head == "none" else channels // self.order
        # torch's own initialisation draws from the global generator
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(features, classes)
        self._register_constants()

    def _register_constants(self) -> None:
        """Group the convolutions by parametrisation, so that each kind is expanded at once, and
        hold what that needs.
        """
        self.convolutions = tuple(
            m
            for parts in zip(self.stages, self.steps)
            for part in parts
            for m in part.modules()
            if isinstance(m, Convolution)
        )
        self._kinds: dict[Parametrisation, list[int]] = defaultdict(list)
        for number, convolution in enumerate(self.convolutions):
            self._kinds[convolution.parametrisation].append(number)
        self._kinds = dict(self._kinds)
        for number, parametrisation in enumerate(self._kinds):
            self.register_buffer(
                f"constants_{number}", parametrisation.constants(), persistent=False
            )

    def weights(self) -> list[Tensor]:
        """The weight of every convolution [channels out, channels in, k, k], in the order of
        `convolutions`: that of the forward pass.
        """
        found: list[Tensor | None] = [None] * len(self.convolutions)
        # Autocast would multiply the basis in bfloat16 and blur what must be exact.
        with torch.autocast(self.linear.weight.device.type, enabled=False):
            for number, (parametrisation, members) in enumerate(self._kinds.items()):
                parameters = [self.convolutions[m].filters for m in members]
                joined = parameters[0] if len(parameters) == 1 else torch.cat(parameters)
                expanded = expand(
                    joined, parametrisation, getattr(self, f"constants_{number}"), self.training
                )
                for member, filters in zip(members, expanded.split([len(p) for p in parameters])):
                    found[member] = self.convolutions[member].weight(filters)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """The logits [batch, classes] of images [batch, channels, height, width]."""
        return self.forward_with_stages(images)[0]

    def forward_with_stages(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(logits, the feature maps after each stage and its subsampling). Raises ValueError for
        images of another size.

        Images that are not square may come turned by a quarter, with height and width exchanged.
        """
        return self._run(images, lambda maps: (maps, maps))

    def forward_with_parts(
        self, images: Tensor, *parts: slice, block: int = 1
    ) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
        """(logits, for each stage the `maxima.block_maxima` of these parts of the batch): a loss on
        few images costs little backwards.
        """

        def cut(maps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            whole, *found = maxima.of_parts(maps, parts, block)
            return whole, tuple(found)

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
        weights = iter(self.weights())
        maps = channels_last(images if self.entry is None else self.entry(images))
        outputs = []
        for blocks, step in zip(self.stages, self.steps):
            for block in blocks:
                maps = block(maps, weights)
            maps = step(maps, weights) if isinstance(step, Block) else step(maps)
            maps, kept = keep(maps)
            outputs.append(kept)
        return self._classify(maps), tuple(outputs)

    def _classify(self, maps: Tensor) -> Tensor:
        features = maps.mean((2, 3), dtype=self.linear.weight.dtype)
        if self.architecture.head != "none":
            fields = features.unflatten(1, (-1, self.order))
            features = fields.amax(2) if self.architecture.head == "group_max" else fields.mean(2)
        with torch.autocast(maps.device.type, enabled=False):
            return self.linear(features)


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


def _blocks(stage: Stage, channels: int, source: Group | None, filters: Filters) -> Iterator[Block]:
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
            yield Block([first], False, None)
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
                )
            yield Block([first, second], True, skip)
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
    )
    return Block([convolution], False, None)


def _relu_after_step(stage: Stage) -> bool:
    """True if the stage's last ReLU comes after its maximum: the same values and gradients on a
    fraction of the pixels.
    """
    return not stage.residual and stage.subsampling is not None and stage.subsampling.pure_maximum


def _pooling(stage: Stage) -> Pooling | None:
    """The stage's maximum as torch's max_pool2d takes it; None for one that it cannot do."""
    step = stage.subsampling
    if step is None or not step.slides_maximum or step.padding[0] != step.padding[1]:
        return None
    return Pooling(step.kernel, step.stride, step.padding[0], 1, step.ceil)


def _bases(architecture: Architecture) -> set[tuple[Group, int]]:
    """The (group, kernel) of every steerable basis that the network needs."""
    if architecture.filters == "free":
        return set()
    found = set()
    for layer in architecture.layers:
        if layer.weights is not None:
            found.add((architecture.stages[layer.stage - 1].group, layer.kernel))
    return found
