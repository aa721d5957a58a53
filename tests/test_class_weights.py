"""Weights of classes in the cross entropy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from searchspace.architecture import Architecture
from searchspace.recipe import Recipe
from searchspace.training.losses import Loss
from trainers.data.datasets import Images, load_data
from trainers.networks.networks import build
from trainers.settings import Data, Symmetry, Training
from trainers.training.checkpoint import training_fingerprint
from trainers.training.class_balance import class_weights
from trainers.training.config import TrainingConfig
from trainers.training.losses import cross_entropy
from trainers.training.step import TrainingStep
from trainers.training.train import advance

DIGITS = Data(name="digits", train=100, validation=50)
PLAIN = Architecture.parse("12px: 4k3, 4k3")


@pytest.fixture(scope="module")
def splits():
    """Digits of which most are of the first class."""
    splits = load_data(DIGITS, (12, 12))
    labels = splits.train.labels.clone()
    labels[:60] = 0
    return replace(splits, train=replace(splits.train, labels=labels))


def test_balanced_weights_are_scikit_learns(splits):
    labels = splits.train.labels.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    weights = class_weights("balanced", splits)
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert float(weights[splits.train.labels].mean()) == pytest.approx(1)


def test_a_mapping_names_classes_and_leaves_the_others(splits):
    weights = class_weights({"3": 5.0}, splits)
    assert weights is not None
    assert float(weights[3] / weights[0]) == pytest.approx(5)
    assert class_weights("none", splits) is None


@pytest.mark.parametrize(
    "wanted, why",
    [
        ({"cat": 2.0}, "'cat', which is not a class of the data; they have: 0, 1"),
        ({str(n): 0.0 for n in range(10)}, "no weight to any class"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(splits, wanted, why):
    with pytest.raises(ValueError, match=why):
        class_weights(wanted, splits)


@pytest.mark.parametrize("value", [{"a": -1}, {"a": float("nan")}, "inverse", {"a": "much"}])
def test_what_is_not_a_weight_is_refused(value):
    with pytest.raises(ValueError, match="class_weights"):
        Training(class_weights=value)


def test_an_image_of_weight_two_counts_as_two():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 1])
    weighted = cross_entropy(logits, labels, torch.tensor([2.0, 1.0, 1.0, 1.0]))
    twice = cross_entropy(logits[[0, 0, 1, 2]], labels[[0, 0, 1, 2]])
    assert float(weighted) == pytest.approx(float(twice) * 4 / 3, rel=1e-6)


def test_parts_of_a_batch_add_up_to_the_batch(splits):
    weights = class_weights("balanced", splits)
    recipe = Recipe(losses=(Loss("label", 0.5),))
    images: Images = splits.train
    sums = []
    for divisor in (1, 4):
        config = TrainingConfig(
            DIGITS, Training(equivariance_batch=1.0), Symmetry(), recipe=recipe,
            batch_divisor=divisor,
        )  # fmt: skip
        network = build(PLAIN, channels=1, classes=10, seed=0).eval()
        step = TrainingStep.of(network, PLAIN, config, lambda x: x, weights)
        step.objective.elements.clear()
        loss = replace(step.objective, losses=())
        step = replace(step, objective=loss)
        step(images.pixels[:64].float() / 255, images.labels[:64])
        sums.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.allclose(*sums, atol=1e-6)


def test_a_rare_class_is_found_when_classes_are_balanced(tmp_path, splits):
    """The recall of all classes but the frequent one rises."""
    recalls = []
    for wanted in ("none", "balanced"):
        training = Training(epochs=6, batch_size=25, learning_rate=0.01, class_weights=wanted)
        config = TrainingConfig(DIGITS, training, Symmetry(), seed=2)
        run = advance(PLAIN, config, tmp_path / wanted, 6, splits=splits)
        with torch.no_grad():
            pixels = splits.train.pixels.float() / 255
            classes = run.network.eval()(run.step.normalise(pixels)).argmax(1)
        rare = splits.train.labels != 0
        recalls.append(float((classes == splits.train.labels)[rare].float().mean()))
    assert recalls[1] > recalls[0] + 0.1


def test_checkpoints_without_weights_are_those_of_earlier_versions():
    plain, balanced = (
        json.loads(training_fingerprint(PLAIN, TrainingConfig(DIGITS, training, Symmetry())))[
            "training"
        ]
        for training in (Training(), Training(class_weights="balanced"))
    )
    assert "class_weights" not in plain
    assert balanced["class_weights"] == "balanced"
