"""A network trained on a few digits and its bundle, for tests of exporting and of verifying: fixtures to import."""

import json
import shutil

import pytest

from searchspace.architecture import Architecture
from trainers.bundle import MANIFEST
from trainers.datasets import load
from trainers.export import Subject, export
from trainers.settings import Data, Symmetry, Training
from trainers.train import Config, start, train

EXACT = "17px: 4k3@D4 max3/2p1, 4k3 max3/2p1, 4k3 head=group_max"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """An exact network, trained for two epochs on a few digits."""
    folder = tmp_path_factory.mktemp("training")
    config = Config(Data(name="digits", train=300, validation=101), Training(epochs=2, batch_size=32), Symmetry(group="D4"), seed=3)
    architecture = Architecture.parse(EXACT)
    splits = load(config.data, architecture.size)
    scores = train(architecture, config, folder, 2, splits=splits)
    return Subject(start(architecture, config, folder, splits).network, splits, config, scores.as_dict(), {"study": "digits", "trial": 3})


@pytest.fixture(scope="module")
def bundle(subject, tmp_path_factory):
    return export(subject, tmp_path_factory.mktemp("exports") / "00003")


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle that a test may spoil."""
    return shutil.copytree(bundle, tmp_path / "copied")


def manifest_of(folder):
    return json.loads((folder / MANIFEST).read_text())
