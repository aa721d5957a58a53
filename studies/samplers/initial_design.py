"""How a search begins: proposals spread over degrees of equivariance, by what is known of them
before training.

Random first proposals leave gaps exactly where the question lies: an exact network takes the right
group, layout, size and head at once, and is rarely met by chance. Each first proposal is the one of
several random drafts that is farthest from everything tried (Mitchell's best candidate, 1991); the
distance counts choices that differ, and how much of the declared symmetry survives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy
from optuna.trial import FrozenTrial

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.samplers.planned import draw

CANDIDATES = 16
# weight of the surviving share of the declared symmetry, beside the share of choices that differ
SURVIVING = 1.0
DECADES = 3.0  # of the loss weight that count as one whole difference


class SpreadStart:
    """Plans the farthest of several random drafts from everything that was tried."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._group = Group.parse(study.symmetry.group)

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of the farthest draft; the first proposal of a study is any draft."""
        texts = [
            trial.user_attrs.get("architecture") or trial.user_attrs.get("enqueued")
            for trial in trials
        ]
        tried = [traits_of_text(text, self._group) for text in texts if text]
        sizes = self._study.space.pixels
        span = max(1, sizes[-1] - sizes[0])
        drafts = [draw(self._study, {}, rng) for _ in range(CANDIDATES if tried else 1)]
        return max(
            drafts,
            key=lambda drafted: min(
                (distance(traits(drafted[1], self._group), t, span) for t in tried), default=0.0
            ),
        )[0].params


# choices, size in pixels, logarithm of the loss weight, surviving share
Traits = tuple[tuple[Any, ...], int, float, float]


def traits(candidate: Candidate, declared: Group) -> Traits:
    """What tells candidates apart before training; widths do not count, they follow from the
    rest.
    """
    architecture, loss = candidate.architecture, candidate.recipe.loss
    stages = architecture.stages
    shape = tuple((s.kernel, s.stride, s.padding, s.residual) for s in stages)
    layout = tuple(str(s.subsampling) for s in stages)
    choices = (
        architecture.family,
        str(stages[0].group),
        str(stages[-1].group),
        tuple(str(s.group) for s in stages),
        shape,
        layout,
        architecture.head,
        architecture.filters,
        loss.kind,
    )
    return (
        choices,
        architecture.size[0],
        math.log10(loss.weight) if loss.kind != "none" else 0.0,
        _surviving(architecture, declared),
    )


@lru_cache(maxsize=16384)
def _surviving(architecture: Architecture, declared: Group) -> float:
    """The share of the declared symmetry under which the logits are invariant."""
    return len(verdict(architecture, declared).invariant) / declared.order


def distance(a: Traits, b: Traits, span: int) -> float:
    """How different two architectures are, from 0 to 2; `span` is the range of sizes in pixels."""
    differing = (
        sum(x != y for x, y in zip(a[0], b[0]))
        + min(1.0, abs(a[1] - b[1]) / span)
        + min(1.0, abs(a[2] - b[2]) / DECADES)
    )
    return differing / (len(a[0]) + 2) + SURVIVING * abs(a[3] - b[3])


@lru_cache(maxsize=16384)
def traits_of_text(text: str, declared: Group) -> Traits:
    """`traits` of a candidate's text; what was asked for before is remembered."""
    return traits(Candidate.parse(text), declared)
