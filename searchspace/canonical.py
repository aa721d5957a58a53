"""Recognising equal architectures: different descriptions that build the same network get the same
canonical form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from searchspace.architecture import Architecture, Stage, Subsampling
from searchspace.groups import TRIVIAL


def canonical(architecture: Architecture, *, keep_repeats: bool = False) -> Architecture:
    """The simplest architecture that builds the same network; equal networks by description have
    equal canonical forms.

    Repeats are written out unless `keep_repeats`, a head over a trivial group is
    none, and steps without effect go: a dilation of one pixel, a padding mode without padding, a
    pool of one pixel, rounding up where nothing is rounded; an adaptive pool to an integer fraction
    is the ordinary pool.
    """
    stages: list[Stage] = []
    for number, stage in enumerate(architecture.stages, start=1):
        convolved = [
            layer.size_out
            for layer in architecture.layers
            if layer.stage == number and layer.name.startswith("conv") and "/" not in layer.name
        ][-1]
        stage = replace(
            stage,
            subsampling=_simplest(stage.subsampling, convolved),
            dilation=1 if stage.kernel == 1 else stage.dilation,
            padding_mode="zeros" if stage.padding == (0, 0) else stage.padding_mode,
        )
        stages.extend([stage] if keep_repeats else _written_out(stage))
    entry = architecture.entry
    if entry is not None and (entry.output, entry.output) == architecture.size:
        entry = None
    return replace(
        architecture,
        stages=tuple(stages),
        entry=entry,
        head="none" if architecture.group == TRIVIAL else architecture.head,
    )


def _written_out(stage: Stage) -> Iterator[Stage]:
    for repeat in range(stage.repeats):
        last = repeat == stage.repeats - 1
        yield replace(
            stage,
            repeats=1,
            stride=stage.stride if repeat == 0 else 1,
            subsampling=stage.subsampling if last else None,
        )


def _simplest(step: Subsampling | None, size: tuple[int, int]) -> Subsampling | None:
    """The simplest subsampling with the same effect on a map of `size`; None if it has no effect."""
    if step is None:
        return None
    if step.kind.startswith("adaptive"):
        out = tuple(step.output or -(-n // step.stride) for n in size)
        if all(n % o == 0 for n, o in zip(size, out)) and size[0] // out[0] == size[1] // out[1]:
            step = Subsampling(
                "max" if step.kind == "adaptivemax" else "avg", size[0] // out[0], size[0] // out[0]
            )
        elif step.output is None and out[0] == out[1]:
            step = replace(step, output=out[0], stride=1)
    if step.kind in ("resize", "crop") and size == (step.output, step.output):
        return None
    if step.kind in ("max", "avg") and step.kernel == 1:
        return None if step.stride == 1 else replace(step, kind="max", ceil=False)
    if step.ceil and not any((n + sum(step.padding) - step.kernel) % step.stride for n in size):
        return replace(step, ceil=False)
    return step
