"""NumPy arrays of images and labels: an `.npz` archive as MedMNIST writes them, or a folder of
`.npy` files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from searchspace.geometry import counted
from trainers import cached_arrays
from trainers.cache import say_once
from trainers.data.formats.labels import (
    class_names,
    class_numbers,
    fault_of_test,
    numbered,
    without_test,
)
from trainers.data.formats.members import Member, open_members
from trainers.data.formats.pixels import (
    Scale,
    axes_of,
    channels_second,
    find_scale,
    require_one_scale,
    scaled,
)
from trainers.data.formats.targets import Targets, read_targets, strata, task_of
from trainers.data.grouping import named_groups
from trainers.data.pools import ArrayPool, Source
from trainers.files import parse_json
from trainers.settings import Data, Task

ABOUT = "about.json"  # beside `.npy` files: class names, and a digest of the content
# the names that the arrays of a split may have: images, labels
SPLIT_ARRAYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("X_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val"), ("X_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("X_test", "y_test")),
}
WHOLE = (("images", "labels"), ("x", "y"), ("X", "y"))  # not split yet


class _Part(NamedTuple):
    images: Member
    labels: np.ndarray  # class numbers or names [N], or, of other tasks, as they are
    groups: np.ndarray | None


class Arrays:
    """The arrays of a study's `files`: opened by name, their values read when they are needed."""

    def __init__(self, data: Data) -> None:
        """Raises ValueError for arrays that are missing, damaged, or do not belong together."""
        path = Path(data.files or "")
        self.path = path
        self.found = open_members(path)
        self.group_by = data.group_by
        self.asked: Task | Literal["auto"] = data.task
        self.about = _read_about(path)
        if data.classes is not None:
            self.about["classes"] = list(data.classes)
        self.whole = not any(pair[0] in self.found for pair in SPLIT_ARRAYS["train"])
        self.train = self._part(WHOLE if self.whole else SPLIT_ARRAYS["train"])
        if self.train is None:
            raise ValueError(
                f"{path} holds {', '.join(self.found) or 'no array'}; it must hold train_images "
                "and train_labels (and may hold val_images, val_labels, test_images, test_labels), "
                "or images and labels"
            )
        self.validation = None if self.whole else self._part(SPLIT_ARRAYS["validation"])
        self.test = None if self.whole else self._part(SPLIT_ARRAYS["test"])
        for part in (self.validation, self.test):
            if part is not None:
                types = self.train.images.dtype, part.images.dtype
                require_one_scale(*types, f"of {part.images.text}")

    def state(self) -> list[Any]:
        """What changes whenever the files change: names, sizes and times."""
        files = sorted(self.path.glob("*.npy")) if self.path.is_dir() else [self.path]
        return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files] + [
            self.about,
            "white",
        ]

    def identity(self) -> list[Any]:
        """What the images that are trained and validated on are, wherever they lie."""
        if "digest" in self.about:
            return [self.about["digest"]]
        return [
            [part.images.name, part.images.shape, str(part.images.dtype), part.images.mark]
            + [cached_arrays.key(part.labels.tolist())]
            + ([] if part.groups is None else [cached_arrays.key(part.groups.tolist())])
            for part in (self.train, self.validation)
            if part is not None
        ]

    def open(self) -> Source:
        """The arrays as pools."""
        assert self.train is not None
        images, labels, _ = self.train
        names = self.about.get("classes")
        scale = find_scale(images.blocks(), images.dtype, f"of {images.text}")
        white = scale.white or _number(self.about.get("white"))
        task = self.task
        if task == "classification":
            classes = class_names(labels, images.text, names)
        else:
            classes = self._targets(self.train, task).names

        def pool(part: _Part) -> ArrayPool:
            about = part.images.text, part.groups
            if task == "classification":
                numbers = numbered(part.labels, classes, part.images.text, named=names is not None)
                return ArrayPool(_bytes(part.images, scale), numbers, *about, white=white)
            targets = self._targets(part, task)
            drawn_by = strata(targets, np.ones(len(targets.values), dtype=bool))
            pixels = _bytes(part.images, scale)
            return ArrayPool(pixels, drawn_by, *about, targets.values, white)

        test, fault = self.test, None
        if test is not None and task == "classification":
            named, where = names is not None, test.images.text
            fault = fault_of_test(test.labels, labels, classes, where, named)
        opened: Callable[[], ArrayPool] | None = None if test is None else lambda: pool(test)
        return Source(
            classes,
            pool(self.train),
            None if self.validation is None else pool(self.validation),
            opened,
            holds_out_test=self.whole,
            notes=(*filter(None, [scale.note]), *without_test(fault)),
            task=task,
        )

    @property
    def task(self) -> Task:
        """What the labels are: as the study says, or by their form."""
        asked = self.asked
        if asked != "auto":
            return asked
        labels = next(self.found[n] for pairs in (*SPLIT_ARRAYS.values(), WHOLE) for _, n in pairs
                      if n in self.found)  # fmt: skip
        return task_of(labels.array(), "auto", labels.text)

    def _targets(self, part: _Part, task: Task) -> Targets:
        return read_targets(part.labels, task, part.images.text, self.about.get("classes"))

    def _groups(self, images: str) -> Member | None:
        """The array of groups beside that of images: `group_by`, after the name of the split."""
        if self.group_by is None:
            return None
        before, _, _ = images.rpartition("_")
        name = self.group_by if self.whole else f"{before}_{self.group_by}"
        if name not in self.found:
            raise ValueError(
                f"data.group_by is '{self.group_by}', and {self.path} has no array {name}; its "
                f"arrays are {', '.join(self.found)}"
            )
        return self.found[name]

    def _part(self, pairs: tuple[tuple[str, str], ...]) -> _Part | None:
        for images, labels in pairs:
            if images in self.found and labels in self.found:
                groups = self._groups(images)
                return _checked(self.found[images], self.found[labels], groups, self.task)
            if images in self.found and not any(pair[1] in self.found for pair in pairs):
                raise ValueError(
                    f"{self.path} holds {images} without {labels}; add the labels, an integer for "
                    "each image"
                )
        return None


def _checked(images: Member, labels: Member, groups: Member | None, task: Task) -> _Part:
    """Images and their labels and groups, which must be as many."""
    axes_of(images.shape, f"of {images.text}")
    if images.dtype.kind not in "buif":
        raise ValueError(f"{images.text} is of type {images.dtype}; give numbers, best uint8")
    if task == "classification":
        values = class_numbers(labels.array(), images.text)
    else:
        values = np.asarray(labels.array())
        read_targets(values, task, images.text)
    if len(values) != images.shape[0]:
        raise ValueError(
            f"{images.text} holds {counted(images.shape[0], 'image')}, and {labels.name} "
            f"{counted(len(values), 'label')}; give one label for each image"
        )
    if not len(values):
        raise ValueError(f"{images.text} holds 0 images; write it with images")
    if groups is not None and groups.shape not in ((len(values),), (len(values), 1)):
        raise ValueError(
            f"{images.text} holds {counted(len(values), 'image')}, and {groups.name} "
            "(data.group_by) has the "
            f"shape {groups.shape}; give one group for each image"
        )
    if groups is None:
        return _Part(images, values, None)
    return _Part(images, values, named_groups(groups.array(), f"{groups.text} (data.group_by)"))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < 2**64 else None


def _bytes(images: Member, scale: Scale) -> np.ndarray:
    """The images as uint8 [N, C, H, W]: mapped from their own file where they are that already,
    else from a copy in the cache.
    """
    axes = axes_of(images.shape, f"of {images.text}")
    if images.path.is_dir() and images.dtype == np.uint8:
        return channels_second(images.array(), axes)
    count, *rest = images.shape
    shape = {"grey": (1, *rest), "last": (rest[-1], *rest[:-1]), "first": tuple(rest)}

    def build(allocate: cached_arrays.Allocate) -> tuple[None, dict[str, Any]]:
        out, start = allocate((count, *shape[axes])), 0
        said: list[str] = []
        for block in scaled(images.blocks(), scale, f"of {images.text}", said.append):
            out[start : start + len(block)] = channels_second(block, axes)
            start += len(block)
        return None, {"said": said}

    name = cached_arrays.key(
        [
            "array",
            str(images.path.absolute()),
            images.name,
            images.mark,
            images.changed,
            scale.factor,
        ]
    )
    pixels, about = cached_arrays.cached(name, build)
    for line in about.get("said", ()):
        say_once(line)
    return pixels


def _read_about(path: Path) -> dict[str, Any]:
    """What `storing` wrote beside the arrays of a folder; {} where there is nothing of it."""
    try:
        content = parse_json((path / ABOUT).read_text(encoding="utf-8")) if path.is_dir() else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
