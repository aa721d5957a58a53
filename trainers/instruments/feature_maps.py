"""Looking inside a model while it is measured: any model, its logits and the feature maps of its
stages.

A model is anything that maps images [batch, channel, height, width] to logits [batch, classes]: a
network of ours, a wrapped escnn network, a plain torch module or a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from searchspace.geometry import counted
from searchspace.groups import TRIVIAL, Element, Group
from trainers.actions import act, act_on_fields

Forward = Callable[[Tensor], Tensor]
Normalise = Callable[[Tensor], Tensor]
FieldAction = Callable[[Tensor, Element], Tensor]
"""How an element acts on the maps [batch, channel, height, width] of one stage: pixels move, and
channels may be permuted."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class StageMap:
    """The output of one stage for one batch, and how elements act on it."""

    name: str
    maps: Tensor  # [batch, channel, height, width]
    action: FieldAction
    # whose regular fields the channels are, C1 for plain maps; None: other fields
    group: Group | None


@contextmanager
def measuring(model: Forward) -> Iterator[None]:
    """Evaluation as instruments need it: eval mode, no autocast, no TF32, everything as it was
    afterwards.

    Reduced precision has an error floor of 3e-3 (bfloat16) that would hide broken layouts, so a
    model with half-precision parameters, or without values, is refused with ValueError.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    for parameter in (p for m in modules for p in m.parameters(recurse=False)):
        if parameter.is_meta:
            raise ValueError(
                "the model has parameters on the device meta, which hold no values; load its "
                "weights onto the CPU or a GPU first"
            )
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the model has parameters in {parameter.dtype}, whose rounding would hide what "
                "is measured; "
                "measure a float32 copy, model.float()"
            )
    modes = [(module, module.training) for module in modules]
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        # eval(), not the flag: escnn's convolutions expand their filters in it
        if isinstance(model, nn.Module):
            _evaluate(model)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        for module, training in modes:  # parents first, so that a child's own mode is set last
            if module.training != training:
                module.train(training)


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:  # a program of torch.export
        raise ValueError(
            f"the model, a {type(model).__name__}, cannot be put into evaluation ({error}); "
            "measure the module that it was exported "
            "from, or a bundle's folder"
        ) from error


def pixels(images: Tensor, model: Forward) -> Tensor:
    """The images as floating point on the model's device and in its dtype; uint8 becomes 0..1.

    Raises ValueError unless they are [batch, channel, height, width] with at least one image and
    finite.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"images have shape {list(images.shape)}; they must be [batch, channel, height, "
            "width] with at least one image"
        )
    parameter, device = _parameter(model), device_of(model, images)
    dtype = (
        parameter.dtype
        if parameter is not None
        else images.dtype
        if images.is_floating_point()
        else torch.float32
    )
    scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
    images = images.to(device=device, dtype=dtype) * scale
    if not images.isfinite().all():
        raise ValueError("the images contain values that are not finite; measure on finite images")
    return images


def device_of(model: Forward, images: Tensor) -> torch.device:
    """Where the model computes: where its parameters are; a model without any, where the images
    are.
    """
    parameter = _parameter(model)
    return images.device if parameter is None else parameter.device


def _parameter(model: Forward) -> nn.Parameter | None:
    return next(model.parameters(), None) if isinstance(model, nn.Module) else None


def _fields(name: str, maps: Tensor, group: Group) -> StageMap:
    """Maps whose channels are regular fields of `group`; an element outside it only moves pixels,
    for the channels do not know it.
    """
    return StageMap(
        name,
        maps,
        lambda values, element: (
            act_on_fields(values, element, group) if element in group else act(values, element)
        ),
        group,
    )


def watch(
    model: Forward,
    images: Tensor,
    *,
    stages: Sequence[str] | None = None,
    fields: Mapping[str, Group] | None = None,
) -> tuple[Tensor, tuple[StageMap, ...]]:
    """The logits [batch, classes] and the outputs of the stages, from one forward.

    `stages` names modules to watch; None takes the stages of our networks, of another module
    everything with parameters that returns maps, and of a function nothing. `fields` says by stage
    name which group's regular fields the channels are; where it does not, our networks and escnn's
    tensors say it themselves, and plain maps have none: only their pixels move. Raises ValueError
    for an unknown name, logits of another shape and values that are not finite.
    """
    fields = fields or {}
    with_stages = getattr(model, "forward_with_stages", None)
    if stages is None and with_stages is not None:
        logits, maps = with_stages(images)
        architecture = getattr(model, "architecture", None)
        groups = [s.group for s in architecture.stages] if architecture else [None] * len(maps)
        watched = []
        for number, (output, group) in enumerate(zip(maps, groups), start=1):
            group = fields.get(f"stage {number}", group)
            watched.append(_fields(f"stage {number}", output, group or TRIVIAL))
    else:
        names = _module_names(model, images) if stages is None else tuple(stages)
        logits, outputs = _run_with_hooks(model, images, names)
        watched = [_stage(name, outputs[name], fields.get(name)) for name in names]
    return _checked(logits, images), tuple(watched)


def _checked(logits: Any, images: Tensor) -> Tensor:
    logits = getattr(logits, "tensor", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model returned {shape} for {counted(len(images), 'image')}; it must "
            "return logits "
            "[batch, classes]"
        )
    if not logits.is_floating_point():
        raise ValueError(
            f"the model returned logits of type {logits.dtype}; they must be floating point numbers"
        )
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not all finite; nothing can be measured")
    return logits


def _stage(name: str, output: Any, group: Group | None) -> StageMap:
    maps = getattr(output, "tensor", output)
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise ValueError(
            f"module {name} returns no maps [batch, channel, height, width]; name a convolution "
            "or a block"
        )
    if group is None and hasattr(output, "tensor") and hasattr(output, "type"):
        return StageMap(name, maps, _escnn_action(output.type), None)
    return _fields(name, maps, group or TRIVIAL)


def _escnn_action(field_type: Any) -> FieldAction:
    """The action that an escnn field type states, on any kind of field; an element outside its
    group only moves pixels.
    """
    space = field_type.gspace
    # -1 rotations: SO(2) or O(2)
    rotations, mirrors = space.rotations_order, bool(space.flips_order)
    if mirrors and not math.isclose(space._sg_id[0], math.pi):
        raise ValueError(
            f"escnn's space {space} mirrors about a slanted axis; ours mirrors left to right, "
            "which is escnn's default"
        )

    def action(maps: Tensor, element: Element) -> Tensor:
        moved, steps = act(maps, element), element.turn * abs(rotations)
        if (rotations > 0 and steps.denominator != 1) or (element.mirror and not mirrors):
            return moved
        turn = int(steps) if rotations > 0 else 2 * math.pi * float(element.turn)
        # A lone mirror is a group of two to escnn, not a dihedral one.
        member = (
            int(element.mirror)
            if rotations == 1
            else (int(element.mirror), turn)
            if mirrors
            else turn
        )
        blocks = [
            torch.as_tensor(field(space.fibergroup.element(member)), dtype=maps.dtype)
            for field in field_type.representations
        ]
        return torch.einsum("oi,bihw->bohw", torch.block_diag(*blocks).to(maps.device), moved)

    return action


def _run_with_hooks(
    model: Forward, images: Tensor, names: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if missing := [name for name in names if name not in modules]:
        raise ValueError(
            f"the model has no module '{missing[0]}'; its modules are "
            f"{', '.join(n for n in modules if n) or 'none'}"
        )
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        # A copy of a plain tensor, because a following in-place ReLU would overwrite it.
        return lambda module, args, output: outputs.__setitem__(
            name, output.clone() if isinstance(output, Tensor) else output
        )

    with ExitStack() as stack:
        for name in names:
            handle = modules[name].register_forward_hook(keep(name))
            stack.callback(handle.remove)
        logits = model(images)
    if missing := [name for name in names if name not in outputs]:
        raise ValueError(
            f"module '{missing[0]}' did not run in the forward pass; name modules that do"
        )
    return logits, outputs


def _module_names(model: Forward, images: Tensor) -> tuple[str, ...]:
    """The modules that count as stages: with parameters, no container and no norm, and returning
    maps larger than one pixel.
    """
    if not isinstance(model, nn.Module):
        return ()
    candidates = [
        name
        for name, module in _blocks(model)
        if _watchable(module) and any(True for _ in module.parameters())
    ]
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: sizes.__setitem__(
            name, tuple(getattr(getattr(output, "tensor", output), "shape", ()))
        )

    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name in candidates:
            stack.callback(modules[name].register_forward_hook(note(name)).remove)
        model(images[:1])
    return tuple(
        name for name in candidates if len(sizes.get(name, ())) == 4 and max(sizes[name][2:]) > 1
    )


def _watchable(module: nn.Module) -> bool:
    """True for modules that count as stages if they return maps; what torch.jit.script made takes
    no hooks.
    """
    return not isinstance(module, (*_NORMS, torch.jit.ScriptModule))


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children of a module, in order; those of containers and of wrappers of a single child
    instead of these.
    """
    for name, child in module.named_children():
        children = list(child.children())
        inside = (
            isinstance(child, (nn.Sequential, nn.ModuleList))
            or type(child).__name__ == "SequentialModule"
        )
        if inside and children:
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def as_rows(maps: Tensor) -> Tensor:
    """Maps, or logits, as [batch, positions, channels]; without a copy of maps in channels-last
    layout.
    """
    return maps.permute(0, 2, 3, 1).flatten(1, 2) if maps.ndim == 4 else maps[:, None]


class Variation(NamedTuple):
    """How much outputs differ between images."""

    name: str  # of the stage
    # mean squared difference between different images: twice the variance, mean over channels;
    # [1, 1, height, width], or [] of logits
    between: Tensor
    mean: Tensor  # over the images, [positions, channel]
    squares: Tensor  # their sums over the images, [positions, channel], float64
    constant: bool  # they vary no more than rounding makes a constant vary in its last digits

    @property
    def refusal(self) -> ValueError:
        """What is said where something would be divided by a variation that is none."""
        return ValueError(
            f"the outputs of {self.name} do not vary over the images, so that their equivariance "
            "says nothing; train the model, or measure on different images"
        )


def variation(name: str, values: Tensor) -> Variation:
    """How much `values` [batch, channel, height, width] or [batch, class] differ between images.
    Raises ValueError for fewer than two images, and for values that are not finite.
    """
    if len(values) < 2:
        raise ValueError(
            f"the outputs of {name} must be compared between images, of which at least two are "
            f"needed; got {len(values)}"
        )
    # Written out, because var over the first dimension takes several times as long; on rows,
    # because maps do too (torch 2.15, CPU).
    rows = as_rows(values)
    mean = rows.mean(0)
    variance = (rows - mean).square_().sum(0) / (len(rows) - 1)
    between = 2 * variance.mean(1)
    if not math.isfinite(float(between.sum())):
        raise ValueError(f"the outputs of {name} are not all finite; nothing can be measured")
    squares = (len(rows) - 1) * variance.double() + len(rows) * mean.double().square()
    # No value is larger than the norm of all, which is known.
    typical, rounding = float(between.mean().sqrt()), 16 * torch.finfo(values.dtype).eps
    constant = typical <= rounding * float(squares.sum().sqrt()) and typical <= rounding * float(
        values.abs().max()
    )
    shaped = between.view(1, 1, *values.shape[2:]) if values.ndim == 4 else between[0]
    return Variation(name, shaped, mean, squares, constant)


def between_image_variance(name: str, values: Tensor) -> Tensor:
    """The mean squared difference between different images, as `Variation.between`. Raises
    ValueError as `variation`, and where the values do not vary over the images.
    """
    found = variation(name, values)
    if found.constant:
        raise found.refusal
    return found.between
