"""The keys of `space:` about training: augmentation, equivariance losses, and how candidates draw
them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from searchspace.choices import (
    Interval,
    Listed,
    NotEmpty,
    Positive,
    Section,
    TrialSampler,
    choose,
    listed,
    real,
    require_once,
)
from searchspace.groups import Group
from searchspace.recipe import Weighting
from searchspace.training.augmentation import Augmentation, augmentation_texts
from searchspace.training.losses import LOSS_KINDS, OF_STAGES, Loss, parse_losses

DECLARED, ALL = "declared", "all"
MOST_WEIGHT = 1e6  # of a loss
_KIND = re.compile(r"([a-z_]+)")


def _augmentations(value: Any) -> tuple[str, ...] | None:
    return None if value is None else augmentation_texts(listed(value))


def without_weights(text: str) -> tuple[Loss, ...]:
    """The losses of a text such as `layerwise@R8-4-2-1+label`, each of weight 1."""
    if text == "none":
        return ()
    return parse_losses(re.sub(r"(^|\+)([a-z_]+)", r"\1\2:1", text))


def _kinds(value: Any) -> tuple[str, ...]:
    """Kinds of loss, each spelled as it prints. Raises ValueError for another text."""
    kinds = tuple(map(str, listed(value)))
    for text in kinds:
        try:
            if not all(re.match("[a-z]", part) for part in text.split("+")):
                raise ValueError(text)  # a number is a weight without a kind
            without_weights(text)
        except ValueError:
            raise ValueError(
                f"'{text}' is not a kind of equivariance loss; choose among "
                f"{', '.join(LOSS_KINDS)}, with a group as layerwise@R8-4-2-1, or several as "
                "layerwise+label; weights stand under weight"
            ) from None
    return kinds


def _groups(value: Any) -> tuple[str, ...]:
    return tuple(
        name if name == DECLARED else str(Group.parse(str(name))) for name in listed(value)
    )


def _stages(value: Any) -> tuple[str, ...]:
    """`all`, or numbers of stages joined by commas. Raises ValueError for another text."""
    texts = tuple(ALL if text == "none" else str(text) for text in listed(value))
    for text in texts:
        if text != ALL and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
            raise ValueError(
                f"'{text}' does not say which stages a loss reads; write all, a stage's number, or "
                "several such as '1,2'"
            )
    return tuple(
        text if text == ALL else ",".join(map(str, sorted(set(map(int, text.split(","))))))
        for text in texts
    )


Augmentations = Annotated[tuple[str, ...], BeforeValidator(_augmentations), NotEmpty]


class LossSpace(Section):
    """Kinds of equivariance loss, and what those that are not none are drawn with."""

    # each a kind, one with its own group (layerwise@R8-4-2-1), or several (layerwise+label)
    kind: Annotated[tuple[str, ...], BeforeValidator(_kinds), NotEmpty] = ("none",)
    weight: Positive = Interval(low=0.01, high=10, log=True)
    # of kinds without their own: the study's symmetry, or others
    group: Annotated[tuple[str, ...], BeforeValidator(_groups), NotEmpty] = (DECLARED,)
    # that a loss reads, for kinds that read stages: all, or such as 3 and "1,2"
    stages: Annotated[tuple[str, ...], BeforeValidator(_stages), NotEmpty] = (ALL,)
    # of several terms: constant, or adapted by their gradients
    weighting: Annotated[tuple[Weighting, ...], Listed, NotEmpty] = ("constant",)

    @classmethod
    def meaning(cls, key: str, choice: Any) -> Hashable:
        """The losses of a kind, in any order."""
        return tuple(sorted(choice.split("+"))) if key == "kind" else super().meaning(key, choice)

    @field_validator("weight")
    @classmethod
    def _of_use(cls, value: float | Interval) -> float | Interval:
        most = value.high if isinstance(value, Interval) else value
        if most > MOST_WEIGHT:
            raise ValueError(
                f"a loss has weight {most:g}; it must be at most {MOST_WEIGHT:g}, such as 0.1: "
                "beside a larger one the classes do not count"
            )
        return value

    def check_elements(self, declared: Group) -> None:
        """Raises ValueError for a loss that would have no element to compare images with."""
        for loss in (each for text in self.kind for each in without_weights(text)):
            for name in self.group if loss.group is None else (DECLARED,):
                loss.check_elements(declared if name == DECLARED else Group.parse(name))

    def require_once(self, declared: Group) -> None:
        """Raises ValueError for losses, or groups, that are the same under the declared group,
        which has a word of its own.
        """

        def named(name: str) -> str:
            return str(declared) if name == DECLARED else name

        def losses(text: str) -> tuple[str, ...]:
            return tuple(
                sorted(
                    str(replace(each, group=None) if each.group == declared else each)
                    for each in without_weights(text)
                )
            )

        require_once("equivariance_loss.group", self.group, named)
        if self.group == (DECLARED,):
            require_once("equivariance_loss.kind", self.kind, losses)

    def require_stages(self, stages: int) -> None:
        """Raises ValueError for stages that a loss would read and no network has."""
        for text in self.stages:
            if text != ALL and _last(text) > stages:
                raise ValueError(
                    f"equivariance_loss.stages names stage {_last(text)}, and networks of the "
                    f"space have at most {stages}; choose 1 to {stages}, or all"
                )

    def sample(
        self, trial: TrialSampler, stages: int, declared: Group | None
    ) -> tuple[tuple[Loss, ...], Weighting]:
        """(losses, weighting) of a network of that many stages that is not exact."""
        chosen = without_weights(choose(trial, "equivariance_loss", self.kind))
        losses = tuple(
            self._drawn(trial, loss, f"_{number}" if number > 1 else "", stages, declared)
            for number, loss in enumerate(chosen, start=1)
        )
        return losses, choose(trial, "loss_weighting", self.weighting) if losses else "constant"

    def _drawn(
        self, trial: TrialSampler, loss: Loss, suffix: str, stages: int, declared: Group | None
    ) -> Loss:
        """The loss with its weight, and with the group and the stages that it does not name."""
        if loss.group is None:
            name = choose(trial, f"loss_group{suffix}", self.group)
            group = None if name == DECLARED else Group.parse(name)
            loss = replace(loss, group=None if group == declared else group)
        if not loss.stages and loss.kind in OF_STAGES:
            fitting = [text for text in self.stages if text == ALL or _last(text) <= stages]
            text = choose(trial, f"loss_stages{suffix}", fitting or [ALL])
            loss = replace(loss, stages=() if text == ALL else tuple(map(int, text.split(","))))
        weight = self.weight
        if isinstance(weight, Interval):
            weight = real(trial, f"loss_weight{suffix}", weight)
        return replace(loss, weight=weight)


def require_latent(heads: Sequence[str], kinds: Sequence[str]) -> None:
    """Raises ValueError where maxima over blocks are offered and no loss takes them."""
    blocks = [head for head in heads if head.startswith("block_max")]
    if blocks and not any("latent" in kind for kind in kinds):
        raise ValueError(
            f"head {blocks[0]} is for networks that train with the latent loss, and "
            f"equivariance_loss.kind is {', '.join(kinds)}; add latent, or leave the head out"
        )


def sample_augmentation(
    trial: TrialSampler, choices: Sequence[str] | None, exact: bool
) -> Augmentation | None:
    """The augmentation of a candidate; None without choices.

    For a network that is exact under the declared group, moving images by its elements changes
    nothing: none takes the place of group.
    """
    if choices is None:
        return None
    apart = [text if text != "group" else "none" for text in choices] if exact else choices
    fewer = len(set(apart)) < len(set(choices)) or "group" in set(choices) - set(apart)
    return Augmentation.parse(choose(trial, "augment/exact" if fewer else "augment", apart))


def loss_answers(losses: Sequence[Loss], kind: str) -> dict[str, Any]:
    """The parameters under which a `LossSpace` with that kind draws the losses."""
    answers: dict[str, Any] = {"equivariance_loss": kind}
    for number, loss in enumerate(losses, start=1):
        suffix = f"_{number}" if number > 1 else ""
        answers[f"loss_weight{suffix}"] = loss.weight
        answers[f"loss_group{suffix}"] = DECLARED if loss.group is None else str(loss.group)
        answers[f"loss_stages{suffix}"] = ",".join(map(str, loss.stages)) or ALL
    return answers


def _last(stages: str) -> int:
    return int(stages.rpartition(",")[2])
