"""Studies of few images: no trial stops for a difference that its images cannot show, and the first
rung comes after enough steps.
"""

import math
import os

import pytest

from studies.config import load_study, parse
from studies.errors import StudyError
from studies.search.driver import SearchDriver
from studies.search.scores import rung_margin
from studies.workers.launch import new_driver, with_least_steps
from support import trivial

SCORES = (0.9, 0.8, 0.72, 0.3)  # of trials 0 to 3 at the first rung


def decisions(path, images, **overrides):
    """What the driver says of four trials that report together at the first rung."""
    study = trivial.study(search__rungs=[2], search__eta=2, search__trials=10, **overrides)
    with SearchDriver.create(path, study) as driver:
        numbers = [driver.next().number for _ in SCORES]
        said = []
        for number, score in zip(numbers, SCORES):
            scores = {"accuracy": score, "symmetry_accuracy": score, "num_images": images}
            said.append(driver.report(number, 2, scores))
        for number in numbers:
            driver.finish(number, "interrupted")
    return said


def test_a_trial_goes_on_that_its_images_cannot_tell_from_those_that_go_on(tmp_path):
    plain = decisions(tmp_path / "plain", 76)
    assert plain == ["continue", "stop", "stop", "stop"]
    # of 76 images, 0.72 to 0.9 may be chance among three; 0.3 is not
    few = decisions(tmp_path / "few", 76, search__confidence=0.95)
    assert few == ["continue", "continue", "continue", "stop"]
    many = decisions(tmp_path / "many", 10_000, search__confidence=0.95)
    assert many == plain


def test_the_margin_is_that_of_a_difference_between_two_shares_of_as_many_images():
    scores = {"accuracy": 0.8, "symmetry_accuracy": 1.0, "num_images": 100}
    accuracy, symmetry = rung_margin(scores, 0.95)
    assert accuracy == pytest.approx(1.96 * math.sqrt(2 * 0.8 * 0.2 / 100), rel=1e-3)
    assert 0 < symmetry < accuracy  # of a share of 1: that of one image less
    assert rung_margin(scores, None) == rung_margin({**scores, "num_images": None}, 0.95) == (0, 0)


def test_batches_shrink_and_then_epochs_grow_until_the_first_rung_has_enough_steps():
    study = trivial.study(
        training__epochs=12, training__batch_size=64, search__rungs=[2, 6], search__least_steps=100
    )
    notes = []
    grown = with_least_steps(study, 302, notes.append)  # 5 steps an epoch, 19 in batches of 16
    assert (grown.training.epochs, grown.search.rungs) == (36, (6, 18))
    assert grown.training.batch_size == 16
    assert "302 training images: 10 steps" in notes[0] and "36 epochs instead of 12" in notes[0]
    assert "in batches of 16 images instead of 64" in notes[0]
    assert with_least_steps(grown, 302, notes.append) == grown and len(notes) == 1
    assert with_least_steps(study, 5000) == study
    assert with_least_steps(parse(trivial.TEXT), 3) == parse(trivial.TEXT)


def test_batches_shrink_no_further_than_the_steps_need():
    study = trivial.study(training__batch_size=64, search__rungs=[2], search__least_steps=100)
    notes = []
    grown = with_least_steps(study, 2400, notes.append)  # 38 steps an epoch, 75 in batches of 32
    assert grown.training.batch_size == 32 and grown.training.epochs == study.training.epochs
    assert "epochs" not in notes[0]
    already_small = trivial.study(
        training__batch_size=8, training__epochs=4, search__rungs=[2], search__least_steps=100
    )
    grown = with_least_steps(already_small, 80)  # 10 steps an epoch
    assert (grown.training.batch_size, grown.training.epochs) == (8, 20)


def test_the_template_for_own_images_guards_against_few():
    search = load_study("folder").search
    assert search.confidence == 0.95 and search.least_steps == 100


def test_a_template_study_of_few_images_takes_no_more_work_than_sixty_epochs():
    study = with_least_steps(load_study("folder"), 67)
    assert (study.training.batch_size, study.training.epochs, study.rungs) == (16, 60, (20, 40, 60))


def test_a_start_says_what_its_images_can_show_and_keeps_the_grown_epochs(tmp_path):
    text = """
data: {name: digits, train: 100, validation: 50}
training: {epochs: 2, batch_size: 50}
space: {backbone: "4k3, 4k3", input_size: 8}
search: {trials: 1, sampler: random, rungs: [1], least_steps: 21}
resources: {workers: 1}
"""
    notes = []
    with new_driver(parse(text), tmp_path / "study", note=notes.append) as driver:
        assert driver.study.training.epochs == 6 and driver.study.rungs == (3, 6)
    assert any("one percentage point is 0.5 of 50 validation images" in note for note in notes)
    with SearchDriver.open(tmp_path / "study") as driver:
        assert driver.study.rungs == (3, 6)


@pytest.mark.parametrize("value", [0, 1, "high"])
def test_a_confidence_outside_0_to_1_is_refused(value):
    with pytest.raises(StudyError, match="search.confidence"):
        trivial.study(search__confidence=value)


@pytest.mark.parametrize(
    "wrong,says",
    [
        ({"space.input_size": [28, 16384]}, "images of 268,435,456 pixels take"),
        ({"search.first": ["16384px: 4k3"]}, "choose smaller inputs"),
        ({"search.first": ["8px: 4k3@C4+C1 gamma=triangle"]}, "needs 2 epochs"),
        (
            {"symmetry.group": "C1", "search.first": ["8px: 4k3 loss=latent:1"]},
            "elements of C1 moved",
        ),
    ],
)
def test_what_no_machine_holds_and_no_training_can_do_is_refused_before_a_file(
    tmp_path, monkeypatch, wrong, says
):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.get)
    text = "data: {name: digits, train: 1000}\ntraining: {epochs: 1}\nsearch: {rungs: []}\n"
    with pytest.raises(StudyError, match=says):
        new_driver(parse(text, overrides=wrong), tmp_path / "study", probe=False)
    assert not (tmp_path / "study").exists()
