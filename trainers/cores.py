"""How many CPU cores a process may use, and how much memory the machine has. Imports no torch."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use, at least 1: the smallest of the machine's number, its CPU
    affinity, and its container's quota (rounded up).
    """
    from joblib import cpu_count  # reads affinity and cgroups; imported late, it takes 0.1 s

    return cpu_count()


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
