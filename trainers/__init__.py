"""Networks of an architecture: built, trained, measured and exported. The public Python surface.

    >>> from searchspace.architecture import Architecture
    >>> from trainers import build
    >>> network = build(Architecture.parse("28px: 8k3@C4 max2/2, 8k3"), channels=1, classes=10)

Importing the package imports nothing else, in particular no torch; a name is imported when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from searchspace import lazy

if TYPE_CHECKING:
    from trainers.actions import act
    from trainers.bundles.export import TrainedNetwork, export
    from trainers.bundles.verify import BundleReport, verify
    from trainers.data.datasets import Splits, load_data
    from trainers.instruments.audit.audit import audit
    from trainers.instruments.audit.verdict import Audit
    from trainers.instruments.convert.convert import Conversion, convert
    from trainers.instruments.measure import measure
    from trainers.instruments.measurement import Measurement
    from trainers.networks.fold import fold
    from trainers.networks.networks import Network, build
    from trainers.networks.orbit import orbit_average
    from trainers.networks.soft.any_module import project
    from trainers.scores import Scores
    from trainers.settings import Augment, Data, Symmetry, Training
    from trainers.training.config import TrainingConfig
    from trainers.training.train import train

# Public name -> its module in this package, and its name there if that differs.
_WHERE = {
    "Audit": "instruments.audit.verdict",
    "Augment": "settings",
    "BundleReport": "bundles.verify",
    "Conversion": "instruments.convert.convert",
    "Data": "settings",
    "Measurement": "instruments.measurement",
    "Network": "networks.networks",
    "Scores": "scores",
    "Splits": "data.datasets",
    "Symmetry": "settings",
    "TrainedNetwork": "bundles.export",
    "Training": "settings",
    "TrainingConfig": "training.config",
    "act": "actions",
    "audit": "instruments.audit.audit",
    "build": "networks.networks",
    "convert": "instruments.convert.convert",
    "export": "bundles.export",
    "fold": "networks.fold",
    "load_data": "data.datasets",
    "measure": "instruments.measure",
    "orbit_average": "networks.orbit",
    "project": "networks.soft.any_module",
    "train": "training.train",
    "verify": "bundles.verify",
}
__all__ = [
    "Audit",
    "Augment",
    "BundleReport",
    "Conversion",
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
    "convert",
    "export",
    "fold",
    "load_data",
    "measure",
    "orbit_average",
    "project",
    "train",
    "verify",
]

__getattr__, __dir__ = lazy(globals(), _WHERE)
