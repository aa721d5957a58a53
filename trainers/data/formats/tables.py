"""CSV tables of image files and their labels."""

from __future__ import annotations

import csv
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from searchspace.geometry import counted
from trainers.data.formats.rows import (
    Rows,
    column_names,
    columns_of,
    groups_of,
    split_names,
)
from trainers.data.formats.targets import SEPARATOR
from trainers.data.pools import Source
from trainers.settings import Data


class Table:
    """A `.csv` or `.tsv` file with a column of paths (relative to it) and one of labels, and
    perhaps one of splits and one of groups.
    """

    def __init__(self, data: Data) -> None:
        """Raises ValueError for a table without these columns, without rows, with an empty cell,
        or whose files are missing.
        """
        self.path = Path(data.files or "")
        header, rows = _read(self.path)
        where = str(self.path)
        image, label, split = columns_of(data, header, where)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        # an image of a multilabel table may have no label
        full = [] if data.task == "multilabel" and len(label) == 1 else label
        for name in (image, *full):
            empty = [i for i, value in enumerate(columns[name]) if not value.strip()]
            if empty:
                raise ValueError(
                    f"{where} has {counted(len(empty), 'row')} without a value in '{name}', "
                    "first in row "
                    f"{empty[0] + 1} below the header; fill it in, or leave such rows out"
                )
        names = columns[image]
        labelled = list(zip(*(columns[name] for name in label)))
        paths = [_place(self.path.parent, name) for name in names]
        self.files = _sizes(paths, self.path)
        by = data.group_by
        column = np.array(columns[by], dtype=str) if by in columns else None
        self.rows = Rows(
            where,
            paths,
            [(name, size) for name, (size, _) in zip(names, self.files)],
            _cells([columns[name] for name in label], data),
            None if split is None else split_names(columns[split], where),
            groups_of(data, column, header, names),
            data.classes,
            data.task,
            column_names(data, label),
            data.columns.separator or SEPARATOR,
            _contradictions(names, labelled, where) if data.task == "classification" else (),
        )

    def state(self) -> list[Any]:
        """What changes whenever the table or a file that it names changes."""
        return [self.path.stat().st_mtime_ns, self.path.stat().st_size, self.files]

    def identity(self) -> list[Any]:
        """The name, size and label of every training and validation image."""
        return self.rows.identity()

    def open(self) -> Source:
        """The files as pools."""
        return self.rows.source()


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max("\t;,|", key=first.count)
            # "path, label": what follows a separator and a space is the value
            spaced = f"{delimiter} " in first
            found = csv.reader(file, delimiter=delimiter, skipinitialspace=spaced)
            header, *rows = [row for row in found if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV table in UTF-8 ({error}); save it as one") from None
    twice = [name for name in header if name.strip() and header.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has two columns '{twice[0]}'; rename or remove one")
    if not rows:
        raise ValueError(
            f"{path} has {'a header and no rows' if header else 'no content'}; it needs a header "
            "such as path,label and a row for each image"
        )
    uneven = [i for i, row in enumerate(rows) if len(row) != len(header)]
    if uneven:
        raise ValueError(
            f"row {uneven[0] + 1} below the header of {path} has "
            f"{counted(len(rows[uneven[0]]), 'value')}, "
            f"and the header {len(header)}; correct it"
        )
    return header, rows


def _contradictions(names: list[str], labels: list[tuple[str, ...]], where: str) -> tuple[str, ...]:
    """What a user should know of files that have several rows with different labels."""
    labels_of: dict[str, set[tuple[str, ...]]] = {}
    for name, label in zip(names, labels):
        labels_of.setdefault(name, set()).add(label)
    several = [name for name, held in labels_of.items() if len(held) > 1]
    if not several:
        return ()
    return (
        f"{len(several)} of {len(labels_of)} files in {where} have several rows with different "
        f"labels, the first is {several[0]}: at most one of them can be right; correct them, or, "
        "if images have several labels, write these in one row (a|b) and say `data: {task: "
        "multilabel}`",
    )


def _place(folder: Path, name: str) -> Path:
    """The file that a table names; a name with backslashes, as Windows writes them, stands for the
    folders where there is no such file.
    """
    path = folder / name
    if "\\" in name and not os.path.lexists(path):
        return folder / name.replace("\\", "/")
    return path


def _sizes(paths: list[Path], table: Path) -> list[tuple[int, int]]:
    """Size in bytes and time of change in ns of every file. Raises ValueError for missing ones."""
    sizes, missing = [], []
    for path in paths:
        try:
            about = os.stat(path)
        except (OSError, ValueError):  # ValueError: a NUL in the name
            missing.append(path)
            continue
        sizes.append((about.st_size, about.st_mtime_ns))
        if not stat.S_ISREG(about.st_mode):
            missing.append(path)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} files that {table} names are missing or no files, "
            f"the first is {missing[0]}; paths are relative to the folder of the table"
        )
    return sizes


def _cells(columns: list[list[str]], data: Data) -> np.ndarray:
    """The labels of one column [N], as integers where all are, or of several [N, K]; a single
    column of a multilabel table is text.
    """
    if len(columns) > 1:
        return np.array(columns, dtype=str).T
    labels = np.array(columns[0], dtype=str)
    return labels if data.task == "multilabel" else _integers(labels)


def _integers(labels: np.ndarray) -> np.ndarray:
    """Labels of text as integers, where all are."""
    try:
        return labels.astype(np.int64)
    except (ValueError, OverflowError):
        return labels
