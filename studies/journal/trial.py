"""A trial as the journal holds it: one immutable record, of which the writer returns a new one
after each change.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from studies.errors import DamagedError, JournalWarning
from studies.journal.records import RUNG, wrong_attributes

# refused: proposed but not trained (too large, or a repeat); earlier: of a warm start,
# or scored on data that has changed since
State = Literal["waiting", "running", "complete", "pruned", "failed", "refused", "earlier"]
# How a worker leaves a trial. `interrupted` and `lost` trials go back to waiting, and so does the
# first `out_of_memory`; the second ends the trial as pruned.
Outcome = Literal["complete", "pruned", "failed", "interrupted", "lost", "out_of_memory"]
Decision = Literal["continue", "stop"]
# search: proposed by the sampler, which learns from it. pair, control: trained to compare another
# trial with (`studies.evidence`); the sampler, the rungs and the front never see it. softened:
# what a trained trial becomes without training (`studies.search.softened`), which the front has.
# model: a torch model from outside, which has no architecture; the front has it too.
TrialKind = Literal["search", "pair", "control", "softened", "model"]
ON_FRONT: tuple[TrialKind, ...] = ("search", "softened", "model")
NOT_TRAINED: tuple[TrialKind, ...] = ("softened", "model")  # complete from the start
KIND = "trial_kind"  # the attribute
TRAINED = "trained"  # the attribute of a softened trial with the text of what was trained
MODEL = "model"  # the attribute of a model from outside with the name of its function
# the states that count towards `search.trials`
ENDED: tuple[State, ...] = ("complete", "pruned", "failed")
SAW = "saw"  # the attribute with what the sampler saw when it proposed the trial


def state_word(state: str) -> str:
    """What a user reads for a state, or for how a worker left a trial: "stopped" for Optuna's word
    "pruned", which JSON, CSV and the journal keep.
    """
    return "stopped" if state == "pruned" else state.replace("_", " ")


def is_feasible(attributes: Mapping[str, Any]) -> bool:
    """Whether a trial with these attributes keeps all constraints, as far as they were measured."""
    return all(excess <= 0 for excess in attributes.get("constraints", {}).values())


def recorded_rungs(attributes: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Epoch -> {"scores", "decision"} of every rung in a trial's attributes, ascending."""
    return {
        int(name.removeprefix(RUNG)): attributes[name]
        for name in sorted(
            (name for name in attributes if name.startswith(RUNG)),
            key=lambda name: int(name.removeprefix(RUNG)),
        )
    }


def inherited_key(key: str, parent: int | None) -> str:
    """The key of a training that begins with the weights of trial `parent` (None: with its own):
    trials with the same key train the same network in the same way.
    """
    return key if parent is None else f"{key} inherited_from={parent}"


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what was proposed, how far it is trained, and how it ended."""

    number: int
    state: State
    values: tuple[float, ...] | None = None  # the objectives of a complete trial, in study order
    # architecture, params, macs, exact, surviving, seed, constraints, "rung 2", ...
    attributes: Mapping[str, Any] = field(default_factory=dict)
    order: int | None = None  # place among the finished trials, in the order of finishing
    started: str | None = None  # ISO 8601, UTC
    finished: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)  # as sampled; only if asked for

    @property
    def architecture(self) -> str | None:
        """The text form of the architecture; None for a trial whose proposal is not complete."""
        return self.attributes.get("architecture")

    @property
    def name(self) -> str | None:
        """The architecture, or what stands in its place: the function that returns a model from
        outside, and what was made of that.
        """
        if self.kind != "model":
            return self.architecture
        return f"{self.attributes.get(MODEL)}, {self.attributes.get('role')}"

    @property
    def whole(self) -> bool:
        """Whether the journal says what is trained: architecture and seed."""
        return self.architecture is not None and "seed" in self.attributes

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.attributes["seed"]

    @property
    def learning_rate(self) -> float | None:
        """The trial's own learning rate; None for the study's."""
        return self.attributes.get("learning_rate")

    @property
    def batch_divisor(self) -> int:
        """2 after the batch did not fit into memory, else 1."""
        return self.attributes.get("batch_divisor", 1)

    @property
    def kind(self) -> TrialKind:
        """What the trial was trained for."""
        attributes = self.attributes
        if isinstance(attributes, JournalAttributes) and not attributes.may_hold(KIND):
            return "search"
        return attributes.get(KIND, "search")

    @property
    def trained(self) -> str | None:
        """The text form of what was trained: of a softened trial that of another."""
        return self.attributes.get(TRAINED, self.architecture)

    @property
    def continues(self) -> int | None:
        """The number of the stopped trial whose training this one continues."""
        return self.attributes.get("continues")

    @property
    def inherited_from(self) -> int | None:
        """The number of the trial with whose weights this one's training began."""
        return self.attributes.get("inherited_from")

    @property
    def inherited_epoch(self) -> int:
        """The epoch of the schedule at which a training with another's weights began, else 0."""
        return self.attributes.get("inherited_epoch", 0)

    @property
    def key(self) -> str | None:
        """The same text for trials that train the same network in the same way."""
        return self.attributes.get("canonical")

    @property
    def reason(self) -> str | None:
        """Why the trial failed or was refused."""
        return self.attributes.get("reason")

    @property
    def constraints(self) -> dict[str, float]:
        """By how much each constraint is exceeded, as a share of its limit; negative is within."""
        return self.attributes.get("constraints", {})

    @property
    def feasible(self) -> bool:
        """True unless a constraint of the study is broken."""
        attributes = self.attributes
        if isinstance(attributes, JournalAttributes) and not attributes.may_hold("constraints"):
            return True
        return is_feasible(attributes)

    @cached_property
    def rungs(self) -> dict[int, dict[str, Any]]:
        """The scores at each epoch at which the trial was compared, ascending."""
        return {epoch: rung["scores"] for epoch, rung in recorded_rungs(self.attributes).items()}

    @cached_property
    def decisions(self) -> dict[int, Decision]:
        """What was decided at each of those epochs, ascending."""
        return {epoch: rung["decision"] for epoch, rung in recorded_rungs(self.attributes).items()}

    @property
    def scores(self) -> dict[str, Any] | None:
        """The latest scores, or None before the first rung."""
        return self.rungs[max(self.rungs)] if self.rungs else None

    @property
    def stopped_at(self) -> int | None:
        """The epoch of the rung that stopped the trial; None for any other trial."""
        last = max(self.decisions, default=None) if self.state == "pruned" else None
        return last if last is not None and self.decisions[last] == "stop" else None


class JournalAttributes(Mapping[str, Any]):
    """The attributes in some lines of a journal, parsed when first read.

    Reading raises DamagedError for a line that is not a record of this version; where it is
    `lenient`, such lines are left out, and a JournalWarning says so.
    """

    def __init__(self, number: int, lines: Sequence[bytes], *, lenient: bool = False) -> None:
        self._number, self._lines, self._lenient = number, lines, lenient

    def may_hold(self, name: str) -> bool:
        """Whether a line contains the name, without parsing; False is certain."""
        quoted = f'"{name}"'.encode()
        return any(quoted in line for line in self._lines)

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        try:
            return self._read(self._lines)
        except (ValueError, AttributeError, RecursionError) as error:
            problem = error
        text = f"what the journal says of trial {self._number} is damaged, or of a newer version"
        if not self._lenient:
            raise DamagedError(
                f"{text} ({problem}); `equisearch repair` keeps the other records"
            ) from None
        attributes: dict[str, Any] = {}
        for line in self._lines:
            with suppress(ValueError, AttributeError, RecursionError):
                attributes.update(self._read([line]))
        warnings.warn(
            f"{text} ({problem}); left out here, and `equisearch repair` removes it",
            JournalWarning,
            stacklevel=2,
        )
        return attributes

    def _read(self, lines: Sequence[bytes]) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for entry in json.loads(b"[" + b",".join(lines) + b"]"):
            attributes.update(entry.get("user_attr") or entry.get("user_attrs") or {})
        if wrong := wrong_attributes(attributes):
            values = ", ".join(f"{name} is {attributes[name]!r:.40}" for name in wrong)
            raise ValueError(values)
        return attributes

    def __getitem__(self, name: str) -> Any:
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed)

    def __len__(self) -> int:
        return len(self._parsed)
