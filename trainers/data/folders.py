"""Image folders: `train/ [validation/] [test/]` with a folder per class, or one folder of class
folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from searchspace.geometry import counted
from trainers.data.decoding import extensions
from trainers.data.formats.labels import plain_name, without_test
from trainers.data.grouping import groups_in_names
from trainers.data.pools import FilePool, Pool, Source, file_pool
from trainers.data.scanning import (
    ImageFile,
    LeftOut,
    above,
    describe_skipped,
    file_identity,
    find_images,
    sub_folders,
)
from trainers.data.splitting import first_names
from trainers.files import system_reason

# the names that the folder of each split may have, in any case and beside one of `_FILLERS`
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "eval", "evaluation", "dev"),
    "test": ("test", "testing"),
}
_FILLERS = "set|data|dataset|images|imgs|split"
LAYOUT = (
    "it must hold one sub-folder of images per class, or train/ [validation/] [test/] with one "
    "sub-folder per class each"
)


@dataclass(frozen=True)
class Listing:
    """The image files of one split, by class, sorted by path."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[ImageFile, ...], ...]
    left_out: tuple[LeftOut, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of files of each class."""
        return {name: len(files) for name, files in zip(self.classes, self.files)}


@dataclass(frozen=True)
class Folder:
    """What an image folder holds; `validation` and `test` are None where they are missing."""

    root: Path
    train: Listing
    validation: Listing | None
    test: Listing | None
    # False: one folder of class folders, still to be split
    split: bool
    # why the folder of test images cannot be used; None where it can, or where there is none
    test_fault: str | None = None
    # of the layout, each a sentence without a full stop
    doubts: tuple[str, ...] = ()
    beside: tuple[LeftOut, ...] = ()  # what lies beside the folders of the splits

    def fingerprint(self) -> list:
        """What changes whenever an image is added, removed or written: every file's path, size and
        time of change.
        """
        return [self.test_fault] + [
            [str(file.relative_to(part.root)), size, changed]
            for part in (self.train, self.validation, self.test)
            if part is not None
            for files in part.files
            for file, size, changed in files
        ]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should look at: a doubtful layout, and images that are left out."""
        return (*self.doubts, *self._describe(expected=False))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out as is to be expected, such as text files."""
        return self._describe(expected=True)

    def _describe(self, expected: bool) -> tuple[str, ...]:
        parts = [part.left_out for part in (self.train, self.validation, self.test) if part]
        items = [i for part in (self.beside, *parts) for i in part if i.expected is expected]
        return (f"left out of {self.root}: {describe_skipped(items, self.root)}",) if items else ()


def list_folder(folder: Path) -> Folder:
    """What lies in an image folder, without opening an image. Raises ValueError where it cannot
    serve as a data set.

    A folder called `train` or `training` (`SPLIT_FOLDERS`) means a folder already split if it holds
    sub-folders itself; otherwise it is a class of that name. Test images that cannot be used are
    said in `test_fault`, since a training does not need them.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        place = "" if folder.is_absolute() else f" (looked for at {folder.absolute()})"
        raise ValueError(f"data folder {folder} {what}{place}; {LAYOUT}")
    try:
        folders, beside = sub_folders(folder)
        splits = _split_folders(folders)
        if not any(sub_folders(path)[0] for path in splits["train"]):
            return _unsplit(folder, folders)
        return _already_split(folder, splits, folders, tuple(beside))
    except OSError as error:
        raise ValueError(
            f"data folder {folder} cannot be read ({error.filename}: {system_reason(error)}); "
            "make all of it readable"
        ) from error


def open_folder(folder: Folder, group_by: str | None = None) -> Source:
    """The image folder as pools of files; `group_by` is a pattern that finds the group of an image
    in its path below the folder of its split. Raises ValueError for a pattern that does not.
    """
    return Source(
        classes=folder.train.classes,
        train=_pool(folder.train, group_by),
        validation=None if folder.validation is None else _pool(folder.validation, group_by),
        test=_test_opener(folder, group_by),
        holds_out_test=not folder.split,
    )


def _test_opener(folder: Folder, group_by: str | None) -> Callable[[], Pool] | None:
    """Opens the test images, or raises ValueError where they cannot be used; None: no folder."""
    test, fault = folder.test, folder.test_fault
    if test is None and fault is None:
        return None

    def opened() -> Pool:
        if test is None:
            raise ValueError(fault)
        return _pool(test, group_by)

    return opened


def _pool(listing: Listing, group_by: str | None) -> FilePool:
    paths = [path for files in listing.files for path, _, _ in files]
    groups = None
    if group_by is not None:
        names = [path.relative_to(listing.root).as_posix() for path in paths]
        groups = groups_in_names(group_by, names)
    labels = np.repeat(np.arange(len(listing.classes)), [len(files) for files in listing.files])
    return file_pool(paths, labels, groups)


def _split_folders(folders: list[Path]) -> dict[str, list[Path]]:
    """Those of the folders that are called after a split."""

    def means(path: Path, names: tuple[str, ...]) -> bool:
        words = re.split(r"[^a-z0-9]+", path.name.lower())
        rest = [word for word in (re.sub(f"({_FILLERS})$", "", word) for word in words) if word]
        return len(rest) == 1 and rest[0] in names

    return {
        split: [path for path in folders if means(path, names)]
        for split, names in SPLIT_FOLDERS.items()
    }


def _unsplit(folder: Path, folders: list[Path]) -> Folder:
    listing = _list(folder)
    _at_least(
        listing,
        3,
        "every class must be in training, validation and test images; add images or remove the "
        "class",
    )
    return Folder(folder, listing, None, None, split=False, doubts=_same_sub_folders(folders))


def _already_split(
    folder: Path, splits: dict[str, list[Path]], folders: list[Path], beside: tuple[LeftOut, ...]
) -> Folder:
    train = _list(_only(folder, splits["train"]))
    validation = _list(_only(folder, splits["validation"])) if splits["validation"] else None
    if validation is None:
        _at_least(
            train,
            2,
            "no validation image can be taken from it; add images, or a folder "
            f"{folder}/validation",
        )
    else:
        _at_least(train, 1, "add images or remove the class")
        _same_classes(train, validation)
    test, fault = None, None
    try:
        if splits["test"]:
            test = _list(_only(folder, splits["test"]))
            _same_classes(train, test)
    except ValueError as error:
        test, fault = None, str(error)
    doubts = (
        *_not_used(folder, splits, folders, train),
        *_same_sub_folders(sub_folders(train.root)[0]),
    )
    doubts = (*doubts, *without_test(fault))
    return Folder(folder, train, validation, test, True, fault, doubts, beside)


def _only(folder: Path, paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise ValueError(
            f"data folder {folder} holds both {paths[0].name}/ and {paths[1].name}/; keep one of "
            "them"
        )
    return paths[0]


def _not_used(
    folder: Path, splits: dict[str, list[Path]], folders: list[Path], train: Listing
) -> tuple[str, ...]:
    used = {path for paths in splits.values() for path in paths}
    others = [f"{path.name}/" for path in folders if path not in used]
    if not others:
        return ()
    return (
        f"{folder} is read as already split, because {train.root.name}/ holds sub-folders; "
        f"{first_names(others)} beside it {'is' if len(others) == 1 else 'are'} not used",
    )


def _same_sub_folders(classes: list[Path]) -> tuple[str, ...]:
    """A doubt where two class folders hold the same sub-folders, as splits and not classes do."""
    inside = {path: {below.name for below in sub_folders(path)[0]} for path in classes}
    nested = [path for path, names in inside.items() if len(names) > 1]
    for one, other in combinations(nested, 2):
        common = sorted(inside[one] & inside[other])
        if len(common) > 1:
            return (
                f"the classes '{one.name}' and '{other.name}' hold the same sub-folders "
                f"({first_names(common)}); if these are the classes, name the folders above them "
                "train/, validation/ and test/",
            )
    return ()


def _list(root: Path) -> Listing:
    folders, left_out = sub_folders(root)
    _check_names(folders)
    outside = {*above(root), *map(file_identity, folders)}
    scanned = [find_images(path, outside - {file_identity(path)}) for path in folders]
    listing = Listing(
        root,
        tuple(path.name for path in folders),
        tuple(tuple(images) for images, _ in scanned),
        (*left_out, *(item for _, items in scanned for item in items)),
    )
    if len(folders) < 2 or not any(listing.files):
        holds = (
            f"holds {counted(len(folders), 'sub-folder')}"
            if len(folders) < 2
            else f"holds no image in its {len(folders)} sub-folders (looked for "
            f"{' '.join(sorted(extensions()))})"
        )
        besides = (
            f", besides {describe_skipped(listing.left_out, root)}" if listing.left_out else ""
        )
        inner = sub_folders(folders[0])[0] if len(folders) == 1 else []
        meant = f"; perhaps {folders[0]} is meant" if len(inner) > 1 else ""
        raise ValueError(
            f"data folder {root} {holds}{besides}; {LAYOUT}, and at least two classes{meant}"
        )
    return listing


def _check_names(folders: list[Path]) -> None:
    """Raises ValueError for a class whose name no text file can hold, or nobody can read."""
    for path in folders:
        if not path.name.strip():
            raise ValueError(
                f"a class folder in {path.parent} has a name of spaces alone, {path.name!r}; "
                "rename it"
            )
        try:
            path.name.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"the class folder {os.fsencode(path.name)!r} in {path.parent} has a name that is "
                "not UTF-8, which results and bundles could not hold; rename it"
            ) from None


def _at_least(listing: Listing, least: int, remedy: str) -> None:
    few = [f"'{name}' ({count})" for name, count in listing.counts.items() if count < least]
    if few:
        raise ValueError(
            f"{'class' if len(few) == 1 else 'classes'} {first_names(few)} in {listing.root} "
            f"{'has' if len(few) == 1 else 'have'} fewer than "
            f"{counted(least, 'image')}; {remedy}"
        )


def _same_classes(train: Listing, other: Listing) -> None:
    missing = [name for name in train.classes if name not in other.classes]
    extra = [name for name in other.classes if name not in train.classes]
    differences = ([f"{first_names(missing)} only in {train.root.name}/"] if missing else []) + (
        [f"{first_names(extra)} only in {other.root.name}/"] if extra else []
    )
    if differences:
        alike = [
            f"{one!a} and {two!a}"
            for one in missing
            for two in extra
            if plain_name(one) == plain_name(two)
        ]
        hint = f" ({first_names(alike)} differ by their spelling alone)" if alike else ""
        raise ValueError(
            f"{train.root}/ and {other.root}/ hold different classes: {'; '.join(differences)}"
            f"{hint}; give both the same sub-folders"
        )
