"""Invariant shares: how many of a stage's fields are pooled over their group, so that they move
with the image and do not turn (split invariant and equivariant channels).

A pooled field holds the maximum over its |G| channels in each of them: a regular field that every
element leaves in place, read by the next stage as any other.
"""

from __future__ import annotations

import math


def check_share(share: float) -> None:
    """Raises ValueError unless the share lies in 0..1."""
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise ValueError(
            f"a stage's invariant share is {share:g}; it must be at least 0 and at most 1, such as "
            "i0.5"
        )


def pooled_fields(share: float, fields: int, order: int) -> int:
    """How many of the `fields`, of a group of that order, are pooled: the nearest whole number to
    the share; of the trivial group none, for pooling them changes nothing.
    """
    return int(share * fields + 0.5) if order > 1 else 0


def simplest_share(share: float, fields: int, order: int) -> float:
    """The share that pools as many fields and is the same for all such shares; 0 for none."""
    return round(pooled_fields(share, fields, order) / fields, 6)
