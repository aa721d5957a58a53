"""Cross-validation: folds of the data, and trials that are scored by means over them."""

import json

import numpy as np
import pytest

from searchspace.architecture import Architecture
from studies.config import parse
from studies.errors import StudyFileError
from studies.search.assignments import Assignment, LeaveError
from studies.workers.worker import SCORES_FILE, run_trial
from trainers.data.datasets import load_data
from trainers.data.describing import describe
from trainers.data.fingerprint import data_fingerprint
from trainers.data.formats.storing import store_arrays
from trainers.instruments import correctness
from trainers.settings import Data

STUDY = """
data: {name: digits, train: 60, test: 1400, folds: 3}
training: {epochs: 2, batch_size: 30, precision: float32}
search: {rungs: [1]}
resources: {gpus_per_trial: 0}
"""
TEXT = "9px: 2k3@C4, 2k3"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("group_by", [None, "groups"])
def test_each_image_is_validated_on_once_and_tested_never(tmp_path, group_by):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 5, 5)).astype(np.uint8)
    groups = np.array([f"patient {i // 3}" for i in range(90)])
    arrays = {"images": images, "labels": np.arange(90) // 3 % 3, "groups": groups}
    store_arrays(arrays, tmp_path / "a")
    data = Data(files=tmp_path / "a", folds=4, group_by=group_by)
    of = {bytes(image): group for image, group in zip(images, groups)}
    tested = load_data(data).test().pixels.numpy()
    seen = []
    for fold in range(4):
        splits = load_data(data.model_copy(update={"fold": fold}))
        assert set(splits.validation.labels.tolist()) == {0, 1, 2}
        held = list(map(bytes, splits.validation.pixels.numpy()))
        learned = list(map(bytes, splits.train.pixels.numpy()))
        seen += held
        if group_by:
            assert not {of[i] for i in held} & {of[i] for i in learned}
        assert not {*held, *learned} & {*map(bytes, tested)}
    assert len(seen) == len(set(seen)) == 90 - len(tested)
    about = data_fingerprint(data)
    assert about.images["validation"] == len(seen)
    assert (
        about.fingerprint
        != data_fingerprint(Data(files=tmp_path / "a", group_by=group_by)).fingerprint
    )
    assert "a trial trains 4 networks" in " ".join(describe(load_data(data)))


@pytest.mark.parametrize(
    "text,message",
    [
        ("folds: 3, validation: 20", "each fold is validated on; leave one of the two out"),
        ("folds: 3, fold: 3", "fold is 3, and there are 3 folds, counted from 0"),
        ("folds: 1", "folds"),
    ],
)
def test_folds_that_cannot_be_are_refused_in_the_file(text, message):
    with pytest.raises(StudyFileError, match=message):
        parse(f"data: {{name: digits, {text}}}")
    with pytest.raises(StudyFileError, match="search.inherit is true and data.folds is set"):
        parse("data: {name: digits, folds: 3}\nsearch: {sampler: evolution, inherit: true}")


def test_folds_that_the_images_do_not_allow_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 5, 5)).astype(np.uint8)
    store_arrays((images, (np.arange(30) > 25).astype(int)), tmp_path / "a")
    with pytest.raises(ValueError, match=r"folds is 5, and '1' \(\d\) has fewer images"):
        load_data(Data(files=tmp_path / "a", folds=5))
    labels = np.arange(30) % 2
    official = {"train_images": images, "train_labels": labels}
    official |= {"val_images": images[::-1], "val_labels": labels[::-1]}
    store_arrays(official, tmp_path / "b")
    with pytest.raises(ValueError, match="have validation images of their own; leave folds out"):
        load_data(Data(files=tmp_path / "b", folds=3))


class Report:
    """Leaves after some epochs of all folds together."""

    def __init__(self, leave=None):
        self.leave, self.epochs, self.scores = leave, 0, []

    def __call__(self, scores):
        self.scores.append(scores)
        return "continue"

    def heartbeat(self, epoch):
        self.epochs += 1
        if self.epochs == self.leave:
            raise LeaveError


def test_a_trial_is_scored_by_all_folds_and_continues_where_it_was_killed(tmp_path):
    study = parse(STUDY)
    assignment = Assignment(0, TEXT, None, 0, 2, str(tmp_path / "a"))
    whole = Report()
    run_trial(study, assignment, whole)
    assert whole.epochs == 6 and [row["epoch"] for row in whole.scores] == [1, 2]
    last = whole.scores[-1]
    splits = load_data(study.data, Architecture.parse(TEXT).size)
    images = len(splits.train) + len(splits.validation)
    if study.data.train is None:
        assert last["num_images"] == images
    found = correctness.read_correctness(tmp_path / "a", 2)
    assert found.images == last["num_images"] == data_fingerprint(study.data).images["validation"]
    right = found.of("e").bit_count() / found.images
    assert last["accuracy"] == pytest.approx(right, abs=1e-6)
    assert last["fold_spread"]["accuracy"] >= 0
    assert (tmp_path / "a" / "fold2" / "checkpoint.pt").is_file()
    killed = tmp_path / "b"
    for leave in (2, 3):
        with pytest.raises(LeaveError):
            run_trial(study, Assignment(0, TEXT, None, 0, 2, str(killed)), Report(leave))
    rest = Report()
    run_trial(study, Assignment(0, TEXT, None, 0, 2, str(killed)), rest)
    assert rest.epochs < 6
    rows = [json.loads(line) for line in (killed / SCORES_FILE).read_text().splitlines()]
    times = ("seconds", "latency")
    assert {k: v for k, v in rows[-1].items() if k not in times} == {
        k: v for k, v in last.items() if k not in times
    }
