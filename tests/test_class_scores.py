"""Balanced accuracy and AUROC against scikit-learn."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from studies.errors import StudyError
from studies.workers.launch import require_every_class
from support import trivial
from trainers.training.class_scores import (
    balanced_accuracy,
    class_scores,
    macro_auroc,
    missing_classes,
)


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


def test_an_objective_over_classes_needs_each_class_before_anything_trains():
    study = trivial.study(objectives=["accuracy", "auroc"])
    with pytest.raises(StudyError, match="auroc is a mean over classes.*none of cat"):
        require_every_class(study, ["cat"])
    require_every_class(study, [])
    require_every_class(trivial.study(), ["cat"])
