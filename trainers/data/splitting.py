"""Stratified splits that depend on labels and a seed only."""

from __future__ import annotations

import numpy as np


def shares(counts: np.ndarray, total: int, keep: int) -> np.ndarray:
    """How many of `total` images each class gives: in proportion to `counts`, at least one and
    leaving at least `keep`.

    Rounding is by largest remainder. A class gives one at least only if `total` reaches the number
    of classes. `total` must not exceed the sum of counts less `keep` per class (the caller has
    checked it).
    """
    most = np.maximum(counts - keep, 0)
    exact = total * counts / counts.sum()
    least = np.minimum(1 if total >= np.count_nonzero(counts) else 0, most)
    taken = np.clip(np.floor(exact).astype(np.int64), least, most)
    while taken.sum() != total:
        step = 1 if taken.sum() < total else -1
        movable = taken < most if step == 1 else taken > least
        gain = np.where(movable, step * (exact - taken), -np.inf)
        taken[np.argmax(gain)] += step
    return taken


def take(labels: np.ndarray, total: int, seed: tuple[int, ...], keep: int = 0) -> np.ndarray:
    """Indices of `total` images drawn from every class in proportion, in random order.

    `keep` images of each class at least stay behind. Of two calls with the same seed and labels the
    smaller sample is nearly (up to rounding per class) a subset of the larger one.
    """
    rng = np.random.default_rng(seed)
    _classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = rng.permutation(len(labels))
    # class by class, shuffled inside
    order = order[np.argsort(inverse[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    taken = shares(counts, total, keep)
    chosen = np.concatenate([order[start : start + count] for start, count in zip(starts, taken)])
    return rng.permutation(chosen)


def remainder(length: int, *taken: np.ndarray) -> np.ndarray:
    """The indices below `length` that are in none of `taken`, ascending."""
    free = np.ones(length, dtype=bool)
    for part in taken:
        free[part] = False
    return np.flatnonzero(free)
