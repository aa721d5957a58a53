"""Scores that weigh classes alike, against scikit-learn."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from searchspace.architecture import Architecture
from studies.errors import StudyError
from studies.workers.launch import require_every_class
from support import trivial
from trainers.actions import act
from trainers.data.datasets import load_data, normalise
from trainers.instruments.tasks.elements import (
    ELEMENT_SCORES,
    joined_element_scores,
    read_element_scores,
)
from trainers.networks.fold import scoring
from trainers.networks.networks import build
from trainers.settings import Data, Symmetry, Training
from trainers.training.class_balance import (
    balanced_accuracy,
    class_scores,
    macro_auroc,
    missing_classes,
    symmetry_class_scores,
    worst_class,
)
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import evaluate

DIGITS = Data(name="digits", train=100, validation=100)


@pytest.mark.parametrize("ties", [False, True])
def test_they_are_scikit_learns(ties):
    generator = torch.Generator().manual_seed(1)
    labels = torch.cat([torch.arange(4), torch.randint(0, 3, (196,), generator=generator)])
    logits = torch.randn(200, 4, generator=generator)
    logits[torch.arange(200), labels] += 1
    if ties:
        logits = logits.round()
    probabilities = logits.double().softmax(1)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert macro_auroc(logits, labels) == pytest.approx(expected, abs=1e-12)
    classes = logits.argmax(1)
    expected = balanced_accuracy_score(labels, classes)
    assert balanced_accuracy(classes, labels, 4) == pytest.approx(expected, abs=1e-12)
    expected = min(recall_score(labels, classes, average=None))
    assert worst_class(classes, labels, 4)["worst_class"] == pytest.approx(expected, abs=1e-12)


def test_two_classes_are_scikit_learns_binary_auroc():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 2, (100,), generator=generator)
    logits = torch.randn(100, 2, generator=generator)
    expected = roc_auc_score(labels, logits.double().softmax(1)[:, 1])
    assert macro_auroc(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_without_images_of_a_class_there_is_no_such_score():
    labels, logits = torch.tensor([0, 0, 2]), torch.eye(3)
    assert macro_auroc(logits, labels) is None
    assert balanced_accuracy(labels, labels, 3) is None
    assert set(worst_class(labels, labels, 3).values()) == {None}
    assert symmetry_class_scores([class_scores(logits, labels)] * 2)["symmetry_auroc"] is None
    assert missing_classes(labels, ("a", "b", "c")) == ["b"]


def test_standard_errors_are_those_of_resampled_images():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (300,), generator=generator)
    logits = torch.randn(300, 3, generator=generator)
    logits[torch.arange(300), labels] += 1.5
    drawn = [torch.randint(0, 300, (300,), generator=generator) for _ in range(200)]
    resampled = [class_scores(logits[i], labels[i]) for i in drawn]
    scores = class_scores(logits, labels)
    for name, most in (("balanced_accuracy", 1.2), ("auroc", 2.5)):  # the second is a bound
        std = float(torch.tensor([s[name] for s in resampled]).std())
        assert 0.85 < scores[f"{name}_error"] / std < most


def test_under_the_symmetry_they_are_means_over_elements():
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (60,), generator=generator)
    logits = torch.randn(2, 60, 3, generator=generator)
    means = symmetry_class_scores([class_scores(logits[n], labels) for n in (0, 1, 1)])
    each = [class_scores(logits[n], labels) for n in (0, 1)]
    for name in each[0]:
        expected = (each[0][name] + 2 * each[1][name]) / 3
        assert means[f"symmetry_{name}"] == pytest.approx(expected, abs=1e-12)


def test_a_network_is_scored_under_each_element_of_the_declared_group():
    config = TrainingConfig(DIGITS, Training(epochs=1), Symmetry(group="D4"), seed=1)
    splits = load_data(DIGITS, (12, 12))
    for text, exact in (("12px: 4k3@D4, 4k3 head=group_max", True), ("12px: 4k3, 4k3", False)):
        network = build(Architecture.parse(text), channels=1, classes=10, seed=1).eval()
        scores = evaluate(network, splits, config, epoch=1)
        images, expected = splits.validation, []
        for element in config.group.elements[1:]:
            pixels = act(images.pixels.float() / 255, element)
            moved = normalise(pixels, splits.mean, splits.std)
            with torch.no_grad():
                classes = scoring(network)(moved).argmax(1)
            expected.append(balanced_accuracy_score(images.labels, classes))
        mean = sum(expected) / len(expected)
        assert scores.symmetry_balanced_accuracy == pytest.approx(mean, abs=1e-12)
        assert (abs(scores.symmetry_auroc - scores.auroc) < 1e-9) == exact
        assert scores.symmetry_worst_class is not None


def test_an_objective_over_classes_needs_each_class_before_anything_trains():
    study = trivial.study(objectives=["accuracy", "auroc"])
    with pytest.raises(StudyError, match="auroc is a mean over classes.*none of cat"):
        require_every_class(study, ["cat"])
    require_every_class(study, [])
    require_every_class(trivial.study(), ["cat"])


def test_scores_over_classes_are_kept_by_element_and_joined_over_folds(tmp_path):
    config = TrainingConfig(DIGITS, Training(epochs=1), Symmetry(group="C4"), seed=1)
    splits = load_data(DIGITS, (12, 12))
    network = build(Architecture.parse("12px: 4k3, 4k3"), channels=1, classes=10, seed=1).eval()
    scores = evaluate(network, splits, config, epoch=1, folder=tmp_path)
    found = read_element_scores(tmp_path, 1)
    assert found is not None and read_element_scores(tmp_path, 2) is None
    rows = found.scores
    assert rows["balanced_accuracy"]["e"] == pytest.approx(scores.balanced_accuracy, abs=1e-6)
    for name in ("balanced_accuracy", "auroc", "worst_class"):
        moved = [rows[name][str(e)] for e in config.group.elements[1:]]
        under = getattr(scores, f"symmetry_{name}")
        assert sum(moved) / 3 == pytest.approx(under, abs=1e-6)
    zero = {name: dict.fromkeys(row, 0.0) for name, row in rows.items()}
    joined = joined_element_scores([found, replace(found, images=3 * found.images, scores=zero)])
    assert joined is not None
    assert joined.scores["auroc"]["r90"] == pytest.approx(rows["auroc"]["r90"] / 4)
    (tmp_path / ELEMENT_SCORES).write_text('{"format": 1, "epoch": 1, "images": 3}')
    assert read_element_scores(tmp_path) is None
