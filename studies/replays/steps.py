"""What every search on a recorded table is made of: steps that pay for epochs."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study, dump, parse
from studies.replays.record import RecordedTable, TableEntry
from studies.samplers.initial_design import features_of

WORST_SCORES = (0.0, 0.0)  # scores of an architecture that an unfinished recording lacks


class SearchStep(NamedTuple):
    """What a search does next."""

    epochs: int  # trained in this step; 0 for what was trained before
    work: float  # the same in epochs of the architecture with the table's median MACs
    scores: tuple[float, float] | None  # of a training that is at its end
    seconds: float = 0.0  # of its training; 0 where the table does not say


class Paid:
    """How far each architecture of a table was trained: what a search has paid for is free."""

    def __init__(self, table: RecordedTable) -> None:
        self._last = table.study.training.epochs
        self._table, self._trained = table, dict[str, int]()

    def has(self, key: str) -> bool:
        """Whether the architecture with that key was trained at all."""
        return key in self._trained

    def until(self, entry: TableEntry | None, epoch: int) -> SearchStep:
        """The step that trains `entry` until `epoch`; what the recording lacks is free."""
        if entry is None:
            return SearchStep(0, 0.0, None)
        before = self._trained.get(entry.key, 0)
        self._trained[entry.key] = max(before, epoch)
        epochs = max(0, epoch - before)
        scores = entry.epochs[-1] if epoch == self._last else None
        return trained_step(self._table, entry, epochs, scores)


def rungs(table: RecordedTable) -> list[int]:
    """The epochs at which a search that stops trainings compares them: a ninth and a third of the
    training, as in the presets `mnist` and `ien`.
    """
    epochs = table.study.training.epochs
    return sorted({max(1, round(epochs * share)) for share in (1 / 9, 1 / 3)} - {epochs})


def work(table: RecordedTable, entry: TableEntry, epochs: int) -> float:
    """`epochs` of `entry`, in epochs of the architecture with the table's median MACs."""
    return epochs * entry.macs / median(other.macs for other in table.entries)


def trained_step(
    table: RecordedTable, entry: TableEntry, epochs: int, scores: tuple[float, float] | None
) -> SearchStep:
    """The step that trains `entry` for `epochs` more."""
    return SearchStep(epochs, work(table, entry, epochs), scores, epochs * (entry.seconds or 0.0))


def known(table: RecordedTable) -> list[Candidate]:
    """The two ends at equal cost that a user of the table's space would know and try first, as the
    built-in studies do: exact under the whole declared group without a loss, and plain; neither
    with relaxed weights, an orbit average or an augmentation.

    None where the table's own study names its first architectures.
    """
    study = table.study
    if study.search.first:
        return [Candidate.parse(text) for text in study.search.first]
    group = Group.parse(study.symmetry.group)
    candidates = [
        Candidate.parse(entry.architecture).with_learning_rate(entry.learning_rate)
        for entry in table.entries
    ]
    free = [c for c in candidates if not c.recipe.losses and not _is_soft(c)]
    exact = next(
        (
            c
            for c in free
            if features_of(c, group).surviving == 1
            and {stage.group for stage in c.architecture.stages} == {group}
        ),
        None,
    )
    if exact is None:
        return []
    plain = (
        c
        for c in free
        if c.architecture.family == "plain"
        and c.architecture.size == exact.architecture.size
        and _layout(c) == _layout(exact)
    )
    return [exact, *[c for c in [next(plain, None)] if c is not None]]


def _is_soft(candidate: Candidate) -> bool:
    augment = candidate.recipe.augment
    architecture = candidate.architecture
    turns = augment is not None and augment.kind != "none"
    return turns or architecture.softened or architecture.orbit.order > 1


def _layout(candidate: Candidate) -> tuple[str, ...]:
    return tuple(str(stage.subsampling) for stage in candidate.architecture.stages)


def changed(study: Study, changes: Mapping[str, Any]) -> Study:
    """A table's study with these settings."""
    return parse(dump(study), name="the recorded study", overrides=changes)
