"""The relaxations of a trained architecture that can keep its function
(`trainers.networks.relaxing`): its stages from one on held to a smaller group, or given a residual
pathway to it.

    >>> a = Architecture.parse("28px: 4k3@D4, 4k3 max2/2 head=group_mean")
    >>> str(relaxed(a, 2, Group.parse("C4")))
    '28px: 4k3@D4, 8k3@C4 max2/2 head=group_mean'
    >>> str(relaxed(a, 2, Group.parse("C4"), pathway=True))
    '28px: 4k3@D4, 4k3@D4+C4 max2/2 head=group_mean'
"""

from __future__ import annotations

from dataclasses import replace

from searchspace.architecture import Architecture
from searchspace.function.heads import BLOCK_MAX
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage
from searchspace.weights.relaxation import Relaxation


def relaxed(
    architecture: Architecture, stage: int, group: Group, *, pathway: bool = False
) -> Architecture:
    """The architecture whose stages from `stage` (counted from 1) on keep no more than `group` for
    certain, with the channels of before: each is held to what its own group shares with `group`,
    or, with `pathway`, gets a residual pathway to that and keeps its own group. A maximum over the
    fields of a last stage that is held to C1 becomes one over blocks of channels.

    Raises ValueError where that is not a relaxation, or no weights of it give the same function.
    """
    if not 1 <= stage <= len(architecture.stages):
        raise ValueError(
            f"there is no stage {stage} to relax; the architecture has stages 1 to "
            f"{len(architecture.stages)}"
        )
    if len(architecture.lasts) > 1:
        raise ValueError(
            "the architecture has streams, which are not relaxed with their weights kept; write "
            "the groups that you want and train it"
        )
    before = architecture.stages[stage - 1].group
    if not group < before:
        smaller = ", ".join(map(str, before.subgroups()[:-1]))
        raise ValueError(
            f"{group} is not a proper subgroup of {before}, the group of stage {stage}; "
            + (f"choose one of {smaller}" if smaller else "it cannot be relaxed any further")
        )
    for number, earlier in enumerate(architecture.stages[: stage - 1], start=1):
        _require_constraint(earlier, number)
    change = _with_pathway if pathway else _held
    stages = tuple(
        s if number < stage else change(s, number, group)
        for number, s in enumerate(architecture.stages, start=1)
    )
    head = architecture.head
    if head == "group_max" and TRIVIAL == stages[-1].group < architecture.group:
        # the channels of a field lie side by side, in the order of the elements
        head = f"{BLOCK_MAX}{architecture.group}"
    changed = replace(architecture, stages=stages, head=head)
    _require_same_function(architecture, changed)
    return changed


def _held(stage: Stage, number: int, group: Group) -> Stage:
    """The stage with as many channels, as fields of what `group` and its own share."""
    shared = stage.group & group
    if shared == stage.group:
        return stage
    _require_constraint(stage, number)
    return replace(stage, group=shared, fields=stage.channels // shared.order)


def _with_pathway(stage: Stage, number: int, group: Group) -> Stage:
    """The stage with a pathway to what `group` and its own share, if that is smaller."""
    shared = stage.group & group
    if shared == stage.group:
        return stage
    _require_constraint(stage, number)
    return replace(stage, relaxation=Relaxation("pathway", (shared,)))


def _require_constraint(stage: Stage, number: int) -> None:
    if stage.relaxation is not None:
        raise ValueError(
            f"stage {number} is relaxed already (@{stage.annotation}); weights are inherited from "
            "trials without relaxed weights: relax another trial, or write the architecture that "
            "you want and train it"
        )


def _require_same_function(before: Architecture, after: Architecture) -> None:
    """Raises ValueError where no weights of `after` give the function that trained weights of
    `before` have.
    """
    if before.head == after.head == "group_max" and after.group != before.group:
        raise ValueError(
            f"the head takes the maximum over the fields of {before.group}, which a head over "
            f"{after.group} cannot: relax to a pathway, or to C1, where head={BLOCK_MAX}"
            f"{before.group} does it"
        )
    for number, (old, new) in enumerate(zip(before.stages, after.stages), start=1):
        if old.invariant_fields and old.group != new.group:
            raise ValueError(
                f"stage {number} pools fields over {old.group}, which fields of {new.group} "
                "cannot: relax to a pathway or a later stage, or take i0"
            )
    layers = {(layer.stage, layer.name) for layer in after.layers}
    lost = next((x for x in before.layers if (x.stage, x.name) not in layers), None)
    if lost is not None:
        raise ValueError(
            f"relaxed, stage {lost.stage} has the fields of the stage before, so that its skip "
            "connection has no weights any more and the trained ones are lost; relax a later "
            "stage, or to another group"
        )
