"""Whether a data set is the one that a study was started with, without decoding an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers import cached_arrays
from trainers.data import folders, sources
from trainers.data.decoding import ImagePath, head_of
from trainers.data.folders import Folder, Listing
from trainers.data.formats.opening import file_reader
from trainers.data.pools import ArrayPool, Pool, Source
from trainers.data.splitting import draw_split, draw_test
from trainers.files import system_reason
from trainers.settings import Data

FINGERPRINT_VERSION = 1  # of what is compared: raise it when that changes
LOOKED_INTO = 1000  # images of each split, evenly spread, whose content is compared
READ_BYTES = 512 << 20  # of a named set's files, whose content is compared; of more, a sample
SAMPLED_BYTES = 64 << 10  # of a sample


@dataclass(frozen=True)
class DataFingerprint:
    """What identifies the images that a study trains and validates on, wherever they lie."""

    fingerprint: str  # equal for equal names, sizes, labels and split
    # images per split: train, validation, and test where it is taken from the training images
    images: dict[str, int]
    classes: tuple[str, ...]
    # of the bytes of up to `LOOKED_INTO` images of each split, or of a named set's files; empty
    # for a set that has none
    content: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "fingerprint": self.fingerprint,
            "images": dict(self.images),
            "classes": list(self.classes),
            **({"content": self.content} if self.content else {}),
        }


def data_fingerprint(data: Data) -> DataFingerprint:
    """The fingerprint of the training and validation images, which no time stamp and no place
    enters: a copied or moved data set has the same one.

    It changes when an image is added, removed, renamed, moved to another class or changes its size
    in bytes, and with the settings of the split; `content` also where the bytes of an image that is
    looked into change. Of a folder that holds its own test split, that
    split does not count, since no score of a study depends on it. The arrays of a named set are
    read once and its counts then stored in the cache, as the digest of its files is until one of
    them changes its size or time. Raises ValueError for data that is missing or
    cannot be split.
    """
    if data.folder is not None:
        folder = folders.list_folder(data.folder)
        return _fingerprint(
            data, _names_and_sizes(folder), folders.open_folder(folder, data.group_by)
        )
    if data.files is not None:
        opened = file_reader(data)
        return _fingerprint(data, opened.identity(), opened.open())
    return _fingerprint_of_named(data)


def _fingerprint_of_named(data: Data) -> DataFingerprint:
    # torchvision's archives may be deleted once they are unpacked
    listed = [file for file in sources.files(data) if Path(file[0]).suffix not in sources.ARCHIVES]
    files = [[name, size] for name, size, _ in listed]
    chosen = data.model_dump(mode="json", exclude={"root"})
    key = cached_arrays.key([FINGERPRINT_VERSION, "fingerprint", chosen, files])
    about = _cached(key, lambda: _fingerprint(data, files, sources.open_named(data)).as_dict())
    content = ""
    if listed:
        root = sources.root_of(data)
        changed = [(root / name).stat().st_ctime_ns for name, _, _ in listed]  # set by no copy
        key = cached_arrays.key([FINGERPRINT_VERSION, "content", str(root), listed, changed])
        content = _cached(key, lambda: {"content": _content_of_files(root, files)})["content"]
    return DataFingerprint(about["fingerprint"], about["images"], tuple(about["classes"]), content)


def _cached(key: str, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `build` returns, from the cache where it is there."""

    def fill(allocate: cached_arrays.Allocate) -> tuple[None, dict[str, Any]]:
        allocate((1,))[:] = 0  # what belongs to the array is what matters
        return None, build()

    return cached_arrays.cached(key, fill)[1]


def _content_of_files(root: Path, files: list[list[Any]]) -> str:
    """A digest of the bytes of these files: all of them, or of more than `READ_BYTES` blocks that
    are evenly spread over each.
    """
    digest = hashlib.sha256()
    share = min(1.0, READ_BYTES / max(1, sum(size for _, size in files)))
    for name, size in files:
        digest.update(json.dumps([name, size]).encode())
        try:
            with open(root / name, "rb") as file:
                for start, length in _blocks(size, share):
                    file.seek(start)
                    digest.update(file.read(length))
        except OSError as error:
            raise ValueError(
                f"{root / name} cannot be read ({system_reason(error)}); make it readable"
            ) from error
    return digest.hexdigest()[:32]


def _blocks(size: int, share: float) -> Iterator[tuple[int, int]]:
    """Start and length of what is read of a file of `size` bytes: `share` of it, or all."""
    if share == 1:
        yield from ((start, 1 << 20) for start in range(0, size, 1 << 20))
        return
    last, number = max(0, size - SAMPLED_BYTES), max(2, round(size * share / SAMPLED_BYTES))
    for k in range(number):
        yield last * k // (number - 1), SAMPLED_BYTES


def _fingerprint(data: Data, files: list[Any], source: Source) -> DataFingerprint:
    train, validation = draw_split(source, data)
    labels = source.train.labels
    images = {"train": len(train), "validation": len(validation)}
    if data.folds is not None:  # each image is validated on once
        tested = len(draw_test(source, data, labels)) if source.holds_out_test else 0
        images["validation"] = len(labels) - tested
    if source.holds_out_test:
        images["test"] = len(draw_test(source, data, source.train.labels))
    names = source.classes if data.folder is None else ()  # a folder's stand beside its files
    key = cached_arrays.key(
        [FINGERPRINT_VERSION, _split_settings(data, source), data.name, files, names, images]
    )
    content = "" if data.name is not None else _content(source)
    return DataFingerprint(key, images, tuple(source.classes), content)


def _content(source: Source) -> str:
    """A digest of what is in images of the pools, as it is stored."""
    digest = hashlib.sha256()
    for pool in (source.train, source.validation):
        if pool is not None:
            count = len(pool.labels)
            for row in np.unique(np.linspace(0, count - 1, min(count, LOOKED_INTO)).astype(int)):
                digest.update(hashlib.sha256(_bytes_of(pool, int(row))).digest())
    return digest.hexdigest()[:32]


def _bytes_of(pool: Pool, row: int) -> bytes:
    """What is stored of an image; nothing where it cannot be read, which decoding will say."""
    if isinstance(pool, ArrayPool):
        return pool.pixels[row].tobytes()
    path: ImagePath = pool.paths[row]
    try:
        return head_of(path)
    except (OSError, ValueError):
        return b""


def _split_settings(data: Data, source: Source) -> dict[str, Any]:
    """What of the settings decides which images are trained and validated on."""
    numbers = {"seed", "train", "validation", *(["test"] if source.holds_out_test else [])}
    # keys that came later count where they are set: earlier fingerprints stay
    later = {key for key in ("group_by", "folds") if getattr(data, key) is not None}
    later |= {"task"} if data.task != "classification" else set()
    return data.model_dump(mode="json", include=numbers | later)


def _names_and_sizes(folder: Folder) -> list[Any]:
    """Class, name and size of every file that is trained or validated on."""
    return [_listed(part) for part in (folder.train, folder.validation) if part is not None]


def _listed(part: Listing) -> list[Any]:
    return [
        [name, [[file.relative_to(part.root / name).as_posix(), size] for file, size, _ in files]]
        for name, files in zip(part.classes, part.files)
    ]
