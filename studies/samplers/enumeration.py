"""Every candidate of a small search space, by following each combination of choices once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from studies.config import Study


def all_candidates(
    study: Study, channels: int, classes: int, *, most: int
) -> list[Candidate] | None:
    """The candidates of the study's space; None if it is infinite or has more than `most`
    combinations of choices.

    Combinations that cannot be built are left out.
    """
    declared = Group.parse(study.symmetry.group)
    candidates: list[Candidate] = []
    branch: list[_Choice] | None = []
    for _ in range(most):
        walk = _Walk(branch)
        try:
            candidates.append(
                study.space.sample(walk, channels=channels, classes=classes, declared=declared)
            )
        except _InfiniteError:
            return None
        except ValueError:
            pass
        branch = _next(walk.choices)
        if branch is None:
            return candidates
    return None


@lru_cache(maxsize=4)
def all_drafts(
    space: SearchSpace, declared: Group, most: int
) -> tuple[tuple[Mapping[str, Any], Candidate], ...] | None:
    """Every combination of choices of `space` that can be built, and its candidate before widths
    are matched; None where ranges of real numbers or more than `most` combinations make that long.
    Cached.
    """
    space = space.model_copy(update={"width": None})
    drafts: list[tuple[Mapping[str, Any], Candidate]] = []
    branch: list[_Choice] = []
    for _ in range(most):
        walk = _Walk(branch)
        try:
            drafts.append((walk.params, space.sample(walk, declared=declared)))
        except _InfiniteError:
            return None
        except ValueError:
            pass
        following = _next(walk.choices)
        if following is None:
            return tuple(drafts)
        branch = following
    return None


@dataclass(frozen=True)
class Counted:
    """How large a space is."""

    combinations: int | None  # of choices; None: more than were counted
    ranges: tuple[str, ...]  # choices that are ranges of real numbers, held at one value
    some: tuple[Candidate, ...]  # the first and the last that can be built


def count_candidates(study: Study, channels: int, classes: int, *, most: int) -> Counted:
    """The number of combinations of choices of the study's space that can be built."""
    declared = Group.parse(study.symmetry.group)
    ranges: dict[str, None] = {}
    built: list[Candidate] = []
    branch: list[_Choice] | None = []
    for _ in range(most):
        walk = _Walk(branch or [], ranges)
        with suppress(ValueError):  # it cannot be built
            built.append(
                study.space.sample(walk, channels=channels, classes=classes, declared=declared)
            )
        branch = _next(walk.choices)
        if branch is None:
            break
    some = tuple(dict.fromkeys([*built[:1], *built[-1:]]))
    return Counted(len(built) if branch is None else None, tuple(ranges), some)


class _InfiniteError(Exception):
    """A choice is a range of real numbers."""


# (index of the option, number of options)
_Choice = tuple[int, int]


def _next(choices: list[_Choice]) -> list[_Choice] | None:
    """The beginning of the next combination in depth-first order; None after the last."""
    for place in reversed(range(len(choices))):
        index, count = choices[place]
        if index + 1 < count:
            return [*choices[:place], (index + 1, count)]
    return None


class _Walk:
    """A trial that takes given options first, then the first of each choice."""

    def __init__(self, branch: Sequence[_Choice], ranges: dict[str, None] | None = None) -> None:
        self._branch, self._ranges = branch, ranges
        self.choices: list[_Choice] = []
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The option of this combination."""
        place = len(self.choices)
        index = self._branch[place][0] if place < len(self._branch) else 0
        self.choices.append((index, len(choices)))
        self.params[name] = choices[index]
        return choices[index]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """The number of this combination."""
        return self.suggest_categorical(name, range(low, high + 1, step))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The middle of a range of real numbers, whose name is noted; _InfiniteError where ranges
        are not counted: they have no enumeration.
        """
        if self._ranges is None:
            raise _InfiniteError(name)
        self._ranges[name] = None
        return (low * high) ** 0.5 if log else (low + high) / 2
