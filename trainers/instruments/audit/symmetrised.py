"""What the audit's claims are measured on: the module itself in float64, in evaluation mode, its
weights drawn at random and the kernels of its convolutions averaged over an element's powers.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from searchspace.groups import Element
from trainers.actions import act
from trainers.instruments.audit.follow import turns_of
from trainers.instruments.audit.record import Constant, RecordedProgram

THRESHOLD = 1e-10  # of the largest difference, relative to the spread of what is compared
MOST_OF_VARIATION = 1e-3  # between images, that a symmetric module's rounding errors are
AUDIT_DRAWS = 4  # of weights and images, until one shows that an element is lost
_CONVOLUTIONS = {
    getattr(place, name)
    for place, name in (
        (torch, "conv2d"),
        (torch.nn.functional, "conv2d"),
        (torch, "conv_transpose2d"),
        (torch.nn.functional, "conv_transpose2d"),
        (torch, "convolution"),
    )
}
Norm = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def double_copy(module: nn.Module) -> nn.Module:
    """A copy in float64, in evaluation mode, on the CPU. Raises ValueError where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript copies parameters that are no leaves
            return copy.deepcopy(module).eval().double().cpu()
    except Exception as error:  # the user's code
        raise ValueError(
            f"the module cannot be copied: {type(error).__name__}: {error}; an audit draws weights "
            "of its own, so it needs a copy"
        ) from error


@torch.no_grad()
def draw_weights(module: nn.Module, seed: int) -> None:
    """Gives every parameter random values with which signals neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in module.modules() if isinstance(m, Norm) for p in m.parameters(False)}
    for name, parameter in module.named_parameters():
        if not parameter.dtype.is_floating_point:
            continue
        if id(parameter) in norms or parameter.ndim < 2:
            low, high = (0.5, 1.5) if name.endswith("weight") else (-0.3, 0.5)
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            values = low + (high - low) * values
            if id(parameter) in norms and name.endswith("weight"):  # trained ones have both signs
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                values = torch.where(drawn < 0.25, -values, values)
            parameter.copy_(values)
            continue
        fan = max(1, math.prod(parameter.shape[1:]))
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(values * math.sqrt(2.0 / fan))


@contextmanager
def calibrated(module: nn.Module) -> Iterator[None]:
    """Batch norms take the statistics of what passes through them."""

    def calibrate(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if norm.running_mean is None or norm.running_var is None:
            return
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        norm.running_mean.copy_(inputs[0].mean(axes))
        variance = inputs[0].var(axes, unbiased=False)
        # rounding errors are not contrast
        norm.running_var.copy_(torch.where(variance < 1e-12, 1.0, variance.clamp_min(1e-3)))

    hooks = [
        m.register_forward_pre_hook(calibrate)
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and not isinstance(m, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Derived(TorchFunctionMode):
    """While it is on, convolutions have those kernels averaged over some turns that are computed in
    the forward pass.
    """

    def __init__(self, module: nn.Module, turns: Sequence[Element]) -> None:
        super().__init__()
        self.turns = turns
        self.whole = {id(t) for t in (*module.buffers(), *module.parameters())}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        weight = args[1] if func in _CONVOLUTIONS and len(args) > 1 else None
        if isinstance(weight, Tensor) and weight.ndim == 4 and id(weight) not in self.whole:
            args = tuple(turn_average(a, self.turns) if a is weight else a for a in args)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class ModuleKernels:
    """Which kernels of a module an element can be built into."""

    names: frozenset[str]  # of parameters
    derived: bool  # whether others are computed from parameters
    made: bool  # whether others are computed from constants

    @classmethod
    def of(cls, program: RecordedProgram) -> ModuleKernels:
        """Those of a recorded module."""
        weights = [
            c for s in program.steps if s.operation == "convolution"
            for c in s.args[1:2] if isinstance(c, Constant) and c.value.ndim == 4
        ]  # fmt: skip
        trained = [c for c in weights if c.trained]
        return cls(
            frozenset(c.name for c in trained if c.name),
            any(not c.name for c in trained),
            any(not c.trained and not c.name for c in weights),
        )

    @contextmanager
    def keeping(self, module: nn.Module, turns: Sequence[Element]) -> Iterator[None]:
        """While it is on, the kernels are averaged over the turns."""
        parameters = {n: p for n, p in module.named_parameters() if n in self.names}
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.copy_(turn_average(parameter, turns))
        try:
            with Derived(module, turns) if self.derived else nullcontext():
                yield
        finally:
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def turn_average(kernel: Tensor, turns: Sequence[Element]) -> Tensor:
    """The mean of a kernel over the turns that keep its shape."""
    square = kernel.shape[-1] == kernel.shape[-2]
    keeping = [t for t in turns if square or not t.swaps_axes]
    return torch.stack([act(kernel, turn) for turn in keeping]).mean(0)


@torch.no_grad()
def grid_errors(
    module: nn.Module,
    program: RecordedProgram,
    elements: Sequence[Element],
    claims: Sequence[bool | None],
) -> list[float | None]:
    """For each element the largest measured difference of f(gx) from f(x), or from g f(x) for maps,
    relative to the spread of f(x), over draws of weights and images; infinite where shapes differ,
    None: it cannot be measured.

    `module` is a float64 copy, whose weights are overwritten. One draw shows that an element that
    is claimed (True) is kept to rounding errors; that it is lost, the first of DRAWS that does.
    """
    kernels, found = ModuleKernels.of(program), dict.fromkeys(elements, 0.0)
    if kernels.derived and kernels.made:
        return [None] * len(elements)
    shape = (1, program.channels, *program.size)
    for draw in range(AUDIT_DRAWS):
        left = [
            e for e, claim in zip(elements, claims)
            if draw == 0 or (claim is not True and found[e] <= THRESHOLD)
        ]  # fmt: skip
        if not left:
            break
        draw_weights(module, draw)
        images = _images(shape, draw)
        for turns in dict.fromkeys(frozenset(turns_of(e)) for e in left):
            with kernels.keeping(module, sorted(turns, key=str)):
                with calibrated(module):
                    module(images)
                upright = module(images)
                for element in (e for e in left if frozenset(turns_of(e)) == turns):
                    error = symmetry_deviation(module, images, upright, element)
                    found[element] = error if math.isnan(error) else max(found[element], error)
    return [None if math.isnan(found[e]) else found[e] for e in elements]


def _images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def own_errors(
    module: nn.Module, shape: tuple[int, ...], elements: Sequence[Element]
) -> list[float | None]:
    """The same with the weights that the module has; relative to the difference of two images'
    results where it is more than a thousandth of that, so that a module whose results hardly depend
    on the image (untrained deep ones) is not taken for a symmetric one.
    """
    images = _images(shape, 0)
    upright = module(images)
    variation = float((module(_images(shape, 1)) - upright).abs().max())
    errors = []
    for element in elements:
        error = symmetry_deviation(module, images, upright, element)
        if variation and math.isfinite(error):
            beside = error * _scale(upright) / variation
            error = beside if beside > MOST_OF_VARIATION else error
        errors.append(None if math.isnan(error) else error)
    return errors


def _scale(*results: Tensor) -> float:
    """What differences are relative to: the spread of the results, or a small share of them."""
    spread = max(float(r.std(correction=0)) for r in results)
    return max(spread, 1e-3 * float(results[0].abs().max()))


def symmetry_deviation(
    module: Callable[[Tensor], Tensor], images: Tensor, upright: Tensor, element: Element
) -> float:
    """How far the result for moved images is from what it must be, relative to its spread; infinite
    where the module fails on them.
    """
    moved = act(images, element)
    try:
        result = module(moved)
    except Exception:  # the user's code, for images of another shape
        return math.inf
    expected = act(upright, element) if upright.ndim == 4 else upright
    if result.shape != expected.shape:
        return math.inf
    scale = _scale(upright, result)
    error = float((result - expected).abs().max())
    return error / scale if scale else error
