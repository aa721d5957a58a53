"""Input sizes nearby at which no layer of a network breaks an element."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from searchspace.geometry import output_size, remainder
from searchspace.groups import IDENTITY, Element
from trainers.instruments.audit.follow import follow
from trainers.instruments.audit.record import RecordedProgram, RecordedStep, Ref
from trainers.instruments.audit.windows import pair

WITHIN = 64  # pixels
# what keeps the size of its first input, as far as sizes are predicted
FIXED = {"_adaptive_avg_pool2d", "adaptive_avg_pool2d", "_adaptive_max_pool2d", "addmm", "mm"}
UNPREDICTED = {"constant_pad_nd", "reflection_pad2d", "replication_pad2d", "slice", "roll",
               "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"}  # fmt: skip


def nearest_exact_sizes(
    recorded: Callable[[int], RecordedProgram | None],
    program: RecordedProgram,
    elements: Sequence[Element],
) -> tuple[int, ...]:
    """The nearest smaller and the nearest larger size of square images, nearest first, at which
    every element is exact behind every layer.

    `recorded` gives the program for a size, None where the network does not take it; `program` is
    that of the present size.
    """
    size, sizes = program.size[0], []
    for sign in (1, -1):
        for size_near in _sizes(size, sign):
            if shifted(program, size_near):
                continue
            near = recorded(size_near)
            if near is not None and is_clean(near, elements):
                sizes.append(size_near)
                break
    return tuple(sorted(sizes, key=lambda n: (abs(n - size), n)))


def _sizes(size: int, sign: int) -> Iterator[int]:
    yield from (size + sign * d for d in range(1, WITHIN + 1) if size + sign * d > 0)


def is_clean(program: RecordedProgram, elements: Sequence[Element]) -> bool:
    """Whether every element is exact behind every layer."""
    if not isinstance(program.output, Ref):
        return False
    return all(
        outcome.kept and not outcome.deaths
        for e in elements
        if e != IDENTITY
        for outcome in [follow(program, e, hurry=True)]
    )


def shifted(program: RecordedProgram, size: int) -> bool:
    """Whether a window is certainly shifted, by arithmetic along the axes of an image of `size`
    pixels; False also where sizes are not predicted.
    """
    sizes: dict[Ref, int | None] = {Ref(0): size}
    for number, step in enumerate(program.steps, start=1):
        given = [a for a in step.args if isinstance(a, Ref)]
        pixels = sizes.get(given[0]) if given else None
        result = None
        if pixels is not None and step.operation not in FIXED | UNPREDICTED:
            window = window_of(step, 0)
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
