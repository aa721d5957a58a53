"""When compiled code may take over an operation of torch, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_parts(part: Callable[[int, int], int], images: int) -> None:
    """Calls `part(first, last)` for as many parts of the batch as torch has threads."""
    threads = max(1, min(torch.get_num_threads(), images))
    edges = [number * images // threads for number in range(threads + 1)]
    if threads == 1:
        failed = part(0, images)
    else:
        with ThreadPoolExecutor(threads) as pool:
            failed = max(pool.map(part, edges, edges[1:]))
    if failed:
        raise MemoryError("not enough memory for a convolution")


def plain(values: Tensor) -> bool:
    """True for an ordinary float32 tensor on the CPU that carries no forward-mode derivative."""
    if (
        values.device.type != "cpu"
        or values.dtype != torch.float32
        or type(values) not in (Tensor, torch.nn.Parameter)
    ):
        return False
    # The level is that of all threads: one that takes derivatives must not change what the others
    # compute.
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(values).tangent is None


def watched() -> bool:
    """True where an operation must not disappear into compiled code."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )
