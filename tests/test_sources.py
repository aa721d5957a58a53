"""torchvision's sets, read from small files of their own formats."""

import os
import pickle

import numpy as np
import pytest
import scipy.io
from PIL import Image

from trainers.catalogue import CATALOGUE
from trainers.data import sources
from trainers.data.datasets import load_data
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def labels_of(count, classes):
    return (np.arange(count) % classes).astype(np.uint8)


def make_idx(root, folder, names, classes):
    for i, (images, labels) in enumerate(names):
        idx(root / folder / "raw" / images, noise(20 * classes // (1 + i), 28, 28, seed=i))
        idx(root / folder / "raw" / labels, labels_of(20 * classes // (1 + i), classes))


PLAIN = [
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
]
EMNIST = [
    (f"emnist-balanced-{part}-images-idx3-ubyte", f"emnist-balanced-{part}-labels-idx1-ubyte")
    for part in ("train", "test")
]


def make_cifar(root, folder, parts, key, classes):
    (root / folder).mkdir()
    for i, part in enumerate(parts):
        with open(root / folder / part, "wb") as file:
            pickle.dump(
                {
                    "data": noise(2 * classes, 3072, seed=i),
                    key: labels_of(2 * classes, classes).tolist(),
                },
                file,
            )


def make_cifar10(root):
    make_cifar(
        root,
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"],
        "labels",
        10,
    )
    with open(root / "cifar-10-batches-py" / "batches.meta", "wb") as file:
        pickle.dump({"label_names": [f"thing {i}" for i in range(10)]}, file)


def make_cifar100(root):
    make_cifar(root, "cifar-100-python", ["train", "test"], "fine_labels", 100)
    with open(root / "cifar-100-python" / "meta", "wb") as file:
        pickle.dump({"fine_label_names": [f"thing {i}" for i in range(100)]}, file)


def make_svhn(root):
    for i, part in enumerate(("train", "test")):
        labels = labels_of(40, 10)[:, None] + 1  # the file calls the digit zero 10
        scipy.io.savemat(
            root / f"{part}_32x32.mat", {"X": noise(32, 32, 3, 40, seed=i), "y": labels}
        )


def make_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"thing {i}" for i in range(10)))
    for i, part in enumerate(("train", "test")):
        noise(20, 3 * 96 * 96, seed=i).tofile(folder / f"{part}_X.bin")
        (labels_of(20, 10) + 1).tofile(folder / f"{part}_y.bin")
    for name in ("unlabeled_X.bin", "fold_indices.txt"):  # looked for, not read
        (folder / name).write_bytes(b"")


def make_eurosat(root):
    for name in ("Forest", "River"):
        (root / "eurosat" / "2750" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(noise(64, 64, 3, seed=i)).save(
                root / "eurosat" / "2750" / name / f"{name}_{i}.jpg"
            )


def make_gtsrb(root):
    base = root / "gtsrb"
    for label in range(2):
        folder = base / "GTSRB" / "Training" / f"{label:05d}"
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(noise(30 + i, 40, 3)).save(folder / f"{i}.ppm")
    (base / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    rows = ["Filename;Width;Height;ClassId"]
    for i in range(4):
        Image.fromarray(noise(30, 40, 3)).save(
            base / "GTSRB" / "Final_Test" / "Images" / f"{i}.ppm"
        )
        rows.append(f"{i}.ppm;40;30;{i % 2}")
    (base / "GT-final_test.csv").write_text("\n".join(rows))


def make_flowers102(root):
    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for i in range(1, 31):
        Image.fromarray(noise(50, 40, 3)).save(base / "jpg" / f"image_{i:05d}.jpg")
    scipy.io.savemat(base / "imagelabels.mat", {"labels": labels_of(30, 3)[None] + 1})
    scipy.io.savemat(
        base / "setid.mat",
        {
            "trnid": np.arange(1, 13)[None],
            "valid": np.arange(13, 19)[None],
            "tstid": np.arange(19, 31)[None],
        },
    )


@pytest.mark.parametrize(
    "name,make,expected",
    [
        (
            "fashion_mnist",
            lambda root: make_idx(root, "FashionMNIST", PLAIN, 10),
            (160, 40, 100, 1, (28, 28), "T-shirt/top"),
        ),
        (
            "kmnist",
            lambda root: make_idx(root, "KMNIST", PLAIN, 10),
            (160, 40, 100, 1, (28, 28), "o"),
        ),
        (
            "emnist",
            lambda root: make_idx(root, "EMNIST", EMNIST, 47),
            (752, 188, 470, 1, (28, 28), "0"),
        ),
        ("cifar10", make_cifar10, (80, 20, 20, 3, (32, 32), "thing 0")),
        ("cifar100", make_cifar100, (100, 100, 200, 3, (32, 32), "thing 0")),
        ("svhn", make_svhn, (30, 10, 40, 3, (32, 32), "0")),
        ("stl10", make_stl10, (10, 10, 20, 3, (96, 96), "thing 0")),
        ("eurosat", make_eurosat, (13, 3, 4, 3, (64, 64), "Forest")),
        ("gtsrb", make_gtsrb, (8, 2, 4, 3, (32, 40), "0")),
        ("flowers102", make_flowers102, (12, 6, 12, 3, (50, 40), "pink primrose")),
    ],
)
def test_torchvision_sets_of_small_files(tmp_path, monkeypatch, name, make, expected):
    # they compare checksums with the real files
    for module in ("cifar", "svhn", "stl10", "flowers102"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, md5=None: os.path.exists(path),
        )
    make(tmp_path)
    splits = load_data(Data(name=name, root=tmp_path))
    test = splits.test()
    assert (
        len(splits.train),
        len(splits.validation),
        len(test),
        splits.channels,
        splits.size,
        splits.classes[0],
    ) == expected
    assert test.pixels.shape[1:] == splits.train.pixels.shape[1:]
    assert set(splits.train.labels.tolist()) <= set(range(len(splits.classes)))


def test_emnist_is_made_upright(tmp_path):
    make_idx(tmp_path, "EMNIST", EMNIST, 47)
    stored = noise(470, 28, 28, seed=1)
    pixels = load_data(Data(name="emnist", root=tmp_path)).test().pixels[:, 0].numpy()
    assert sorted(map(bytes, pixels)) == sorted(
        map(bytes, np.ascontiguousarray(stored.transpose(0, 2, 1)))
    )


@pytest.mark.parametrize("name", ["mnist", "rotated_mnist", "cifar10", "svhn", "eurosat", "pcam"])
def test_a_missing_set_says_where_it_was_looked_for_and_what_to_do(tmp_path, name):
    with pytest.raises(
        ValueError,
        match=f"data set {name} is not in {tmp_path} .*set `root:` to the folder that holds it, "
        "or `download: true`",
    ):
        load_data(Data(name=name, root=tmp_path))


def test_an_incomplete_set_says_so(tmp_path):
    idx(tmp_path / "MNIST" / "raw" / PLAIN[0][0], noise(10, 28, 28))
    with pytest.raises(
        ValueError,
        match='data set mnist cannot be read from .*torchvision says "Dataset not '
        "found.*`download: true`",
    ):
        load_data(Data(name="mnist", root=tmp_path))


def test_a_download_that_fails_says_so(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", offline)
    with pytest.raises(
        ValueError, match="data set mnist cannot be downloaded to .*Error downloading"
    ):
        load_data(Data(name="mnist", root=tmp_path, download=True))


def test_download_fetches_both_splits_once(tmp_path, monkeypatch):
    calls = []

    def fetch(self):
        if not (tmp_path / "MNIST").exists():
            make_idx(tmp_path, "MNIST", PLAIN, 10)
            calls.append(1)

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fetch)
    for _ in range(2):
        assert len(load_data(Data(name="mnist", root=tmp_path, download=True)).test()) == 100
    assert calls == [1]


def test_every_named_set_can_be_opened():
    import torchvision.datasets

    for name, known in CATALOGUE.items():
        assert callable(getattr(sources, known.opener, None)), name
        assert not known.torchvision or hasattr(torchvision.datasets, known.torchvision), name
