"""The keys of `space:` about relaxed weights, and how candidates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from searchspace.choices import Trial, choose, listed
from searchspace.layers import Stage
from searchspace.weights.governor import DEFAULT_GOVERNOR, Governor
from searchspace.weights.relaxation import Relaxation


def _relaxations(value: Any) -> tuple[str, ...]:
    """Texts of relaxations, each as it prints, without its group: `+C1`. Raises ValueError."""
    return tuple(
        text if text == "none" else str(Relaxation.parse(text)) for text in map(str, listed(value))
    )


def _governors(value: Any) -> tuple[str, ...]:
    return tuple(str(Governor.parse(str(text))) for text in listed(value))


Relaxations = Annotated[tuple[str, ...], BeforeValidator(_relaxations), Field(min_length=1)]
Governors = Annotated[tuple[str, ...], BeforeValidator(_governors), Field(min_length=1)]


def relaxed_stages(stages: Sequence[Stage], text: str) -> tuple[Stage, ...]:
    """The stages with the relaxation where it suits their group; `none` relaxes nothing."""
    relaxation = None if text == "none" else Relaxation.parse(text)
    return tuple(
        replace(s, relaxation=relaxation) if relaxation and relaxation.suits(s.group) else s
        for s in stages
    )


def fitting(texts: Sequence[str], stages: Sequence[Stage], filters: str) -> tuple[str, ...]:
    """The relaxations that change a network of these stages; `none` where no other does."""
    if filters != "free":
        return ("none",)
    suits = tuple(
        t for t in texts if t == "none" or any(Relaxation.parse(t).suits(s.group) for s in stages)
    )
    return suits or ("none",)


def sample_relaxation(
    trial: Trial, texts: Sequence[str], stages: tuple[Stage, ...], filters: str
) -> tuple[Stage, ...]:
    """The stages with a relaxation drawn from those that suit them."""
    choices = fitting(texts, stages, filters)
    name = "relaxation" if len(choices) == len(texts) else f"relaxation/{stages[0].group}"
    return relaxed_stages(stages, choose(trial, name, choices))


def sample_governor(trial: Trial, texts: Sequence[str], stages: Sequence[Stage]) -> Governor | None:
    """What governs gamma; None without a pathway."""
    kinds = {s.relaxation.kind for s in stages if s.relaxation is not None}
    if "pathway" not in kinds:
        return None
    governor = Governor.parse(choose(trial, "gamma", texts))
    return None if governor == DEFAULT_GOVERNOR else governor
