"""Arrays as data: NumPy arrays and torch tensors from Python, `.npz` archives, `.npy` files."""

import json
import warnings

import numpy as np
import pytest
import torch

from studies import StudyError, open_study, resume, start, train
from studies.config import parse
from trainers.data.datasets import load_data
from trainers.data.fingerprint import data_fingerprint
from trainers.data.formats.storing import store_arrays
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def labels_of(count, classes=3):
    return np.arange(count) % classes


def medmnist(path, *, channels=(), size=9, **changes):
    """An archive as MedMNIST writes them."""
    arrays = {}
    for i, (part, count) in enumerate((("train", 30), ("val", 12), ("test", 9))):
        arrays[f"{part}_images"] = noise(count, size, size, *channels, seed=i)
        arrays[f"{part}_labels"] = labels_of(count)[:, None].astype(np.uint8)
    arrays.update(changes)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("write", ["npz", "npy"])
def test_the_official_splits_of_an_archive_are_read_as_they_are(tmp_path, channels, write):
    arrays, path = medmnist(tmp_path / "blood.npz", channels=channels), tmp_path / "blood.npz"
    if write == "npy":
        path = tmp_path / "blood"
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    splits = load_data(Data(files=path))
    parts = {"train": splits.train, "val": splits.validation, "test": splits.test()}
    for name, part in parts.items():
        images = arrays[f"{name}_images"].reshape(len(part), 9, 9, -1).transpose(0, 3, 1, 2)
        pairs = sorted(zip(map(bytes, part.pixels.numpy()), part.labels.tolist()))
        expected = map(bytes, np.ascontiguousarray(images))
        assert pairs == sorted(zip(expected, arrays[f"{name}_labels"][:, 0].tolist()))
    assert splits.classes == ("0", "1", "2") and splits.channels == (channels or (1,))[0]
    assert data_fingerprint(Data(files=path)).images == {"train": 30, "validation": 12}


@pytest.mark.parametrize(
    "images,expected",
    [
        (noise(30, 5, 6), lambda a: a[:, None]),
        (noise(30, 5, 6, 3), lambda a: a.transpose(0, 3, 1, 2)),
        (noise(30, 3, 5, 6), lambda a: a),
        (torch.from_numpy(noise(30, 3, 5, 3)), lambda a: a.numpy()),  # of two, channels come first
        (noise(30, 3, 5, 3), lambda a: a.transpose(0, 3, 1, 2)),
        (noise(30, 5, 6) / 255, lambda a: np.rint(a * 255)[:, None]),
        (noise(30, 5, 6).astype(np.float32), lambda a: a[:, None]),
        (noise(30, 5, 6) > 99, lambda a: a[:, None] * 255),
        (
            noise(30, 5, 6).astype(np.uint16) * 16,
            lambda a: np.rint(a.astype(float) * 255 / 4095)[:, None],
        ),
    ],
)
def test_every_layout_and_type_becomes_bytes(tmp_path, images, expected):
    store_arrays((images, labels_of(30)), tmp_path / "a")
    splits = load_data(Data(files=tmp_path / "a"))
    parts = (splits.train, splits.validation, splits.test())
    found = np.concatenate([part.pixels.numpy() for part in parts])
    wanted = np.ascontiguousarray(expected(images).astype(np.uint8))
    assert sorted(map(bytes, found)) == sorted(map(bytes, wanted))


def test_an_archive_of_other_types_reads_as_stored_arrays_do(tmp_path):
    images = noise(30, 5, 6) / 255
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["b", "a", "c"] * 10))
    store_arrays((images, np.array(["b", "a", "c"] * 10)), tmp_path / "a")
    one, other = (load_data(Data(files=tmp_path / name)) for name in ("a.npz", "a"))
    assert one.classes == ("a", "b", "c") == other.classes
    assert torch.equal(one.train.pixels, other.train.pixels)
    assert torch.equal(one.train.labels, other.train.labels)


BAD = {
    "rank": ({"train_images": noise(30, 9)}, r"shape \(30, 9\); they must be \[images, height"),
    "transparent": ({"train_images": noise(30, 9, 9, 4)}, "neither 4 nor 9 is a number of chan"),
    "fractions": (
        {"train_labels": np.linspace(0, 1, 30)},
        r"are of type float64, such as 0.0; a label is a class.*round or threshold",
    ),
    "one-hot": ({"train_labels": np.eye(3)[labels_of(30)]}, r"shape \(30, 3\).*their argmax"),
    "NaN": (
        {"train_images": np.where(np.arange(30)[:, None, None] == 7, np.nan, np.ones((9, 9)))},
        "image 7 of train_images in .* holds NaN",
    ),
    "normalised": ({"train_images": noise(30, 9, 9) / 99 - 1.5}, "values from -1.5 to"),
    "pickled": (
        {"train_images": np.array([noise(9, 9), noise(5, 5)] * 15, dtype=object)},
        "train_images in .* holds pickled Python objects.*never read; save it as",
    ),
    "pickled labels": ({"train_labels": np.array(["a", None] * 15)}, "holds pickled Python obj"),
    "lengths": ({"train_labels": labels_of(29)}, "holds 30 images, and train_labels 29 labels"),
    "no labels": ({"train_labels": None}, "holds train_images without train_labels; add"),
    "no images": ({"train_images": None}, "it must hold train_images and train_labels"),
    "empty": (
        {"train_images": noise(0, 9, 9), "train_labels": labels_of(0)},
        "train_images in .* holds 0 images",
    ),
    "one class": ({"train_labels": np.zeros(30, int)}, "has the one class '0'; a classifier"),
    "unknown label": ({"val_labels": labels_of(12, 4)}, "has the label '3', which the training"),
}


@pytest.mark.parametrize("changes,message", BAD.values(), ids=BAD)
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path, changes, message):
    medmnist(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message):
        load_data(Data(files=tmp_path / "bad.npz"))


def test_what_is_not_an_archive_is_refused(tmp_path):
    for name, content in (("a.npz", b""), ("b.npz", b"PK\3\4 torn"), ("c.npz", b"no zip")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is not an .npz archive.*savez_compressed"):
            load_data(Data(files=tmp_path / name))
    with pytest.raises(ValueError, match="which does not exist"):
        load_data(Data(files=tmp_path / "none.npz"))
    with pytest.raises(ValueError, match="not in a format that data.files reads.*NumPy arrays"):
        load_data(Data(files=tmp_path))


def test_the_fingerprint_of_arrays_follows_their_content(tmp_path):
    def of(path, **changes):
        medmnist(path, **changes)
        return data_fingerprint(Data(files=path)).fingerprint

    before = of(tmp_path / "a.npz")
    assert before == of(tmp_path / "b.npz")
    assert before == of(tmp_path / "b.npz", test_images=noise(9, 9, 9, seed=7))
    assert before != of(tmp_path / "c.npz", train_images=noise(30, 9, 9, seed=7))
    assert before != of(tmp_path / "d.npz", val_labels=labels_of(12)[::-1])
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        store_arrays((noise(30, 9, 9, seed=seed), labels_of(30)), tmp_path / name)
    x, y, z = (data_fingerprint(Data(files=tmp_path / name)).fingerprint for name in "xyz")
    assert x == y != z


# from Python

TINY = """
data: {name: digits}
training: {epochs: 1, batch_size: 16}
space: {backbone: "2k3, 2k3", family: [steerable], group: [C2, C4], input_size: 9}
search: {sampler: random, trials: 1, rungs: []}
resources: {workers: 1}
"""


def tiny():
    return parse(TINY)


def test_a_study_on_arrays_starts_and_resumes(tmp_path):
    images, labels = torch.rand(60, 1, 9, 9), torch.arange(60) % 3
    results = start(
        tiny(), tmp_path / "s", data=(images, labels), classes=["ant", "bee", "cat"], probe=False
    )
    assert open_study(tmp_path / "s").study.data.files == tmp_path / "s" / "data"
    assert len(results.trials) == 1
    assert len(resume(tmp_path / "s", {"search.trials": 2}).trials) == 2
    assert load_data(results.study.data).classes == ("ant", "bee", "cat")


@pytest.mark.slow
def test_a_study_on_arrays_retrains_and_its_bundle_has_class_names(tmp_path):
    data = (noise(60, 9, 9), labels_of(60))
    results = start(tiny(), tmp_path / "s", data=data, classes=["a", "b", "c"], probe=False)
    (row,) = results.retrain(seeds=1, trials=[0])
    assert 0 <= row["accuracy"]["mean"] <= 1
    manifest = json.loads((results.export(0) / "bundle.json").read_text())
    assert manifest["classes"] == ["a", "b", "c"]


def test_a_study_that_cannot_begin_leaves_nothing(tmp_path):
    for data, message in (
        ((noise(60, 9, 9), labels_of(59)), "images holds 60 images, and labels 59 values"),
        ({"train_images": noise(60, 9, 9)}, "train_images without train_labels"),
        (([noise(9, 9), "x"], labels_of(2)), "holds Python objects|inhomogeneous"),
        ((noise(4, 9, 9), labels_of(4)), "holds no image of '0'"),
    ):
        with pytest.raises((ValueError, StudyError), match=message):
            start(tiny(), tmp_path / "s", data=data, probe=False)
        assert not (tmp_path / "s").exists()


def test_one_training_on_arrays(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = train(tiny(), "9px: 2k3@C4, 2k3", data=(noise(60, 9, 9), labels_of(60)))
    assert 0 <= told["scores"]["accuracy"] <= 1
