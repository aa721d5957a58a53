"""What a study determines of a proposed candidate before training: costs, symmetry, limits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.journal.trial import RUNG, TrialRecord, inherited_key
from studies.journal.writer import Described, Refusal
from trainers.cores import machine_memory


@dataclass(frozen=True)
class ArchitectureFacts:
    """What a trial's attributes say about its architecture."""

    family: str
    group: str  # of the last stage
    params: int
    macs: int  # per image
    # the logits are invariant under every element of the study's symmetry group
    exact: bool
    surviving: list[str]  # the elements of that group under which the logits are invariant
    input_size: list[int]  # height and width, pixels


@dataclass(frozen=True)
class Facts:
    """The plain facts, and how they stand against the study's constraints."""

    plain: ArchitectureFacts
    excess: dict[str, float]  # by constraint, as a share of the limit; negative is within
    broken: str  # why it cannot be trained; empty if it can


def architecture_facts(
    architecture: Architecture, study: Study, channels: int, classes: int
) -> Facts:
    """The facts of `architecture` in a study whose images have `channels` and `classes`."""
    spent = cost(architecture, channels, classes)
    declared = Group.parse(study.symmetry.group)
    invariant = verdict(architecture, declared).invariant
    plain = ArchitectureFacts(
        architecture.family,
        str(architecture.group),
        spent.params,
        spent.macs,
        len(invariant) == declared.order,
        [element.name for element in invariant],
        list(architecture.size),
    )
    limits = {
        name: limit
        for name, limit in study.constraints.limits().items()
        if name in ("params", "macs")
    }
    excess = {name: getattr(plain, name) / limit - 1 for name, limit in limits.items()}
    broken = "; ".join(
        [
            f"{getattr(plain, name):,} {name} exceed the limit of {limit:,}"
            for name, limit in limits.items()
            if excess[name] > 0
        ]
        or [*_memory_lacking(spent.params, study)]
    )
    return Facts(plain, excess, broken)


def _memory_lacking(params: int, study: Study) -> Iterator[str]:
    """Why this machine could not train that many parameters on its CPU, if it could not: the least
    that a training holds is a weight, its gradient and what the optimizer keeps of it, and once
    more all but the gradient while a checkpoint is written.
    """
    elsewhere = study.resources.address is not None or bool(os.environ.get("RAY_ADDRESS"))
    if elsewhere or study.training.device.startswith("cuda"):
        return
    kept = 1 if study.training.optimizer == "sgd" else 2  # the optimizer's values of each weight
    needed, there = 4 * params * (1 + 1 + kept + 1 + kept), machine_memory()
    if needed > there:
        yield (
            f"{params:,} parameters take {needed / 1e9:,.0f} GB or more to train, and this machine "
            f"has {there / 1e9:,.0f}; choose fewer fields"
        )


def proposed(trial: Any, study: Study, channels: int, classes: int) -> Candidate:
    """What an Optuna trial proposes: the architecture that it was enqueued with, or one drawn from
    the study's space.
    """
    declared = Group.parse(study.symmetry.group)
    enqueued = trial.user_attrs.get("enqueued")
    if enqueued is not None:
        if trial.user_attrs.get("in_space"):  # sampled for its parameters alone
            study.space.model_copy(update={"width": None}).sample(trial, declared=declared)
        return Candidate.parse(enqueued)
    return study.space.sample(trial, channels=channels, classes=classes, declared=declared)


def describe_proposal(
    trial: Any,
    study: Study,
    size: tuple[int, int],
    trainings: Counter[str],
    lock: AbstractContextManager[Any],
) -> Described:
    """The attributes of what an Optuna trial proposes, and why it is refused, if it is.

    `size` are channels and classes; a proposal that is not refused is counted in `trainings`, under
    the lock.
    """
    try:
        proposal = proposed(trial, study, *size)
        known = architecture_facts(proposal.architecture, study, *size)
    except ValueError as error:
        return {}, Refusal(str(error))
    key = inherited_key(proposal.key, trial.user_attrs.get("inherited_from"))
    with lock:
        repeats = trainings[key]
        attributes = attributes_of(proposal, known, key, repeats, study.search.seed)
        if known.broken:
            return attributes, Refusal(known.broken, learn=True)
        if repeats >= study.search.repeats:
            return attributes, Refusal(f"the same architecture was trained {repeats} times already")
        trainings[key] += 1
    return attributes, None


def attributes_of(
    candidate: Candidate, known: Facts, key: str, repeat: int, seed: int
) -> dict[str, Any]:
    """The attributes of a candidate. The architecture, with its loss, comes last: with it, the
    record is complete.
    """
    return {
        **asdict(known.plain),
        **({"constraints": known.excess} if known.excess else {}),
        "canonical": key,
        "learning_rate": candidate.recipe.learning_rate,
        "seed": seed + repeat,
        "repeat": repeat,
        "architecture": str(candidate.with_learning_rate(None)),
    }


def describe_text(
    architecture: str,
    rate: float | None,
    seed: int,
    study: Study,
    channels: int,
    classes: int,
) -> dict[str, Any]:
    """What the journal of `study` says of an architecture that is known as text, learning rate and
    seed. Raises ValueError if it cannot be built.
    """
    candidate = Candidate.parse(architecture).with_learning_rate(rate)
    about = architecture_facts(candidate.architecture, study, channels, classes)
    repeat = seed - study.search.seed
    return {
        **attributes_of(candidate, about, candidate.key, repeat, study.search.seed),
        "architecture": architecture,
    }


def continuation(record: TrialRecord) -> dict[str, Any]:
    """The attributes of a trial that continues the stopped trial `record`."""
    rungs = {
        f"{RUNG}{epoch}": {"scores": scores, "decision": "continue"}
        for epoch, scores in record.rungs.items()
    }
    inherited = {name: value for name, value in record.attributes.items() if name != "attempts"}
    return {**inherited, **rungs, "continues": record.number}
