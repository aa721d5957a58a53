"""The data sets that have a name, and the formats of files that hold one: the tables from which
names, places and openers derive.

Nothing here imports torch, so that reading a study file is cheap.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """How a named data set is opened, and which files of torchvision's are behind it."""

    opener: str  # the function of `data.sources` that opens it
    torchvision: str = ""  # the class of torchvision.datasets that reads its files, if any
    # where torchvision keeps it below the root: what is looked for, and what the cache compares
    places: tuple[str, ...] = ()
    # the package that brings the files, with these places in its folder, and the extra that asks
    # for it
    package: str = ""
    extra: str = ""


_MNIST = Known("open_mnist_like", "MNIST", ("MNIST/raw",))

CATALOGUE = {
    # made here, from scikit-learn or MNIST
    "digits": Known("open_digits"),  # its files come with scikit-learn
    "rotated_mnist": _MNIST._replace(opener="open_rotated_mnist"),
    "mnist6_180": _MNIST._replace(opener="open_mnist6"),
    "mnist6_m": _MNIST._replace(opener="open_mnist6"),
    "mnist_t10k": _MNIST._replace(opener="open_mnist_t10k"),
    # read by torchvision from `root`, downloaded on request
    "mnist": _MNIST,
    "fashion_mnist": Known("open_mnist_like", "FashionMNIST", ("FashionMNIST/raw",)),
    "kmnist": Known("open_mnist_like", "KMNIST", ("KMNIST/raw",)),
    "emnist": Known("open_emnist", "EMNIST", ("EMNIST/raw",)),
    "cifar10": Known("open_cifar", "CIFAR10", ("cifar-10-batches-py",)),
    "cifar100": Known("open_cifar", "CIFAR100", ("cifar-100-python",)),
    "svhn": Known("open_svhn", "SVHN", ("train_32x32.mat", "test_32x32.mat")),
    "stl10": Known("open_stl10", "STL10", ("stl10_binary",)),
    "pcam": Known("open_pcam", "PCAM", ("pcam",)),
    "eurosat": Known("open_eurosat", "EuroSAT", ("eurosat",)),
    "gtsrb": Known("open_gtsrb", "GTSRB", ("gtsrb",)),
    "flowers102": Known("open_flowers102", "Flowers102", ("flowers-102",)),
    # brought by a package
    "elpv_certain": Known(
        "open_elpv_certain", places=("data",), package="elpv_dataset", extra="elpv"
    ),
    "elpv": Known("open_elpv", places=("data",), package="elpv_dataset", extra="elpv"),
}


class DataFormat(NamedTuple):
    """Files that hold images with their labels: `data: {files: ...}`."""

    reader: str  # the class in `data.formats` that reads it, as module:class
    endings: tuple[str, ...]  # of its files, where `files` names some
    # of files by which a folder of it is recognised, where `files` names a folder
    inside: tuple[str, ...]


DATA_FORMATS = {
    "NumPy arrays": DataFormat("arrays:Arrays", (".npz",), ("*.npy",)),
    "a CSV table of paths and labels": DataFormat("tables:Table", (".csv", ".tsv"), ()),
    "Parquet": DataFormat("arrow:Parquet", (".parquet",), ("*.parquet",)),
    "Hugging Face datasets, saved to disk": DataFormat(
        "arrow:Saved", (), ("dataset_dict.json", "dataset_info.json")
    ),
    "WebDataset": DataFormat("shards:Shards", (".tar",), ("*.tar",)),
}
