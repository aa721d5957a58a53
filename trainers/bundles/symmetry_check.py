"""How exactly a loaded file keeps what is claimed: the symmetry of its logits, on images that are
moved exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act
from trainers.bundles.formats import Runner, logits

# largest difference of logits that are at most LARGE; in proportion beyond it
PARITY = 1e-4
LARGE = 10.0
# of the spread of logits over images (broken layouts: 6e-2 and more), and of the largest (rounding)
OF_SPREAD, OF_PEAK = 1e-3, 1e-5
PROBES, PROBE_SEED = 16, 20230816


def parity_tolerance(reference: Tensor) -> float:
    """The largest difference from `reference` that float32 arithmetic in another order may make:
    1e-4, more where logits exceed 10.
    """
    return PARITY * max(1.0, float(reference.abs().max()) / LARGE)


def movable(group: Group, size: tuple[int, int]) -> tuple[Element, ...]:
    """The elements of `group`, besides the identity, that move images of this size exactly and keep
    their size.
    """
    return tuple(
        e
        for e in group.elements
        if e.on_grid and e != IDENTITY and (size[0] == size[1] or not e.swaps_axes)
    )


def random_images(channels: int, size: tuple[int, int], num: int = PROBES) -> Tensor:
    """Dense random images in 0..1, the same everywhere and in every version: numpy keeps its
    RandomState stream.
    """
    values = np.random.RandomState(PROBE_SEED).random_sample((num, channels, *size))
    return torch.from_numpy(values.astype(np.float32))


def in_units(run: Runner, units: Tensor) -> Runner:
    """The runner with each output divided by its unit [output]: those of targets, whose scales
    differ, become comparable; logits have units of 1.
    """
    if bool((units == 1).all()):
        return run
    return lambda images: run(images) / units


@dataclass(frozen=True)
class Change:
    """How much moving the images by one element changes the logits."""

    largest: float  # absolute, over images and classes
    relative: float  # of the spread of the logits over images
    negligible: bool  # no more than rounding: the logits do not change


def changes(run: Runner, images: Tensor, elements: Iterable[Element]) -> dict[Element, Change]:
    """The change under each of `elements` (from `movable`), on images uint8 or in 0..1."""
    upright = logits(run, images)
    spread, peak = float(upright.std(0).mean()), float(upright.abs().max())
    change_by_element = {}
    for element in elements:
        largest = float((logits(run, act(images, element)) - upright).abs().max())
        relative = largest / spread if spread > 0 else 0.0 if largest == 0 else 1.0
        change_by_element[element] = Change(
            largest, relative, largest <= OF_SPREAD * spread + OF_PEAK * peak
        )
    return change_by_element
