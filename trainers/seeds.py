"""Seeds that are derived from others: the one way in which the packages do it. Nothing here imports
torch, and numpy only when a seed is derived.
"""

from __future__ import annotations


def derived_seed(*numbers: int) -> int:
    """A seed of 32 bits from several whole numbers of at least 0, such as a study's seed and an
    epoch; the seeds of different numbers are unrelated (`numpy.random.SeedSequence`).
    """
    from numpy.random import SeedSequence

    return int(SeedSequence(numbers).generate_state(1)[0])
