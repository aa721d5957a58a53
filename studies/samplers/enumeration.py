"""Every candidate of a small search space, by following each combination of choices once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from searchspace.groups import Group
from searchspace.recipe import Candidate
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

    def __init__(self, branch: Sequence[_Choice]) -> None:
        self._branch = branch
        self.choices: list[_Choice] = []

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The option of this combination."""
        place = len(self.choices)
        index = self._branch[place][0] if place < len(self._branch) else 0
        self.choices.append((index, len(choices)))
        return choices[index]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """The number of this combination."""
        return self.suggest_categorical(name, range(low, high + 1, step))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Raises _InfiniteError: a range of real numbers has no enumeration."""
        raise _InfiniteError(name)
