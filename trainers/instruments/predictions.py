"""What a model predicts for images under each of several elements, one forward for each.

Images are moved while they are pixels and normalised afterwards, so that the corners that a
rotation uncovers are as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group, largest_subgroup
from trainers.actions import act, parts
from trainers.instruments.feature_maps import (
    Forward,
    Normalise,
    device_of,
    measuring,
    pixels,
    watch,
)
from trainers.settings import Corners

# relative to the standard deviation of the logits, float32: exact networks have 1e-6, broken
# layouts 6e-2 and more
LOGIT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Predictions:
    """What a model says of the same images under each of several elements."""

    elements: tuple[Element, ...]
    classes: Tensor  # int64 [element, image]: the predicted class
    confidences: Tensor  # [element, image]: its softmax probability
    # the subgroup whose predictions were shared: measured exact; only the identity: none were
    shared: tuple[Element, ...]
    num_forwards: int  # forwards per image
    # logits [image, class] under the identity, if it was predicted by itself
    upright: Tensor | None = None
    # logits [forward, image, class], where they were to be kept, and the forward of each element
    logits: Tensor | None = None
    forwards: tuple[int, ...] = ()

    def of(self, element: Element) -> tuple[Tensor, Tensor]:
        """Classes and confidences [image] under `element`. Raises ValueError if it was not
        predicted.
        """
        if element not in self.elements:
            raise ValueError(
                f"predictions under {element} are missing; there are those under "
                f"{', '.join(map(str, self.elements))}"
            )
        return self.classes[self.elements.index(element)], self.confidences[
            self.elements.index(element)
        ]


@torch.no_grad()
def invariant_elements(
    model: Forward, images: Tensor, group: Group, *, normalise: Normalise | None = None
) -> tuple[Element, ...]:
    """The subgroup of quarter turns and flips in `group` under which the logits of the images, and
    of the images moved by any of them, are measured not to change, in float32.

    Not to change means by less than 1e-5 of the standard deviation of the logits over `images`,
    besides rounding; 16 images are enough, 2 needed. A constant model is invariant. Non-square
    images keep only the elements that keep their shape.
    """
    with measuring(model):
        images = pixels(images, model)
        prepare = normalise or (lambda moved: moved)
        square = images.shape[-1] == images.shape[-2]
        candidates = [e for e in group.grid.elements if square or not e.swaps_axes]
        logits, _ = watch(
            model, prepare(torch.cat([act(images, e) for e in candidates])), stages=()
        )
        logits = logits.reshape(len(candidates), len(images), -1)
        # Where logits hardly vary, at the start of training, their last digits are larger than 1e-5
        # of that.
        rounding = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
        tolerance = LOGIT_TOLERANCE * float(logits[0].std(0).mean()) + rounding
        # of the moved images, too: what changes nothing upright may after a quarter turn
        return largest_subgroup(
            k
            for k in candidates
            if float((logits[[candidates.index(k @ e) for e in candidates]] - logits).abs().max())
            <= tolerance
        )


@torch.no_grad()
def predict_elements(
    model: Forward,
    images: Tensor,
    elements: Iterable[Element],
    *,
    normalise: Normalise | None = None,
    batch_size: int | None = None,
    share_exact: bool = True,
    corners: Corners = "black",
    keep_logits: bool = False,
    executor: Executor | None = None,
) -> Predictions:
    """The predictions of a model for images under each of `elements`.

    `images` [image, channel, height, width], uint8 or floating point, are moved, then normalised.
    With `share_exact`, quarter turns and flips under which the logits are measured not to change
    cost no forward: 2 instead of 8 for C8 and an exact C4 network. `corners` is what lies outside
    an image that is turned by an angle off the grid. A forward takes `batch_size` images (None: 128
    on a CPU, 1024 on a GPU). `keep_logits`: of all elements, not of the identity alone. `executor`,
    such as `trainers.process.thread_pool`, runs batches side by side, if several threads may call
    the model. Raises ValueError for logits that are not finite.
    """
    batch_size = batch_size or (128 if device_of(model, images).type == "cpu" else 1024)
    elements = tuple(dict.fromkeys(elements))
    if not elements:
        raise ValueError("got no element to predict under; name at least the identity")
    shared = _shared(model, images, normalise) if share_exact else (IDENTITY,)
    plan = _plan(elements, shared, images.shape[-1] == images.shape[-2])
    prepare = normalise or (lambda moved: moved)

    def work(task: tuple[int, Element]) -> list[_Row]:
        start, rest = task
        batch = pixels(images[start : start + batch_size], model)
        return _predict_batch(model, act(batch, rest, corners), plan.alike[rest], prepare)

    tasks = [(start, rest) for start in range(0, len(images), batch_size) for rest in plan.alike]
    classes = torch.empty(len(plan.needed), len(images), dtype=torch.int64)
    confidences = torch.empty(len(plan.needed), len(images))
    by_element: dict[int, list[Tensor]] = {}
    with measuring(model):
        for (start, _), rows in zip(tasks, (executor.map if executor else map)(work, tasks)):
            for row, best, confidence, logits in rows:
                classes[row, start : start + len(best)] = best
                confidences[row, start : start + len(best)] = confidence
                if keep_logits or plan.needed[row] == IDENTITY:
                    by_element.setdefault(row, []).append(logits.cpu())
    logits = {plan.needed[row]: torch.cat(batches) for row, batches in by_element.items()}
    every = torch.stack([logits[e] for e in plan.needed]) if keep_logits else None
    places, rest = list(plan.rows), (len(plan.needed), logits.get(IDENTITY), every)
    return Predictions(elements, classes[places], confidences[places], shared, *rest, plan.rows)


def _shared(model: Forward, images: Tensor, normalise: Normalise | None) -> tuple[Element, ...]:
    """The quarter turns and flips under which the model is exact on 16 of the images."""
    if images.shape[-1] != images.shape[-2] or len(images) < 2:
        return (IDENTITY,)
    few = images[:: max(1, len(images) // 16)][:16]
    return invariant_elements(model, few, Group(4, True), normalise=normalise)


@dataclass(frozen=True)
class _Plan:
    """Which forwards serve which elements. Images moved by k @ e, k exact, are those moved by e,
    then by k, bit for bit (`actions.parts`): of both the model says the same where it is exact.
    """

    needed: tuple[Element, ...]  # under which the model runs
    rows: tuple[int, ...]  # of each element that was asked for: its place in `needed`
    # (place in `needed`, index move) by what interpolates: done once for all that share it
    alike: dict[Element, list[tuple[int, Element]]]


def _plan(elements: Sequence[Element], shared: Sequence[Element], square: bool) -> _Plan:
    sources = [_representative(element, elements, shared) for element in elements]
    needed = tuple(dict.fromkeys(sources))
    alike: dict[Element, list[tuple[int, Element]]] = {}
    for row, element in enumerate(needed):
        exact, rest = parts(element, square)
        alike.setdefault(rest, []).append((row, exact))
    return _Plan(needed, tuple(map(needed.index, sources)), alike)


# place in `needed`, and of each image: class, its probability, and logits
_Row = tuple[int, Tensor, Tensor, Tensor]


@torch.no_grad()  # which holds for one thread only
def _predict_batch(
    model: Forward, turned: Tensor, moves: Sequence[tuple[int, Element]], prepare: Normalise
) -> list[_Row]:
    rows = []
    for row, exact in moves:
        logits = watch(model, prepare(act(turned, exact)), stages=())[0].float()
        best = logits.softmax(1).max(1)
        rows.append((row, best.indices.cpu(), best.values.cpu(), logits))
    return rows


def _representative(
    element: Element, elements: Sequence[Element], shared: Sequence[Element]
) -> Element:
    """The element among `elements` whose predictions serve for `element`: the first in its coset of
    `shared`.
    """
    coset = {k @ element for k in shared}
    return next(e for e in elements if e in coset)


def angle_elements(step: int = 10) -> tuple[Element, ...]:
    """The rotations by 0, `step`, 2 `step` ... degrees below a full turn."""
    if not 1 <= step <= 180:
        raise ValueError(f"the angles are {step} degrees apart; it must be 1 to 180")
    return tuple(Element(Fraction(degrees, 360)) for degrees in range(0, 360, step))
