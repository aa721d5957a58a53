"""The keys of a study file's `space:` about the whole function: what stands around and beside the
stages.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Protocol

from pydantic import Field, field_validator

from searchspace.architecture import Architecture
from searchspace.choices import Groups, Listed, NotEmpty, Section
from searchspace.exactness import verdict
from searchspace.function.coordinates import Coordinates
from searchspace.function.orbit import check_orbit
from searchspace.function.streams import parse_streams
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage

SQUARE = (1, 1)
Share = Annotated[float, Field(ge=0, le=1)]


class Chooser(Protocol):
    """What is called of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: list) -> Any:
        """One of `choices`."""


class FunctionChoices(Section):
    """Choices around the stages; each default leaves the network as its stages are."""

    # the backbone once for each group, its fields shared out, such as `C4 & D1`; none: one stream
    streams: Annotated[tuple[str, ...], Listed, NotEmpty] = ("none",)
    # further channels of the input, functions of the pixel grid
    coordinates: Annotated[tuple[Coordinates, ...], Listed, NotEmpty] = ("none",)
    # of the fields of every stage that has a group, and none in the backbone
    invariant_share: Annotated[tuple[Share, ...], Listed, NotEmpty] = (0.0,)
    orbit: Groups = ("C1",)  # the logits are averaged over; C1: not averaged

    @field_validator("orbit")
    @classmethod
    def _exact(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check_orbit(Group.parse(name), SQUARE)
        return names

    @field_validator("streams")
    @classmethod
    def _parted(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(" & ".join(map(str, parse_streams(text))) or "none" for text in texts)

    @classmethod
    def meaning(cls, key: str, choice: Any) -> Hashable:
        """The groups of streams, in any order."""
        if key == "streams":
            return tuple(sorted(map(str, parse_streams(choice))))
        return super().meaning(key, choice)

    @property
    def stream_groups(self) -> frozenset[Group]:
        """The groups of all streams of the space."""
        return frozenset(group for text in self.streams for group in parse_streams(text))

    @property
    def most_streams(self) -> int:
        """Streams of the network with the most of them; 1 where none is parted."""
        return max(1, *(len(parse_streams(text)) for text in self.streams))

    def require_shared(self, stages: Sequence[Stage], groups: Iterable[Group]) -> None:
        """Raises ValueError for an invariant share, chosen or of one of the backbones' stages,
        where no stage can have one of `groups` to pool over.
        """
        share = max(*self.invariant_share, *(stage.invariant for stage in stages))
        if share and all(group == TRIVIAL for group in groups):
            raise ValueError(
                f"the invariant share is {share:g}, and no network of the space has a group whose "
                "channels it could pool; add a steerable family with a group such as C4, or leave "
                "the share out (invariant_share, or iS in the backbone)"
            )

    def sample_streams(self, trial: Chooser) -> tuple[Group, ...]:
        """The groups of the streams drawn from `trial`; empty for one stream, whose group is
        another choice.
        """
        return parse_streams(_one_of(trial, "streams", [*self.streams], self.streams))

    def completed(self, trial: Chooser, architecture: Architecture) -> Architecture:
        """`architecture` with what is drawn from `trial` to stand around its stages."""
        coordinates = _one_of(trial, "coordinates", [*self.coordinates], self.coordinates)
        shared = self._pooled(trial, architecture)
        return self._averaged(trial, replace(shared, coordinates=coordinates))

    def _pooled(self, trial: Chooser, architecture: Architecture) -> Architecture:
        if architecture.family == "plain":
            return architecture
        share = _one_of(trial, "invariant_share", [*self.invariant_share], self.invariant_share)
        stages = tuple(
            replace(s, invariant=share) if s.group != TRIVIAL and not s.invariant else s
            for s in architecture.stages
        )
        return replace(architecture, stages=stages) if share else architecture

    def _averaged(self, trial: Chooser, architecture: Architecture) -> Architecture:
        """`architecture` with an orbit drawn from `trial`, of those that change its function: an
        average of a network that is invariant already costs more and gives the same.
        """
        names = [
            name
            for name in self.orbit
            if len(verdict(architecture, Group.parse(name)).invariant) < Group.parse(name).order
            or Group.parse(name) == TRIVIAL
        ]
        name = _one_of(trial, "orbit", names or ["C1"], self.orbit)
        return replace(architecture, orbit=Group.parse(name))


def _one_of(trial: Chooser, name: str, options: list[Any], listed: tuple[Any, ...]) -> Any:
    """One of the options, which are some of those `listed`; it is sampled where there are two or
    more.
    """
    options = list(dict.fromkeys(options))
    if len(options) == 1:
        return options[0]
    narrowed = len(options) < len(dict.fromkeys(listed))
    return trial.suggest_categorical(
        f"{name}/{','.join(map(str, options))}" if narrowed else name, options
    )
