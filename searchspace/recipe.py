"""How an architecture is trained (`Recipe`), and both together (`Candidate`): what a search
proposes.

    >>> c = Candidate.parse("28px: 10k3@C4, 10k3 max2/2 loss=layerwise:0.1 learning_rate=0.003")
    >>> str(c.architecture), c.recipe.losses[0].weight, Candidate.parse(str(c)) == c
    ('28px: 10k3@C4, 10k3 max2/2', 0.1, True)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from searchspace.architecture import Architecture
from searchspace.groups import Group
from searchspace.training.augmentation import Augmentation
from searchspace.training.losses import Loss, losses_text, parse_losses, require_different
from searchspace.weights.governor import DEFAULT_GOVERNOR, Governor

Weighting = Literal["constant", "adapted"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
RECIPE_OPTIONS = ("augment", "loss", "loss_weight", "gamma", "learning_rate")
HIGHEST_RATE = 100  # of learning: above it no optimizer here trains
LOWEST_RATE = 1e-12  # below it weights of float32 stay as they are


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained, where that differs between the candidates of one study."""

    losses: tuple[Loss, ...] = ()  # equivariance losses, added to the cross entropy
    learning_rate: float | None = None  # None: the one of the study's training
    augment: Augmentation | None = None  # None: that of the study's training
    # of the losses: constant, or balanced by their gradients (GradNorm)
    weighting: Weighting = "constant"
    gamma: Governor | None = None  # of residual pathways; None: it stays 1

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"learning_rate is {rate}; it must be a finite number above 0")
        object.__setattr__(self, "losses", require_different(self.losses))
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"loss_weight is '{self.weighting}'; choose one of {', '.join(WEIGHTINGS)}"
            )
        if not self.losses:
            object.__setattr__(self, "weighting", "constant")
        if self.gamma == DEFAULT_GOVERNOR:
            object.__setattr__(self, "gamma", None)

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Recipe:
        """The recipe of those of `RECIPE_OPTIONS` that are among the options of a text. Raises
        ValueError that names the option in error.
        """
        loss, rate, augment, gamma = (
            options.get(name) for name in ("loss", "learning_rate", "augment", "gamma")
        )
        return cls(
            () if loss is None else parse_losses(loss),
            None if rate is None else _rate(rate),
            None if augment is None else Augmentation.parse(augment),
            cast(Weighting, options.get("loss_weight", "constant")),  # checked by Recipe
            None if gamma is None else Governor.parse(gamma),
        )

    def check(self, declared: Group, epochs: int) -> None:
        """Raises ValueError where a training of so many epochs under the declared group could not
        follow it.
        """
        if self.gamma is not None:
            self.gamma.check_epochs(epochs)
        if self.augment is not None:
            self.augment.check(declared)
        for loss in self.losses:
            loss.check_elements(declared)

    def onto(self, architecture: Architecture) -> Candidate:
        """The candidate of an architecture that was trained so, or was made of one that was: gamma
        is left out where there is nothing that it could govern.
        """
        try:
            return Candidate(architecture, self)
        except ValueError:
            return Candidate(architecture, replace(self, gamma=None))

    @property
    def options(self) -> tuple[str, ...]:
        """The options in text form, such as `loss=layerwise:0.1`; those at their default are left
        out.
        """
        rate = self.learning_rate
        texts = {
            "augment": None if self.augment is None else str(self.augment),
            "loss": losses_text(self.losses) if self.losses else None,
            "loss_weight": None if self.weighting == "constant" else self.weighting,
            "gamma": None if self.gamma is None else str(self.gamma),
            "learning_rate": None if rate is None else repr(rate),
        }
        return tuple(f"{name}={text}" for name, text in texts.items() if text is not None)


@dataclass(frozen=True, repr=False)
class Candidate:
    """One point of a search: what is built and how it is trained."""

    architecture: Architecture
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        if self.recipe.gamma is not None:
            self.recipe.gamma.check(self.architecture)
        number = len(self.architecture.stages)
        for loss in self.recipe.losses:
            if loss.stages and loss.stages[-1] > number:
                raise ValueError(
                    f"the loss {loss} reads stage {loss.stages[-1]}, but the architecture has "
                    f"{number}; choose stages from 1 to {number}"
                )

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """The candidate that `text` describes (`searchspace.grammar`). Raises ValueError that names
        the part in error.
        """
        from searchspace.grammar import parse_candidate

        return parse_candidate(text)

    def __str__(self) -> str:
        return " ".join([str(self.architecture), *self.recipe.options])

    def __repr__(self) -> str:
        return f"Candidate.parse({str(self)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the text form and a drawing of the sizes along the network."""
        from searchspace.drawing import architecture_html

        return architecture_html(self.architecture, str(self))

    def with_learning_rate(self, rate: float | None) -> Candidate:
        """The same candidate with another learning rate; None: the one of the study's training."""
        return replace(self, recipe=replace(self.recipe, learning_rate=rate))

    @property
    def key(self) -> str:
        """The same text for candidates that train the same network in the same way.

        A layerwise loss is a mean over stages, and others may name theirs, so that with them
        repeats are not the same as stages written out; those that are named by number keep the
        order of streams.
        """
        named = any(loss.stages for loss in self.recipe.losses)
        stages_count = named or any(loss.kind == "layerwise" for loss in self.recipe.losses)
        recipe, rate = replace(self.recipe, learning_rate=None), self.recipe.learning_rate
        simplest = Candidate(
            self.architecture.canonical(keep_repeats=stages_count, keep_order=named), recipe
        )
        return f"{simplest}{'' if rate is None else f' learning_rate={rate:.6g}'}"


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        raise ValueError(
            f"learning_rate is '{text}'; write a number above 0, such as learning_rate=0.01"
        ) from None
    return require_trainable(rate) if math.isfinite(rate) else rate


def require_trainable(rate: float) -> float:
    """The learning rate. Raises ValueError where it is above what any optimizer here trains
    with, or so small that no weight changes.

    A recipe alone does not ask that: journals of earlier versions hold higher rates.
    """
    if 0 < rate < LOWEST_RATE:
        raise ValueError(
            f"learning_rate is {rate:g}; it must be at least {LOWEST_RATE}, such as 0.01"
        )
    if rate > HIGHEST_RATE:
        raise ValueError(
            f"learning_rate is {rate:g}; it must be at most {HIGHEST_RATE}, such as 0.01"
        )
    return rate
