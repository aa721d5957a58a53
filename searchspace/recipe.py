"""How an architecture is trained (`Recipe`), and both together (`Candidate`): what a search
proposes.

    >>> c = Candidate.parse("28px: 10k3@C4, 10k3 max2/2 loss=layerwise:0.1 learning_rate=0.003")
    >>> str(c.architecture), c.recipe.loss.weight, Candidate.parse(str(c)) == c
    ('28px: 10k3@C4, 10k3 max2/2', 0.1, True)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from searchspace.architecture import Architecture

LossKind = Literal["none", "layerwise", "latent", "label"]
LOSS_KINDS: tuple[LossKind, ...] = get_args(LossKind)
RECIPE_OPTIONS = ("loss", "learning_rate")
HIGHEST_RATE = 100  # of learning: above it no optimizer here trains


@dataclass(frozen=True)
class Loss:
    """The equivariance loss added to the cross entropy, `weight` times; its group is the declared
    symmetry of the study.
    """

    kind: LossKind = "none"
    weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in LOSS_KINDS:
            raise ValueError(
                f"the equivariance loss is '{self.kind}'; choose one of {', '.join(LOSS_KINDS)}"
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"the weight of the equivariance loss is {self.weight}; it must be finite and "
                "not negative"
            )
        if (self.kind == "none") != (self.weight == 0):
            object.__setattr__(self, "kind", "none")
            object.__setattr__(self, "weight", 0.0)

    def __str__(self) -> str:
        return "none" if self.kind == "none" else f"{self.kind}:{self.weight!r}"


NO_LOSS = Loss()


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained, where that differs between the candidates of one study."""

    loss: Loss = NO_LOSS
    learning_rate: float | None = None  # None: the one of the study's training

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"learning_rate is {rate}; it must be a finite number above 0")

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Recipe:
        """The recipe of `loss` and `learning_rate` among the options of a text. Raises ValueError
        that names the option in error.
        """
        loss, rate = options.get("loss"), options.get("learning_rate")
        return cls(
            NO_LOSS if loss is None else parse_loss(loss), None if rate is None else _rate(rate)
        )

    @property
    def options(self) -> tuple[str, ...]:
        """The options in text form, such as `loss=layerwise:0.1`; those at their default are left
        out.
        """
        loss = () if self.loss == NO_LOSS else (f"loss={self.loss}",)
        rate = () if self.learning_rate is None else (f"learning_rate={self.learning_rate!r}",)
        return loss + rate


@dataclass(frozen=True, repr=False)
class Candidate:
    """One point of a search: what is built and how it is trained."""

    architecture: Architecture
    recipe: Recipe = Recipe()

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

        A layerwise loss is a mean over stages, so that with it repeats are not the same as stages
        written out.
        """
        stages_count = self.recipe.loss.kind == "layerwise"
        recipe, rate = replace(self.recipe, learning_rate=None), self.recipe.learning_rate
        simplest = Candidate(self.architecture.canonical(keep_repeats=stages_count), recipe)
        return f"{simplest}{'' if rate is None else f' learning_rate={rate:.6g}'}"


def parse_loss(text: str) -> Loss:
    """The equivariance loss that `text` describes: `layerwise:0.1`, `0.1` (layerwise) or `none`."""
    kind, colon, weight = text.partition(":")
    if not colon and kind not in LOSS_KINDS:
        kind, weight = "layerwise", text
    if kind == "none" and not weight:
        return NO_LOSS
    if kind not in LOSS_KINDS:
        raise ValueError(
            f"loss is '{text}'; write a kind ({', '.join(LOSS_KINDS)}) and a weight, such as "
            "layerwise:0.1"
        )
    try:
        return Loss(kind, float(weight))
    except ValueError:
        raise ValueError(
            f"loss is '{text}'; write a kind ({', '.join(LOSS_KINDS)}) and a finite weight of at "
            "least 0, such as layerwise:0.1"
        ) from None


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        raise ValueError(
            f"learning_rate is '{text}'; write a number above 0, such as learning_rate=0.01"
        ) from None
    return require_trainable(rate) if math.isfinite(rate) else rate


def require_trainable(rate: float) -> float:
    """The learning rate. Raises ValueError where it is above what any optimizer here trains with.

    A recipe alone does not ask that: journals of earlier versions hold higher rates.
    """
    if rate > HIGHEST_RATE:
        raise ValueError(
            f"learning_rate is {rate:g}; it must be at most {HIGHEST_RATE}, such as 0.01"
        )
    return rate
