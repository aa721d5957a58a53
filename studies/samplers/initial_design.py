"""The initial design: first proposals that cover the degrees of equivariance.

Random first proposals rarely contain an exact network, which needs the right group, layout, size
and head at once. Each first proposal is the one of several random drafts that is farthest from all
earlier ones (Mitchell's best candidate, 1991). The distance counts choices that differ and the
share of the declared symmetry that survives, both of which are known before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy
from optuna.trial import FrozenTrial

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate, Recipe
from searchspace.training.losses import losses_text
from searchspace.weights.governor import DEFAULT_GOVERNOR
from studies.config import Study
from studies.samplers.enumeration import all_drafts
from studies.samplers.planned import draw_planned

DESIGN_DRAFTS = 16
ALL = 400  # combinations of a finite space, up to which every one is listed
# weight of the surviving share of the declared symmetry, beside the share of choices that differ
SURVIVING = 1.0
WEIGHT_DECADES = 3.0  # of the loss weight that count as one whole difference


class InitialDesign:
    """Plans the farthest of several random drafts from all earlier trials."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._group = Group.parse(study.symmetry.group)

    def plan(self, trials: Sequence[FrozenTrial], rng: numpy.random.Generator) -> Mapping[str, Any]:
        """Parameters of the farthest draft; the first proposal of a study is any draft."""
        texts = [
            trial.user_attrs.get("architecture") or trial.user_attrs.get("enqueued")
            for trial in trials
        ]
        tried = [features_of_text(text, self._group) for text in texts if text]
        sizes = self._study.space.pixels
        span = max(1, sizes[-1] - sizes[0])
        return max(
            self._drafts(DESIGN_DRAFTS if tried else 1, rng),
            key=lambda drafted: min(
                (candidate_distance(features_of(drafted[1], self._group), t, span) for t in tried),
                default=0.0,
            ),
        )[0]

    def _drafts(
        self, count: int, rng: numpy.random.Generator
    ) -> list[tuple[Mapping[str, Any], Candidate]]:
        """Parameters and candidates: some of all of a small space, each as likely; else random."""
        space = self._study.space  # frozen, so it hashes
        everything = all_drafts(space, self._group, ALL)  # pyright: ignore[reportArgumentType]
        if everything is None:
            drawn = (draw_planned(self._study, {}, rng) for _ in range(count))
            return [(draft.params, candidate) for draft, candidate in drawn]
        chosen = rng.choice(len(everything), min(count, len(everything)), replace=False)
        return [everything[i] for i in chosen]


@dataclass(frozen=True)
class Features:
    """What distinguishes candidates before training; widths do not count, they follow from the
    rest.
    """

    # family, groups, stages, layout, head, filters, losses
    choices: tuple[Any, ...]
    size: int  # pixels
    loss_weight: float  # decimal logarithm of the largest; 0 without a loss
    surviving: float  # share of the declared symmetry under which the logits are invariant
    dropout: tuple[str, ...] = ()  # the kind of each stage; empty where all are none
    dropout_rate: float = 0.0  # mean over the stages
    # of relaxed weights from the constraint at the start, expected, mean over the stages
    weight_distance: float = 0.0
    learning_rate: float | None = None  # None: the study's
    # choices that most spaces leave at their default: orbit, coordinates, augmentation, invariant
    # shares, streams, relaxations, gamma. They count only where they differ, so that a space
    # without them is searched as if there were none.
    optional: tuple[Any, ...] = ()


def features_of(candidate: Candidate, declared: Group) -> Features:
    """The features of a candidate, without its learning rate."""
    architecture, recipe = candidate.architecture, candidate.recipe
    stages = architecture.stages
    shape = tuple((s.kernel, s.stride, s.padding, s.residual) for s in stages)
    layout = tuple(str(s.subsampling) for s in stages)
    dropouts = [s.dropout for s in stages]
    choices = (
        architecture.family,
        str(stages[0].group),
        str(stages[-1].group),
        tuple(str(s.group) for s in stages),
        shape,
        layout,
        architecture.head,
        architecture.filters,
        _unweighted(recipe),
    )
    return Features(
        choices,
        architecture.size[0],
        math.log10(max((loss.weight for loss in recipe.losses), default=1.0)),
        _surviving(architecture, declared),
        tuple(d.kind for d in dropouts) if any(dropouts) else (),
        sum(d.rate for d in dropouts) / len(dropouts),
        weight_distance=_weight_distance(candidate),
        optional=(
            str(architecture.orbit),
            architecture.coordinates,
            str(recipe.augment),
            tuple((stage.invariant, stage.stream) for stage in stages),
            tuple(str(s.relaxation) for s in stages),
            str(recipe.gamma),
        ),
    )


def _weight_distance(candidate: Candidate) -> float:
    """The expected distance of a new network's relaxed weights, mean over the stages."""
    stages, gamma = candidate.architecture.stages, candidate.recipe.gamma or DEFAULT_GOVERNOR
    distances = [s.relaxation.start_distance(s.group, gamma.start) for s in stages if s.relaxation]
    return sum(distances) / len(stages)


def _unweighted(recipe: Recipe) -> str:
    """The equivariance losses, their groups and stages, and how they are weighted."""
    losses = losses_text(tuple(replace(loss, weight=1.0) for loss in recipe.losses))
    return losses if recipe.weighting == "constant" else f"{losses} {recipe.weighting}"


@lru_cache(maxsize=16384)
def _surviving(architecture: Architecture, declared: Group) -> float:
    """The share of the declared symmetry under which the logits are invariant."""
    return len(verdict(architecture, declared).invariant) / declared.order


def candidate_distance(a: Features, b: Features, span: int) -> float:
    """How different two candidates are, from 0 to 2; `span` is the range of sizes in pixels."""
    differing = (
        sum(x != y for x, y in zip(a.choices, b.choices))
        + min(1.0, abs(a.size - b.size) / span)
        + min(1.0, abs(a.loss_weight - b.loss_weight) / WEIGHT_DECADES)
        + (a.dropout != b.dropout)
        + abs(a.dropout_rate - b.dropout_rate)
        + abs(a.weight_distance - b.weight_distance)
    )
    more = sum(x != y for x, y in zip(a.optional, b.optional))
    return (differing + more) / (len(a.choices) + 2 + more) + SURVIVING * abs(
        a.surviving - b.surviving
    )


@lru_cache(maxsize=16384)
def features_of_text(text: str, declared: Group) -> Features:
    """The features of a candidate's text, cached."""
    return features_of(Candidate.parse(text), declared)
