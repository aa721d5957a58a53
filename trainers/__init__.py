"""Networks of an architecture: built, trained, measured and exported. The public Python surface.

    >>> from searchspace.architecture import Architecture
    >>> from trainers import build
    >>> network = build(Architecture.parse("28px: 8k3@C4 max2/2, 8k3"), channels=1, classes=10)

Importing the package imports nothing else, in particular no torch; a name is imported when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.actions import act
    from trainers.bundles.export import TrainedNetwork, export
    from trainers.bundles.verify import BundleReport, verify
    from trainers.data.datasets import Splits
    from trainers.data.datasets import load as load_data
    from trainers.instruments.audit.audit import audit
    from trainers.instruments.audit.verdict import Audit
    from trainers.instruments.measure import measure
    from trainers.instruments.measurement import Measurement
    from trainers.networks.fold import fold
    from trainers.networks.networks import Network, build
    from trainers.scores import Scores
    from trainers.settings import Augment, Data, Symmetry, Training
    from trainers.training.config import TrainingConfig
    from trainers.training.train import train

# Public name -> its module and its name there.
_WHERE = {
    "Audit": ("trainers.instruments.audit.verdict", "Audit"),
    "Augment": ("trainers.settings", "Augment"),
    "BundleReport": ("trainers.bundles.verify", "BundleReport"),
    "Data": ("trainers.settings", "Data"),
    "Measurement": ("trainers.instruments.measurement", "Measurement"),
    "Network": ("trainers.networks.networks", "Network"),
    "Scores": ("trainers.scores", "Scores"),
    "Splits": ("trainers.data.datasets", "Splits"),
    "Symmetry": ("trainers.settings", "Symmetry"),
    "TrainedNetwork": ("trainers.bundles.export", "TrainedNetwork"),
    "Training": ("trainers.settings", "Training"),
    "TrainingConfig": ("trainers.training.config", "TrainingConfig"),
    "act": ("trainers.actions", "act"),
    "audit": ("trainers.instruments.audit.audit", "audit"),
    "build": ("trainers.networks.networks", "build"),
    "export": ("trainers.bundles.export", "export"),
    "fold": ("trainers.networks.fold", "fold"),
    "load_data": ("trainers.data.datasets", "load"),
    "measure": ("trainers.instruments.measure", "measure"),
    "train": ("trainers.training.train", "train"),
    "verify": ("trainers.bundles.verify", "verify"),
}
__all__ = [
    "Audit",
    "Augment",
    "BundleReport",
    "Data",
    "Measurement",
    "Network",
    "Scores",
    "Splits",
    "Symmetry",
    "TrainedNetwork",
    "Training",
    "TrainingConfig",
    "act",
    "audit",
    "build",
    "export",
    "fold",
    "load_data",
    "measure",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'trainers' has no attribute '{name}'")
    module, inner = _WHERE[name]
    value = getattr(importlib.import_module(module), inner)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
