"""The scikit-learn classifier: images and labels in, a search, a network that predicts."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import check_estimator

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from studies import EquivariantClassifier
from studies.errors import ExistsError, StudyError
from studies.estimator.default_study import PARAMS, default_study, searched_groups
from studies.estimator.images import class_labels, images_last

SHORT = {"training.epochs": 8, "training.batch_size": 10, "search.rungs": [1]}
SMALL = {
    **SHORT,
    "search.least_steps": None,
    "space.input_size": 17,
    "search.first": ["17px: 4k3@C4, 4k3 avg3/2p1, 4k3"],
}


@pytest.fixture(scope="module")
def digits():
    """Images uint8 [N, 8, 8] of the digits 1, 6 and 7, and their names."""
    data = load_digits()
    chosen = np.flatnonzero(np.isin(data.target, (1, 6, 7)))[:140]
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven"])
    return (data.images[chosen] * 15).astype(np.uint8), names[data.target[chosen]]


@pytest.fixture(scope="module")
def fitted(digits, tmp_path_factory):
    """A classifier after the shortest search."""
    directory = tmp_path_factory.mktemp("estimator") / "study"
    model = EquivariantClassifier("C4", budget=1, overrides=SMALL, directory=directory)
    return model.fit(digits[0][:100], digits[1][:100], groups=np.arange(100) // 7)


def test_it_predicts_the_labels_it_was_given(fitted, digits):
    images, labels = digits
    assert fitted.classes_.tolist() == ["one", "seven", "six"]
    shares = fitted.predict_proba(images[100:])
    assert shares.shape == (40, 3)
    assert shares.sum(1) == pytest.approx(np.ones(40))
    assert (fitted.predict(images[100:]) == fitted.classes_[shares.argmax(1)]).all()
    assert fitted.score(images[:100], labels[:100]) > 0.5  # 0.35 are of one class


def test_images_of_any_layout_and_type_mean_the_same(fitted, digits):
    images = digits[0][100:]
    shares = fitted.predict_proba(images)
    as_floats = (images / 255).astype(np.float32)
    for same in (images[..., None], images[:, None], torch.from_numpy(images), as_floats):
        assert fitted.predict_proba(same) == pytest.approx(shares, abs=1e-6)
    assert fitted.predict_proba(images.reshape(40, 64)) == pytest.approx(shares)


def test_the_orbit_average_is_the_same_for_every_orientation(fitted, digits):
    images = digits[0][100:]
    turned = np.rot90(images, axes=(1, 2))  # resized, pixels may round the other way
    assert fitted.predict_orbit(turned) == pytest.approx(fitted.predict_orbit(images), abs=1e-3)


def test_it_keeps_its_study_and_exports_its_network(fitted, tmp_path):
    assert fitted.study_.status["trials"]["complete"] == 1
    assert [row["trial"] for row in fitted.front_] == [fitted.trial_]
    assert fitted.candidate_.startswith("17px: 4k3@C4")
    assert fitted.report_.read_text(encoding="utf-8").count("17px: 4k3@C4")
    assert (fitted.export(tmp_path / "out") / "model.onnx").exists()


def test_it_is_pickled_and_cloned(fitted, digits):
    images = digits[0][100:]
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.predict(images) == fitted.predict(images)).all()
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(AttributeError, match="not fitted"):
        clone(fitted).predict(images)


def test_a_directory_with_a_study_is_kept(fitted, digits):
    again = clone(fitted).set_params(directory=fitted.study_directory_)
    with pytest.raises(ExistsError, match="already holds a study"):
        again.fit(*digits)
    assert fitted.study_.status["trials"]["complete"] == 1


def test_groups_are_never_in_training_and_validation_both(fitted, digits, tmp_path):
    assert fitted.study_.study.data.group_by == "groups"
    with pytest.raises(StudyError, match="makes 1 group of the images"):
        clone(fitted).set_params(directory=tmp_path / "one").fit(*digits, ["a"] * len(digits[1]))


def test_a_search_without_a_complete_trial_is_no_model(digits, tmp_path):
    failing = {**SMALL, "constraints.latency": 1e-9}
    model = EquivariantClassifier("C4", 1, overrides=failing, directory=tmp_path / "study")
    with pytest.raises(StudyError, match="without a complete trial|refused"):
        model.fit(*digits)


@pytest.mark.parametrize(
    "images, why",
    [
        (np.zeros((4, 10)), "rows of 10 values, which are not square images"),
        (np.zeros(4), "Reshape your data"),
        (np.zeros((4, 8, 8, 2)), "neither 2 nor 8 is a number of channels"),
        (np.zeros((0, 8, 8)), "0 sample"),
        (np.zeros((4, 8, 8), complex), "Complex data not supported"),
        (np.full((4, 8, 8), "a"), "as numbers"),
        ([[[1, 2], [3]]], "."),
        ([np.zeros((8, 8)), np.zeros((8, 9))], r"several shapes, such as \(8, 8\) and \(8, 9\)"),
        (np.zeros((4, 1, 1, 8, 8)), "the images of X have the shape"),
    ],
)
def test_what_is_not_images_is_refused(images, why):
    with pytest.raises(ValueError, match=why):
        images_last(images)


@pytest.mark.parametrize(
    "labels, why",
    [
        (None, "y is None"),
        ([0.5, 1.5, 2.5], "continuous"),
        ([], "0 labels"),
        ([0.0, np.nan], "NaN"),
        (np.array(["a", None], dtype=object), "1 missing label .* first for image 1"),
        (np.array(["a", np.nan, "b"], dtype=object), "1 missing label .* first for image 1"),
        (np.array(["a", 1], dtype=object), "types int, str; give all labels as text"),
        ([[0, 1], [1, 0]], "."),
    ],
)
def test_what_is_not_classes_is_refused(labels, why):
    with pytest.raises(ValueError, match=why):
        class_labels(labels)


def test_missing_labels_of_pandas_are_refused():
    pandas = pytest.importorskip("pandas")
    for missing in (pandas.NA, pandas.NaT, None):
        with pytest.raises(ValueError, match="1 missing label .* first for image 1"):
            class_labels(pandas.Series(["a", missing, "b"], dtype=object))


@pytest.mark.parametrize(
    "X, y, options, why",
    [
        (np.zeros((4, 8, 8)), [0, 1], {}, "4 images and y 2 labels"),
        (np.zeros((4, 8, 8)), [1] * 4, {}, "y holds one class"),
        (np.full((4, 8, 8), np.nan), [0, 1] * 2, {}, "NaN"),
        (np.full((4, 8, 8), -1.0), [0, 1] * 2, {}, "values from -1 to -1"),
        (np.zeros((4, 8, 8)), [0, 1] * 2, {"choose": "best"}, "choose is 'best'"),
        (np.zeros((4, 8, 8)), [0, 1] * 2, {"symmetry": "E8"}, "E8"),
        (np.zeros((4, 8, 8)), [0, 1] * 2, {"budget": "soon"}, "'soon' is not a duration"),
    ],
)
def test_bad_input_is_refused_before_anything_trains(tmp_path, X, y, options, why):
    model = EquivariantClassifier(**{"directory": tmp_path / "study", **options})
    with pytest.raises((ValueError, StudyError), match=why):
        model.fit(X, y)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("symmetry", ["C1", "C2", "C4", "D1", "D4", "C8", "D8"])
@pytest.mark.parametrize("shape, channels", [((8, 8), 1), ((28, 28), 1), ((48, 40), 3)])
def test_the_default_search_knows_both_ends(symmetry, shape, channels):
    study = default_study(shape, channels, 5, symmetry)
    declared = Group.parse(symmetry)
    ends = [Architecture.parse(text) for text in study.search.first]
    assert {end.size for end in ends} <= {(n, n) for n in study.space.pixels}
    assert verdict(ends[0], declared.grid).exact  # quarter turns and flips
    assert (len(ends) == 1) == (symmetry == "C1")
    assert study.space.width.to == PARAMS
    assert str(searched_groups(declared)[-1]) == symmetry


@pytest.mark.slow
def test_the_checks_of_scikit_learn():
    """Those that fail give what cannot be images (rows that are not square, negative values); no
    other may fail.
    """
    model = EquivariantClassifier("C4", 1, overrides=SMALL)
    failed = {}
    for result in check_estimator(model, on_fail=None, on_skip=None):
        if result["status"] == "failed":
            failed[result["check_name"]] = str(result["exception"])
    print(*failed.items(), sep="\n")
    reasons = ("not square images", "have values from", "check for NaN and inf")
    assert not {n: why for n, why in failed.items() if not any(r in why for r in reasons)}
