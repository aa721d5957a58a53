"""Which format the files of a study have, and their reader."""

from __future__ import annotations

import glob
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from trainers.catalogue import DATA_FORMATS
from trainers.data.pools import Source
from trainers.settings import Data

# what to do with files of other endings
OTHERS = {
    (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip", ".7z", ".rar"): (
        "it is compressed: unpack it, and name the file or, as `folder:`, the folder of images "
        "that was in it"
    ),
    (".xls", ".xlsx", ".ods", ".txt"): "save it as a CSV table in UTF-8 with the ending .csv",
    (".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".db", ".sqlite"): (
        "write a CSV table with a path and a label for each image"
    ),
    (".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".pt", ".pth", ".npy", ".joblib", ".lmdb"): (
        "write its images and labels with numpy.savez(NAME.npz, images=..., labels=...)"
    ),
    (".arrow", ".feather", ".orc", ".avro"): (
        "write it as Parquet, or name the folder that `save_to_disk` wrote"
    ),
    (".tfrecord", ".tfrecords", ".rec", ".beton"): "write its samples as WebDataset shards (.tar)",
}


PATTERNS = ("Parquet", "WebDataset")  # formats whose data may lie in several files


class Reader(Protocol):
    """What a format of `trainers.catalogue.DATA_FORMATS` offers. Its class is called with the
    `Data` of a study, and raises ValueError for files that cannot serve as a data set.
    """

    def state(self) -> list[Any]:
        """What changes whenever the files change: names, sizes and times of change."""
        ...

    def identity(self) -> list[Any]:
        """What the training and validation images are, wherever and whenever written."""
        ...

    def open(self) -> Source:
        """The images as pools, of which none is decoded yet."""
        ...


def file_reader(data: Data) -> Reader:
    """The reader of a study's `files`. Raises ValueError where they are missing, or of a format
    that is not known.
    """
    path = Path(data.files or "").expanduser()
    if "*" not in str(path) and not path.exists():
        raise ValueError(
            f"data.files names {path}, which does not exist (looked for at {path.absolute()}); "
            "correct it, or, for files that were moved, resume with --set data.files=PATH"
        )
    form = _form(path)
    if "*" in str(path) and form not in PATTERNS:
        raise ValueError(
            f"data.files names {path}, and patterns are for {' and '.join(PATTERNS)} alone; name "
            f"one file of {form}"
        )
    _require_files(path, DATA_FORMATS[form].inside)
    module, name = DATA_FORMATS[form].reader.split(":")
    form_class = getattr(importlib.import_module(f"trainers.data.formats.{module}"), name)
    try:
        return form_class(data.model_copy(update={"files": path}))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); make it readable") from error


def _require_files(path: Path, inside: Iterable[str]) -> None:
    """Raises ValueError where a pipe or a device lies in place of a file: it would be read without
    end.
    """
    if "*" in str(path):
        found = [Path(name) for name in glob.glob(str(path))]
    elif path.is_dir():
        found = [file for pattern in inside for file in path.glob(pattern)]
    else:
        found = [path]
    odd = [file for file in found if file.exists() and not (file.is_file() or file.is_dir())]
    if odd:
        raise ValueError(f"{odd[0]} is a pipe or a device; data.files reads files alone")


def _form(path: Path) -> str:
    """The name of the format of files at a path."""
    name = path.name.lower()
    for called, form in DATA_FORMATS.items():
        if path.is_dir():
            if any(next(path.glob(pattern), None) for pattern in form.inside):
                return called
        elif name.endswith(form.endings):
            return called
    forms = "; ".join(
        f"{called} ({', '.join(dict.fromkeys([*form.endings, *form.inside]))})"
        for called, form in DATA_FORMATS.items()
    )
    remedy = (
        "; images in one sub-folder per class are `folder:`"
        if path.is_dir()
        else next((f"; {do}" for endings, do in OTHERS.items() if name.endswith(endings)), "")
    )
    raise ValueError(f"{path} is not in a format that data.files reads: {forms}{remedy}")
