"""`Loss`: an equivariance loss with its weight, its group and the stages that it reads, as part of
a recipe; several are joined by `+`.

    >>> losses = parse_losses("layerwise:0.1@R4-2-1#1,2+latent:1@C4")
    >>> [(loss.kind, loss.order, loss.stages) for loss in losses]
    [('layerwise', 4, (1, 2)), ('latent', 4, ())]
    >>> losses_text(losses)
    'layerwise:0.1@R4-2-1#1,2+latent:1.0@C4'
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from searchspace.groups import TRIVIAL, Group

LossKind = Literal["none", "layerwise", "latent", "label", "projection"]
LOSS_KINDS: tuple[LossKind, ...] = get_args(LossKind)
# kinds that compare maps after stages, or weights in them
OF_STAGES = ("layerwise", "latent", "projection")
LOSS_FORM = (
    f"write a kind ({', '.join(LOSS_KINDS)}) and a finite weight of at least 0, then @GROUP and "
    "#STAGES where they differ, such as layerwise:0.1, latent:1@C4#3 or layerwise:1@R8-4-2-1; "
    "join several by +"
)
_LOSS = re.compile(r"(?:([a-z_]+)(?::|$))?([^@#]*)(?:@([^#]*))?(?:#(.*))?")
_JOIN = re.compile(r"\+(?=[a-z])")  # not the sign of an exponent
MOST_BLOCK = 64


class ChannelPart(NamedTuple):
    """Channels of a heterogeneous loss that are compared by the maximum over blocks."""

    block: int  # channels of a block
    ratio: int  # channels of the part, in units that all parts share


@dataclass(frozen=True)
class Blocks:
    """Filter groups of different orders side by side, as IEN has them (arXiv:2111.14157, R8-4-2-1):
    the part with blocks of 8 channels has 32 units of the channels, those of 4, 2 and 1 have 8, 2
    and 1.

    Elements are those of the rotation group of the largest order.
    """

    orders: tuple[int, ...]  # of the blocks, falling

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.orders, self.orders[1:]))
        if len(self.orders) < 2 or not falls or self.orders[-1] < 1:
            raise ValueError(
                f"the blocks of a heterogeneous loss are {'-'.join(map(str, self.orders))}; they "
                "must be two or more falling orders, such as R8-4-2-1"
            )
        if self.orders[0] > MOST_BLOCK:
            raise ValueError(
                f"a heterogeneous loss has blocks of {self.orders[0]} channels; there must be at "
                f"most {MOST_BLOCK}, such as in R8-4-2-1"
            )

    @property
    def group(self) -> Group:
        """The rotations that images are moved by."""
        return Group.parse(f"C{self.orders[0]}")

    @property
    def parts(self) -> tuple[ChannelPart, ...]:
        """The parts in the order of the channels: of the smallest orders 2 and 1 units, then four
        times as many for each larger one (IEN's 32:8:2:1 and 8:2:1).
        """
        ratios = [1] + [2 * 4**n for n in range(len(self.orders) - 1)]
        return tuple(map(ChannelPart, self.orders, reversed(ratios)))

    def split(self, channels: int) -> tuple[tuple[int, int], ...]:
        """(channels, block) of each part of that many channels: whole blocks in the ratio, what is
        left to the last part.
        """
        units = sum(part.ratio for part in self.parts)
        sizes = [channels * p.ratio // units // p.block * p.block for p in self.parts]
        sizes[-1] = channels - sum(sizes[:-1])
        return tuple(zip(sizes, self.orders))

    def homogeneous_channels(self, channels: int) -> int:
        """The channels of blocks of the largest order alone that give as many maxima."""
        maxima = sum(-(-size // block) for size, block in self.split(channels))
        return maxima * self.orders[0]

    def __str__(self) -> str:
        return f"R{'-'.join(map(str, self.orders))}"


@dataclass(frozen=True)
class Loss:
    """An equivariance loss added to the cross entropy, `weight` times."""

    kind: LossKind = "none"
    weight: float = 0.0
    # the declared symmetry of the study without one
    group: Group | Blocks | None = None
    stages: tuple[int, ...] = ()  # from 1, that it reads; empty: all, or for `latent` the last

    def __post_init__(self) -> None:
        if self.kind not in LOSS_KINDS:
            raise ValueError(
                f"the equivariance loss is '{self.kind}'; choose one of {', '.join(LOSS_KINDS)}"
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"the weight of the equivariance loss is {self.weight}; it must be finite and "
                "not negative"
            )
        if isinstance(self.group, Blocks) and self.kind not in ("layerwise", "none"):
            raise ValueError(
                f"the loss {self.kind} is under the blocks {self.group}, which the layerwise loss "
                "alone can compare; give it a group, such as @C4"
            )
        if self.group is not None and self.order == 1:
            raise ValueError(
                f"the loss {self.kind} is under {self.group}, which has no element beside the "
                "identity; choose a larger group, such as @C4"
            )
        if self.stages and self.kind not in (*OF_STAGES, "none"):
            raise ValueError(
                f"the loss {self.kind} reads no stages, but logits or weights; leave "
                f"#{','.join(map(str, self.stages))} out"
            )
        if list(self.stages) != sorted(set(self.stages)) or min(self.stages, default=1) < 1:
            raise ValueError(
                f"the stages of a loss are {','.join(map(str, self.stages))}; they must be "
                "different numbers from 1 in rising order, such as #1,2"
            )
        if self.kind == "none" or self.weight == 0:
            for name, value in (("kind", "none"), ("weight", 0.0), ("group", None), ("stages", ())):
                object.__setattr__(self, name, value)

    @property
    def order(self) -> int | None:
        """The number of elements of its group; None where that is the declared one."""
        group = self.group.group if isinstance(self.group, Blocks) else self.group
        return None if group is None else group.order

    def elements_group(self, declared: Group) -> Group:
        """The group whose elements move images for it."""
        if isinstance(self.group, Blocks):
            return self.group.group
        return declared if self.group is None else self.group

    def check_elements(self, declared: Group) -> None:
        """Raises ValueError where it would compare an image with nothing, or a weight with itself:
        under C1, and for the projection under what moves pixels off their grid.
        """
        group = self.elements_group(declared)
        if self.kind == "projection" and (group == TRIVIAL or not group.on_grid):
            why = "is the weight itself"
            if not group.on_grid:
                why = "does not exist: its elements move pixels off their grid"
            one = f"its subgroup {group.grid}, or another"
            one = "one" if group.grid == TRIVIAL else one
            raise ValueError(
                f"the equivariance loss projection compares weights with their average over "
                f"{group}, which {why}; name {one} of C2, C4, D1, D2, D4 "
                "(symmetry.group, or the loss's own), or leave the loss out"
            )
        if self.kind not in ("none", "projection") and group == TRIVIAL:
            raise ValueError(
                f"the equivariance loss {self.kind} compares images that elements of C1 moved, "
                "which has none beside the identity; name a larger group (symmetry.group, or the "
                "loss's own), or leave the loss out"
            )

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        group = "" if self.group is None else f"@{self.group}"
        stages = f"#{','.join(map(str, self.stages))}" if self.stages else ""
        return f"{self.kind}:{self.weight!r}{group}{stages}"


NO_LOSS = Loss()


def parse_loss(text: str) -> Loss:
    """The equivariance loss that `text` describes: `layerwise:0.1`, `0.1` (layerwise), `none`, or
    with a group and stages `latent:1@C4#3`. Raises ValueError that says what to write.
    """
    match = _LOSS.fullmatch(text)
    kind, weight, group, stages = match.groups() if match else (None,) * 4
    kind = "layerwise" if kind is None else kind
    if kind == "none" and not (weight or group or stages):
        return NO_LOSS
    if kind not in LOSS_KINDS:
        raise ValueError(f"loss is '{text}'; {LOSS_FORM}")
    try:
        number = float(weight or "")
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"loss is '{text}'; {LOSS_FORM}")
    try:
        return Loss(kind, number, _group(group), _stages(stages))
    except ValueError as error:
        raise ValueError(f"loss is '{text}': {error}") from None


def parse_losses(text: str) -> tuple[Loss, ...]:
    """The equivariance losses that `text` describes, joined by `+`, without those of weight 0.

    Raises ValueError where one of a kind, group and stages is there twice.
    """
    return require_different(tuple(parse_loss(part) for part in _JOIN.split(text)))


def require_different(losses: tuple[Loss, ...]) -> tuple[Loss, ...]:
    """The losses without those of weight 0, in the order of `LOSS_KINDS`. Raises ValueError for two
    that differ in weight alone.
    """
    weighed = tuple(loss for loss in losses if loss.kind != "none")
    weighed = tuple(sorted(weighed, key=lambda loss: (LOSS_KINDS.index(loss.kind), str(loss))))
    if len({(loss.kind, loss.group, loss.stages) for loss in weighed}) < len(weighed):
        raise ValueError(
            f"loss is '{losses_text(weighed)}', with one loss twice; add their weights, or give "
            "them different groups or stages"
        )
    return weighed


def losses_text(losses: tuple[Loss, ...]) -> str:
    """The text form of losses; parses back."""
    return "+".join(map(str, losses)) or "none"


def _group(text: str | None) -> Group | Blocks | None:
    if text is None:
        return None
    if text.startswith("R"):
        orders = text[1:].split("-")
        if not all(order.isdecimal() for order in orders):
            raise ValueError(f"the blocks '{text}' are not numbers; write them like R8-4-2-1")
        return Blocks(tuple(map(int, orders)))
    return Group.parse(text)


def _stages(text: str | None) -> tuple[int, ...]:
    numbers = [] if text is None else text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"its stages are '{text}'; write numbers, such as #3 or #1,2")
    return tuple(map(int, numbers))


def savings(losses: Sequence[Loss], channels: Sequence[int]) -> tuple[str, ...]:
    """What each heterogeneous loss saves, in words, of stages with that many channels: how many
    channels in blocks of its largest order would give as many maxima.
    """
    lines = []
    for loss in losses:
        if not isinstance(loss.group, Blocks):
            continue
        read = [channels[n - 1] for n in loss.stages or range(1, len(channels) + 1)]
        needed = [loss.group.homogeneous_channels(count) for count in read]
        pairs = dict.fromkeys(zip(read, needed))
        lines.append(
            f"Blocks {loss.group}: stages of {', '.join(str(a) for a, _ in pairs)} channels "
            f"compare as many maxima as blocks of {loss.group.orders[0]} alone in "
            f"{', '.join(str(b) for _, b in pairs)} channels ({sum(read) / sum(needed) - 1:+.0%})."
        )
    return tuple(lines)
