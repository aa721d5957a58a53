"""The keys of `space:` about relaxed weights, and how candidates draw them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from searchspace.choices import TrialSampler, choose, listed
from searchspace.groups import Group
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


def require_suiting(
    texts: Sequence[str], groups: Collection[Group], filters: Sequence[str]
) -> None:
    """Raises ValueError for a relaxation that suits none of the groups that stages can have."""
    for text in texts:
        if text == "none":
            continue
        if "free" not in filters or not any(Relaxation.parse(text).suits(g) for g in groups):
            names = ", ".join(sorted(map(str, groups))) or "none"
            raise ValueError(
                f"relaxation {text} suits no stage of the space (groups: {names}; filters: "
                f"{', '.join(filters)}); it needs filters: [free] and a steerable group that it "
                "relaxes, such as C4 with +C1: add one, or leave it out"
            )


def require_pathways(texts: Sequence[str], relaxations: Sequence[str]) -> None:
    """Raises ValueError where gamma is governed and no relaxation is a pathway."""
    governed = [text for text in texts if Governor.parse(text) != DEFAULT_GOVERNOR]
    if governed and not any(text.startswith("+") for text in relaxations):
        raise ValueError(
            f"gamma is {governed[0]}, which governs residual pathways, and the space has none; add "
            "one to relaxation, such as +C1, or leave gamma out"
        )


def fitting_relaxations(
    texts: Sequence[str], stages: Sequence[Stage], filters: str
) -> tuple[str, ...]:
    """The relaxations that change a network of these stages; `none` where no other does."""
    if filters != "free":
        return ("none",)
    suits = tuple(
        t for t in texts if t == "none" or any(Relaxation.parse(t).suits(s.group) for s in stages)
    )
    return suits or ("none",)


def sample_relaxation(
    trial: TrialSampler, texts: Sequence[str], stages: tuple[Stage, ...], filters: str
) -> tuple[Stage, ...]:
    """The stages with a relaxation drawn from those that suit them."""
    choices = fitting_relaxations(texts, stages, filters)
    name = "relaxation" if len(choices) == len(texts) else f"relaxation/{stages[0].group}"
    return relaxed_stages(stages, choose(trial, name, choices))


def sample_governor(
    trial: TrialSampler, texts: Sequence[str], stages: Sequence[Stage]
) -> Governor | None:
    """What governs gamma; None without a pathway."""
    kinds = {s.relaxation.kind for s in stages if s.relaxation is not None}
    if "pathway" not in kinds:
        return None
    governor = Governor.parse(choose(trial, "gamma", texts))
    return None if governor == DEFAULT_GOVERNOR else governor
