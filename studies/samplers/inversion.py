"""The parameters under which a search space samples a given candidate, so that samplers learn from
architectures that did not come from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.training.augmentation import Augmentation
from searchspace.training.dropout import Dropout
from searchspace.training.spaces import loss_answers, without_weights
from searchspace.weights.governor import DEFAULT_GOVERNOR
from studies.config import Study
from studies.samplers.planned import base_name


def parameters_of(study: Study, candidate: Candidate) -> dict[str, Any] | None:
    """The parameters of `candidate` in the study's space, or None if it lies outside.

    A candidate that only trains the same network in the same way counts too. Where the space
    matches widths, they do not count: they follow from the parameters. A candidate without a
    learning rate, or an augmentation, has that of the study's training.
    """
    space = study.space.model_copy(update={"width": None})
    declared = Group.parse(study.symmetry.group)
    wanted = _comparable(study, candidate)
    alike: dict[str, Any] | None = None
    dropouts = tuple(dict.fromkeys(stage.dropout for stage in wanted.architecture.stages))
    for backbone, layout, kind, exact, dropout in itertools.product(
        space.backbone, space.layout, _kinds(study, wanted), (True, False), dropouts
    ):
        answers = _Answers(wanted, backbone, layout, kind, exact, dropout)
        try:
            sampled = space.sample(answers, declared=declared)
        except _OutsideError:
            continue
        sampled = _comparable(study, sampled)
        if sampled == wanted:
            return answers.params
        if alike is None and sampled.key == wanted.key:
            alike = answers.params
    return alike


def _comparable(study: Study, candidate: Candidate) -> Candidate:
    """The candidate with what the study's training decides; with one field in every stage where
    the space matches widths.
    """
    recipe = candidate.recipe
    candidate = replace(
        candidate,
        recipe=replace(
            recipe,
            learning_rate=recipe.learning_rate or study.training.learning_rate,
            augment=recipe.augment or _augmentation(study),
        ),
    )
    if study.space.width is None:
        return candidate
    architecture = candidate.architecture
    stages = tuple(replace(stage, fields=1) for stage in architecture.stages)
    return replace(candidate, architecture=replace(architecture, stages=stages))


def _augmentation(study: Study) -> Augmentation:
    rotation = study.training.augment.rotation
    if isinstance(rotation, str):
        return Augmentation(rotation)
    return Augmentation("normal", *rotation.normal)


def _kinds(study: Study, candidate: Candidate) -> Sequence[str]:
    """The kinds of loss of the space that may be the candidate's."""
    mine = [loss.kind for loss in candidate.recipe.losses]
    choices = study.space.equivariance_loss.kind
    return [k for k in choices if [loss.kind for loss in without_weights(k)] == mine] or ["none"]


class _OutsideError(Exception):
    """The candidate is not among the choices of the space."""


class _Answers:
    """A trial that answers with the choices of a candidate and keeps them in `params`."""

    def __init__(
        self,
        candidate: Candidate,
        backbone: str,
        layout: str,
        kind: str,
        exact: bool,
        dropout: Dropout,
    ) -> None:
        architecture, recipe = candidate.architecture, candidate.recipe
        groups = [stage.group for stage in architecture.stages]
        same = sum(1 for _ in itertools.takewhile(lambda group: group == groups[0], groups))
        self._answers: dict[str, Any] = {
            "family": architecture.family,
            "group": str(groups[0]),
            "restrict_after": "none" if same == len(groups) else same,
            "restrict_to": str(groups[-1]),
            "backbone": backbone,
            "layout": layout,
            "exact": exact,
            "input_size": architecture.size[0],
            "head": architecture.head,
            "block_head": architecture.head,
            "filters": architecture.filters,
            "relaxation": next(
                (str(s.relaxation) for s in architecture.stages if s.relaxation), "none"
            ),
            "gamma": str(recipe.gamma or DEFAULT_GOVERNOR),
            "dropout": dropout.kind,
            "dropout_rate": dropout.rate,
            "streams": " & ".join(str(s.stages[0].group) for s in architecture.streams)
            if len(architecture.streams) > 1
            else "none",
            "invariant_share": architecture.stages[0].invariant,
            "coordinates": architecture.coordinates,
            "orbit": str(architecture.orbit),
            "augment": str(recipe.augment),
            "learning_rate": recipe.learning_rate,
            "loss_weighting": recipe.weighting,
            **loss_answers(recipe.losses, kind),
        }
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The candidate's choice."""
        return self._answer(name, self._answers.get(base_name(name)) in choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """The candidate's number."""
        value = self._answers.get(base_name(name))
        fits = value is not None and low <= value <= high and (value - low) % step == 0
        return self._answer(name, fits)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The candidate's number."""
        value = self._answers.get(base_name(name))
        return self._answer(name, value is not None and low <= value <= high)

    def _answer(self, name: str, fits: bool) -> Any:
        if not fits:
            raise _OutsideError(name)
        self.params[name] = self._answers[base_name(name)]
        return self.params[name]
