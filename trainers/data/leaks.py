"""Identical images in two splits: what is trained on must not be scored on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Images uint8 [N, C, H, W], what messages call each, and which of them count (None: all)."""

    pixels: np.ndarray
    called: Callable[[int], str]
    kept: np.ndarray | None = None

    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that count, ascending, and 64 bits of a hash of each."""
        rows = np.arange(len(self.pixels)) if self.kept is None else self.kept
        digests = [hashlib.blake2b(self.pixels[row].tobytes(), digest_size=8) for row in rows]
        values = b"".join(digest.digest() for digest in digests)
        return rows, np.frombuffer(values, dtype=np.uint64)


def leakage(one: NamedImages, other: NamedImages, names: tuple[str, str]) -> list[str]:
    """What a user should know of images of `other` that `one` holds as well, pixel by pixel: how
    many there are and the first pair, a sentence without a full stop. [] where there is none.
    """
    (rows, digests), (others, theirs) = one.digests(), other.digests()
    again = np.flatnonzero(np.isin(theirs, digests))
    if not len(again):
        return []
    second = int(others[again[0]])
    first = int(rows[np.flatnonzero(digests == theirs[again[0]])[0]])
    count = len(again)
    return [
        f"warning: {count} of the {names[1]} images {'is' if count == 1 else 'are'} also among the "
        f"{names[0]} images, with the same pixels ({other.called(second)} and "
        f"{one.called(first)}): scores on them say nothing of new images; remove one of each, or "
        "keep them in one split by group_by"
    ]
