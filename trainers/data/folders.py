"""Image folders: `train/ [validation/] [test/]` with a folder per class, or one folder of class
folders.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.data.pools import FilePool, Source, file_pool

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".pgm",
    ".pbm",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
)
VALIDATION = ("validation", "val", "valid")  # names that the validation folder may have
LAYOUT = "it must hold one sub-folder of images per class, or train/ [validation/] [test/] with one sub-folder per class each"


@dataclass(frozen=True)
class Listing:
    """The image files of one split, by class: (path, bytes, modification time in ns), sorted by
    path.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[tuple[Path, int, int], ...], ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of files of each class."""
        return {name: len(files) for name, files in zip(self.classes, self.files)}


@dataclass(frozen=True)
class Folder:
    """What an image folder holds; `validation` and `test` are None where there is no such folder."""

    train: Listing
    validation: Listing | None
    test: Listing | None
    # False: one folder of class folders, still to be split
    split: bool

    def fingerprint(self) -> list:
        """What changes whenever an image is added, removed or written: every file's path, size and
        time of change.
        """
        return [
            [str(file.relative_to(part.root)), size, changed]
            for part in (self.train, self.validation, self.test)
            if part is not None
            for files in part.files
            for file, size, changed in files
        ]


def list_folder(folder: Path) -> Folder:
    """What lies in an image folder, without opening an image. Raises ValueError where it cannot
    serve as a data set.

    `train/` means a folder already split if it holds sub-folders itself; otherwise it is a class of
    that name.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(
            f"data folder {folder} {what} (looked for at {folder.absolute()}); {LAYOUT}"
        )
    if not _subfolders(folder / "train"):
        listing = _list(folder)
        _at_least(
            listing,
            2,
            "it cannot be split into training and validation images; add images or remove the "
            "class",
        )
        return Folder(listing, None, None, split=False)
    found = [folder / name for name in VALIDATION if (folder / name).is_dir()]
    if len(found) > 1:
        raise ValueError(
            f"data folder {folder} holds both {found[0].name}/ and {found[1].name}/; keep one "
            "of them"
        )
    train = _list(folder / "train")
    validation = _list(found[0]) if found else None
    test = _list(folder / "test") if (folder / "test").is_dir() else None
    if validation is None:
        _at_least(
            train,
            2,
            "no validation image can be taken from it; add images, or a folder "
            f"{folder}/validation",
        )
    else:
        _at_least(train, 1, "add images or remove the class")
    for other in (validation, test):
        _same_classes(train, other)
    return Folder(train, validation, test, split=True)


def open_folder(folder: Folder) -> Source:
    """The image folder as pools of files."""
    test = folder.test
    return Source(
        classes=folder.train.classes,
        train=_pool(folder.train),
        validation=None if folder.validation is None else _pool(folder.validation),
        test=None if test is None else lambda: _pool(test),
        holds_out_test=not folder.split,
    )


def _pool(listing: Listing) -> FilePool:
    paths = [path for files in listing.files for path, _, _ in files]
    return file_pool(
        paths, np.repeat(np.arange(len(listing.classes)), [len(files) for files in listing.files])
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (
            Path(entry.path)
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith((".", "__"))
        ),
        key=lambda path: path.name,
    )


def _list(root: Path) -> Listing:
    folders = _subfolders(root)
    listing = Listing(
        root, tuple(path.name for path in folders), tuple(tuple(_images(path)) for path in folders)
    )
    if len(folders) < 2 or not any(listing.files):
        holds = (
            f"holds {len(folders)} sub-folder{'' if len(folders) == 1 else 's'}"
            if len(folders) < 2
            else f"holds no image in its {len(folders)} sub-folders (looked for "
            f"{' '.join(EXTENSIONS)})"
        )
        raise ValueError(f"data folder {root} {holds}; {LAYOUT}, and at least two classes")
    return listing


def _images(folder: Path) -> list[tuple[Path, int, int]]:
    """The image files below a class folder, at any depth; hidden ones are left out."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            found += _images(Path(entry.path))
        elif entry.name.lower().endswith(EXTENSIONS):
            facts = entry.stat()
            found.append((Path(entry.path), facts.st_size, facts.st_mtime_ns))
    return sorted(found, key=lambda file: str(file[0]))


def _at_least(listing: Listing, least: int, remedy: str) -> None:
    few = [f"'{name}' ({count})" for name, count in listing.counts.items() if count < least]
    if few:
        raise ValueError(
            f"{'class' if len(few) == 1 else 'classes'} {_some(few)} in {listing.root} "
            f"{'has' if len(few) == 1 else 'have'} fewer than {least} "
            f"image{'' if least == 1 else 's'}; {remedy}"
        )


def _same_classes(train: Listing, other: Listing | None) -> None:
    if other is None or other.classes == train.classes:
        return
    missing = [name for name in train.classes if name not in other.classes]
    extra = [name for name in other.classes if name not in train.classes]
    differences = ([f"{_some(missing)} only in {train.root.name}/"] if missing else []) + (
        [f"{_some(extra)} only in {other.root.name}/"] if extra else []
    )
    raise ValueError(
        f"{train.root}/ and {other.root}/ hold different classes: {'; '.join(differences)}; "
        "give both the same sub-folders (one may be empty)"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
