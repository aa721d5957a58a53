"""A steerable twin of a network that is not ours, with its verdict."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from searchspace.groups import TRIVIAL, Group
from trainers.instruments.audit.repair import Resized
from trainers.instruments.audit.verdict import Audit
from trainers.instruments.convert.channels import Flow, follow_channels, kept_channels
from trainers.instruments.convert.layers import GroupConv2d, OfFields
from trainers.instruments.convert.rewriting import OPTIONS, Rewriting, norm_of
from trainers.instruments.convert.text import architecture_of, twin_text
from trainers.instruments.convert.tracing import Traced, trace
from trainers.instruments.convert.verdict import verdict_of

WidthRule = Literal["keep", "params", "macs"]
WIDTHS: tuple[WidthRule, ...] = ("keep", "params", "macs")
HALVINGS = 20  # of the interval in which the share of channels lies


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs."""

    params: int
    macs: int  # multiply-accumulates of convolutions and linear layers for one image


@dataclass(frozen=True)
class Conversion:
    """A twin, what it keeps, and what it costs."""

    network: nn.Module  # of `layers` and torch's modules, in evaluation
    group: Group
    width: WidthRule
    verdict: Audit
    before: NetworkCost
    after: NetworkCost
    text: str | None  # an architecture with its layers, groups and sizes; None: it has none
    why_no_text: str
    repaired_size: int | None = None  # pixels to which the network resizes its images

    def plain(self) -> nn.Module:
        """A copy of the network, in evaluation, whose layers are all torch's own: filters expanded,
        the values of batch norms repeated for every group element. The same function.
        """
        return expanded(self.network)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of the verdict, and `twin`."""
        return {
            **self.verdict.as_dict(),
            "twin": {
                "width": self.width,
                "params": self.after.params,
                "params_before": self.before.params,
                "macs": self.after.macs,
                "macs_before": self.before.macs,
                "architecture": self.text,
                "resizes_to": self.repaired_size,
            },
        }

    def description(self) -> str:
        """The verdict for people, the cost, and the text form."""
        before, after = self.before, self.after
        lines = [
            self.verdict.text(),
            "",
            f"The twin under {self.group} has {after.params:,} parameters and {after.macs:,} "
            f"multiply-accumulates ({before.params:,} and {before.macs:,} before).",
        ]
        if self.repaired_size is not None:
            lines.append(f"It resizes its images to {self.repaired_size} pixels, an exact size.")
        if self.text is not None:
            return "\n".join([*lines, f"As text, to be trained from the start: {self.text}"])
        return "\n".join([*lines, f"It has no text form: {self.why_no_text}."])


def convert(
    model: nn.Module,
    group: str | Group,
    size: int | tuple[int, int] = 224,
    channels: int = 3,
    *,
    width: WidthRule = "keep",
    repair: bool = False,
    name: str = "",
) -> Conversion:
    """The twin of `model` that is steerable under `group` (quarter turns and flips), for images of
    `size` pixels (one number, or height and width), with what its grid keeps exactly.

    Convolutions and hidden linear layers become group convolutions with the original's filters on
    the identity; each |G| channels are a field, and the mean over the group precedes the last
    layer. Where the verdict is exact, the twin starts as the mean of the original's logits over the
    orbit of an image. `width` "keep" makes a field of every channel; "params" and "macs" keep the
    channels with the strongest filters, as many as the original's cost allows, and the same holds
    of the original without the others. With `repair`, a twin that is not exact at `size` resizes
    its images to the nearest size at which it is. `model` is not changed. Raises ValueError that
    names what cannot be converted, and where no exact size is nearby.
    """
    chosen = group if isinstance(group, Group) else Group.parse(group)
    _check(model, chosen, width)
    extent = (size, size) if isinstance(size, int) else size
    traced = trace(model, extent, channels)
    flow = follow_channels(traced)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights from it
        before = _cost(Rewriting(traced, flow, TRIVIAL, _all(flow)).network(), traced)
        kept = _all(flow) if width == "keep" else _matched(traced, flow, chosen, width, before)
        network = Rewriting(traced, flow, chosen, kept).network()
        plain = Rewriting(traced, flow, TRIVIAL, kept).network()
    verdict = verdict_of(network, plain, chosen, extent, channels, name or type(model).__name__)
    if repair and not verdict.exact:
        return _repaired(model, verdict, width)
    text, why = _text(traced, flow, chosen, kept, verdict)
    after = _cost(network, traced)
    return Conversion(network, chosen, width, verdict, before, after, text, why)


def _repaired(model: nn.Module, broken: Audit, width: WidthRule) -> Conversion:
    """The twin that resizes its images to the nearest exact size."""
    sizes = [s for s in broken.exact_sizes if isinstance(s, int) and s > 1]
    height, channels = broken.size[0], broken.channels
    if not sizes:
        raise ValueError(
            f"the twin of {broken.name} keeps {broken.surviving_group} of {broken.group} at "
            f"{broken.size[0]}x{broken.size[1]}, and no input size nearby is exact; leave the "
            "repair out, or give another size"
        )
    pixels = min(sizes, key=lambda n: (abs(n - height), -n))
    inner = convert(model, broken.group, pixels, channels, width=width, name=broken.name)
    maps = None if inner.verdict.invariant else broken.size
    network, plain = (
        Resized(m, (pixels, pixels), maps).eval() for m in (inner.network, inner.plain())
    )
    group = broken.group
    again = verdict_of(network, plain, group, broken.size, channels, broken.name)
    why = f"it resizes its images; the text of what reads them is {inner.text}"
    return replace(
        inner, network=network, verdict=again, text=None, why_no_text=why, repaired_size=pixels
    )


def _text(
    traced: Traced, flow: Flow, group: Group, kept: dict[int, Tensor], verdict: Audit
) -> tuple[str | None, str]:
    try:
        found = architecture_of(traced, flow, group, kept)
    except ValueError as error:
        return None, str(error)
    return twin_text(found, group, verdict.surviving)


def _check(model: Any, group: Group, width: str) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"convert needs a torch.nn.Module, and this is {type(model).__name__}; give the module "
            "itself"
        )
    if not group.on_grid:
        raise ValueError(
            f"{group} has elements that are not quarter turns or flips, under which filters of "
            f"pixels cannot be moved; give {group.grid}, or write a network with filters=basis in "
            "the text form"
        )
    if width not in WIDTHS:
        raise ValueError(f"width is '{width}'; choose {', '.join(WIDTHS)}")


def _all(flow: Flow) -> dict[int, Tensor]:
    return kept_channels(flow.spaces, lambda count: count)


def _matched(
    traced: Traced, flow: Flow, group: Group, width: WidthRule, before: NetworkCost
) -> dict[int, Tensor]:
    """The channels with which the twin costs what the original does, or as little as it can."""

    def cost(share: float) -> float:
        kept = kept_channels(flow.spaces, lambda count: round(count * share))
        found = _cost(Rewriting(traced, flow, group, kept).network(), traced)
        return found.params if width == "params" else found.macs

    target = before.params if width == "params" else before.macs
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
        if high - low < 1e-3:
            break
    best = min((low, high), key=lambda share: abs(math.log(cost(share) / target)))
    return kept_channels(flow.spaces, lambda count: round(count * best))


@torch.no_grad()
def _cost(network: nn.Module, traced: Traced) -> NetworkCost:
    """What a network costs for the images of a traced one."""
    macs = [0]

    def count(layer: nn.Module, _: Any, result: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            entries = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            macs[0] += result.numel() * entries
        elif isinstance(layer, nn.Linear):
            macs[0] += result.numel() * layer.in_features

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    parameters = list(network.parameters())
    network(torch.zeros(1, traced.channels, *traced.size).to(parameters[0]))
    for hook in hooks:
        hook.remove()
    return NetworkCost(sum(p.numel() for p in parameters), macs[0])


def _replaced(network: nn.Module, of: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, module in list(network.named_modules()):
        made = of(module)
        if made is not None:
            owner, _, last = name.rpartition(".")
            setattr(network.get_submodule(owner), last, made)


@torch.no_grad()
def expanded(network: nn.Module) -> nn.Module:
    """A copy whose group convolutions and norms of fields are torch's own layers."""

    def of(module: nn.Module) -> nn.Module | None:
        if isinstance(module, GroupConv2d):
            weight, bias = module.expanded()
            options: dict[str, Any] = {
                name: getattr(module, name) for name in ("kernel_size", *OPTIONS)
            }
            channels = module.in_channels, module.out_channels
            made = nn.Conv2d(*channels, bias=bias is not None, **options).to(weight)
            made.weight.copy_(weight)
            if bias is not None and made.bias is not None:
                made.bias.copy_(bias)
            return made
        if isinstance(module, OfFields):
            order = module.order
            return norm_of(module.norm, lambda values: values.repeat_interleave(order))
        return None

    made = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        _replaced(made, of)
    return made.eval()
