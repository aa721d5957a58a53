"""Search over equivariance constraints: the public Python surface.

    >>> from studies import load_study, open_study, start
    >>> results = start(load_study("quickstart"), "runs/quickstart")    # doctest: +SKIP
    >>> open_study("runs/quickstart").front.to_frame()                  # doctest: +SKIP

Importing the package imports nothing else; a name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from searchspace import lazy

if TYPE_CHECKING:
    from studies.config import Study, load_study
    from studies.errors import StudyError
    from studies.estimator.classifier import EquivariantClassifier
    from studies.results.check import Checked, check
    from studies.results.opened import (
        StudyDirectory,
        TrialTable,
        open_study,
        resume,
        start,
        train,
    )

# Public name -> its module in this package, and its name there if that differs.
_WHERE = {
    "Checked": "results.check",
    "EquivariantClassifier": "estimator.classifier",
    "Study": "config",
    "StudyDirectory": "results.opened",
    "StudyError": "errors",
    "TrialTable": "results.opened",
    "check": "results.check",
    "load_study": "config",
    "open_study": "results.opened",
    "resume": "results.opened",
    "start": "results.opened",
    "train": "results.opened",
}
__all__ = [
    "Checked",
    "EquivariantClassifier",
    "Study",
    "StudyDirectory",
    "StudyError",
    "TrialTable",
    "check",
    "load_study",
    "open_study",
    "resume",
    "start",
    "train",
]

__getattr__, __dir__ = lazy(globals(), _WHERE)
