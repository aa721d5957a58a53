"""Relaxation of a trained network: stages held to a smaller group, with the function kept.

A regular field of a group G is, seen from a subgroup H, |G|/|H| regular fields of H: the same
channels in another order (`trainers.networks.filters.restricted_order`). The weight of every
convolution, its channels in that order, is equivariant under H too, so that parameters of H give
it: it is EquiNAS's relaxation morphism (Maile et al., arXiv:2210.05484). What trains on from there
has |G|/|H| times the parameters. In training mode the function may differ: batch statistics are
taken over the smaller fields. A residual pathway begins with filters of 0, and changes nothing in
training either.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.geometry import counted
from searchspace.groups import TRIVIAL, Group
from searchspace.weights.relaxed import relaxed
from trainers.networks.convolution import Convolution
from trainers.networks.filters import Parametrisation, expand, restricted_order
from trainers.networks.networks import Network, build
from trainers.networks.normalization import EPSILON

# of a weight, up to which a basis may miss it: escnn samples each basis by itself, in float32
MOST_MISSED = 1e-4


@torch.no_grad()
def relax_network(
    network: Network, architecture: Architecture, *, images: Tensor | None = None
) -> Network:
    """A network of `architecture` (`searchspace.weights.relaxed`) with the function of `network`,
    in its dtype and mode, on its device. Raises ValueError if the architecture is not a relaxation
    of the network's.

    Free filters keep the function to rounding, those of a basis to about 1e-6. A skip connection
    that was the identity and gets weights stands as the identity; with `images` [batch, channel,
    height, width], as the network takes them, its batch norm has their statistics, so that training
    begins near the identity too.
    """
    relaxation = ParameterMap(network, architecture)
    state = relaxation.moved(network.state_dict())
    state |= relaxation.identities(images) | relaxation.pathways()
    child = copy.deepcopy(relaxation.after)
    child.load_state_dict(state)
    return child.train(network.training)


@torch.no_grad()
def plain_twin(network: Network) -> Network:
    """A copy with the same function whose convolutions have no group: every channel is a field.

    Its architecture and its head, which pools what were the fields of the last stage, stay those of
    `network`.
    """
    twin = copy.deepcopy(network)
    weights = dict(zip(twin.convolutions, twin.weights()))
    for name, module in list(twin.named_modules()):
        if isinstance(module, Convolution):
            parent, _, attribute = name.rpartition(".")
            setattr(twin.get_submodule(parent), attribute, _plain(module, weights[module]))
    twin._register_constants()
    return twin.train(network.training)


def _plain(convolution: Convolution, weight: Tensor) -> Convolution:
    norm = convolution.norm
    plain = Convolution(
        convolution.fields * norm.order,
        TRIVIAL,
        convolution.channels_in,
        None if convolution.source is None else TRIVIAL,
        "free",
        convolution.kernel,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.mode,
        norm.relu,
        convolution.pool,
    ).to(weight)
    plain.filters.copy_(weight.reshape(plain.filters.shape))
    values = {name: v.repeat_interleave(norm.order) for name, v in norm.state_dict().items()}
    plain.norm.load_state_dict(values)
    return plain


class ParameterMap:
    """The linear map from parameters and statistics of a network to those of a relaxed one.

    Both are known by their names in the state dict.
    """

    def __init__(self, before: Network, architecture: Architecture) -> None:
        require_relaxation(before.architecture, architecture)
        self.before = before
        self.after = build(architecture, channels=before.channels, classes=before.classes).to(
            before.linear.weight
        )

    @cached_property
    def _pairs(self) -> dict[str, tuple[Convolution, Convolution]]:
        """The convolutions that both have, by name."""
        theirs = dict(self.before.named_modules())
        return {
            name: (before, module)
            for name, module in self.after.named_modules()
            if isinstance(module, Convolution)
            and isinstance(before := theirs.get(name), Convolution)
        }

    @cached_property
    def new(self) -> tuple[str, ...]:
        """The names of the convolutions that only the relaxed network has: of skip connections
        which were the identity.
        """
        return tuple(
            name
            for name, module in self.after.named_modules()
            if isinstance(module, Convolution) and name not in self._pairs
        )

    def moved(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by name (parameters, statistics, or what adds to them, such as a momentum) as
        those of the relaxed network; what `values` lacks is left out.
        """
        moved: dict[str, Tensor] = {}
        for name, value in values.items():
            pair, part = self._pair_of(name), name.rpartition(".")[2]
            if name == "linear.weight":
                moved[name] = self._linear(value)
            elif pair is None or _unchanged(*pair):
                moved[name] = value.clone()
            elif part == "filters":
                moved[name] = _filters(value, *pair)
            else:
                moved[name] = value.repeat_interleave(_copies(*pair))
        return moved

    def copies(self, name: str) -> int:
        """By how many parameters of the relaxed network the one called `name` is replaced: their
        gradients sum to its gradient.
        """
        pair = self._pair_of(name)
        return 1 if pair is None else _copies(*pair)

    def _pair_of(self, name: str) -> tuple[Convolution, Convolution] | None:
        return self._pairs.get(name.rpartition(".")[0].removesuffix(".norm"))

    def spread(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of single parameters that do not add up, such as mean squares of gradients, for
        every copy of the parameter; coefficients of a basis, which have no copies, get the mean.
        """
        spread = {}
        for name, value in values.items():
            pair = self._pair_of(name) if name.endswith(".filters") else None
            if pair is not None and not _copied(*pair):
                spread[name] = value.mean().expand(pair[1].filters.shape).clone()
            elif name == "linear.weight":
                spread[name] = self._linear(value) * self._head_copies
            else:
                spread |= self.moved({name: value})
        return spread

    @property
    def _head_copies(self) -> int:
        """Columns of the classifier into which one falls."""
        return self.after.linear.in_features // self.before.linear.in_features

    def _linear(self, weight: Tensor) -> Tensor:
        if self.before.architecture.head == "none":
            order = field_order(
                weight.shape[1], self.before.architecture.group, self.after.architecture.group
            )
            return weight[:, order.to(weight.device)]
        return weight.repeat_interleave(self._head_copies, 1) / self._head_copies

    def pathways(self) -> dict[str, Tensor]:
        """The parameters and buffers of the pathways that only the relaxed network has, whose
        filters are 0.
        """
        theirs = self.before.state_dict()
        return {
            name: torch.zeros_like(value) if name.endswith(".filters") else value
            for name, value in self.after.state_dict().items()
            if ".soft." in name and name not in theirs
        }

    def identities(self, images: Tensor | None) -> dict[str, Tensor]:
        """The parameters and statistics of `new` convolutions under which each is the identity."""
        state: dict[str, Tensor] = {}
        for name in self.new:
            module = self.after.get_submodule(name)
            assert isinstance(module, Convolution)
            channels = module.channels_in
            weight = torch.eye(channels).to(module.filters).view(channels, channels, 1, 1)
            assert module.source is not None, "an image has no skip connection"
            order = field_order(channels, module.source, module.parametrisation.group)
            state[f"{name}.filters"] = filters_of(weight[order], module)
            mean, variance = self._statistics(name, order, images)
            state[f"{name}.norm.running_mean"] = state[f"{name}.norm.bias"] = mean
            state[f"{name}.norm.running_var"] = variance
            state[f"{name}.norm.weight"] = (variance + EPSILON).sqrt()
        return state

    def _statistics(self, name: str, order: Tensor, images: Tensor | None) -> tuple[Tensor, Tensor]:
        """(mean, variance) per field of what the skip connection `name` adds: of its stage's input
        where there are images, else 0 and 1.
        """
        module = self.after.get_submodule(name)
        assert isinstance(module, Convolution)
        if images is None:
            return torch.zeros_like(module.norm.bias), torch.ones_like(module.norm.bias)
        stage, training = int(name.split(".")[1]), self.before.training
        _, outputs = self.before.eval().forward_with_stages(images)
        self.before.train(training)
        maps = outputs[stage - 1][:, order.to(images.device)]
        fields = maps.unflatten(1, (module.fields, -1)).movedim(1, 0).flatten(1)
        variance, mean = torch.var_mean(fields, 1)
        return mean.to(module.norm.bias), variance.to(module.norm.bias)


@torch.no_grad()
def require_same_function(network: Network, other: Network, images: Tensor) -> None:
    """Raises ValueError where the logits of two networks in evaluation differ on the images by more
    than the rounding of float32.
    """
    training = network.training, other.training
    mine, theirs = network.eval()(images), other.eval()(images)
    network.train(training[0])
    other.train(training[1])
    apart, size = float((mine - theirs).abs().max()), float(mine.abs().max())
    if not apart <= MOST_MISSED * max(size, 1.0):
        raise ValueError(
            f"the relaxed network's logits differ from the trained network's by {apart:.2g} "
            f"(of {size:.2g}): '{other.architecture}' cannot take over its function"
        )


def require_relaxation(before: Architecture, after: Architecture) -> None:
    """Raises ValueError that says in what `after` is not a relaxation of `before`."""
    if before.softened:
        raise ValueError(
            f"'{before}' has relaxed weights (such as @C4+C1), which cannot be moved to a smaller "
            "group; take a trained network without them"
        )
    for number, (old, new) in enumerate(zip(before.stages, after.stages), start=1):
        if not new.group <= old.group:
            raise ValueError(
                f"stage {number} has group {new.group}, which is not a subgroup of the trained "
                f"network's {old.group}; weights are inherited by a relaxation only"
            )
        if new.channels != old.channels:
            raise ValueError(
                f"stage {number} has {counted(new.channels, 'channel')}, the trained network's has "
                f"{old.channels}; a relaxation to {new.group} keeps them, with "
                f"{counted(old.channels // new.group.order, 'field')}"
            )
    same = before
    for number, stage in enumerate(after.stages[: len(before.stages)], start=1):
        here, relaxation = same.stages[number - 1], stage.relaxation
        if stage.group < here.group:
            same = relaxed(same, number, stage.group)
        elif relaxation is not None and here.relaxation is None and relaxation.kind == "pathway":
            same = relaxed(same, number, relaxation.chain[0], pathway=True)
    if same != after:
        raise ValueError(
            f"'{after}' is not a relaxation of the trained '{before}', such as '{same}': weights "
            "are inherited where groups differ and nothing else"
        )


def _copies(before: Convolution, after: Convolution) -> int:
    return before.parametrisation.group.order // after.parametrisation.group.order


def _unchanged(before: Convolution, after: Convolution) -> bool:
    return before.parametrisation == after.parametrisation and before.source == after.source


def _copied(before: Convolution, after: Convolution) -> bool:
    """Whether every parameter of the relaxed filters is a copy of one of the filters before."""
    kinds = before.parametrisation, after.parametrisation
    return kinds[0].filters == "free" or kinds[0] == kinds[1]


def field_order(channels: int, group: Group, subgroup: Group) -> Tensor:
    """Which channel of fields of `group` is each channel of the same as fields of `subgroup`."""
    if group == subgroup:
        return torch.arange(channels)
    fields = torch.arange(channels // group.order)[:, None] * group.order
    return (fields + torch.tensor(restricted_order(group, subgroup))).flatten()


def _filters(values: Tensor, before: Convolution, after: Convolution) -> Tensor:
    """Values of the filters' parameters as those of the relaxed convolution's."""
    constants = _constants(before.parametrisation, values)
    weight = before.weight(expand(values, before.parametrisation, constants, training=False))
    out, group = before.parametrisation.group, after.parametrisation.group
    weight = weight[field_order(len(weight), out, group).to(weight.device)]
    if before.source is not None and after.source is not None:
        order = field_order(before.channels_in, before.source, after.source)
        weight = weight[:, order.to(weight.device)]
    return filters_of(weight, after)


def filters_of(weight: Tensor, convolution: Convolution) -> Tensor:
    """The parameters of the convolution's filters that give this weight [channels out, channels in,
    k, k]. Raises ValueError where its basis misses the weight.
    """
    kind = convolution.parametrisation
    if convolution.restriction is not None:
        weight = weight[:, torch.argsort(convolution.restriction)]
    order, incoming, kernel, _ = kind.expanded_shape
    pairs = weight.reshape(convolution.fields, order, -1, incoming, kernel, kernel).transpose(1, 2)
    if kind.filters == "free":
        return pairs[:, :, 0].reshape(convolution.filters.shape).clone()
    basis, entries = _constants(kind, weight).double(), pairs.reshape(-1, kind.constants().shape[1])
    solution = torch.linalg.lstsq(basis.T, entries.double().T).solution.T
    missed = (solution @ basis - entries.double()).norm()
    if missed > MOST_MISSED * entries.double().norm():
        raise ValueError(
            f"the band-limited basis of {kind.group} cannot express the trained weights of a "
            f"kernel of {kind.kernel}; take filters=free"
        )
    return solution.to(weight.dtype)


def _constants(kind: Parametrisation, like: Tensor) -> Tensor:
    constants = kind.constants().to(like.device)
    return constants.to(like.dtype) if constants.is_floating_point() else constants
