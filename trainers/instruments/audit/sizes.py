"""Input sizes nearby at which no layer of a network breaks an element."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from searchspace.geometry import Size, output_size, remainder
from trainers.instruments.audit.record import RecordedProgram, RecordedStep, Ref
from trainers.instruments.audit.windows import pair

WITHIN = 64  # pixels
MOST_TRIED = 16  # images that are not square, of which the network is recorded, in each direction
# what keeps the size of its first input, as far as sizes are predicted
FIXED = {"_adaptive_avg_pool2d", "adaptive_avg_pool2d", "_adaptive_max_pool2d", "addmm", "mm"}
UNPREDICTED = {"constant_pad_nd", "reflection_pad2d", "replication_pad2d", "slice", "roll",
               "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"}  # fmt: skip


def nearest_exact_sizes(
    clean: Callable[[Size], bool], program: RecordedProgram
) -> tuple[Size, ...]:
    """The nearest smaller and the nearest larger size, nearest first, at which every element is
    exact behind every layer: of square images square ones, of others those that are neither higher
    and narrower nor lower and wider.

    `clean` says whether that is so at a size; `program` is that of the present size. Both axes have
    a third of the present pixels at least.
    """
    height, width = program.size
    found: list[Size] = []
    for sign in (1, -1):
        # less than a third of the image is another task
        tried = [s for s in _sizes(program, sign) if 3 * s[0] >= height and 3 * s[1] >= width]
        found += next(([s] for s in tried if clean(s)), [])
    return tuple(sorted(found, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), s)))


def _sizes(program: RecordedProgram, sign: int) -> list[Size]:
    """Sizes in one direction at which no window is certainly shifted, nearest first."""
    height, width = program.size
    if height == width:
        return [
            (height + sign * d, width + sign * d)
            for d in range(1, WITHIN + 1)
            if not shifted(program, height + sign * d)
        ]
    axes = [
        [d for d in range(WITHIN + 1) if not shifted(program, size + sign * d, axis)]
        for axis, size in enumerate(program.size)
    ]
    pairs = sorted((p for p in product(*axes) if any(p)), key=lambda p: (sum(p), max(p)))
    return [(height + sign * h, width + sign * w) for h, w in pairs[:MOST_TRIED]]


def shifted(program: RecordedProgram, size: int, axis: int = 0) -> bool:
    """Whether a window is certainly shifted, by arithmetic along an axis of an image of `size`
    pixels there; False also where sizes are not predicted.
    """
    sizes: dict[Ref, int | None] = {Ref(0): size}
    for number, step in enumerate(program.steps, start=1):
        given = [a for a in step.args if isinstance(a, Ref)]
        pixels = sizes.get(given[0]) if given else None
        result = None
        if pixels is not None and step.operation not in FIXED | UNPREDICTED:
            window = window_of(step, axis)
            if window is None:
                result = pixels
            elif output_size(pixels, *window) < 1 or remainder(pixels, *window):
                return True
            else:
                result = output_size(pixels, *window)
        for output in range(len(step.shapes)):
            sizes[Ref(number, output)] = result
    return False


Window = tuple[int, int, tuple[int, int], int, bool]


def window_of(step: RecordedStep, axis: int) -> Window | None:
    """(kernel, stride, padding, dilation, rounded up) on an axis; None: the step has no window."""
    if step.operation == "convolution":
        _, weight, _, stride, padding, dilation, transposed, *_ = step.args
        if transposed or weight.value.ndim != 4:
            return None
        p = pair(padding)[axis]
        kernel = weight.value.shape[2 + axis]
        return kernel, pair(stride)[axis], (p, p), pair(dilation)[axis], False
    if step.operation not in ("max_pool2d_with_indices", "avg_pool2d"):
        return None
    kernel = pair(step.args[1])[axis]
    given = [*step.args[2:], *[None] * 4]
    stride = pair(given[0])[axis] if given[0] else kernel
    p = pair(given[1])[axis] if given[1] else 0
    if step.operation == "avg_pool2d":
        return kernel, stride, (p, p), 1, bool(given[2])
    return kernel, stride, (p, p), pair(given[2])[axis] if given[2] else 1, bool(given[3])
