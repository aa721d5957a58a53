"""Exact arithmetic in place of floating point: whole numbers modulo the prime 2^31 - 1.

A network is followed with such numbers as its values. What is linear in it (convolutions, averages,
interpolations) is computed exactly, what is not (activations, maxima, norms) is a fixed random
function, and weights are random numbers. Two results that are equal are equal for all weights:
two that differ coincide with probability 5e-10 a number (Schwartz-Zippel lemma).
"""

from __future__ import annotations

import zlib
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

PRIME = 2**31 - 1
_LOW = 0xFFFFFFFF
# two rounds of a multiplicative hash, wrapping around at 64 bits; odd constants
_FIRST, _SECOND = -7046029254386353131, -4658895280553007687
MOST_DENOMINATOR = 1 << 20
FRACTION_TOLERANCE = 1e-13  # of a weight, relative to 1: then it is the fraction
SNAP = 1e-9  # constants that differ by less, relative to the largest, are one


def seed_of(key: object) -> int:
    """A number below the prime that stands for `key`, the same in every process."""
    return zlib.crc32(repr(key).encode()) % PRIME


def drawn(key: object, *shape: int) -> Tensor:
    """Random numbers of the field of that shape, the same ones for the same key."""
    generator = torch.Generator().manual_seed(seed_of(key))
    return torch.randint(1, PRIME, shape, generator=generator)


def hashed(values: Tensor, key: object) -> Tensor:
    """A random function of the field, chosen by `key`, of every value."""
    mixed = (values + seed_of(key)) * _FIRST
    mixed = (mixed ^ ((mixed >> 32) & _LOW)) * _SECOND
    mixed = mixed ^ ((mixed >> 29) & _LOW)
    return (mixed & PRIME) % PRIME


def hashed_pairs(first: Tensor, second: Tensor, key: object) -> Tensor:
    """A random function of two values, of every pair (broadcast)."""
    return hashed((hashed(first, (key, 1)) + 3 * hashed(second, (key, 2))) % PRIME, (key, 3))


def product(first: Tensor, second: Tensor | int) -> Tensor:
    """The products, broadcast."""
    return first * second % PRIME


def matrix_product(first: Tensor, second: Tensor) -> Tensor:
    """Matrix products [..., n, k] x [..., k, m], exact: in four products of 16-bit halves, whose
    sums fit into float64.
    """
    if first.shape[-1] == 1:
        return product(first, second)
    high, low = (first >> 16).double(), (first & 0xFFFF).double()
    above, below = (second >> 16).double(), (second & 0xFFFF).double()
    top = (high @ above).long() % PRIME
    middle = (high @ below + low @ above).long() % PRIME
    bottom = (low @ below).long() % PRIME
    # 2^32 is 2 modulo the prime
    return (top * 2 + middle * 65536 % PRIME + bottom) % PRIME


def inverse(number: int) -> int:
    """1 / number."""
    return pow(number % PRIME, PRIME - 2, PRIME)


def of_number(value: float) -> int:
    """The field's number for a real one: exact for fractions of small denominators, and whatever
    it is, the same for the same value.
    """
    if value in (float("inf"), float("-inf")) or value != value:
        return seed_of(("not finite", value))
    fraction = Fraction(value).limit_denominator(MOST_DENOMINATOR)
    if abs(float(fraction) - value) > FRACTION_TOLERANCE * max(1.0, abs(value)):
        return seed_of(("number", f"{value:.13e}"))
    return fraction.numerator % PRIME * inverse(fraction.denominator) % PRIME


def of_constant(values: Tensor) -> Tensor:
    """The field's numbers for a tensor of real ones; those that differ by rounding are one."""
    if values.dtype == torch.bool or not values.dtype.is_floating_point:
        return values.long() % PRIME
    flat = values.detach().double().cpu().reshape(-1).numpy()
    distinct, places = np.unique(flat, return_inverse=True)
    finite = distinct[np.isfinite(distinct)]
    step = SNAP * float(np.abs(finite).max()) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        begins = np.concatenate([[True], ~(np.diff(distinct) <= step)]) if len(distinct) else []
    groups = np.cumsum(begins) - 1
    numbers = [_symmetric(float(v)) for v in distinct[np.flatnonzero(begins)]]
    table = torch.tensor(numbers, dtype=torch.int64)
    if not table.numel():
        return torch.zeros(values.shape, dtype=torch.int64)
    return table[torch.from_numpy(groups[places.reshape(-1)])].reshape(values.shape)


def _symmetric(value: float) -> int:
    """As `of_number`, and -v is minus v."""
    return -of_number(-value) % PRIME if value < 0 else of_number(value)
