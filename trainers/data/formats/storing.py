"""Arrays of a running program, stored so that other processes map them and a study can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from searchspace.geometry import counted
from trainers.cache import say_once
from trainers.cached_arrays import block_rows
from trainers.data.formats.arrays import ABOUT
from trainers.data.formats.labels import class_numbers
from trainers.data.formats.pixels import (
    Axes,
    axes_of,
    channels_second,
    find_scale,
    require_one_scale,
    scaled,
)
from trainers.data.formats.targets import read_targets, task_of
from trainers.data.grouping import named_groups
from trainers.files import write_whole
from trainers.settings import Task

# names of images, and of their labels and groups, as MedMNIST's archives have them
ARRAY_NAMES = {
    "train_images": ("train_labels", "train_groups"),
    "val_images": ("val_labels", "val_groups"),
    "test_images": ("test_labels", "test_groups"),
    "images": ("labels", "groups"),
}


def store_arrays(
    arrays: tuple[Any, Any] | Mapping[str, Any],
    folder: Path,
    classes: Sequence[str] | None = None,
    task: Task | Literal["auto"] = "classification",
) -> None:
    """Writes images and labels into `folder` as `.npy` files, images as uint8, which
    `data: {files: folder}` reads.

    `arrays` are (images, labels), to be split, or a mapping with train_images and train_labels,
    and perhaps val_images, val_labels, test_images and test_labels; `groups` (train_groups, ...)
    beside them are for `group_by: groups`. Images are NumPy arrays
    ([N, H, W], [N, H, W, C], [N, C, H, W]; uint8, other integers from 0, or floating point numbers
    in 0..1) or torch tensors (of two layouts that fit, channels come first), labels integers or
    text [N] or [N, 1], or of another `task` what `read_targets` takes. `classes` are the names of
    the labels 0, 1, ... At most 64 MB are copied at once. Raises ValueError for arrays that cannot
    be trained on, before anything is written.
    """
    parts = {"images": arrays[0], "labels": arrays[1]} if isinstance(arrays, tuple) else arrays
    given = {name: _given(parts, name, task) for name in _names(parts)}
    train = next(name for name in given if name in ("images", "train_images"))
    images = given[train].images
    scale = find_scale(_blocks(images), images.dtype, f"of {train}")
    for name, part in given.items():
        require_one_scale(images.dtype, part.images.dtype, f"of {name}")
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, part in given.items():
        # no score of a study depends on test images
        counted = hashlib.sha256() if name == "test_images" else digest
        blocks = scaled(_blocks(part.images), scale, f"of {name}", say_once)
        _write(folder / f"{name}.npy", part, blocks)
        np.save(folder / f"{ARRAY_NAMES[name][0]}.npy", part.labels)
        if part.groups is not None:
            np.save(folder / f"{ARRAY_NAMES[name][1]}.npy", part.groups)
        for block in _blocks(np.load(folder / f"{name}.npy", mmap_mode="r")):
            counted.update(block.tobytes())
        groups = None if part.groups is None else part.groups.tolist()
        counted.update(repr((part.images.shape, part.labels.tolist(), groups)).encode())
    about: dict[str, Any] = {"digest": digest.hexdigest()}
    if scale.white is not None:
        about["white"] = scale.white
    if classes is not None:
        about["classes"] = [str(name) for name in classes]
    write_whole(folder / ABOUT, json.dumps(about) + "\n")


class _Given(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    axes: Axes
    groups: np.ndarray | None


def _given(parts: Mapping[str, Any], name: str, task: Task | Literal["auto"]) -> _Given:
    """Images and their labels, which must be as many."""
    images = _as_numpy(parts[name])
    axes = axes_of(images.shape, f"of {name}", channels_first=_is_tensor(parts[name]))
    of_labels, of_groups = ARRAY_NAMES[name]
    labels = _as_numpy(parts[of_labels])
    found = task_of(labels, task, name)
    if found == "classification":
        labels = class_numbers(labels, name)
    else:
        read_targets(labels, found, name)
    groups = named_groups(np.asarray(parts[of_groups]), of_groups) if of_groups in parts else None
    for what, values in ((of_labels, labels), (of_groups, groups)):
        if values is not None and len(values) != len(images):
            raise ValueError(
                f"{name} holds {counted(len(images), 'image')}, and {what} "
                f"{counted(len(values), 'value')}; give one for "
                "each image"
            )
    return _Given(images, labels, axes, groups)


def _names(parts: Mapping[str, Any]) -> list[str]:
    """The names of the images among the arrays. Raises ValueError where some are missing."""
    array_names = {*ARRAY_NAMES, *(name for beside in ARRAY_NAMES.values() for name in beside)}
    unknown = [name for name in parts if name not in array_names]
    named = [name for name in ARRAY_NAMES if name in parts]
    lonely = [f"{n} without {ARRAY_NAMES[n][0]}" for n in named if ARRAY_NAMES[n][0] not in parts]
    whole = "images" in named
    if unknown or lonely or not (whole or "train_images" in named) or (whole and len(named) > 1):
        problem = (
            f"there are {', '.join(map(str, unknown))}"
            if unknown
            else f"there are {', '.join(lonely)}"
            if lonely
            else f"there are {', '.join(map(str, parts)) or 'none'}"
        )
        raise ValueError(
            f"arrays must be images and labels, or train_images and train_labels with val_images, "
            f"val_labels, test_images and test_labels where there are any; {problem}"
        )
    return named


def _write(path: Path, part: _Given, blocks: Iterable[np.ndarray]) -> None:
    """The images as an array [N, H, W, C], block by block."""
    count, channels, height, width = channels_second(part.images, part.axes).shape
    shape = (count, height, width, channels)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    start = 0
    for block in blocks:
        rows = channels_second(block, part.axes).transpose(0, 2, 3, 1)
        out[start : start + len(rows)] = rows
        start += len(rows)
    out.flush()


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    step = block_rows(images.shape, images.dtype.itemsize)
    return (images[start : start + step] for start in range(0, len(images), step))


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _as_numpy(value: Any) -> np.ndarray:
    """The array, or the tensor's values; a list as an array."""
    if _is_tensor(value):
        return value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.hasobject and not all(isinstance(item, str) for item in array.ravel()):
        raise ValueError(
            "an array holds Python objects; give images of one shape as one array of numbers, and "
            "labels as integers or text"
        )
    return array
