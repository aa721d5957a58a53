"""`equisearch relax`: a trial that begins with the weights of another, held to a smaller group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from searchspace.geometry import counted
from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import read_study
from studies.journal.trial import TrialRecord
from studies.results.tables import find_trial, open_records
from studies.results.trained import load_trained
from studies.search.inheritance import Child, child_of
from studies.search.proposals import architecture_facts
from trainers.files import as_word


def relax_trial(
    directory: Path | str,
    number: int,
    stage: int,
    group: str,
    *,
    pathway: bool = False,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The new trial, which waits for `equisearch resume`: its number and text, the trial whose
    weights it begins with, and after how many epochs of the schedule.

    Its stages from `stage` on are held to `group`, or get a `pathway` to it; it trains `epochs`
    (None: the last third of the schedule). Everything that can be refused is refused before it is
    written: StudyError for a trial that is unknown or has no weights, for what is not a relaxation,
    and for what breaks a constraint; LockedError while another process drives the study.
    """
    from studies.workers.launch import open_driver

    directory = Path(directory)
    study, records = open_records(directory)
    parent = find_trial(records, number, directory)
    child = child_of(study, parent, directory, stage, group, pathway=pathway, epochs=epochs)
    _require_weights(study, parent, child, directory)
    with open_driver(directory, read_study(directory)) as driver:
        text = str(child.candidate)
        reason = architecture_facts(
            child.candidate.architecture, study, driver.channels, driver.classes
        ).broken
        if reason:
            raise StudyError(f"'{text}' cannot be trained in this study: {reason}")
        return {
            "trial": driver.queue(child),
            "architecture": text,
            "inherited_from": child.parent,
            "inherited_epoch": child.epoch,
            "epochs": study.training.epochs - child.epoch,
        }


def _require_weights(study: Study, parent: TrialRecord, child: Child, directory: Path) -> None:
    """Raises StudyError where the parent's weights cannot be loaded, or cannot be relaxed."""
    from trainers.networks.relaxing import relax_network

    try:
        relax_network(
            load_trained(study, parent, directory, device="cpu").network,
            child.candidate.architecture,
        )
    except ValueError as error:
        raise StudyError(f"trial {parent.number} cannot be relaxed so: {error}") from None


def relax_lines(directory: Path, made: dict[str, Any]) -> list[str]:
    """The new trial as text, and the command that trains it."""
    epochs = made["epochs"]
    return [
        f"trial {made['trial']} waits: {made['architecture']}",
        f"it begins with the weights of trial {made['inherited_from']} and trains the last "
        f"{counted(epochs, 'epoch')} of the schedule: equisearch resume "
        f"{as_word(directory)} --trials N",
    ]
