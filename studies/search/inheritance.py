"""Trials that begin with the weights of another: children of a trained trial by relaxation of its
architecture.

A child takes up the schedule where its last third begins (`taken_up`), with the function of its
parent, and pays only for the epochs that it trains. It is not compared at rungs: there the others
are those that have trained as long and no longer. It reports at the last epoch, like every trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from searchspace.geometry import counted
from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.weights.relaxed import relaxed
from studies.config import Study
from studies.errors import StudyError
from studies.journal.folders import CHECKPOINTS, TRIALS
from studies.journal.trial import TrialRecord, state_word
from studies.journal.writer import JournalWriter, Queued
from trainers.files import as_word

CHILD_SHARE = 1 / 3  # of the epochs of a training that a child trains


@dataclass(frozen=True)
class Child:
    """A proposal that begins with the weights of trial `parent` after `epoch` epochs of the
    schedule.
    """

    candidate: Candidate
    parent: int
    epoch: int

    def queued(self, study: Study) -> Queued:
        """(its parameters in the study's space, none outside of it; its first attributes)."""
        from studies.samplers.inversion import parameters_of

        parameters = parameters_of(study, self.candidate)
        return parameters or {}, {
            "enqueued": str(self.candidate),
            "in_space": parameters is not None,
            "inherited_from": self.parent,
            "inherited_epoch": self.epoch,
        }


def taken_up(study: Study, epochs: int | None = None) -> int:
    """The epoch of the schedule at which a child begins that trains `epochs` (None: the last third,
    one at least). Raises StudyError for more than the training has, or none.
    """
    whole = study.training.epochs
    epochs = max(1, round(CHILD_SHARE * whole)) if epochs is None else epochs
    if not 1 <= epochs <= whole:
        raise StudyError(
            f"a child cannot train {counted(epochs, 'epoch')}: the training of this study "
            f"has {whole}; "
            f"choose 1 to {whole}"
        )
    return whole - epochs


def next_child(study: Study, journal: JournalWriter, directory: Path) -> Queued | None:
    """The child by relaxation that is proposed next; None where the study makes none, or the
    sampler does the next proposal.
    """
    from studies.samplers.evolution import Relaxing
    from studies.samplers.factory import startup_of

    number = journal.next_number()
    if not study.search.inherit or number < startup_of(study):
        return None
    trials = journal.optuna.get_trials(deepcopy=False)
    move = Relaxing(study, partial(has_checkpoint, directory)).move(trials, number)
    return None if move is None else Child(*move, taken_up(study)).queued(study)


def has_checkpoint(directory: Path, number: int) -> bool:
    """Whether the folder of trial `number` holds weights."""
    folder = directory / TRIALS / f"{number:05d}"
    return any((folder / name).is_file() for name in CHECKPOINTS)


def child_of(
    study: Study,
    parent: TrialRecord,
    directory: Path,
    stage: int,
    group: str,
    *,
    pathway: bool = False,
    epochs: int | None = None,
) -> Child:
    """The child of `parent` whose stages from `stage` on are relaxed to `group`, by a `pathway` to
    it or wholly, which trains `epochs` (None: the last third of the schedule).

    Raises StudyError for a parent that is not trained or has no checkpoint, and where that is not a
    relaxation that keeps the function.
    """
    if parent.state not in ("complete", "pruned") or parent.architecture is None:
        raise StudyError(
            f"trial {parent.number} is {state_word(parent.state)}; weights are inherited from "
            f"trials whose training has ended, complete or stopped: `equisearch trials "
            f"{as_word(directory)}` lists them"
        )
    if not has_checkpoint(directory, parent.number):
        raise StudyError(
            f"trial {parent.number} has no checkpoint in {directory / TRIALS}: its weights cannot "
            "be inherited; choose a trial whose folder is whole"
        )
    candidate = Candidate.parse(parent.architecture).with_learning_rate(parent.learning_rate)
    try:
        architecture = relaxed(candidate.architecture, stage, Group.parse(group), pathway=pathway)
    except ValueError as error:
        raise StudyError(f"trial {parent.number} cannot be relaxed so: {error}") from None
    return Child(Candidate(architecture, candidate.recipe), parent.number, taken_up(study, epochs))
