"""The learning rate of every step, as a pure function: resuming needs no scheduler state."""

from __future__ import annotations

import math

from trainers.settings import Training

# share of a onecycle schedule in which the learning rate rises (Smith & Topin 2017, torch's
# default)
WARM_UP_SHARE = 0.3
# a onecycle schedule starts and ends at the peak divided by these (torch's defaults)
FIRST, LAST = 25, 250_000
# the step schedule halves every fifth (arXiv:2308.11316: every 10 of 50 epochs)
STEP_EVERY, STEP_FACTOR = 0.2, 0.5


def rate_at(training: Training, peak: float, step: int, total: int) -> float:
    """The learning rate of `step` (from 0) of `total` under the training's schedule."""
    share = step / max(1, total)
    if training.schedule == "constant":
        return peak
    if training.schedule == "step":
        return peak * STEP_FACTOR ** int(share / STEP_EVERY + 1e-9)
    if training.schedule == "cosine":
        return peak * _falling(share)
    low, last = peak / FIRST, peak / LAST
    if share < WARM_UP_SHARE:
        return peak + (low - peak) * _falling(share / WARM_UP_SHARE)
    return last + (peak - last) * _falling((share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))


def _falling(share: float) -> float:
    """Half a cosine, from 1 at share 0 to 0 at share 1."""
    return (1 + math.cos(math.pi * share)) / 2
