"""Decoded images in the cache folder, mapped by all workers of a machine.

One file holds one array in `.npy` format (`numpy.load` reads it) and, behind it, what belongs to it
as JSON, the length of that JSON and a mark. The mark is written last and the file appears by
`os.replace`, so a file without it is torn and is built again. Any file may be deleted at any time:
a process that has mapped it keeps its pages. Beyond 20 GB (`EQUISEARCH_CACHE_GB`), files that were
not used for a day are deleted, those unused for longest first.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trainers.cache import acquire, directory, make_folder, open_own, say_once
from trainers.files import PARTIAL, system_reason

LIMIT_GB = 20.0  # of all files together, unless EQUISEARCH_CACHE_GB says otherwise
# seconds after which a file counts as unneeded: running studies keep theirs, whatever their size
UNUSED = 86_400.0
# seconds for another process that decodes the same images; then they are decoded here
DECODING_WAIT = 900.0
BLOCK_BYTES = 64 << 20  # of images that are in memory at once while they are read
MARK = b"equisearch cache"
# bytes; what numpy's format 1.0 pads a small header to
HEADER = 128

# Fills the array that `allocate(shape)` gives and returns the rows to keep (None: all) and what
# belongs to it (JSON).
Allocate = Callable[[tuple[int, ...]], np.ndarray]
Build = Callable[[Allocate], "tuple[np.ndarray | None, dict[str, Any]]"]


def key(description: Any) -> str:
    """A file name for whatever JSON can hold: equal descriptions have equal names."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def cached(name: str, build: Build) -> tuple[np.ndarray, dict[str, Any]]:
    """The uint8 array of that name and what belongs to it, read from the cache or built and put
    there.

    Several processes that ask at once build it once: the others wait, at most `DECODING_WAIT`
    seconds. Where the folder cannot be used, or has no space left, the array is built in memory,
    with a warning. The array is mapped copy-on-write: writing to it changes no file.
    """
    try:
        path = directory() / f"{name}.npy"
        array = read_array(path)
        if array is not None:
            return array
        make_folder(path.parent)
        lock = acquire(path, DECODING_WAIT)
    except OSError as error:
        return _in_memory(build, error)
    try:
        array = read_array(path)
        if array is None:
            try:
                array = _write(path, build)
            except _NotWritten as failure:
                return _in_memory(build, failure.__cause__)
            prune()
        return array
    finally:
        lock.release()


def block_rows(shape: tuple[int, ...], itemsize: int = 1) -> int:
    """How many rows of an array of that shape `BLOCK_BYTES` hold, at least one."""
    return max(1, BLOCK_BYTES // max(1, itemsize * int(np.prod(shape[1:]))))


def limit() -> float:
    """Bytes that the cached arrays may take: those of `EQUISEARCH_CACHE_GB`. Raises ValueError
    where that is not a number above 0.
    """
    asked = os.environ.get("EQUISEARCH_CACHE_GB", str(LIMIT_GB))
    try:
        size = float(asked)
    except ValueError:
        size = 0.0
    if not size > 0:
        raise ValueError(
            f"EQUISEARCH_CACHE_GB is '{asked}'; it must be a number of GB above 0, such as "
            f"{LIMIT_GB:g}"
        )
    return size * 1e9


def prune() -> None:
    """Deletes unused arrays, those unused for longest first, until all together are within `limit`,
    and what killed processes left.
    """
    arrays = sorted(_files("*.npy"), key=lambda file: file[1].st_mtime)
    excess, old = sum(about.st_size for _, about in arrays) - limit(), time.time() - UNUSED
    for path, about in [*_files(f"**/*{PARTIAL}"), *_files("*.tmp"), *arrays]:
        if about.st_mtime < old and (path.suffix != ".npy" or excess > 0):
            excess -= about.st_size if path.suffix == ".npy" else 0
            # in use, where such files cannot be deleted; or another user's
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _files(pattern: str) -> list[tuple[Path, os.stat_result]]:
    """The files of the cache and their status; one that another process deletes meanwhile
    is left out.
    """
    files = []
    for path in directory().glob(pattern):
        with suppress(OSError):
            files.append((path, path.stat()))
    return files


def read_array(path: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The array in a cache file, mapped, and what belongs to it; None where the file is missing,
    torn, or not ours (`open_own`).
    """
    file = open_own(path)
    if file is None:
        return None
    with file:
        array = _mapped(file, path.stem)
        with suppress(OSError):  # root's are read all the same
            os.utime(file.fileno() if os.utime in os.supports_fd else path)
        return array


def _mapped(file: BinaryIO, name: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The array of that name in an open file and what belongs to it; None for a torn file or
    another array's.
    """
    tail = len(MARK) + 8
    try:
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
        shape = tuple(about["shape"])
        file.seek(0)
        np.lib.format.read_magic(file)
        if np.lib.format.read_array_header_1_0(file) != (shape, False, np.dtype(np.uint8)):
            return None
        if about["name"] != name or HEADER + int(np.prod(shape)) + text + tail != length:
            return None
        pixels = np.memmap(file, dtype=np.uint8, mode="c", offset=HEADER, shape=shape)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return np.asarray(pixels), about["content"]


class _NotWritten(Exception):
    """The cache could not be written (its cause says why)."""


def _write(path: Path, build: Build) -> tuple[np.ndarray, dict[str, Any]]:
    """The array, built in a file that then gets its name; it is mapped from the descriptor,
    whatever happens to the name.
    """
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f"{path.stem}.", suffix=PARTIAL
        )
    except OSError as error:
        raise _NotWritten from error
    with os.fdopen(handle, "r+b") as file:
        try:
            shapes: list[tuple[int, ...]] = []

            def allocate(shape: tuple[int, ...]) -> np.ndarray:
                shapes.append(shape)
                _reserve(file, HEADER + int(np.prod(shape)) + 1)
                return np.memmap(file, dtype=np.uint8, mode="r+", offset=HEADER, shape=shape)

            rows, content = build(allocate)
            _finish(file, path.stem, shapes[0], rows, content)
            array = _mapped(file, path.stem)
            if array is None:
                raise RuntimeError(f"the cache file {path} cannot be read back after writing")
            try:
                os.replace(temporary, path)
            except OSError as error:  # a name that is another user's
                say_once(
                    f"decoded images cannot be kept in {path.parent} ({error.strerror}); "
                    "set EQUISEARCH_CACHE to a folder that only you can write"
                )
            return array
        finally:
            with suppress(OSError):
                os.unlink(temporary)


def _reserve(file: BinaryIO, size: int) -> None:
    """Takes `size` bytes of the disk: a full one must not cause SIGBUS while the file is mapped."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise _NotWritten from error


def _finish(
    file: BinaryIO,
    name: str,
    shape: tuple[int, ...],
    rows: np.ndarray | None,
    content: dict[str, Any],
) -> None:
    """Keeps only `rows` of the array in the file, then writes its header, its name and content, and
    the mark.
    """
    if rows is not None:
        pixels = np.memmap(file, dtype=np.uint8, mode="r+", offset=HEADER, shape=shape)
        # rows ascend, so a block never overwrites one still to be read
        for start in range(0, len(rows), 256):
            pixels[start : start + 256][: len(rows) - start] = pixels[rows[start : start + 256]]
        pixels.flush()
        del pixels
        shape = (len(rows), *shape[1:])
    text = json.dumps({"shape": shape, "name": name, "content": content}).encode()
    try:
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        assert file.tell() == HEADER
        file.seek(HEADER + int(np.prod(shape)))
        file.truncate()
        file.write(text + len(text).to_bytes(8, "little") + MARK)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise _NotWritten from error


def _in_memory(build: Build, reason: BaseException | None) -> tuple[np.ndarray, dict[str, Any]]:
    warnings.warn(
        "images are decoded in memory, by each worker again, because the cache cannot be used "
        f"({reason and system_reason(reason)}); "
        "set the environment variable EQUISEARCH_CACHE to a folder of yours with space",
        stacklevel=4,
    )
    made: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        made.append(np.empty(shape, dtype=np.uint8))
        return made[0]

    rows, content = build(allocate)
    return (made[0] if rows is None else made[0][rows]), json.loads(json.dumps(content))
