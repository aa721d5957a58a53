"""Decoded and resized images on disk, shared by all workers of a machine through memory mapping.

One file holds one array in `.npy` format (`numpy.load` reads it) and, behind it, what belongs to it as JSON, the length
of that JSON and a mark. The mark is written last and the file appears by `os.replace`, so a file without it is torn and is
built again. Any file may be deleted at any time: a process that has mapped it keeps its pages. Beyond 20 GB
(`EQUISEARCH_CACHE_GB`), files that nobody has used for a day are, those unused for longest first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Callable

import numpy as np
from filelock import FileLock

LIMIT_GB = 20.0         # of all files together, unless EQUISEARCH_CACHE_GB says otherwise
UNUSED = 86_400.0       # seconds after which nobody is taken to need a file: studies that run keep theirs, whatever their size
MARK = b"equisearch cache"
HEADER = 128                                             # bytes; what numpy's format 1.0 pads a small header to

# Fills the array that `allocate(shape)` gives and returns the rows to keep (None: all) and what belongs to it (JSON).
Build = Callable[[Callable[[tuple[int, ...]], np.ndarray]], "tuple[np.ndarray | None, dict[str, Any]]"]


def directory() -> Path:
    """Where cached arrays lie: `EQUISEARCH_CACHE`, or `equisearch` in the user's cache directory."""
    chosen = os.environ.get("EQUISEARCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "equisearch" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "equisearch"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equisearch"


def key(description: Any) -> str:
    """A file name for whatever JSON can hold: equal descriptions have equal names."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def cached(name: str, build: Build) -> tuple[np.ndarray, dict[str, Any]]:
    """The uint8 array of that name and what belongs to it, read from the cache or built and put there.

    Several processes that ask at once build it once: the others wait. Where the directory cannot be written, or has no space
    left, the array is built in memory, with a warning. The array is mapped copy-on-write: writing to it changes no file.
    """
    path = directory() / f"{name}.npy"
    found = read(path)
    if found is not None:
        _used(path)
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        return _in_memory(build, error)
    try:
        found = read(path)
        if found is None:
            try:
                _write(path, build)
            except _NotWritten as failure:
                return _in_memory(build, failure.__cause__)
            found = read(path)
            prune()
        if found is None:
            raise RuntimeError(f"the cache file {path} cannot be read back after writing")
        return found
    finally:
        lock.release()


def limit() -> float:
    """Bytes that the cached arrays may take: those of `EQUISEARCH_CACHE_GB`. Raises ValueError where that is no number above 0."""
    asked = os.environ.get("EQUISEARCH_CACHE_GB", str(LIMIT_GB))
    try:
        size = float(asked)
    except ValueError:
        size = 0.0
    if not size > 0:
        raise ValueError(f"EQUISEARCH_CACHE_GB is '{asked}'; it must be a number of GB above 0, such as {LIMIT_GB:g}")
    return size * 1e9


def prune() -> None:
    """Deletes unused arrays, those unused for longest first, until all together are within `limit`, and what killed processes left."""
    arrays = sorted(_files("*.npy"), key=lambda found: found[1].st_mtime)
    excess, old = sum(about.st_size for _, about in arrays) - limit(), time.time() - UNUSED
    for path, about in [*_files("*.tmp"), *arrays]:
        if about.st_mtime < old and (path.suffix == ".tmp" or excess > 0):
            excess -= about.st_size if path.suffix == ".npy" else 0
            try:
                path.unlink(missing_ok=True)
            except OSError:     # in use, where such files cannot be deleted; or somebody else's
                pass


def _files(pattern: str) -> "list[tuple[Path, os.stat_result]]":
    """The files of the cache and what is known of them; one that another process deletes meanwhile is left out."""
    found = []
    for path in directory().glob(pattern):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:
            continue
    return found


def _used(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:     # a cache that others own is read all the same
        pass


def read(path: Path) -> "tuple[np.ndarray, dict[str, Any]] | None":
    """The array in a cache file, mapped, and what belongs to it; None where the file is missing or torn."""
    tail = len(MARK) + 8
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length < HEADER + tail:
                return None
            file.seek(length - tail)
            end = file.read(tail)
            text = int.from_bytes(end[:8], "little")
            if end[8:] != MARK or text > length - HEADER - tail:
                return None
            file.seek(length - tail - text)
            about = json.loads(file.read(text))
        if HEADER + int(np.prod(about["shape"])) + text + tail != length:
            return None
        pixels = np.load(path, mmap_mode="c")
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return np.asarray(pixels), about["content"]


class _NotWritten(Exception):
    """The cache could not be written (its cause says why)."""


def _write(path: Path, build: Build) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _NotWritten from error
    try:
        shapes: list[tuple[int, ...]] = []

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            shapes.append(shape)
            size = int(np.prod(shape))
            try:
                with open(temporary, "r+b") as file:    # reserve it: a full disk must not end in SIGBUS while mapped
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, HEADER + size + 1)
                    else:
                        file.truncate(HEADER + size + 1)
            except OSError as error:
                raise _NotWritten from error
            return np.memmap(temporary, dtype=np.uint8, mode="r+", offset=HEADER, shape=shape)

        rows, content = build(allocate)
        _finish(temporary, shapes[0], rows, content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _finish(temporary: str, shape: tuple[int, ...], rows: "np.ndarray | None", content: dict[str, Any]) -> None:
    """Keep only `rows` of the array in the file, then write its header, its content and the mark."""
    if rows is not None:
        pixels = np.memmap(temporary, dtype=np.uint8, mode="r+", offset=HEADER, shape=shape)
        for start in range(0, len(rows), 256):           # rows ascend, so a block never overwrites one still to be read
            pixels[start:start + 256][:len(rows) - start] = pixels[rows[start:start + 256]]
        pixels.flush()
        del pixels
        shape = (len(rows), *shape[1:])
    text = json.dumps({"shape": shape, "content": content}).encode()
    try:
        with open(temporary, "r+b") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            assert file.tell() == HEADER
            file.seek(HEADER + int(np.prod(shape)))
            file.truncate()
            file.write(text + len(text).to_bytes(8, "little") + MARK)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _NotWritten from error


def _in_memory(build: Build, reason: "BaseException | None") -> tuple[np.ndarray, dict[str, Any]]:
    warnings.warn(f"images are decoded in memory, by each worker again, because {directory()} cannot be written ({reason}); "
                  "set the environment variable EQUISEARCH_CACHE to a directory with space", stacklevel=4)
    made: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        made.append(np.empty(shape, dtype=np.uint8))
        return made[0]

    rows, content = build(allocate)
    return (made[0] if rows is None else made[0][rows]), json.loads(json.dumps(content))
