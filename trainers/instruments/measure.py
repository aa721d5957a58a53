"""All instruments on one model, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from searchspace.groups import IDENTITY, TRIVIAL, Element, Group
from trainers.instruments.accuracy import (
    consistency,
    effective_invariance,
    summarise,
    summarise_angles,
)
from trainers.instruments.equivariance import EquivarianceError, equivariance_error
from trainers.instruments.feature_maps import Forward, Normalise, measuring
from trainers.instruments.layerwise import (
    MatchedStage,
    Steerability,
    layerwise_equivariance,
    steerability,
)
from trainers.instruments.lie import LieDerivative, lie_derivatives
from trainers.instruments.measurement import Measurement, generators
from trainers.instruments.merging import MergeBarrier, merge_barrier
from trainers.instruments.predictions import Predictions, angle_elements, predict_elements
from trainers.networks.convolution import channels_last
from trainers.networks.fold import scoring
from trainers.networks.networks import Network
from trainers.networks.plain import PlainNetwork
from trainers.process import thread_pool
from trainers.settings import Corners

MEASURED_IMAGES = 64  # for the equivariance error and the Lie derivative
MATCH_IMAGES = 128  # for matching channels
STEER_IMAGES = 512  # for fitting a matrix to features

Result = TypeVar("Result")
# what an instrument gave, or why it does not apply to the model
Attempt = Future["tuple[Any, ...] | str"]


def measure(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    group: Group,
    *,
    seen: Iterable[Element] = (IDENTITY,),
    normalise: Normalise | None = None,
    calibration: Tensor | None = None,
    step: int = 10,
    corners: Corners = "black",
    stages: Sequence[str] | None = None,
    fields: Mapping[str, Group] | None = None,
    threads: int | None = None,
    control: Network | None = None,
) -> Measurement:
    """Every instrument on one model: a network of ours, a wrapped escnn network, a plain torch
    module or a function.

    `images` are [image, channel, height, width], uint8 or floating point in 0..1, `labels` [image];
    `normalise` is applied after images were moved. `group` is the declared symmetry, `seen` what
    training has seen of it, `step` the degrees between the angles, `corners` what lies outside
    turned images. `calibration` are training images for the merge barrier (None: the images
    themselves), `control` another training of the same architecture for it. `stages` names the
    modules to look at in a model that is not ours, `fields` the groups of stages that do not say
    them (`trainers.instruments.feature_maps.watch`). A network of ours is measured folded, as it
    would be deployed, and folded networks on the CPU by `threads` threads (None: as many as torch
    has). Raises ValueError for logits that do not vary over the images or are not finite.
    """
    began, elements = time.perf_counter(), _elements(images, group, step)
    scored, prepare = model, normalise
    if isinstance(model, Network):
        fields = {f"stage {n}": s.group for n, s in enumerate(model.architecture.stages, start=1)}
        scored = scoring(model)
    if is_folded(scored):
        prepare = (lambda batch: channels_last(normalise(batch))) if normalise else channels_last
    with measuring(scored), _executor(scored, threads if stages is None else 1) as executor:
        error = _submit_error(executor, scored, images, group, stages, fields, prepare, corners)
        matched, steered = _submit_stages(executor, scored, images, group, stages, prepare)
        barriers = _submit_barriers(
            executor, model, images, labels, group, calibration, normalise, control
        )
        lie = _submit_lie(executor, scored, images, prepare)
        measured = error.result() if error else None  # first, for it refuses constants
        pool = executor if isinstance(executor, ThreadPoolExecutor) else None
        predictions = predict_elements(
            scored, images, elements, normalise=prepare, corners=corners, executor=pool
        )
        inside = _inside(lie, matched, steered, barriers)
    return _summarised(predictions, labels, group, seen, step, measured, inside, corners, began)


def _elements(images: Tensor, group: Group, step: int) -> tuple[Element, ...]:
    """Those of the group and of the angles. Raises ValueError where they change the shape."""
    elements = tuple(dict.fromkeys((*group.elements, *angle_elements(step))))
    if images.shape[-1] != images.shape[-2] and any(e.swaps_axes for e in elements if e.on_grid):
        raise ValueError(
            f"the images are {images.shape[-2]}x{images.shape[-1]} pixels, and quarter turns "
            "change their shape; make them square"
        )
    return elements


@dataclass(frozen=True)
class _Inside:
    """What the instruments other than accuracy and equivariance error gave."""

    lie: tuple[LieDerivative, ...]
    matched: tuple[MatchedStage, ...]
    steerability: tuple[Steerability, ...]
    barriers: tuple[MergeBarrier, ...]
    notes: tuple[str, ...]  # why others gave nothing


def _inside(*parts: Sequence[Attempt]) -> _Inside:
    """What the instruments gave, in the order of the fields."""
    notes: list[str] = []
    results = [_gathered(notes, part) for part in parts]
    return _Inside(*results, notes=tuple(notes))


def _summarised(
    predictions: Predictions,
    labels: Tensor,
    group: Group,
    seen: Iterable[Element],
    step: int,
    error: EquivarianceError | None,
    inside: _Inside,
    corners: Corners,
    began: float,
) -> Measurement:
    others = group.elements if group != TRIVIAL else ()
    return Measurement(
        group=group,
        num_images=len(labels),
        accuracy=summarise(predictions, labels, group, seen),
        curve=summarise_angles(predictions, labels, step),
        consistency=consistency(predictions, others) if others else None,
        effective_invariance=effective_invariance(predictions, others) if others else None,
        error=error,
        lie=inside.lie,
        matched=inside.matched,
        steerability=inside.steerability,
        barriers=inside.barriers,
        seconds=time.perf_counter() - began,
        notes=inside.notes,
        corners=corners,
    )


def is_folded(model: Forward) -> TypeGuard[nn.Module]:
    """True for the networks that `fold` and a bundle's model.py return: plain operations that
    several threads may run at once.
    """
    return (
        isinstance(model, nn.Module)
        and type(model).__name__ == PlainNetwork.__name__
        and hasattr(model, "forward_with_stages")
    )


class _InTurn(Executor):
    """Does what it is given at once: for models that cannot be trusted to run in several threads,
    and on a GPU.
    """

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """The finished future of the work."""
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _executor(model: Forward, threads: int | None) -> Iterator[Executor]:
    """Threads for folded networks on the CPU (not for named modules, which are watched by hooks);
    else what does one thing after the other.
    """
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    if not is_folded(model) or next(model.parameters()).device.type != "cpu":
        yield _InTurn()
    elif threads > 1:
        with thread_pool(threads) as pool:
            yield pool
    else:  # sums that torch shares out among its own threads round otherwise than those of one
        torch.set_num_threads(1)
        try:
            yield _InTurn()
        finally:
            torch.set_num_threads(before)


def _submit_error(
    executor: Executor,
    model: Forward,
    images: Tensor,
    group: Group,
    stages: Sequence[str] | None,
    fields: Mapping[str, Group] | None,
    prepare: Normalise | None,
    corners: Corners,
) -> Future[EquivarianceError] | None:
    """The equivariance error; None for the trivial group, under which every model is exact."""
    if group == TRIVIAL:
        return None
    few = _spaced(images, MEASURED_IMAGES)
    return executor.submit(
        lambda: equivariance_error(
            model,
            few,
            group,
            stages=stages,
            fields=fields,
            normalise=prepare,
            corners=corners,
        )
    )


def _submit_lie(
    executor: Executor, model: Forward, images: Tensor, prepare: Normalise | None
) -> list[Attempt]:
    few = _spaced(images, MEASURED_IMAGES)
    return [executor.submit(_attempted, lambda: lie_derivatives(model, few, normalise=prepare))]


def _spaced(images: Tensor, count: int) -> Tensor:
    """`count` of the images, or all if there are fewer, evenly spaced, since data is often sorted
    by class.
    """
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


def _attempted(instrument: Callable[[], tuple]) -> tuple | str:
    """What the instrument returns; where it does not apply to the model, the reason."""
    try:
        return instrument()
    except ValueError as error:
        return str(error)


def _gathered(notes: list[str], futures: Sequence[Attempt]) -> tuple:
    """All results one after the other; reasons for having none go to the notes."""
    results: tuple = ()
    for result in (future.result() for future in futures):
        if not isinstance(result, str):
            results += result
        elif result not in notes:
            notes.append(result)
    return results


def _submit_stages(
    executor: Executor,
    model: Forward,
    images: Tensor,
    group: Group,
    stages: Sequence[str] | None,
    prepare: Normalise | None,
) -> tuple[list[Attempt], list[Attempt]]:
    """Matched channels and steerability, for every generator."""
    if not isinstance(model, nn.Module):
        return [], []
    last, chosen = stages[-1] if stages else None, generators(group)
    steered = [
        executor.submit(
            _attempted,
            lambda e=e: (
                steerability(
                    model, _spaced(images, STEER_IMAGES), e, stage=last, normalise=prepare
                ),
            ),
        )
        for e in chosen
    ]
    matched = [
        executor.submit(
            _attempted,
            lambda e=e: layerwise_equivariance(
                model, _spaced(images, MATCH_IMAGES), e, stages=stages, normalise=prepare
            ),
        )
        for e in chosen
    ]
    return matched, steered


def _submit_barriers(
    executor: Executor,
    model: Forward,
    images: Tensor,
    labels: Tensor,
    group: Group,
    calibration: Tensor | None,
    normalise: Normalise | None,
    control: Network | None,
) -> list[Attempt]:
    if not isinstance(model, Network):
        return []
    chosen = torch.linspace(0, len(images) - 1, min(512, len(images))).long()
    calibration = None if calibration is None else _spaced(calibration, 256)

    def one_by_one() -> tuple[MergeBarrier, ...]:  # they hook into the same network
        return tuple(
            merge_barrier(
                model,
                images[chosen],
                labels[chosen.to(labels.device)],
                element,
                calibration=calibration,
                normalise=normalise,
                control=control,
            )
            for element in generators(group)
        )

    return [executor.submit(_attempted, one_by_one)]
