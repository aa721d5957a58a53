"""Settings of a process that trains: threads, and how memory is given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def tune_process(threads: int = 1) -> None:
    """Makes this process a good training worker: `threads` threads, and memory kept instead of
    given back at every step.

    One thread per process and one process per core: several processes of several threads lose 3 to
    5 times to spinning barriers. glibc returns each large tensor to the kernel and faults its pages
    in again, 27,000 times a step; keeping them took a float32 step from 172 to 140 ms (2 cores,
    torch 2.15, P4CNN with 40 channels).
    """
    torch.set_num_threads(max(1, threads))
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def thread_pool(threads: int) -> Iterator[Executor]:
    """`threads` threads that compute side by side, each with one thread of its own inside torch,
    which lets go of the interpreter.

    Whole batches side by side do not wait for each other at every operation, as the threads inside
    an operation do. Work that has not begun when the block is left by an error is dropped.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        max(1, threads),
        thread_name_prefix="equisearch",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
