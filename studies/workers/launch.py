"""How a new study begins: everything that can be refused is refused before a file is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from studies.config import Study
from studies.errors import ExistsError
from studies.journal.directory import STUDY
from studies.search.driver import SearchDriver
from studies.workers.executors import require_cluster


def new_driver(
    study: Study,
    directory: Path,
    *,
    enqueue: Sequence[str] = (),
    warm_start: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> SearchDriver:
    """The driver of `study` in a directory that holds no study yet; a context manager.

    `enqueue` are architectures to try first, before `search.first`; `warm_start` is the directory
    of an earlier study over the same space. `note` receives what a user should know about the
    data. Raises ExistsError for a directory with a study, StudyError for a cluster that does not
    answer, ValueError or OSError for data that cannot be read.
    """
    if (directory / STUDY).exists():
        raise ExistsError(
            f"{directory} already holds a study; go on with `equisearch resume {directory}`, or "
            "choose another directory"
        )
    require_cluster(study.resources)
    channels, classes = read_data(study, note)
    return SearchDriver.create(
        directory,
        study,
        channels=channels,
        classes=classes,
        enqueue=enqueue,
        warm_start=warm_start,
    )


def read_data(study: Study, note: Callable[[str], None] = lambda text: None) -> tuple[int, int]:
    """(channels, classes) of the study's images; `note` receives their number, and what was left
    out. Raises ValueError or OSError for data that cannot be read.
    """
    from trainers.data.datasets import DataWarning, describe, load

    size = study.space.pixels[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # `describe` says it
        splits = load(study.data, (size, size))
    for line in describe(splits):
        note(line)
    return splits.channels, len(splits.classes)
