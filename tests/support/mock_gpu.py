"""A GPU for machines that have none: tensors that say they lie on the device `mock`, computed
on the CPU.

Like a real one it refuses to mix its tensors with the CPU's, and every copy between both, and every
value that Python reads from there, is listed in `Crossings`. Whatever runs on it holds no tensor
that was forgotten on the CPU. What CUDA itself does (its kernels, graphs, memory) it cannot show.
torch counts devices at the first backward pass, so use it in a process that has made none
(`process_with_mock`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "mock"
# what answers with a value or a shape makes Python wait
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class MockTensor(torch.Tensor):
    """A tensor on the mock device; `on_cpu` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> MockTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})

    def __reduce_ex__(self, protocol):
        """Saved as a tensor of the CPU, as a file that is loaded elsewhere has it."""
        return self.on_cpu.__reduce_ex__(protocol)


class Crossings(list):
    """Descriptions of what passed between the CPU and the device, in order; those that make Python
    wait are in `waits`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def add(self, what: str, waits: bool) -> None:
        self.append(what)
        if waits:
            self.waits.append(what)


_watching: list[Crossings] = []


class _Mode(TorchDispatchMode):
    """Sees what makes tensors on the device out of nothing, and copies there."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


@cache
def device() -> torch.device:
    """The mock device, made known to torch on the first call."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    library = torch.library.Library("aten", "IMPL")
    # Reached where torch itself copies a Python list to a device, as torch.tensor(..., device=...)
    # does.
    library.impl(
        "empty_strided",
        lambda size, stride, dtype=None, **options: MockTensor(
            torch.empty_strided(size, stride, dtype=dtype)
        ),
        "PrivateUse1",
    )
    library.impl("_copy_from", _copied_by_torch, "PrivateUse1")
    device.library = library  # its registrations last as long as it does
    return torch.device(NAME, 0)


@contextmanager
def mocked() -> Iterator[Crossings]:
    """The block may use the device; what passes to and from it is in the list."""
    device()
    crossings = Crossings()
    _watching.append(crossings)
    try:
        with _Mode():
            yield crossings
    finally:
        _watching.remove(crossings)


@contextmanager
def process_with_mock() -> Iterator[Executor]:
    """A process that knows the device from its start; what it is given to do must be found by
    import.
    """
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_started
    ) as process:
        yield process


def _started() -> None:
    torch.set_num_threads(1)
    device()


def _note(what: str, waits: bool = True) -> None:
    for crossings in _watching:
        crossings.add(what, waits)


def _copied_by_torch(
    source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    here, there = (t.on_cpu if isinstance(t, MockTensor) else t for t in (source, target))
    there.copy_(here)
    _note(f"{list(there.shape)} made from Python values")
    return target


def _run(function, arguments, options):
    name = function.overloadpacket.__name__
    tensors = [
        value for value in tree_flatten((arguments, options))[0] if isinstance(value, torch.Tensor)
    ]
    distant = [tensor for tensor in tensors if isinstance(tensor, MockTensor)]
    goal = None if options.get("device") is None else torch.device(options["device"]).type
    near, nearby = tree_map_only(MockTensor, lambda tensor: tensor.on_cpu, (arguments, options))
    nearby = {
        key: torch.device("cpu") if key == "device" and goal == NAME else value
        for key, value in nearby.items()
        if key != "pin_memory"
    }
    if distant and name in READS:
        _note(f"{name} of {list(distant[0].shape)}")
    elif name in ("_to_copy", "copy_"):
        target = goal or arguments[0].device.type
        source = arguments[1 if name == "copy_" else 0]
        if target != source.device.type:
            _note(
                f"{list(source.shape)} from {source.device.type} to {target}",
                waits=not (
                    options.get("non_blocking") or (name == "copy_" and arguments[2:3] == (True,))
                ),
            )
    elif (
        distant and name.startswith("index") and name != "index_select"
    ):  # takes indices from the CPU, and waits for their copy
        if len(distant) < len(tensors):
            _note("indices from cpu")
    elif distant and any(tensor.dim() for tensor in tensors if tensor.device.type == "cpu"):
        shapes = [list(tensor.shape) for tensor in tensors if tensor.device.type == "cpu"]
        raise RuntimeError(
            f"{name}: expected all tensors on the same device, found {NAME} and cpu {shapes}"
        )
    result = function(*near, **nearby)
    # as CUDA's kernel for channels-last maps
    if distant and name == "native_batch_norm_backward" and near[2] is None:
        result = (result[0], result[1].new_empty(0), result[2].new_empty(0))
    if not function._schema.returns:
        return None
    if function._schema.is_mutable and name.endswith("_"):
        return arguments[0]
    if goal == NAME or (goal is None and distant):
        return tree_map_only(torch.Tensor, MockTensor, result)
    return result.clone() if any(result is value for value in near) else result
