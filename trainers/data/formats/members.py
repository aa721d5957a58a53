"""One NumPy array in a `.npy` file or in an `.npz` archive, read in blocks; what is pickled is
never read.
"""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trainers.cached_arrays import block_rows


@dataclass(frozen=True)
class Member:
    """An array that lies in a file: its shape and type are known, its values are read in blocks."""

    path: Path
    name: str  # without its ending
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    mark: int  # changes with the content: its check sum in an archive, else its size in bytes

    @property
    def text(self) -> str:
        """What messages call it."""
        return f"{self.name} in {self.path}"

    @property
    def changed(self) -> int:
        """When the file changed, in ns."""
        return (self._file if self.path.is_dir() else self.path).stat().st_mtime_ns

    def array(self) -> np.ndarray:
        """The whole array: mapped where it has a file of its own, else read."""
        if self.path.is_dir():
            return np.load(self._file, mmap_mode="r", allow_pickle=False)
        with _readable(self.path), np.load(self.path, allow_pickle=False) as archive:
            return archive[self.name]

    def blocks(self) -> Iterator[np.ndarray]:
        """The array in parts of at most `cached_arrays.BLOCK_BYTES`, along its first axis."""
        step = block_rows(self.shape, self.dtype.itemsize)
        if self.path.is_dir() or self.fortran:
            whole = self.array()
            for start in range(0, self.shape[0], step):
                yield whole[start : start + step]
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            with _readable(self.path):
                _read_header(file)
            for start in range(0, self.shape[0], step):
                rows = min(step, self.shape[0] - start)
                size = rows * self.dtype.itemsize * int(np.prod(self.shape[1:]))
                with _readable(self.path):
                    data = file.read(size)
                if len(data) < size:
                    raise ValueError(f"{self.text} ends early; write the file again")
                yield np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    @property
    def _file(self) -> Path:
        return self.path / f"{self.name}.npy"


def open_members(path: Path) -> dict[str, Member]:
    """The arrays in an `.npz` archive, or in the `.npy` files of a folder, by name.

    Raises ValueError for a damaged file, and for one that holds pickled objects.
    """
    if path.is_dir():
        arrays = [_in_folder(path, file) for file in sorted(path.glob("*.npy"))]
    else:
        with _readable(path), zipfile.ZipFile(path) as archive:
            arrays = [
                _in_archive(path, archive, entry)
                for entry in archive.infolist()
                if entry.filename.endswith(".npy")
            ]
    names = [member.name for member in arrays]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} holds {twice} twice; write it again with one of each")
    return {member.name: member for member in arrays}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what zipfile raises on an archive that is damaged, encrypted or packed otherwise into a
    ValueError.
    """
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
        *(NotImplementedError, RuntimeError),  # other ways to pack, and encrypted ones
    ) as error:
        raise ValueError(
            f"{path} is not an .npz archive ({error}); write it with numpy.savez_compressed"
        ) from None


def _in_folder(path: Path, file: Path) -> Member:
    with open(file, "rb") as opened:
        shape, fortran, dtype = _header(opened, str(file), file.stat().st_size)
    return Member(path, file.stem, shape, dtype, fortran, file.stat().st_size)


def _in_archive(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    name = entry.filename.removesuffix(".npy")
    with archive.open(entry) as opened:
        shape, fortran, dtype = _header(opened, f"{name} in {path}", entry.file_size)
    return Member(path, name, shape, dtype, fortran, entry.CRC)


def _header(file: Any, where: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        shape, fortran, dtype = _read_header(file)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{where} is not a NumPy array ({error}); write it with numpy.save"
        ) from None
    if dtype.hasobject:
        raise ValueError(
            f"{where} holds pickled Python objects, which could run programs and are never read; "
            "save it as an array of numbers (images of one shape, as uint8) or of text "
            "(labels.astype(str))"
        )
    needed = file.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) >= 0 and needed > size:
        raise ValueError(
            f"{where} is to hold {needed} bytes by its shape {shape}, and has {size}; write it "
            "again with numpy.save"
        )
    return shape, fortran, dtype


def _read_header(file: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format is not supported")
    return read(file)
