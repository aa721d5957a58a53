"""Images in two splits are named, sets larger than memory are read in blocks, and what a package
brings is read from it.
"""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from trainers import cached_arrays
from trainers.data.datasets import load_data
from trainers.data.describing import describe
from trainers.data.fingerprint import data_fingerprint
from trainers.data.formats.storing import store_arrays
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_identical_images_in_two_splits_are_counted_and_named(tmp_path, caplog):
    arrays = {
        f"{part}_{what}": value
        for i, part in enumerate(("train", "val", "test"))
        for what, value in (("images", noise(8, 5, 5, seed=i)), ("labels", np.arange(8) % 2))
    }
    arrays["val_images"][3] = arrays["train_images"][6]
    arrays["val_images"][4] = arrays["train_images"][6]
    arrays["test_images"][2] = arrays["val_images"][1]
    np.savez(tmp_path / "a.npz", **arrays)
    splits = load_data(Data(files=tmp_path / "a.npz"))
    (warned,) = (line for line in describe(splits) if "warning" in line)
    assert "2 of the validation images are also among the training images" in warned
    assert "image 6 of train_images in" in warned and "of val_images in" in warned
    splits.test()
    assert "1 of the test images is also among the validation images" in caplog.text
    assert "image 2 of test_images in" in caplog.text


def test_files_with_the_same_pixels_are_named_by_their_paths(tmp_path):
    for c, name in enumerate(("a", "b")):
        (tmp_path / "f" / name).mkdir(parents=True)
        for i in range(9):
            seed = 0 if c == 0 else 9 + i
            Image.fromarray(noise(4, 4, seed=seed)).save(tmp_path / "f" / name / f"{i}.png")
    warned, same = (
        line for line in describe(load_data(Data(folder=tmp_path / "f"))) if "warning" in line
    )
    assert "training images of the class 'a' have the same pixels" in same
    assert "validation images are also among" in warned or "images is also among" in warned
    assert str(tmp_path / "f" / "a") in warned and "group_by" in warned


def test_sets_without_copies_are_silent(tmp_path):
    assert not [line for line in describe(load_data(Data(name="digits"))) if "warning" in line]


@pytest.mark.parametrize("form", ["npz", "npy", "folder of arrays"])
def test_a_set_is_read_without_being_in_memory(tmp_path, monkeypatch, form):
    limit, count, side = 1 << 20, 1600, 128  # 26 MB of images, 1 MB at once
    images, labels = noise(count, side, side), np.arange(count) % 2
    path = tmp_path / ("a.npz" if form == "npz" else "a")
    if form == "npz":
        np.savez(path, images=images, labels=labels)
    elif form == "npy":
        path.mkdir()
        np.save(path / "images.npy", images)
        np.save(path / "labels.npy", labels)
    else:
        np.save(tmp_path / "own.npy", images)
        images = np.load(tmp_path / "own.npy", mmap_mode="r")
    monkeypatch.setattr(cached_arrays, "BLOCK_BYTES", limit)
    tracemalloc.start()
    if form == "folder of arrays":
        store_arrays((images, labels), path)
    splits = load_data(Data(files=path))
    splits.test()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * limit < images.nbytes / 3
    assert not splits.train.pixels.numpy().flags.owndata  # mapped


# a set that a package brings


@pytest.fixture
def elpv(tmp_path, monkeypatch):
    """The package elpv-dataset in small: 80 cells, in the format of its labels.csv."""
    folder = tmp_path / "site" / "elpv_dataset"
    (folder / "data" / "images").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it is read, not imported')\n")
    lines = []
    for i in range(80):
        name = f"images/cell{i:04d}.png"
        Image.fromarray(noise(6, 6, seed=i)).save(folder / "data" / name)
        probability = (0.0, 1 / 3, 2 / 3, 1.0)[i % 4]
        lines.append(f"{name}  {probability:<18} {'mono' if i % 8 < 4 else 'poly'}")
    (folder / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_solar_cells_come_from_their_package_split_by_class_and_module_type(elpv):
    data = Data(name="elpv")
    splits = load_data(data)
    assert splits.classes == ("functional", "defective")
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test()}
    of = {noise(6, 6, seed=i).tobytes(): (i % 4 >= 2, i % 8 < 4) for i in range(80)}
    seen = 0
    for part in parts.values():
        facts = [of[bytes(image)] for image in part.pixels.numpy()]
        assert [fact[0] for fact in facts] == part.labels.bool().tolist()
        counts = [facts.count(pair) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert max(counts) - min(counts) <= 1
        seen += len(part)
    assert seen == 80
    before = data_fingerprint(data)
    (elpv / "data" / "labels.csv").write_text((elpv / "data" / "labels.csv").read_text() + "\n")
    assert data_fingerprint(data) != before


def test_of_solar_cells_those_of_which_experts_were_certain_can_be_taken_alone(elpv):
    splits = load_data(Data(name="elpv_certain"))
    certain = {noise(6, 6, seed=i).tobytes(): i % 4 == 3 for i in range(80) if i % 4 in (0, 3)}
    parts = (splits.train, splits.validation, splits.test())
    assert sum(map(len, parts)) == 40
    for part in parts:
        assert [certain[bytes(i)] for i in part.pixels.numpy()] == part.labels.bool().tolist()


def test_a_set_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package elpv-dataset.*equisearch\[elpv\]"):
        load_data(Data(name="elpv"))
