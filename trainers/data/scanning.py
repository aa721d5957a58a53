"""Walking an image folder: which files of a class are images, and what is left out and why."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainers.data.decoding import extensions

ImageFile = tuple[Path, int, int]  # path, size in bytes, time of change in ns
Identity = tuple[int, int]  # device and number of a folder, whatever links lead to it

# files that lie beside images for other programs
_COMPANIONS = (
    *(".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".html", ".log", ".py"),
    *("thumbs.db", "desktop.ini"),
)
_NAMED = 3  # examples per reason in a message
_PLURAL = re.compile(r"\b(image|file|link)s( or folders)?\b")


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not read; `expected` is True where it was not meant as an image."""

    path: Path
    reason: str  # in the plural, such as `dangling links`
    expected: bool = False


def file_identity(folder: Path) -> Identity:
    """What two paths of the same folder have in common. Raises OSError."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def sub_folders(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """The folders in a folder, by name, and what else lies there. Hidden ones (`.` or `__` first)
    are in neither. A link to the folder itself, to one above it, or to one that is listed already
    is left out. Raises OSError where the folder cannot be read.
    """
    seen = above(folder)
    folders: list[Path] = []
    left_out: list[LeftOut] = []
    for path in _entries(folder):
        try:
            about = os.stat(path)
        except OSError:
            left_out.append(_unreadable(path))
            continue
        if not stat.S_ISDIR(about.st_mode):
            left_out.append(_beside(path))
        elif (about.st_dev, about.st_ino) in seen:
            left_out.append(LeftOut(path, "links to folders that are read already"))
        else:
            seen.add((about.st_dev, about.st_ino))
            folders.append(path)
    return folders, left_out


def above(folder: Path) -> set[Identity]:
    """The folder and all that it lies in. Raises OSError."""
    here = Path(os.path.realpath(folder))
    return {file_identity(path) for path in (here, *here.parents)}


def find_images(folder: Path, outside: set[Identity]) -> tuple[list[ImageFile], list[LeftOut]]:
    """The image files below a class folder at any depth, sorted by path, and what is left out.

    Each folder is read once, however many links lead to it, and none that is `outside` the class.
    Only regular files, and links to them, are images: reading a pipe would not end.
    """
    images: list[ImageFile] = []
    left_out: list[LeftOut] = []
    seen = set(outside)
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            if file_identity(current) in seen:
                left_out.append(LeftOut(current, "links to folders that are read already"))
                continue
            seen.add(file_identity(current))
            entries = _entries(current)
        except OSError:
            left_out.append(_unreadable(current))
            continue
        for path in entries:
            try:
                about = os.stat(path)
            except OSError:
                left_out.append(_unreadable(path))
                continue
            if stat.S_ISDIR(about.st_mode):
                pending.append(path)
            elif not _is_image(path):
                left_out.append(_other(path))
            elif stat.S_ISREG(about.st_mode):
                images.append((path, about.st_size, about.st_mtime_ns))
            else:
                left_out.append(LeftOut(path, "special files such as pipes"))
    return sorted(images, key=lambda file: str(file[0])), left_out


def describe_skipped(left_out: Iterable[LeftOut], root: Path) -> str:
    """What was left out below `root`, counted by reason, with examples."""
    groups: dict[str, list[str]] = {}
    for item in left_out:
        groups.setdefault(item.reason, []).append(os.path.relpath(item.path, root))
    return "; ".join(
        f"{len(names)} {reason if len(names) > 1 else _PLURAL.sub(_singular, reason, count=1)} "
        f"({', '.join(sorted(names)[:_NAMED])}"
        f"{', ...' if len(names) > _NAMED else ''})"
        for reason, names in sorted(groups.items())
    )


def _singular(plural: re.Match[str]) -> str:
    return f"{plural[1]} or folder" if plural[2] else plural[1]


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, by name, without hidden files and folders."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if not name.startswith((".", "__"))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in extensions()


def _beside(path: Path) -> LeftOut:
    """A file among class folders."""
    return LeftOut(path, "images beside class folders") if _is_image(path) else _other(path)


def _other(path: Path) -> LeftOut:
    ending = path.suffix.lower()
    expected = ending in _COMPANIONS or path.name.lower() in _COMPANIONS
    which = f"{ending} files" if ending else "files without an ending"
    reason = which if expected else f"{which}, which Pillow does not decode"
    return LeftOut(path, reason, expected)


def _unreadable(path: Path) -> LeftOut:
    if not os.path.islink(path):
        return LeftOut(path, "files or folders that cannot be read")
    try:
        os.stat(path)
    except FileNotFoundError:
        return LeftOut(path, "dangling links")
    except OSError:  # among others a link to itself
        pass
    return LeftOut(path, "links that cannot be followed")
