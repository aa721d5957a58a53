"""Random architectures for property tests: every kind of layer the text form knows, sizes that need
not be exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.groups import Group
from searchspace.layers import Stage
from searchspace.recipe import Candidate, Loss, Recipe
from searchspace.subsampling import Subsampling
from searchspace.training.augmentation import Augmentation
from searchspace.training.losses import Blocks

GRID = ("C1", "C2", "C4", "D1", "D2", "D4")
ANY = GRID + ("C3", "C8", "D8")


def random_subsampling(rng: random.Random) -> Subsampling:
    """One step of any kind; it need not fit."""
    kind = rng.choice(
        ("max", "avg", "lp", "conv", "blur", "blurmax", "adaptive", "adaptivemax", "resize", "crop")
    )
    stride = rng.choice((1, 2, 2, 3))
    if kind in ("max", "avg", "lp", "conv"):
        kernel = rng.choice((1, 2, 3, 4, 5))
        before = rng.randint(0, kernel // 2)
        padding = (before, before) if rng.random() < 0.7 else (before, rng.randint(0, kernel // 2))
        return Subsampling(
            kind, kernel, stride, padding, ceil=kind in ("max", "avg") and rng.random() < 0.2
        )
    if kind.startswith("blur"):
        return Subsampling(kind, 5, stride, (2, 2))
    if kind.startswith("adaptive"):
        return (
            Subsampling(kind, output=rng.randint(2, 6))
            if rng.random() < 0.5
            else Subsampling(kind, stride=max(2, stride))
        )
    return Subsampling(
        kind,
        output=rng.randint(3, 16),
        mode=rng.choice(("bilinear", "bicubic", "nearest")) if kind == "resize" else "bilinear",
    )


def random_stage(rng: random.Random, group: Group, filters: str) -> Stage:
    """One stage of any kind; it need not fit."""
    kernel = rng.choice((1, 3, 5) if filters == "basis" else (1, 2, 3, 4, 5))
    dilation = rng.choice((1, 1, 1, 2)) if filters == "free" else 1
    residual = rng.random() < 0.2
    half = dilation * (kernel // 2)
    padding = (half, half)
    if residual:
        kernel = kernel if kernel % 2 else 3
        padding = (dilation * (kernel // 2),) * 2
    elif rng.random() < 0.4:
        before = rng.randint(0, half + 1)
        padding = (before, before) if rng.random() < 0.6 else (before, rng.randint(0, half + 1))
    mode = rng.choice(("zeros", "zeros", "zeros", "reflect", "circular", "replicate"))
    return Stage(
        rng.randint(1, 3),
        kernel,
        rng.choice((1, 1, 1, 2, 3)),
        padding,
        group,
        random_subsampling(rng) if rng.random() < 0.5 else None,
        dilation,
        mode,
        rng.choice((1, 1, 1, 2)),
        residual,
    )


def _tower(
    rng: random.Random,
    groups: tuple[str, ...],
    stage: Callable[[random.Random, Group, str], Stage],
    relaxed: float,
) -> tuple[str, tuple[Stage, ...]]:
    """(filters, one to four stages), each with probability `relaxed` over a subgroup of the group
    before.
    """
    group = Group.parse(rng.choice(groups))
    filters = "basis" if not group.on_grid or rng.random() < 0.2 else "free"
    stages = []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < relaxed:
            group = rng.choice(group.subgroups())
        stages.append(stage(rng, group, filters))
    return filters, tuple(stages)


def random_architecture(
    rng: random.Random, groups: tuple[str, ...] = GRID, square: float = 0.7
) -> Architecture:
    """A valid architecture of one to four small stages; tries until one fits its input."""
    while True:
        filters, stages = _tower(rng, groups, random_stage, 0.15)
        height = rng.randint(7, 24)
        width = height if rng.random() < square else rng.randint(7, 24)
        entry = random_subsampling(rng) if rng.random() < 0.15 else None
        try:
            return Architecture(
                (height, width),
                stages,
                _head(rng, stages),
                filters,
                entry,
            )
        except ValueError:
            continue


def _head(rng: random.Random, stages: tuple[Stage, ...]) -> str:
    if stages[-1].group.order == 1 and rng.random() < 0.3:
        return rng.choice(("block_max:C2", "block_max:C4", "block_max:D4"))
    return rng.choice(("group_max", "group_mean", "none"))


def random_candidate(rng: random.Random, groups: tuple[str, ...] = GRID) -> Candidate:
    """A valid architecture with any recipe."""
    architecture = random_architecture(rng, groups)
    losses = {loss.kind: loss for loss in (_loss(rng, architecture) for _ in range(2))}
    rate = rng.choice((None, None, 0.01, 1e-05, 0.12345678, 3.0))
    augment = rng.choice((None, None, "none", "group", "normal:30.5", "normal:45:20", "learned"))
    return Candidate(
        architecture,
        Recipe(
            tuple(losses.values()),
            rate,
            None if augment is None else Augmentation.parse(augment),
            rng.choice(("constant", "constant", "adapted")),
        ),
    )


def _loss(rng: random.Random, architecture: Architecture) -> Loss:
    """A loss that may have a group and stages of its own."""
    kind = rng.choice(("none", "layerwise", "latent", "label"))
    group = rng.choice((None, None, Group.parse("C4"), Group.parse("D1")))
    if kind == "layerwise" and rng.random() < 0.3:
        group = Blocks((8, 4, 2, 1))
    stages = (rng.randint(1, len(architecture.stages)),)
    reads = kind in ("layerwise", "latent") and rng.random() < 0.3
    return Loss(kind, rng.choice((0.1, 1.0, 2.5, 1e22)), group, stages if reads else ())


ODD = ANY + ("C6", "D3", "D6", "C12")
SMALL_KERNELS = (1, 3, 4, 5)  # for elements off the grid: bases that are baked anyway
# of one image: a proof asks every element of thousands of networks
MOST_MACS = 1e6


def odd_subsampling(rng: random.Random) -> Subsampling:
    """A step that nobody would choose: windows larger than maps, strides larger than windows, one
    pixel of output.
    """
    kind = rng.choice(
        (
            "max",
            "max",
            "avg",
            "avg",
            "lp",
            "conv",
            "blur",
            "blurmax",
            "adaptive",
            "adaptivemax",
            "resize",
            "resize",
            "crop",
            "crop",
        )
    )
    stride = rng.choice((1, 1, 2, 2, 3, 4, 7))
    if kind in ("max", "avg", "lp", "conv"):
        kernel = rng.choice((1, 2, 3, 4, 5, 6, 9))
        padding = rng.randint(0, kernel // 2), rng.randint(0, kernel // 2)
        return Subsampling(
            kind,
            kernel,
            stride,
            padding if rng.random() < 0.5 else padding[:1] * 2,
            ceil=kind in ("max", "avg") and rng.random() < 0.4,
        )
    if kind.startswith("blur"):
        return Subsampling(kind, 5, stride, (2, 2))
    output = rng.choice((1, 1, 2, 3, 4, 5, 8, 11, 20))
    if kind.startswith("adaptive"):
        return (
            Subsampling(kind, output=output)
            if rng.random() < 0.5
            else Subsampling(kind, stride=stride)
        )
    return Subsampling(
        kind,
        output=output,
        mode=rng.choice(("bilinear", "bicubic", "nearest")) if kind == "resize" else "bilinear",
    )


def odd_stage(rng: random.Random, group: Group, filters: str) -> Stage:
    """A stage that nobody would choose: kernels larger than maps, windows in the padding alone,
    even kernels that lean to one side.
    """
    kernel = rng.choice(
        (1, 1, *SMALL_KERNELS) if filters == "basis" else (1, 1, 2, 2, 3, 3, 4, 5, 6, 7)
    )
    dilation, residual = rng.choice((1, 1, 1, 2, 3, 5)), rng.random() < 0.2
    if residual:
        kernel = kernel if kernel % 2 else 3
    reach = dilation * (kernel - 1)
    padding = (dilation * (kernel // 2),) * 2
    if not residual and rng.random() < 0.7:
        before, after = rng.randint(0, reach + 1), rng.randint(0, reach + 1)
        padding = rng.choice(((before, before), (before, after), (0, before), (before, 0), (0, 0)))
    return Stage(
        rng.randint(1, 3),
        kernel,
        rng.choice((1, 1, 1, 2, 3, 5)),
        padding,
        group,
        odd_subsampling(rng) if rng.random() < 0.5 else None,
        dilation,
        rng.choice(("zeros", "zeros", "reflect", "circular", "circular", "replicate")),
        rng.choice((1, 1, 1, 2, 3)),
        residual,
    )


def odd_architecture(rng: random.Random, groups: tuple[str, ...] = GRID) -> Architecture:
    """A valid architecture at the edges of what can be built, on images of 1 to 70 pixels; tries
    until one fits its input.
    """
    while True:
        filters, stages = _tower(rng, groups, odd_stage, 0.25)
        most = rng.choice((3, 6, 12, 24, 70))
        height = rng.randint(1, most)
        width = height if rng.random() < 0.6 else rng.randint(1, most)
        entry = odd_subsampling(rng) if rng.random() < 0.2 else None
        try:
            made = Architecture(
                (height, width),
                stages,
                rng.choice(("group_max", "group_mean", "none")),
                filters,
                entry=entry,
            )
        except ValueError:
            continue
        if cost(made, 2, 3).macs * stages[-1].group.order <= MOST_MACS:
            return made
