"""Any torch module audited: which quarter turns and flips its sampling grid keeps, and where it
loses the others.

A claim about an element holds for every choice of the trained weights in which the kernels of
convolutions are symmetric under it. Exact: then f(gx) = f(x) for a module that returns vectors, and
f(gx) = g f(x) for one that returns maps. Broken: for weights in general it does not. A linear layer
that reads a flattened map has a weight for every position: it breaks every element unless all its
positions are alike. Kernels that are buffers count as they are. Where a layer is not followed, the
claim is "not known".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.geometry import MOST_PIXELS, counted, remainder
from searchspace.groups import IDENTITY, Element, Group
from trainers.instruments.audit.follow import WRITES, Death, Followed, follow
from trainers.instruments.audit.record import (
    CannotFollow,
    Constant,
    RecordedProgram,
    Ref,
    record_steps,
)
from trainers.instruments.audit.sizes import nearest_exact_sizes, window_of
from trainers.instruments.audit.symmetrised import (
    double_copy,
    draw_weights,
    grid_errors,
    own_errors,
)
from trainers.instruments.audit.verdict import Audit, AuditClaim, ElementAudit, Lost
from trainers.instruments.loading import several_inputs
from trainers.networks.orbit import OrbitAverage

OVER_PLACES = ("native_layer_norm", "_fused_rms_norm", "rms_norm")  # with a weight for each place
MOST_SAID = 300  # characters of a module's own error


def audit(
    model: nn.Module,
    size: int | tuple[int, int],
    group: str | Group = "D4",
    channels: int = 3,
    *,
    name: str = "",
    sizes: bool = True,
) -> Audit:
    """Which elements of `group` the sampling grid of `model` keeps for images of `size` pixels
    (one number, or height and width), measured in float64 beside every claim.

    `model` is not changed: a copy in evaluation mode is run on images of `channels` channels.
    `sizes` also looks for the nearest exact sizes. Elements must be quarter turns and flips. Raises
    ValueError for a module that does not take such images or does not return one tensor.
    """
    chosen = group if isinstance(group, Group) else Group.parse(group)
    height, width = (size, size) if isinstance(size, int) else size
    _check(model, chosen, (height, width), channels)
    copied = double_copy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the user's module
        result = _run(copied, (height, width), channels)
        own = own_errors(copied, (1, channels, height, width), chosen.elements)
        draw_weights(copied, 0)  # weights that are equal as they begin need not stay so
        program = _recorded(copied, (height, width), channels)
        _check_positions(program, result)
        if isinstance(program, str):
            outcomes = [Followed(None, unread=(program,))] * chosen.order
            errors: list[float | None] = [0.0] + [None] * (chosen.order - 1)
            near: tuple[int | tuple[int, int], ...] = ()
        else:
            outcomes = _outcomes(copied, program, chosen, result.ndim == 2)
            near = _near(copied, program, chosen, outcomes) if sizes else ()
            claims = [outcome.kept for outcome in outcomes]
            errors = grid_errors(copied, program, chosen.elements, claims)
    findings = tuple(
        ElementAudit(
            e, "exact" if e == IDENTITY else _claim(o), _losses(program, e, o.deaths), error, mine
        ).settled()
        for e, o, error, mine in zip(chosen.elements, outcomes, errors, own)
    )
    unread = tuple(dict.fromkeys(layer for o in outcomes for layer in o.unread))
    return Audit(
        name or type(model).__name__, (height, width), channels, chosen, findings, unread, near,
        result.ndim != 4,
    )  # fmt: skip


def _check(model: Any, group: Group, size: tuple[int, int], channels: int) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"an audit needs a torch.nn.Module, and this is {type(model).__name__}; give the "
            "module itself"
        )
    if not group.on_grid:
        raise ValueError(
            f"{group} has elements that are not quarter turns or flips, which interpolate on the "
            f"pixel grid and are never exact; give {group.grid}"
        )
    if min(*size, channels) < 1 or max(*size, channels) > MOST_PIXELS:
        raise ValueError(
            f"size {size[0]}x{size[1]} with {counted(channels, 'channel')}: each must be 1 to "
            f"{MOST_PIXELS}"
        )


@torch.no_grad()
def _run(module: nn.Module, size: tuple[int, int], channels: int) -> Tensor:
    """What the module returns for one random image. Raises ValueError for what is not audited."""
    image = torch.randn((1, channels, *size), dtype=torch.float64)
    try:
        result = module(image)
    except Exception as error:  # the user's code
        said = " ".join(str(error).split())[:MOST_SAID]
        raise ValueError(
            f"the module does not take images of shape [1, {channels}, {size[0]}, {size[1]}]: "
            f"{type(error).__name__}: {said}; {_advice(module, channels)}"
        ) from error
    if isinstance(result, dict):
        keys = ", ".join(map(str, result))
        raise ValueError(
            f"the module returned a dict with the keys {keys}; wrap it in a module that returns "
            "one of them"
        )
    if not isinstance(result, Tensor):
        raise ValueError(
            f"the module returned {type(result).__name__}; it must return one tensor: wrap it in "
            "a module that does"
        )
    if result.ndim not in (2, 4) or len(result) != 1:
        raise ValueError(
            f"the module returned shape {list(result.shape)} for one image; it must return "
            "vectors [batch, n] or maps [batch, channels, height, width]"
        )
    return result


def _check_positions(program: RecordedProgram | str, result: Tensor) -> None:
    """Raises ValueError where the result is not a number because a map has no positions."""
    if isinstance(program, str) or (result.numel() and not result.isnan().any()):
        return
    for step in program.steps:
        for shape in step.shapes:
            if len(shape) == 4 and shape[1] and not min(shape[2:]):
                height, width = program.size
                raise ValueError(
                    f"the map behind {step.layer} has no positions ({shape[2]}x{shape[3]}) for "
                    f"images of {height}x{width} pixels; give a larger size"
                )


def _advice(module: nn.Module, channels: int) -> str:
    """What to do about a module that failed."""
    if several := several_inputs(module):
        return several
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels != channels:
        return (
            f"its first convolution has {counted(first.in_channels, 'channel')}: give that number"
        )
    return "give a size and a number of channels that it takes"


def _recorded(module: nn.Module, size: tuple[int, int], channels: int) -> RecordedProgram | str:
    """The module's program; in words, why there is none."""
    try:
        return record_steps(module, size, channels)
    except CannotFollow as error:
        return str(error)
    except Exception as error:  # the user's code, on an image without values
        said = " ".join(str(error).split())[:MOST_SAID]
        return f"the module does not run without values: {type(error).__name__}: {said}"


def _outcomes(
    module: nn.Module, program: RecordedProgram, group: Group, vectors: bool
) -> list[Followed]:
    """Of every element."""
    turned: RecordedProgram | str | None = None
    if program.size[0] != program.size[1] and any(e.swaps_axes for e in group.elements):
        turned = _recorded(module, (program.size[1], program.size[0]), program.channels)
    outcomes = []
    # of vectors: whatever is averaged
    over_orbit = module.group.elements if isinstance(module, OrbitAverage) and vectors else ()
    for element in group.elements:
        if element == IDENTITY or element in over_orbit:
            outcomes.append(Followed(True))
        elif not element.swaps_axes or turned is None:
            outcomes.append(follow(program, element))
        elif isinstance(turned, str):
            outcomes.append(Followed(None, unread=(f"for the turned image: {turned}",)))
        else:
            outcomes.append(follow(program, element, turned))
    return outcomes


def _near(
    module: nn.Module, program: RecordedProgram, group: Group, outcomes: Sequence[Followed]
) -> tuple[int | tuple[int, int], ...]:
    """The nearest exact sizes, where the present one is broken."""
    square = program.size[0] == program.size[1]
    if any(o.kept is None for o in outcomes) or all(o.kept for o in outcomes):
        return ()

    def clean(size: tuple[int, int]) -> bool:
        near = _recorded(module, size, program.channels)
        if isinstance(near, str) or not isinstance(near.output, Ref):
            return False
        others = [e for e in group.elements if e != IDENTITY]
        turned = near
        if size[0] != size[1] and any(e.swaps_axes for e in others):
            turned = _recorded(module, (size[1], size[0]), program.channels)
        return not isinstance(turned, str) and all(
            follow(near, e, turned if e.swaps_axes else None, hurry=True).kept for e in others
        )

    sizes = nearest_exact_sizes(clean, program)
    return tuple(s[0] if s[0] == s[1] and square else s for s in sizes)


def _claim(outcome: Followed) -> AuditClaim:
    return "not known" if outcome.kept is None else "exact" if outcome.kept else "broken"


def _losses(
    program: RecordedProgram | str, element: Element, deaths: Sequence[Death]
) -> tuple[Lost, ...]:
    if isinstance(program, str):
        return ()
    lost = [
        Lost(d.position or d.step.layer, d.step.operation, _why(program, element, d))
        for d in deaths
    ]
    return tuple(dict.fromkeys(lost))


def _why(program: RecordedProgram, element: Element, death: Death) -> str:
    """Why a step breaks an element, in words."""
    step = death.step
    if step.operation in WRITES:
        return "writes into a part of the map"
    source = next((a for a in step.args if isinstance(a, Ref)), Ref(0))
    shape = program.shape(source)
    weighed = any(isinstance(a, Constant) and a.trained for a in step.args)
    if weighed and step.operation in (("addmm", "mm") if death.flattened else ("bmm", "baddbmm")):
        return "the flattened positions have a weight each"
    if death.position or (weighed and step.operation in OVER_PLACES):
        return "adds or multiplies values that depend on the position"
    height, width = window_of(step, 0), window_of(step, 1)
    if len(shape) == 4 and height is not None and width is not None:
        left = [
            remainder(pixels, *window) if backwards else 0
            for pixels, window, backwards in zip(shape[2:], (height, width), element.reversed_axes)
        ]
        axes = [axis for axis, pixels in zip(("height", "width"), left) if pixels]
        if axes:
            amount = " and ".join(str(n) for n in dict.fromkeys(n for n in left if n))
            return f"{' and '.join(axes)} shifted by {amount} px"
        if element.swaps_axes and height != width:
            return "its windows differ in height and width"
    if any(isinstance(a, Constant) and not a.trained for a in step.args[1:2]):
        return "its kernel, which is a buffer, is not symmetric"
    return f"{step.operation} does not keep it"
