"""What a study starts from: architectures to try first, or the results of an earlier study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searchspace.recipe import Candidate
from studies.config import Study, differences, read_text
from studies.errors import StudyError
from studies.journal.definition import sees_more
from studies.journal.directory import read_study
from studies.journal.reader import JOURNAL, read_trials


def read_architectures(path: str | Path) -> list[str]:
    """The architectures in a text file, one a line; empty lines and those that begin with # are
    skipped.

    Raises StudyError that names the line of the first one that cannot be parsed, and for none.
    """
    candidates = []
    lines = read_text(Path(path), "write one architecture a line").splitlines()
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                candidates.append(str(Candidate.parse(text)))
            except ValueError as error:
                raise StudyError(f"{path}, line {number}: {error}") from None
    if not candidates:
        raise StudyError(f"{path} holds no architecture; write one a line")
    return candidates


def enqueue_architectures(optuna_study: Any, study: Study, architectures: Sequence[str]) -> None:
    """Puts architectures in front of what the sampler will propose.

    Those in the study's space get their parameters, so that every sampler learns from them.
    """
    from studies.samplers.inversion import parameters_of

    for text in architectures:
        candidate = Candidate.parse(text)
        parameters = parameters_of(study, candidate)
        marks = {"enqueued": str(candidate), "in_space": parameters is not None}
        optuna_study.enqueue_trial(parameters or {}, user_attrs=marks)


def require_alike(study: Study, directory: str | Path | None) -> None:
    """Raises StudyError where the study in `directory` (None: nothing is asked) cannot warm this
    one up: there is none, it has no trials, or its space, its objectives or how it scores symmetry
    differ, so that parameters or values mean something else.
    """
    if directory is None:
        return
    directory = Path(directory)
    earlier = read_study(directory)
    same = ("space", "objectives", *(["symmetry.scored"] if sees_more(earlier) else []))
    unlike = [d for d in differences(earlier, study) if d.startswith(tuple(same))]
    if unlike:
        raise StudyError(
            f"{directory} cannot warm this study up: its {'; '.join(unlike)}; enqueue its best "
            "architectures instead"
        )
    if not (directory / JOURNAL).is_file():
        raise StudyError(
            f"{directory} cannot warm this study up: it has no {JOURNAL}, so no trials; name a "
            "study that was run"
        )
    for record in read_trials(directory, parameters=True):
        len(record.attributes)  # a damaged line is named before anything is created


def learn_from(optuna_study: Any, directory: str | Path | None) -> int:
    """Shows the completed trials of an earlier study, if there is one, to the sampler, and returns
    how many they are.

    They never reach the front: they were trained under other settings. `require_alike` comes first.
    """
    if directory is None:
        return 0
    directory = Path(directory)
    import optuna

    from studies.journal.storage import open_storage

    complete = {record.number for record in read_trials(directory) if record.state == "complete"}
    storage, backend = open_storage(directory / JOURNAL)
    try:
        trials = optuna.load_study(study_name=None, storage=storage).trials
    finally:
        backend.close()
    for trial in trials:
        if trial.number in complete:
            optuna_study.add_trial(
                optuna.trial.create_trial(
                    values=trial.values,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={
                        "warm_start": trial.number,
                        "architecture": trial.user_attrs.get("architecture"),
                    },
                )
            )
    return len(complete)
