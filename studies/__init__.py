"""Search over equivariance constraints: the public Python surface.

    >>> from studies import load_study, open_study, start
    >>> results = start(load_study("quickstart"), "runs/quickstart")    # doctest: +SKIP
    >>> open_study("runs/quickstart").front.to_frame()                  # doctest: +SKIP

Importing the package imports nothing else; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.config import Study
    from studies.config import load as load_study
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

# Public name -> its module and its name there.
_WHERE = {
    "Checked": ("studies.results.check", "Checked"),
    "EquivariantClassifier": ("studies.estimator.classifier", "EquivariantClassifier"),
    "Study": ("studies.config", "Study"),
    "StudyDirectory": ("studies.results.opened", "StudyDirectory"),
    "StudyError": ("studies.errors", "StudyError"),
    "TrialTable": ("studies.results.opened", "TrialTable"),
    "check": ("studies.results.check", "check"),
    "load_study": ("studies.config", "load"),
    "open_study": ("studies.results.opened", "open_study"),
    "resume": ("studies.results.opened", "resume"),
    "start": ("studies.results.opened", "start"),
    "train": ("studies.results.opened", "train"),
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


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'studies' has no attribute '{name}'")
    module, inner = _WHERE[name]
    value = getattr(importlib.import_module(module), inner)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
