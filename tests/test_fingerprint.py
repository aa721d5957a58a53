"""The fingerprint of a data set changes with what scores depend on, and with nothing else."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data import fingerprint, pools
from trainers.data.datasets import load_data
from trainers.data.fingerprint import data_fingerprint
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images, one folder."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.full((5, 6, 3), 20 * label + i, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def split(folder: Path) -> Data:
    """The folder as train/ and test/."""
    for part in ("train", "test"):
        shutil.copytree(folder, folder.parent / "split" / part)
    return Data(folder=folder.parent / "split")


def test_it_counts_the_images_that_are_loaded_and_decodes_none(folder, monkeypatch):
    splits = load_data(Data(folder=folder))
    monkeypatch.setattr(pools, "decode", None)
    monkeypatch.setattr(Image, "open", None)
    about = data_fingerprint(Data(folder=folder))
    assert about.images == {
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": 4,
    }
    assert about.classes == splits.classes
    assert set(about.as_dict()) == {"fingerprint", "images", "classes", "content"}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: shutil.copy(folder / "cat" / "0.png", folder / "cat" / "new.png"),
        lambda folder: (folder / "cat" / "0.png").unlink(),
        lambda folder: (folder / "cat" / "0.png").rename(folder / "cat" / "x.png"),
        lambda folder: (folder / "cat" / "0.png").rename(folder / "dog" / "x.png"),
        lambda folder: (folder / "cat").rename(folder / "lynx"),
        lambda folder: (folder / "cat" / "0.png").write_bytes(b"another size"),
    ],
)
def test_it_changes_with_names_sizes_and_labels(folder, change):
    before = data_fingerprint(Data(folder=folder))
    change(folder)
    assert data_fingerprint(Data(folder=folder)).fingerprint != before.fingerprint


@pytest.mark.parametrize("form", ["folder", "npy"])
def test_its_content_changes_with_bytes_of_the_same_number(folder, tmp_path, form):
    if form == "folder":
        for path in [*folder.rglob("*.png")]:
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
        data, changed = Data(folder=folder), folder / "dog" / "3.bmp"
    else:
        (tmp_path / "arrays").mkdir()
        np.save(tmp_path / "arrays" / "images.npy", np.zeros((20, 5, 6), dtype=np.uint8))
        np.save(tmp_path / "arrays" / "labels.npy", np.arange(20) % 2)
        data, changed = Data(files=tmp_path / "arrays"), tmp_path / "arrays" / "images.npy"
    before = data_fingerprint(data)
    stored = bytearray(changed.read_bytes())
    stored[-1] ^= 255
    changed.write_bytes(stored)
    after = data_fingerprint(data)
    assert after.fingerprint == before.fingerprint and after.content != before.content != ""


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 5}, {"validation": 5}, {"test": 5}])
def test_it_changes_with_the_split(folder, change):
    whole = data_fingerprint(Data(folder=folder))
    assert data_fingerprint(Data(folder=folder, **change)).fingerprint != whole.fingerprint


def test_a_moved_or_touched_folder_keeps_it(folder):
    before = data_fingerprint(Data(folder=folder))
    moved = folder.rename(folder.parent / "elsewhere")
    os.utime(moved / "cat" / "0.png", (0, 0))
    assert data_fingerprint(Data(folder=moved)) == before


def test_an_official_test_split_does_not_count(folder):
    data = split(folder)
    before = data_fingerprint(data)
    (data.folder / "test" / "cat" / "0.png").unlink()
    assert data_fingerprint(data) == before
    (data.folder / "train" / "cat" / "0.png").unlink()
    assert data_fingerprint(data).fingerprint != before.fingerprint


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_mnist(root, count):
    for part in ("train", "t10k"):
        raw = root / "MNIST" / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(b"")


def test_a_named_set_is_opened_once_and_compared_by_its_files(tmp_path, monkeypatch):
    write_mnist(tmp_path / "a", 100)
    data = Data(name="mnist", root=tmp_path / "a")
    before = data_fingerprint(data)
    assert before.images == {"train": 80, "validation": 20}
    assert before.classes == tuple("0123456789")
    for archive in tmp_path.rglob("*.gz"):
        archive.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("trainers.data.sources.open_named", None)
        assert data_fingerprint(data) == before
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert data_fingerprint(data.model_copy(update={"root": tmp_path / "b"})) == before
    write_mnist(tmp_path / "b", 200)
    assert data_fingerprint(data.model_copy(update={"root": tmp_path / "b"})) != before


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_named_sets_content_changes_with_bytes_of_the_same_number(
    tmp_path, monkeypatch, name, whole
):
    monkeypatch.setattr(fingerprint, "SAMPLED_BYTES", 64)
    if not whole:  # blocks of the files, the last bytes among them
        monkeypatch.setattr(fingerprint, "READ_BYTES", 4096)
    write_mnist(tmp_path, 100)
    data = Data(name="mnist", root=tmp_path)
    before = data_fingerprint(data)
    assert before.content and data_fingerprint(data) == before
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "_content_of_files", None)  # the digest is cached
        assert data_fingerprint(data) == before
    path = tmp_path / "MNIST" / "raw" / name
    stored, times = bytearray(path.read_bytes()), path.stat()
    stored[-1] ^= 1
    path.write_bytes(stored)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as some tools leave it
    after = data_fingerprint(data)
    assert after.fingerprint == before.fingerprint and after.content != before.content
    stored[-1] ^= 1
    path.write_bytes(stored)
    assert data_fingerprint(data) == before


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("train-images-idx3-ubyte", lambda b: b[:-9], "cannot be read from"),
        ("train-images-idx3-ubyte", lambda b: b[:3] + b"\x07" + b[4:], "cannot be read from"),
        ("train-labels-idx1-ubyte", lambda b: b"", "cannot be read from"),
        ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\xc8", "holds a label 200, and has 10"),
        (
            "train-labels-idx1-ubyte",
            lambda b: b[:7] + b"\x63" + b[8:-1],
            "holds 100 images and 99 labels; copy or download",
        ),
    ],
)
def test_a_damaged_named_set_is_refused_by_its_name(tmp_path, name, change, said):
    write_mnist(tmp_path, 100)
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"data set mnist .*{said}"):
        data_fingerprint(Data(name="mnist", root=tmp_path))


def test_digits_have_one():
    about = data_fingerprint(Data(name="digits"))
    assert about.images == {"train": 1150, "validation": 288, "test": 359}


def test_a_missing_folder_is_one_clear_message(tmp_path):
    with pytest.raises(ValueError, match="data folder .*gone does not exist"):
        data_fingerprint(Data(folder=tmp_path / "gone"))
