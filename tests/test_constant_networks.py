"""Networks whose logits are the same for all images: they have trained, so they are scored."""

import math

import pytest
import torch
from torch import nn

from searchspace.architecture import Architecture
from searchspace.groups import Group
from support.toy_models import constant, corner
from trainers.data.datasets import load_data
from trainers.instruments.equivariance import OF_CONSTANT, equivariance_error
from trainers.networks.networks import build
from trainers.settings import Data, Symmetry, Training
from trainers.training import evaluate as evaluate_module
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate

DIGITS = Data(name="digits", train=40, validation=20)
IMAGES = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))
D4 = Group.parse("D4")


def killed(text: str, bias: float = 0.0):
    """A network that a training has killed: every weight is 0, and one logit may be above the
    others.
    """
    network = build(Architecture.parse(text), channels=1, classes=10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
        biases[-1][0] = bias
    return network


def config(group: str = "C4") -> TrainingConfig:
    return TrainingConfig(DIGITS, Training(epochs=1), Symmetry(group=group), seed=0)


@pytest.mark.parametrize(
    "text", ["8px: 3k3@C4, 3k3", "8px: 3k3, 3k3 head=none", "8px: 3k3@D4, 3k3"]
)
@pytest.mark.parametrize("bias", [0.0, 1e4])
def test_a_killed_network_is_scored(text, bias, tmp_path):
    splits = load_data(DIGITS, (8, 8))
    scores = evaluate(killed(text, bias), splits, config(), epoch=1, folder=tmp_path)
    share = float((splits.validation.labels == 0).double().mean())
    assert (scores.accuracy, scores.symmetry_accuracy) == pytest.approx((share, share))
    assert scores.equivariance_error == scores.equivariance_error_features == OF_CONSTANT == 1
    assert scores.auroc in (None, 0.5) and math.isfinite(scores.loss)


def test_images_that_are_all_the_same_are_scored(tmp_path):
    splits = load_data(DIGITS, (8, 8))
    same = type(splits.validation)(
        splits.validation.pixels[:1].expand(len(splits.validation), -1, -1, -1).clone(),
        splits.validation.labels,
    )
    network = build(Architecture.parse("8px: 3k3, 3k3"), channels=1, classes=10)
    scores = evaluate(network, splits, config("D4"), epoch=1, images=same, folder=tmp_path)
    # not 0, although turning may change them: a network is not exact because its images are one
    assert scores.equivariance_error == 1 and math.isfinite(scores.equivariance_error_features)


def test_what_is_scored_so_is_not_what_varies():
    kept = equivariance_error(corner, IMAGES, D4, of_constant=OF_CONSTANT).logits
    assert kept == equivariance_error(corner, IMAGES, D4).logits
    error = equivariance_error(constant, IMAGES, D4, of_constant=OF_CONSTANT).logits
    assert set(error.relative) == {1.0} and set(error.correlation) == {0.0}
    assert set(error.l1) == set(error.l2) == {0.0}


def test_logits_that_are_not_finite_have_no_score(tmp_path):
    network = killed("8px: 3k3, 3k3", bias=math.inf)
    with pytest.raises(ValueError, match="logits are not all finite"):
        evaluate(network, load_data(DIGITS, (8, 8)), config(), epoch=1, folder=tmp_path)


class Dead(nn.Module):
    """A model from outside that answers the same to every image."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(10))

    def forward(self, images):
        return self.answer.expand(len(images), -1)


def test_a_model_from_outside_that_is_constant_is_scored(tmp_path):
    splits = load_data(DIGITS, (8, 8))
    scores = evaluate_module.evaluate_model(Dead(), splits, config(), epoch=1, folder=tmp_path)
    assert scores.equivariance_error == scores.equivariance_error_features == 1
