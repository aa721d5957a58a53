"""What a torch module computes for images of one size: every operation, in order, with its layer.

The module runs once on an image without values (a meta tensor) under a dispatch mode, as
`torch.export` traces; so functional calls, control flow by sizes, and TorchScript are recorded as
they run. Tensors that do not depend on the image are computed in earnest.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Ref:
    """The result of a step: output `output` of step `step`; step 0 is the image."""

    step: int
    output: int = 0


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the image."""

    key: object  # the same for the same weights, however often they are used
    value: Tensor
    trained: bool  # whether parameters decide it
    name: str = ""  # of the parameter or buffer


@dataclass(frozen=True)
class RecordedStep:
    """One operation; its arguments are numbers, lists, `Ref` and `Constant`."""

    operation: str  # as torch.ops.aten names it, without the underscore of in-place ones
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: str
    shapes: tuple[tuple[int, ...], ...]  # of its results
    # the same wherever the same layers are run on an image, moved or not
    key: object = ""


@dataclass
class RecordedProgram:
    """The steps of a network for images of one size."""

    size: tuple[int, int]
    channels: int  # of the image
    steps: list[RecordedStep] = field(default_factory=list)
    output: Ref | Constant | None = None  # None: the network returned anything else
    returned: Any = None  # what it returned

    def shape(self, reference: Ref) -> tuple[int, ...]:
        """Of a result."""
        if reference.step == 0:
            return (1, self.channels, *self.size)
        shapes = self.steps[reference.step - 1].shapes
        return shapes[reference.output] if shapes else ()


class CannotFollow(ValueError):
    """The network does something that a recording cannot hold; the text says what."""


FACTORIES = {
    "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "zeros", "ones", "empty",
    "full", "arange", "linspace", "eye", "zeros_like", "ones_like", "empty_like", "full_like",
    "scalar_tensor", "empty_strided",
}  # fmt: skip
MOVES_OF_IMAGES = {"flip", "rot90", "transpose", "permute", "roll", "clone", "alias"}
RANDOM = {
    "rand", "randn", "rand_like", "randn_like", "randint", "bernoulli", "uniform", "normal",
    "native_dropout", "randperm", "multinomial", "exponential",
}  # fmt: skip


def record_steps(
    module: nn.Module, size: tuple[int, int], channels: int, dtype: torch.dtype = torch.float64
) -> RecordedProgram:
    """The steps of `module`, which is in evaluation mode, for an image [1, channels, *size].

    Raises CannotFollow where the module reads values of its maps, or draws random numbers; what the
    module itself raises passes through.
    """
    recorder = Recorder(module, size, channels)
    image = torch.empty((1, channels, *size), dtype=dtype, device="meta")
    recorder.known[image] = Ref(0)
    recorder.share(image)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _named_layers(module, recorder), torch.no_grad(), recorder, ListsAsTensors():
            returned = module(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    program = recorder.program
    program.returned = returned
    if isinstance(returned, Tensor):
        program.output = recorder.known.get(returned) or recorder.constant(returned)
    return program


class ListsAsTensors(TorchFunctionMode):
    """While it is on, lists that index a tensor keep their values, which they lose where the tensor
    has none.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(p) if isinstance(p, list) else p for p in places)
            args = args[0], places, *args[2:]
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Records the operations that depend on the image."""

    def __init__(self, module: nn.Module, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.program = RecordedProgram(size, channels)
        self.known = WeakIdKeyDictionary()  # tensors that depend on the image -> Ref
        self.constants = WeakIdKeyDictionary()  # others -> Constant without their value
        self.stack: list[str] = []
        self.count = itertools.count()
        # tensors with values, and their memory without
        self.twins: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.shared: dict[int, list[Tensor]] = {}  # tensors that share memory, kept alive
        trained = {id(p) for p in module.parameters()}
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            self.constants[tensor] = (("weight", name), id(tensor) in trained, name)

    def constant(self, tensor: Tensor) -> Constant:
        """The tensor as a constant."""
        if tensor not in self.constants:
            self.constants[tensor] = (("made", next(self.count)), False, "")
        key, trained, name = self.constants[tensor]
        return Constant(key, tensor, trained, name)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name.rstrip("_") in RANDOM:
            raise CannotFollow(f"{self.layer(name)} draws random numbers")
        if name in FACTORIES:
            return self._made(func, args, kwargs)
        tensors = [t for t in _tensors((args, kwargs)) if t in self.known]
        if not tensors:
            return self._computed(func, name, args, kwargs)
        if name == "_local_scalar_dense" or name in ("equal", "nonzero", "is_nonzero", "item"):
            raise CannotFollow(f"{self.layer(name)} reads values of its input ({name})")
        return self._recorded(func, name, args, kwargs)

    def layer(self, operation: str, weight: Constant | None = None) -> str:
        """Where the network is now."""
        if weight is not None:
            for mark in "./":  # ONNX names may have no dots in torch
                if mark in weight.name:
                    return weight.name.rpartition(mark)[0]
        if self.stack and self.stack[-1]:
            return self.stack[-1]
        return operation.strip("_")

    def _made(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A new tensor, with values."""
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        args, kwargs = tree_map(_on_cpu, (args, kwargs))
        made = func(*args, **kwargs)
        self.share(made)
        return made

    def _computed(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """Something that does not depend on the image."""
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            kwargs = {**kwargs, "device": torch.device("cpu")}
        given = [self.constant(t) for t in _tensors((args, kwargs))]
        result = func(*args, **kwargs)
        plain = tree_map(lambda x: None if isinstance(x, Tensor) else x, (args, kwargs))
        in_place = name.endswith("_") and not name.startswith("_")
        for number, tensor in enumerate(_tensors(result)):
            if any(tensor is c.value for c in given) and not in_place:
                continue
            key = (name, *(c.key for c in given), repr(plain), number)
            key = ("computed", *key) if given else ("made", next(self.count))
            old = self.constants.get(tensor)
            named = old[2] if old and in_place else ""
            self.constants[tensor] = (key, any(c.trained for c in given), named)
            self.share(tensor)
        return result

    def _recorded(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        def noted(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return self.known[value] if value in self.known else self.constant(value)

        taken, named = tree_map(noted, (args, kwargs))
        kwargs = {k: torch.device("meta") if k == "device" and v else v for k, v in kwargs.items()}
        twin = lambda v: self.twin(v) if isinstance(v, Tensor) else v  # noqa: E731
        result = func(*tree_map(twin, args), **tree_map(twin, kwargs))
        if name.startswith("as_strided") and _same_places(*args[:3]):
            name, func, taken, named = "alias", torch.ops.aten.alias.default, taken[:1], {}
        number, made = len(self.program.steps) + 1, list(_tensors(result))
        weights = [v for v in taken if isinstance(v, Constant)]
        operation = name if name.startswith("_") else name.rstrip("_")
        layer = self.layer(operation, weights[0] if weights else None)
        shapes = tuple(tuple(t.shape) for t in made)
        key = self._key(operation, (taken, named))
        self.program.steps.append(RecordedStep(operation, func, taken, named, layer, shapes, key))
        if func.overloadpacket.__name__.endswith("_") and not name.startswith("_"):
            return self._written(args[0], number)
        for output, tensor in enumerate(made):
            self.known[tensor] = Ref(number, output)
            self.share(tensor)
        return result

    def twin(self, tensor: Tensor) -> Tensor:
        """A tensor without values in the place of one with values; of two that share memory, two
        that do.
        """
        if tensor.device.type == "meta":
            return tensor
        key = tensor.untyped_storage()._cdata, tensor.dtype
        if key not in self.twins:
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            empty = torch.empty(elements, dtype=tensor.dtype, device="meta")
            self.twins[key] = tensor, empty
        return self.twins[key][1].as_strided(*_place(tensor))

    def memory(self, tensor: Tensor) -> int:
        """Which memory a tensor lies in."""
        return self.twin(tensor).untyped_storage()._cdata

    def share(self, tensor: Tensor) -> None:
        """Notes in which memory a tensor lies."""
        group = self.shared.setdefault(self.memory(tensor), [])
        if not any(tensor is old for old in group):
            group.append(tensor)

    def _written(self, target: Tensor, number: int) -> Tensor:
        """`target` after it was written in place: all that shares its memory is read again."""
        group = [t for t in self.shared.get(self.memory(target), ()) if t is not target]
        whole = next((t for t in (target, *group) if _holds_all(t)), None)
        self.known[target], layer = Ref(number), self.program.steps[-1].layer
        if not group or (whole is target and all(_holds_all(t) for t in group)):
            for other in group:
                self._add("strided", (Ref(number), *_place(other)), layer, other)
            return target
        if whole is None:
            raise CannotFollow(f"{layer} writes in place into a part of a tensor")
        before = self.known[whole] if whole in self.known else self.constant(whole)
        if whole is target:
            before = Ref(number)
        else:
            self._add("written", (before, *_place(target), Ref(number)), layer, whole)
            before = self.known[whole]
        for other in group:
            if other is not whole:
                self._add("strided", (before, *_place(other)), layer, other)
        return target

    def _key(self, operation: str, args: Any) -> object:
        """What a step computes, moves of the image left out."""

        def told(value: Any) -> Any:
            if isinstance(value, Ref):
                key = self.program.steps[value.step - 1].key if value.step else "image"
                return key if not value.output else (key, value.output)
            return value.key if isinstance(value, Constant) else str(value)

        leaf = lambda v: isinstance(v, (Ref, Constant))  # noqa: E731
        given = tree_map(told, args, is_leaf=leaf)
        if operation in MOVES_OF_IMAGES:
            return given[0][0]
        return zlib.crc32(repr((operation, given)).encode())

    def _add(self, operation: str, args: tuple, layer: str, result: Tensor) -> None:
        """A step that no operation of the module is."""
        call = torch.ops.aten.as_strided.default
        shapes, key = (tuple(result.shape),), self._key(operation, args)
        self.program.steps.append(RecordedStep(operation, call, args, {}, layer, shapes, key))
        self.known[result] = Ref(len(self.program.steps))


def _place(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Where its elements lie in its memory."""
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _holds_all(tensor: Tensor) -> bool:
    """Whether a tensor is its memory, in order."""
    nbytes = tensor.untyped_storage().nbytes()
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == nbytes


def _same_places(tensor: Tensor, size: Any, stride: Any) -> bool:
    """Whether strides say no more than the tensor's own."""
    return tuple(size) == tuple(tensor.shape) and all(
        n == 1 or new == old for n, new, old in zip(size, stride, tensor.stride())
    )


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type == "meta":
        return torch.empty(value.shape, dtype=value.dtype)
    return value


@contextmanager
def _named_layers(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keeps the names of the modules that run on the recorder's stack."""
    hooks = []
    for name, inner in module.named_modules():
        if isinstance(inner, torch.jit.ScriptModule):
            continue

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            recorder.stack.append(name)

        def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
            recorder.stack.pop()

        hooks += [
            inner.register_forward_pre_hook(enter),
            inner.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
