"""What a training promises for each epoch, if it may be stopped at the rungs ahead of it.

A new training is not a decision for all of its epochs: those until the first rung are paid, and
the others only where its scores there deserve them. Its promise is the largest price of an epoch
at which the best rule for stopping still gains nothing less than it costs: the index by which
Gittins (1979) ranks projects that may be left at any time, of which the best is always continued.
The rule sees the scores of the next two rungs, as the surrogate draws them.

The expected gain after the last rung but one is the mean of a few draws, so that a rule sees a part
of their chance and promises are too high, most for trainings at their beginning. With more draws
recorded tables whose early scores foretell little need fewer epochs, and others more
(tests/benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from studies.samplers.gp import Array

# draws of the scores at the next rung, of those at the rung after it for each, and so on to the
# end, by the number of stages left
DRAWS: dict[int, tuple[int, ...]] = {1: (512,), 2: (128, 4), 3: (32, 4, 4)}
WEIGHED = 32  # trainings whose promises are computed: the best if none is stopped
LEAST_PRICE = 1e-9  # of an epoch, in hypervolume; no gain is below it but 0
BISECTIONS = 24  # in the logarithm: prices to 2e-6 of themselves


def stages(rungs: Sequence[int], epoch: int) -> tuple[int, ...]:
    """The epochs, of `rungs`, at which a training that has reached `epoch` may next be stopped, at
    most two, and the last.
    """
    ahead = [rung for rung in rungs if rung > epoch] or [rungs[-1]]
    return (*ahead[: min(2, len(ahead) - 1)], ahead[-1])


def promises(gains: Array, costs: Sequence[float]) -> Array:
    """The promise (k) of trainings with these drawn `gains` (*draws, k), in gain for each epoch.

    `costs` are the epochs of each stage, the next first, and `draws` has an axis for each stage, as
    in `DRAWS`. 0 where nothing is gained.
    """
    expected = gains.mean(axis=len(costs) - 1)
    low, high = numpy.full((2, gains.shape[-1]), [[LEAST_PRICE], [1.0]])
    for _ in range(BISECTIONS):
        price = numpy.sqrt(low * high)
        worthwhile = _surplus(expected, costs, price) > 0
        low, high = numpy.where(worthwhile, price, low), numpy.where(worthwhile, high, price)
    return numpy.where(_surplus(expected, costs, numpy.full_like(low, LEAST_PRICE)) > 0, low, 0.0)


def _surplus(expected: Array, costs: Sequence[float], price: Array) -> Array:
    """What the best rule for stopping gains above its costs at that `price` of an epoch (k), given
    what the last stage is expected to gain (*draws before it, k).
    """
    value = expected
    for cost in reversed(costs[1:]):
        value = numpy.maximum(0.0, value - price * cost).mean(axis=-2)
    return value - price * costs[0]
