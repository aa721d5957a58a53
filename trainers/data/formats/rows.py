"""Images with labels in rows, whatever file they are from, as a `Source`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trainers import cached_arrays
from trainers.data.decoding import ImagePath, extensions
from trainers.data.folders import SPLIT_FOLDERS
from trainers.data.formats.labels import (
    class_names,
    class_numbers,
    fault_of_test,
    numbered,
    without_test,
)
from trainers.data.formats.targets import SEPARATOR, read_targets, strata, task_of
from trainers.data.grouping import groups_in_names, named_groups
from trainers.data.pools import FilePool, Source, file_pool
from trainers.settings import Data, Task

# the usual names of columns, where a study names none
IMAGE = ("image", "img", "path", "file", "filename", "file_name", "filepath", "image_path")
LABEL = ("label", "labels", "class", "target", "category", "y")
SPLIT = ("split", "subset", "partition")


@dataclass(frozen=True, eq=False)
class Rows:
    """The images of a table: `labels`, and `splits` and `groups` where there are any, as the files
    hold them. `keys` are what identifies each image wherever the files lie, `names` class names of
    the labels 0, 1, ...; `where` is what messages call the table.
    """

    where: str
    images: Sequence[ImagePath]
    keys: Sequence[object]
    labels: np.ndarray
    splits: np.ndarray | None = None
    groups: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    task: Task | Literal["auto"] = "classification"
    # of labels in several columns: their names
    columns: tuple[str, ...] = ()
    separator: str = SEPARATOR
    notes: tuple[str, ...] = ()  # what a user should know of them

    def identity(self) -> list[object]:
        """What the training and validation images are: their keys, labels, splits and groups."""
        chosen = np.flatnonzero(self._of("train") | self._of("validation"))
        columns = [self.labels, self.splits, self.groups]
        held = [column[chosen].tolist() for column in columns if column is not None]
        return [cached_arrays.key([[self.keys[i] for i in chosen], *held])]

    def source(self) -> Source:
        """The rows as pools. Raises ValueError for labels that are not classes, and for splits
        without training images.
        """
        task = task_of(self.labels, self.task, self.where, self.separator)
        labels = class_numbers(self.labels, self.where) if task == "classification" else None
        train = self._of("train")
        if self.splits is not None and not train.any():
            raise ValueError(
                f"{self.where} has no training image (its splits are "
                f"{', '.join(map(str, np.unique(self.splits)[:5]))}); call the split of the "
                "training images train"
            )
        targets = drawn_by = np.empty(0, dtype=np.int64)
        if labels is not None:
            classes = class_names(labels[train], self.where, self.names)
        else:
            named = self.names or self.columns or None
            found = read_targets(self.labels, task, self.where, named, self.separator)
            classes, targets, drawn_by = found.names, found.values, strata(found, train)

        def pool(rows: np.ndarray) -> FilePool:
            paths = [self.images[i] for i in np.flatnonzero(rows)]
            groups = None if self.groups is None else self.groups[rows]
            if labels is None:
                return file_pool(paths, drawn_by[rows], groups, targets[rows])
            numbers = numbered(labels[rows], classes, self.where, named=self.names is not None)
            return file_pool(paths, numbers, groups)

        validation, test = self._of("validation"), self._of("test")
        fault = None
        if test.any() and labels is not None:
            named = self.names is not None
            where = f"the test split of {self.where}"
            fault = fault_of_test(labels[test], labels[train], classes, where, named)
        return Source(
            classes,
            pool(train),
            pool(validation) if validation.any() else None,
            (lambda: pool(test)) if test.any() else None,
            holds_out_test=self.splits is None,
            notes=(*self.notes, *without_test(fault)),
            task=task,
        )

    def _of(self, split: str) -> np.ndarray:
        """Which rows [N] are of a split; of an unsplit table all are for training."""
        if self.splits is None:
            return np.full(len(self.images), split == "train")
        return self.splits == split


def columns_of(
    data: Data, there: Sequence[str], where: str
) -> tuple[str, tuple[str, ...], str | None]:
    """The columns of images, of labels and of splits (None: there is none). Raises ValueError where
    the first two are missing, and for several columns of classes.
    """
    asked_label = data.columns.label
    several = asked_label if isinstance(asked_label, tuple) else ()
    single = None if isinstance(asked_label, tuple) else asked_label
    if several and data.task == "classification":
        raise ValueError(
            f"columns.label names {len(several)} columns, and an image has one class; say `data: "
            "{task: multilabel}` or `{task: regression}`, or name one column"
        )

    def find(key: str, usual: Sequence[str], needed: bool, asked: str | None) -> str | None:
        folded = {name.strip().lower(): name for name in reversed(there)}
        column = next((folded[name] for name in usual if name in folded), None)
        name = asked if asked is not None else column
        if name is not None and name in there:
            return name
        if needed or asked is not None:
            looked_for = f"'{asked}'" if asked is not None else f"{', '.join(usual)}"
            raise ValueError(
                f"{where} has no column of {key}s (looked for {looked_for}); its columns are "
                f"{', '.join(there) or 'none'}; name it by `columns: {{{key}: ...}}`"
                + (
                    " (the first line seems to be an image's: the table needs a header before it)"
                    if any(Path(name).suffix.lower() in extensions() for name in there)
                    else ""
                )
            )
        return None

    named = data.columns
    image = find("image", IMAGE, True, named.image)
    labels = [find("label", LABEL, True, name) for name in several or (single,)]
    assert image is not None
    return image, tuple(str(name) for name in labels), find("split", SPLIT, False, named.split)


def column_names(data: Data, label: tuple[str, ...]) -> tuple[str, ...]:
    """The names that columns of labels give to outputs: all of several, that of one number."""
    return label if len(label) > 1 or data.task == "regression" else ()


def split_names(values: Sequence[str], where: str) -> np.ndarray:
    """The splits [N] as train, validation and test. Raises ValueError for another name."""
    split_of = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    folded = [str(value).strip().lower() for value in values]
    unknown = [str(value) for value, name in zip(values, folded) if name not in split_of]
    if unknown:
        raise ValueError(
            f"{where} names the split '{unknown[0]}'; splits are train, validation and test"
        )
    return np.array([split_of[name] for name in folded], dtype=str)


def split_of_file(path: Path) -> str | None:
    """The split that a file's name begins with, as shards have it (`train-00000-of-00002`)."""
    split_of = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    return split_of.get(re.split(r"[^a-z]+", path.name.lower())[0])


def splits_of_files(paths: Sequence[Path], counts: Sequence[int], where: str) -> np.ndarray | None:
    """The split of every image in shards of that many images, by the names of the shards; None
    where no name has a split. Raises ValueError where some have and others do not.
    """
    splits = [split_of_file(path) for path in paths]
    if not any(splits):
        return None
    without = [path.name for path, split in zip(paths, splits) if split is None]
    if without:
        raise ValueError(
            f"{where} has files of splits, and {without[0]}, whose name begins with none of train, "
            "validation and test; rename it, or name fewer files"
        )
    return np.repeat([str(split) for split in splits], counts)


def groups_of(
    data: Data, column: np.ndarray | None, there: Sequence[str], names: Sequence[str]
) -> np.ndarray | None:
    """The groups [N] as text: `column`, which `group_by` names, or what it finds in the images'
    `names`. Raises ValueError where `group_by` is neither.
    """
    if data.group_by is None:
        return None
    if column is not None:
        return named_groups(column, f"the column '{data.group_by}' (data.group_by)", names)
    if "(" not in data.group_by:
        raise ValueError(
            f"data.group_by is '{data.group_by}', which is not a column ({', '.join(there)}) and "
            r"not a pattern with a group in brackets, such as (patient\d+)"
        )
    return groups_in_names(data.group_by, names)
