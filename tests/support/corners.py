"""Tiny trainings whose images have corners of one kind; the module of a test names its own as
`CORNERS`, and gives the images as a fixture `splits`.
"""

import pytest

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from trainers.bundles.export import TrainedNetwork, export
from trainers.settings import Corners, Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.train import start_training, train

TEXT = "12px: 2k3@C4, 2k3@C4 max2/2"


def config_of(corners: Corners, group="C8"):
    return TrainingConfig(
        Data(name="digits", train=60, validation=40),
        Training(epochs=1, batch_size=20, precision="float32"),
        Symmetry(group=group, corners=corners),
        recipe=Candidate.parse(f"{TEXT} augment=uniform loss=label:1").recipe,
    )


def trained(splits, folder, corners: Corners):
    architecture, config = Architecture.parse(TEXT), config_of(corners)
    scores = train(architecture, config, folder, 1, splits=splits).as_dict()
    network = start_training(architecture, config, folder, splits).network
    return TrainedNetwork(network, splits, config, scores, {"trial": 1})


@pytest.fixture(scope="module")
def subject(splits, tmp_path_factory, request):
    return trained(splits, tmp_path_factory.mktemp("training"), request.module.CORNERS)


@pytest.fixture(scope="module")
def bundle(subject, tmp_path_factory):
    return export(subject, tmp_path_factory.mktemp("out") / "bundle", quantize=True)
