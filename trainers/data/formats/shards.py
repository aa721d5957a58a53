"""WebDataset shards: `.tar` files with an image and its label for each sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.decoding import extensions
from trainers.data.formats.rows import LABEL, Rows, groups_of, splits_of_files
from trainers.data.formats.targets import SEPARATOR
from trainers.data.pools import Source
from trainers.files import parse_json
from trainers.settings import Data


@dataclass(frozen=True)
class TarImage:
    """An image file in a tar file, read where it lies."""

    path: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes of the image file."""
        return _bytes_at(self.path, self.start, self.size)

    def __str__(self) -> str:
        """What messages call it."""
        return f"{self.name} in {self.path}"


@dataclass
class _Sample:
    """The files of one key."""

    key: str
    images: list[TarImage] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files of endings that mean nothing here
    label: Any = None
    facts: dict[str, Any] | None = None  # of its `.json`
    names: set[str] = field(default_factory=set)


class Shards:
    """Tar files in which files of one sample have one name and endings of their own: an image, and
    `.cls` or `.json` with its label.
    """

    def __init__(self, data: Data) -> None:
        """Raises ValueError for shards that are compressed or damaged, without samples, or whose
        samples lack an image or a label.
        """
        self.paths = files_of(Path(data.files or ""), "*.tar")
        where = str(data.files)
        samples = [list(_samples(path, data)) for path in self.paths]
        flat = [sample for shard in samples for sample in shard]
        if not flat:
            raise ValueError(f"{where} holds no sample; each is an image and a .cls or .json file")
        images = [sample.images[0] for sample in flat]
        keys = [image.name for image in images]
        by = data.group_by
        facts = [sample.facts or {} for sample in flat]
        there = sorted({key for fact in facts for key in fact})
        column = np.array([str(f.get(by, "")) for f in facts]) if by in there else None
        self.rows = Rows(
            where,
            images,
            [(image.name, image.size) for image in images],
            _labels([sample.label for sample in flat]),
            splits_of_files(self.paths, list(map(len, samples)), where),
            groups_of(data, column, there, keys),
            data.classes,
            data.task,
            separator=data.columns.separator or SEPARATOR,
            notes=_notes(flat, where),
        )

    def state(self) -> list[Any]:
        """Every file's path, size and time of change."""
        return state_of(self.paths)

    def identity(self) -> list[Any]:
        """The name, size and label of every training and validation image."""
        return self.rows.identity()

    def open(self) -> Source:
        """The images as pools of parts of files."""
        return self.rows.source()


def files_of(path: Path, pattern: str) -> list[Path]:
    """The files that a study's `files` names: itself, those in a folder, or those of a pattern,
    sorted. Raises ValueError where there is none.
    """
    if path.is_dir():
        files = sorted(path.glob(pattern))
    elif "*" in str(path):
        fixed = next(p for p in path.parents if "*" not in str(p))
        files = sorted(fixed.glob(str(path.relative_to(fixed))))
    else:
        files = [path]
    if not files:
        raise ValueError(f"no file has a name like {path}; correct data.files")
    return files


def state_of(paths: list[Path]) -> list[Any]:
    """The path, size and time of change of files."""
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def _samples(path: Path, data: Data) -> Iterator[_Sample]:
    """The samples of one shard, each with its image and label."""
    sample: _Sample | None = None
    for name, start, size in _entries(path):
        folder, _, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if sample is not None and sample.key != key:
            yield _whole(sample, path)
            sample = None
        sample = sample or _Sample(key)
        if name in sample.names:
            raise ValueError(
                f"{path} holds {name} twice, one after the other; give every sample a name of its "
                "own, or keep one of them"
            )
        sample.names.add(name)
        last = "." + ending.lower().rpartition(".")[2]
        if last in extensions():
            sample.images.append(TarImage(path, name, start, size))
        elif last == ".cls":
            sample.label = _text(path, name, start, size).strip()
        elif last == ".json":
            sample.facts = _facts(path, name, _text(path, name, start, size))
            if sample.label is None:
                sample.label = _label_in(sample.facts, data.columns.label)
        else:
            sample.others.append(file)
    if sample is not None:
        yield _whole(sample, path)


def _label_in(facts: dict[str, Any], asked: str | tuple[str, ...] | None) -> Any:
    """The label in a sample's JSON under the key `asked` (several: a list), or a usual one; None
    where there is none.
    """
    if isinstance(asked, tuple):
        return [facts.get(key) for key in asked]
    found = next((key for key in ([asked] if asked else LABEL) if key in facts), None)
    return None if found is None else facts[found]


def _whole(sample: _Sample, path: Path) -> _Sample:
    if not sample.images or sample.label in (None, ""):
        lacks = "no label (.cls, or a label in .json)" if sample.images else "no image"
        others = f" that can be read, only {', '.join(sample.others[:3])}" * bool(sample.others)
        raise ValueError(
            f"the sample '{sample.key}' in {path} has {lacks}{others}; add it, or remove the sample"
        )
    return sample


def _notes(samples: list[_Sample], where: str) -> tuple[str, ...]:
    """What a user should know of samples with several images."""
    several = [sample for sample in samples if len(sample.images) > 1]
    if not several:
        return ()
    used, *left = (image.name for image in several[0].images)
    return (
        f"{len(several)} of {len(samples)} samples of {where} have several images, of which the "
        f"first is used: {used}, not {', '.join(left[:3])}; the name of a sample ends at the first "
        "dot, so rename files that are samples of their own",
    )


def _entries(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, start and size in bytes of the regular files in a tar file."""
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if entry.offset_data + entry.size > length:
                    raise ValueError(f"{path} ends within {entry.name}; copy or write it again")
                if entry.isreg() and not entry.name.rpartition("/")[2].startswith("."):
                    yield entry.name, entry.offset_data, entry.size
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not an uncompressed tar file ({error}); unpack or write it again"
        ) from None
    _require_end(path, end)


def _require_end(path: Path, end: int) -> None:
    """Raises ValueError where the entries of a tar file do not end with its mark, or where anything
    is behind it: what is not read would be missing silently.
    """
    with open(path, "rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE or any(mark):
            raise ValueError(f"{path} ends without the mark of its end; copy or write it again")
        while rest := file.read(2**20):
            if any(rest):
                raise ValueError(
                    f"{path} holds something behind its end, such as a second tar file; keep one "
                    "tar file in each file"
                )


def _bytes_at(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _text(path: Path, name: str, start: int, size: int) -> str:
    try:
        return _bytes_at(path, start, size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} in {path} is not text in UTF-8 ({error})") from None


def _facts(path: Path, name: str, text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} in {path} is not JSON ({error}); correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f'{name} in {path} is not a JSON object; write one such as {{"label": 3}}')
    return content


def _labels(values: list[Any]) -> np.ndarray:
    """Labels as integers where all are, as text where some are; others are left to be refused."""
    try:
        return np.array([_integer(value) for value in values], dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        pass
    if all(isinstance(value, (str, int)) for value in values):
        return np.array([str(value) for value in values])
    return np.array(values)


def _integer(value: Any) -> int:
    if not isinstance(value, (str, int)):
        raise ValueError("not an integer")
    return int(value)
