"""A recorded network followed for an image and for the moved image, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from searchspace.groups import IDENTITY, Element
from trainers.actions import act
from trainers.instruments.audit import field, layout, mixing, pointwise, windows
from trainers.instruments.audit.record import Constant, RecordedProgram, RecordedStep, Ref
from trainers.instruments.audit.values import RULES, Context, Unreadable, Value, lifted, whole

LOADED = (layout, mixing, pointwise, windows)  # the modules that hold rules
# what may give axes another meaning
RESHAPES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "flatten",
    "unflatten", "select", "squeeze", "unsqueeze", "expand", "movedim", "swapaxes", "stack",
    "im2col", "unbind", "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip
# whose results are maps or vectors again, whatever they read
# of writing into parts of a map, in whose midst no element holds
WRITES = {"written", "strided", "copy"}
PARTS = WRITES | {"slice", "select", "narrow", "fill", "zero"}  # also of reading them
FRESH = {"convolution", "mm", "addmm", "mean", "sum", "amax"}


@dataclass(frozen=True)
class Death:
    """A step before which an element is exact and behind which it is not."""

    step: RecordedStep
    number: int
    flattened: bool  # whether a map is taken apart into its positions between
    position: str = ""  # the layer between that adds or multiplies what depends on the position


@dataclass(frozen=True)
class Followed:
    """What following a network under one element gave."""

    kept: bool | None  # None: not known
    deaths: tuple[Death, ...] = ()
    unread: tuple[str, ...] = ()  # layers that are not followed, with their operations


def turns_of(element: Element) -> tuple[Element, ...]:
    """The cyclic group that an element generates."""
    turns, last = [IDENTITY], element
    while last != IDENTITY:
        turns.append(last)
        last = element @ last
    return tuple(turns)


class _Side:
    """One of the two images on its way through the network."""

    def __init__(self, program: RecordedProgram, image: Tensor, turns: tuple[Element, ...]) -> None:
        self.program, self.turns = program, turns
        self.results: dict[Ref, Value | None] = {Ref(0): Value(image)}

    def take(self, number: int, step: RecordedStep) -> str:
        """Follows a step; says why where it cannot."""
        given = [v for v in _leaves((step.args, step.kwargs)) if isinstance(v, Ref)]
        why = "" if all(self.results.get(r) is not None for r in given) else "its input"
        results: Any = []
        if not why:
            try:
                results = self._ruled(step)
            except Unreadable as error:
                why = str(error) or step.operation
        results = [results] if isinstance(results, Value) else list(results or [])
        for output, shape in enumerate(step.shapes):
            value = results[output] if output < len(results) else None
            if value is not None and value.shape != tuple(shape):
                value, why = None, f"a shape {value.shape} that was not expected"
            self.results[Ref(number, output)] = value
        return why

    def _ruled(self, step: RecordedStep) -> Any:
        rule = RULES.get(step.operation)
        if rule is None:
            raise Unreadable(step.operation)
        args, kwargs = tree_map(
            lambda v: self.results[v] if isinstance(v, Ref) else v,
            (step.args, step.kwargs),
            is_leaf=lambda v: isinstance(v, (Ref, Constant)),
        )
        try:
            return rule(Context(self.turns, step), *args, **kwargs)
        except (TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise Unreadable(f"{step.operation} ({type(error).__name__}: {error})") from error


def follow(
    program: RecordedProgram,
    element: Element,
    moved: RecordedProgram | None = None,
    *,
    hurry: bool = False,
) -> Followed:
    """Whether the network keeps `element`: f(gx) is g f(x) for maps, f(x) for vectors.

    `moved` is the program for the moved image, where its size is another one; `hurry` ends at the
    first step at which the element is lost.
    """
    image = field.drawn("image", *_image_shape(program))
    turns = turns_of(element)
    upright = _Side(program, image, turns)
    turned = _Side(moved or program, act(image, element), turns)
    if not isinstance(program.output, Ref):
        return Followed(True if program.output is not None else None)
    if not _alike(program, moved):
        return Followed(None, unread=("the network has other layers for the moved image",))
    watch = _Watch(element)
    last = _last_uses(program)
    for number, step in enumerate(program.steps, start=1):
        why = upright.take(number, step)
        turned.take(number, (moved or program).steps[number - 1])
        watch.look(number, step, why, upright, turned)
        if hurry and any(d.step.operation not in PARTS for d in watch.deaths):
            return Followed(False, tuple(watch.deaths))
        for reference in last.get(number, ()):
            upright.results.pop(reference, None)
            turned.results.pop(reference, None)
    return watch.outcome(program.output, upright, turned)


class _Watch:
    """Compares the two sides step by step."""

    def __init__(self, element: Element) -> None:
        self.element = element
        self.state: dict[int, bool | None] = {0: True}  # None: no action of the element is known
        self.origins: dict[int, frozenset[int]] = {0: frozenset({0})}
        self.between: dict[int, tuple[bool, str]] = {0: (False, "")}
        self.deaths: list[Death] = []
        self.steps: dict[int, RecordedStep] = {}
        self.unread: dict[str, None] = {}
        self.inputs: dict[int, set[int]] = {}
        # steps whose results are neither maps nor vectors: tokens, channels last, flattened maps
        self.other: set[int] = set()

    def look(self, number: int, step: RecordedStep, why: str, one: _Side, two: _Side) -> None:
        """Notes whether the element holds behind a step."""
        inputs = {r.step for r in _leaves((step.args, step.kwargs)) if isinstance(r, Ref)}
        self.inputs[number], self.steps[number] = inputs, step
        if why and why != "its input" and step.operation != "overwritten":
            self.unread[f"{step.layer} ({why})"] = None
        self.state[number] = state = self._state(number, step, one, two)
        flattened, position = self._passed(step, inputs)
        if state is None:
            # compared behind it: with what is nearest before
            self.origins[number] = frozenset().union(*(self.origins.get(i, ()) for i in inputs))
            self.between[number] = flattened, position
            return
        self.origins[number], self.between[number] = frozenset({number}), (False, "")
        before = frozenset().union(*(self.origins.get(i, frozenset()) for i in inputs))
        if not state and all(self.state.get(origin) for origin in before):
            self.deaths.append(Death(step, number, flattened, position))

    def _passed(self, step: RecordedStep, inputs: Iterable[int]) -> tuple[bool, str]:
        passed = [self.between.get(i, (False, "")) for i in inputs]
        flattened = any(flag for flag, _ in passed) or _flattens(step)
        position = next((name for _, name in passed if name), "")
        return flattened, position or _adds_positions(step)

    def _state(self, number: int, step: RecordedStep, one: _Side, two: _Side) -> bool | None:
        first, second = one.results.get(Ref(number)), two.results.get(Ref(number))
        inputs = self.inputs[number]
        reshaped = step.operation in RESHAPES
        if step.operation == "written":  # into what is a map or not
            inputs = {a.step for a in step.args[:1] if isinstance(a, Ref)}
        other = any(i in self.other for i in inputs) and step.operation not in FRESH
        same = None
        if first is not None and second is not None and (reshaped or not other):
            same = agree(first, second, self.element)
        if same is None or (reshaped and not same):
            self.other.add(number)
            return None
        return same

    def outcome(self, output: Ref, one: _Side, two: _Side) -> Followed:
        """The end."""
        first, second = one.results.get(output), two.results.get(output)
        unread = tuple(self.unread)
        if first is None or second is None:
            return Followed(None, unread=unread or ("the network's result",))
        same = agree(first, second, self.element)
        if same is None:
            rank = len(first.shape)
            return Followed(None, unread=(f"a result of {rank} axes, neither vector nor map",))
        return Followed(same, () if same else self._deaths(output.step))

    def _deaths(self, number: int) -> tuple[Death, ...]:
        """Those that no later step undoes on every way to the result, which is step `number`; where
        no step is one, the first behind which the element is seen to be lost, or the last that does
        more than reshape.
        """
        reached, left = set(), [number]
        while left:
            step = left.pop()
            if step not in reached and not self.state.get(step):
                reached.add(step)
                left += self.inputs.get(step, ())
        deaths = tuple(d for d in self.deaths if d.number in reached)
        if deaths:
            return deaths
        able = sorted(n for n in reached if n and self.steps[n].operation not in RESHAPES)
        lost = [n for n in able if self.state[n] is False] or able[-1:]
        return tuple(Death(self.steps[n], n, *self.between[n]) for n in lost[:1])


def agree(one: Value, two: Value, element: Element) -> bool | None:
    """Whether the second is the first moved by the element: of maps [1, channel, height, width] and
    of vectors [1, n]; None of other shapes.
    """
    rank = len(one.shape)
    if rank not in (2, 4) or one.shape[0] != 1:
        return None
    expected = act(one.data, element) if rank == 4 else one.data
    return expected.shape == two.data.shape and bool(torch.equal(expected, two.data))


def _flattens(step: RecordedStep) -> bool:
    """Whether a step makes a vector of a map that has positions."""
    return step.operation in ("view", "_unsafe_view", "reshape", "flatten") and (
        len(step.shapes[0]) == 2 and step.shapes[0][0] == 1
    )


def _adds_positions(step: RecordedStep) -> str:
    """The layer, if its constant depends on more than one axis."""
    if step.operation not in ("add", "mul", "sub", "div"):
        return ""
    for constant in step.args:
        if isinstance(constant, Constant) and sum(n > 1 for n in constant.value.shape) > 1:
            return constant.name or step.layer
    return ""


def _image_shape(program: RecordedProgram) -> tuple[int, int, int, int]:
    return (1, program.channels, *program.size)


def _alike(one: RecordedProgram, two: RecordedProgram | None) -> bool:
    if two is None:
        return True
    return [s.operation for s in one.steps] == [s.operation for s in two.steps]


def _leaves(tree: Any) -> Iterable[Any]:
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def _last_uses(program: RecordedProgram) -> dict[int, list[Ref]]:
    """The results that no step behind one needs."""
    last: dict[Ref, int] = {}
    for number, step in enumerate(program.steps, start=1):
        for output in range(len(step.shapes)):
            last[Ref(number, output)] = number
        for reference in _leaves((step.args, step.kwargs)):
            if isinstance(reference, Ref):
                last[reference] = number
    last.pop(program.output, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    uses: dict[int, list[Ref]] = {}
    for reference, number in last.items():
        uses.setdefault(number, []).append(reference)
    return uses


__all__ = ["Death", "Followed", "agree", "follow", "lifted", "turns_of", "whole"]
