"""Tables of images and labels in Apache Arrow: Parquet files, and Hugging Face datasets saved to
disk. pyarrow reads both; the package `datasets` is not needed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchspace.geometry import counted
from trainers.data.decoding import ImagePath
from trainers.data.formats.labels import LABEL_RULE
from trainers.data.formats.rows import (
    Rows,
    column_names,
    columns_of,
    groups_of,
    split_names,
    splits_of_files,
)
from trainers.data.formats.shards import files_of, state_of
from trainers.data.formats.targets import SEPARATOR
from trainers.data.pools import Source
from trainers.files import parse_json, read_whole
from trainers.settings import Data

GROUPS_HELD = 2  # row groups of images in memory at once

ArrowColumn = Any  # a ChunkedArray of pyarrow, which has no types


@dataclass(frozen=True)
class ArrowImage:
    """An encoded image in a row of a table."""

    path: Path
    row: int
    column: Callable[[], ArrowColumn]  # that holds the row
    offset: int  # of the row in that column

    def read(self) -> bytes:
        """The bytes of the image file."""
        value = self.column()[self.offset].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        named = value.get("path") if isinstance(value, dict) else value
        if not isinstance(named, str):
            raise ValueError("no image in this row")
        return read_whole(self.path.parent / named)

    def __str__(self) -> str:
        """What messages call it."""
        return f"row {self.row} of {self.path}"


@dataclass(frozen=True, eq=False)
class _Part:
    """One file: its rows' images, and a function that gives a column's values."""

    path: Path
    schema: Any
    values: Callable[[str], ArrowColumn]
    images: Callable[[str], Iterator[ImagePath]]


class _Tables:
    """Arrow tables as rows of images with labels."""

    def __init__(self, data: Data, parts: list[_Part], splits: list[str] | None) -> None:
        where = str(data.files)
        schema = parts[0].schema
        there = list(schema.names)
        for part in parts:
            twice = [name for name in part.schema.names if part.schema.names.count(name) > 1]
            if twice:
                raise ValueError(f"{part.path} has two columns '{twice[0]}'; rename or remove one")
        image, label, split = columns_of(data, there, where)
        _require_images(schema, image, where)
        for part in parts[1:]:
            if not {image, *label} <= set(part.schema.names):
                raise ValueError(
                    f"{part.path} lacks the columns '{image}' and '{', '.join(label)}' that "
                    f"{parts[0].path.name} has; give all files the same columns"
                )
        images = [item for part in parts for item in part.images(image)]
        counts = [len(part.values(label[0])) for part in parts]
        names = data.classes or (_names(schema, label[0]) if len(label) == 1 else None)
        keys = [(part.path.name, row) for part, count in zip(parts, counts) for row in range(count)]
        sizes = {part.path.name: part.path.stat().st_size for part in parts}
        held: np.ndarray | None
        if split is not None:
            held = split_names(_texts(parts, split), where)
        elif splits is not None:
            held = np.repeat(splits, counts)
        else:
            held = splits_of_files([part.path for part in parts], counts, where)
        by = data.group_by
        column = np.array(_texts(parts, by), dtype=str) if by is not None and by in there else None
        self.paths = [part.path for part in parts]
        self.rows = Rows(
            where,
            images,
            [(name, row, sizes[name]) for name, row in keys],
            _columns(parts, label, where),
            held,
            groups_of(data, column, there, [f"{name}, row {row}" for name, row in keys]),
            names,
            data.task,
            column_names(data, label),
            data.columns.separator or SEPARATOR,
        )

    def state(self) -> list[Any]:
        """Every file's path, size and time of change."""
        return state_of(self.paths)

    def identity(self) -> list[Any]:
        """The label and place in its file of every training and validation image, and the files'
        sizes.
        """
        return self.rows.identity()

    def open(self) -> Source:
        """The images as pools of rows."""
        return self.rows.source()


class Parquet(_Tables):
    """`.parquet` files with a column of encoded images and one of labels; splits by a column, or by
    the names of files (`train-00000-of-00002.parquet`). Two row groups are in memory at once.
    """

    def __init__(self, data: Data) -> None:
        """Raises ValueError for files that are damaged or lack these columns."""
        paths = files_of(Path(data.files or ""), "*.parquet")
        super().__init__(data, [_parquet(path) for path in paths], None)


class Saved(_Tables):
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; its rows are mapped
    from its files.
    """

    def __init__(self, data: Data) -> None:
        """Raises ValueError for a folder that is damaged or lacks these columns."""
        folder = Path(data.files or "")
        parts: list[_Part] = []
        splits: list[str] | None = None
        if (folder / "dataset_dict.json").is_file():
            names = _json(folder / "dataset_dict.json").get("splits", [])
            splits = []
            for name, split in zip(names, split_names(names, str(folder)).tolist()):
                added = _saved(folder / name)
                parts += added
                splits += [split] * len(added)
        else:
            parts = _saved(folder)
        super().__init__(data, parts, splits)


def _parquet(path: Path) -> _Part:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file ({error}); write it again") from None
    about, lock = file.metadata, threading.Lock()
    held: OrderedDict[tuple[str, int], ArrowColumn] = OrderedDict()

    def group(name: str, number: int) -> ArrowColumn:
        with lock:
            if (name, number) not in held:
                held[name, number] = file.read_row_group(number, columns=[name]).column(0)
                if len(held) > GROUPS_HELD:
                    held.popitem(last=False)
            held.move_to_end((name, number))
            return held[name, number]

    def images(name: str) -> Iterator[ImagePath]:
        row = 0
        for number in range(about.num_row_groups):
            column = _bound(group, name, number)
            for offset in range(about.row_group(number).num_rows):
                yield ArrowImage(path, row, column, offset)
                row += 1

    return _Part(path, file.schema_arrow, lambda name: file.read(columns=[name]).column(0), images)


def _bound(
    group: Callable[[str, int], ArrowColumn], name: str, number: int
) -> Callable[[], ArrowColumn]:
    return lambda: group(name, number)


def _saved(folder: Path) -> list[_Part]:
    """The Arrow files of one saved dataset, in their order."""
    named = _json(folder / "state.json").get("_data_files", [])
    files = [folder / str(entry.get("filename")) for entry in named if isinstance(entry, dict)]
    parts = [_arrow(path) for path in files]
    if not parts:
        raise ValueError(f"{folder} names no data files in its state.json; save the dataset again")
    return parts


def _arrow(path: Path) -> _Part:
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not an Arrow file ({error}); save the dataset again") from None

    def images(name: str) -> Iterator[ImagePath]:
        column = table.column(name)
        for row in range(len(column)):
            yield ArrowImage(path, row, lambda: column, row)

    return _Part(path, table.schema, table.column, images)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the dataset again") from None
    return content if isinstance(content, dict) else {}


def _require_images(schema: Any, name: str, where: str) -> None:
    """Raises ValueError for a column that holds neither encoded images nor paths."""
    import pyarrow.types as types

    kind = schema.field(name).type
    if types.is_struct(kind):  # as an Image column of Hugging Face
        held = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        # a column of which every value is missing has the type null
        filled = [held[n] for n in ("bytes", "path") if n in held and not types.is_null(held[n])]
        kind = filled[0] if filled else kind
    if not any(
        check(kind)
        for check in (
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
            types.is_string,
            types.is_large_string,
            types.is_string_view,
        )
    ):
        raise ValueError(
            f"the column '{name}' of {where} holds {schema.field(name).type}; it must hold image "
            "files as bytes, as an Image column of Hugging Face does, or their paths (arrays of "
            "pixels: save them as .npz)"
        )


def _names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The class names that a ClassLabel of Hugging Face has."""
    try:
        about = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _texts(parts: list[_Part], name: str) -> list[str]:
    values = [value for part in parts for value in part.values(name).to_pylist()]
    return ["" if value is None else str(value) for value in values]


def _columns(parts: list[_Part], names: tuple[str, ...], where: str) -> np.ndarray:
    """The labels of one column [N] (lists of one length: [N, K]), or of several [N, K]."""
    columns = [_labels(parts, name, where) for name in names]
    return columns[0] if len(columns) == 1 else np.stack(columns, 1)


def _labels(parts: list[_Part], name: str, where: str) -> np.ndarray:
    """Labels as integers or text. Raises ValueError for other types, and for missing ones."""
    values = [value for part in parts for value in part.values(name).to_pylist()]
    missing = [i for i, value in enumerate(values) if value is None]
    if missing:
        raise ValueError(
            f"{where} has {counted(len(missing), 'row')} without a label, first in row "
            f"{missing[0]}; fill "
            "labels in, or leave such rows out"
        )
    if not values:
        raise ValueError(f"{where} has no row; it needs one for each image")
    try:
        labels = np.array(values)
    except ValueError:
        raise ValueError(
            f"the labels of {where} are lists of different lengths; write a 0 or 1 for every "
            "label, or one text with names between separators"
        ) from None
    if labels.dtype.kind not in "biufU":
        held = next(part.schema.field(name).type for part in parts)
        raise ValueError(
            f"the labels of {where} are of type {held}, such as {values[0]}; {LABEL_RULE}: give "
            "integers or text"
        )
    return labels
