"""Labelled images before they are decoded, arrays or files, and `render`, which decodes them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from trainers.cached_arrays import block_rows
from trainers.cores import available_cores
from trainers.data.decoding import (
    FULL_16_BIT,
    Header,
    ImagePath,
    Outside,
    decode,
    highest_value,
    read_header,
    why_unreadable,
)
from trainers.data.fitting import Fit, fit_images
from trainers.settings import Task

# files, evenly spread, whose headers decide on colour and common size
LOOKED_AT = 500


@dataclass(frozen=True, eq=False)
class ArrayPool:
    """Images of one size in memory, or mapped from a file: uint8 [N, C, H, W] and their labels
    int64 [N], with `targets` those that splits are drawn by. `name` is what messages call the
    images.
    """

    pixels: np.ndarray
    labels: np.ndarray
    name: str = ""
    groups: np.ndarray | None = None  # text [N]: images of one group are never in two splits
    targets: np.ndarray | None = None  # float64 [N, K]: what is learned, where it is no class
    # the value that became 255, where values of more than 8 bits were rounded
    white: float | None = None

    def called(self, row: int) -> str:
        """What messages call an image."""
        return f"image {row}" + f" of {self.name}" * bool(self.name)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of all images."""
        height, width = self.pixels.shape[2:]
        return height, width


@dataclass(frozen=True, eq=False)
class FilePool:
    """Image files of any sizes and their labels int64 [N], with `targets` those that splits are
    drawn by.
    """

    paths: tuple[ImagePath, ...]
    labels: np.ndarray
    groups: np.ndarray | None = None  # text [N]: images of one group are never in two splits
    targets: np.ndarray | None = None  # float64 [N, K]: what is learned, where it is no class

    def called(self, row: int) -> str:
        """What messages call an image."""
        return str(self.paths[row])

    @property
    def channels(self) -> int:
        """3 if any of the files looked at holds colour, else 1."""
        return 3 if any(header.colored for header in self._headers) else 1

    @cached_property
    def size(self) -> tuple[int, int]:
        """The (height, width) of most files looked at; where no size has the majority, the median
        of each.
        """
        sizes = [header.size for header in self._headers]
        common, count = Counter(sizes).most_common(1)[0]
        if 2 * count > len(sizes):
            return common
        heights, widths = zip(*sizes)
        return round(median(heights)), round(median(widths))

    @property
    def deep(self) -> bool:
        """Whether any of the files looked at holds grey integers of more than 8 bits."""
        return any(header.deep for header in self._headers)

    @cached_property
    def top(self) -> int:
        """The grey value of more than 8 bits that becomes 255: the largest of the fewest bits that
        hold every value in these files (4095 for 12 bits in files of 16).
        """
        with _quiet(), ThreadPoolExecutor(_threads()) as threads:
            highest = max(threads.map(highest_value, self.paths))
        return (1 << max(1, highest.bit_length())) - 1

    @property
    def white(self) -> float | None:
        """The value that becomes 255, where values of more than 8 bits are rounded; else None."""
        fractions = any(header.fractions for header in self._headers)
        return self.top if self.deep else 1.0 if fractions else None

    @property
    def cut(self) -> int:
        """How many of the files looked at hold 16 bits per colour, of which 8 are read."""
        return sum(header.cut for header in self._headers)

    @property
    def sequences(self) -> list[ImagePath]:
        """Those of the files looked at that hold several images."""
        return [self.paths[row] for row, header in self._header_of.items() if header.frames]

    @property
    def color_by_class(self) -> dict[int, set[bool]]:
        """Of each label, whether its files looked at hold colour: both if some do."""
        found: dict[int, set[bool]] = {}
        for row, header in self._header_of.items():
            found.setdefault(int(self.labels[row]), set()).add(header.colored)
        return found

    @property
    def sizes_by_class(self) -> dict[int, set[tuple[int, int]]]:
        """Of each label, the (height, width) of its files looked at."""
        found: dict[int, set[tuple[int, int]]] = {}
        for row, header in self._header_of.items():
            found.setdefault(int(self.labels[row]), set()).add(header.size)
        return found

    def shows_color(self, label: int, most: int = 5) -> bool:
        """Whether pixels of the first files looked at of a label differ between channels."""
        rows = [row for row in self._header_of if self.labels[row] == label][:most]
        pixels = [decode(self.paths[row], 3, self.top) for row in rows]
        return any((image != image[:1]).any() for image in pixels)

    @property
    def _headers(self) -> list[Header]:
        return list(self._header_of.values())

    @cached_property
    def _header_of(self) -> dict[int, Header]:
        """The headers of the files looked at that can be read, by row."""
        spaced = np.unique(np.linspace(0, len(self.paths) - 1, LOOKED_AT).astype(int)).tolist()
        looked_at = [self.paths[i] for i in spaced]
        with _quiet(), ThreadPoolExecutor(_threads()) as threads:
            read = zip(spaced, threads.map(_header, looked_at))
            headers = {row: header for row, header in read if header is not None}
        if not headers:
            raise ValueError(
                f"none of the images around {looked_at[0]} can be read{_reason(looked_at[0])}; "
                "check that they are image files"
            )
        return headers


Pool = ArrayPool | FilePool


@dataclass(frozen=True, eq=False)
class Source:
    """Where a data set's images come from, before it is split.

    `validation` is None where validation images are taken from `train`. `test` opens the official
    test split; where it is None and `holds_out_test` is set, test images are taken from `train`,
    otherwise there is none. `validation_images` is the customary number of validation images, where
    the set has one. `notes` are what a user should know of how the images are read, each a sentence
    without a full stop. Of a `task` other than classification `classes` are the names of labels
    or targets.
    """

    classes: tuple[str, ...]
    train: Pool
    validation: Pool | None = None
    test: Callable[[], Pool] | None = None
    holds_out_test: bool = False
    validation_images: int | None = None
    # int64 [N] of the training pool, beside the classes: each split has them in proportion
    strata: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    task: Task = "classification"


def file_pool(
    paths: Sequence[ImagePath | str],
    labels: Sequence[int] | np.ndarray,
    groups: np.ndarray | None = None,
    targets: np.ndarray | None = None,
) -> FilePool:
    """A pool of image files; none is opened yet."""
    named = tuple(Path(path) if isinstance(path, str) else path for path in paths)
    return FilePool(named, np.asarray(labels, dtype=np.int64), groups, targets)


def render(
    pool: Pool,
    index: np.ndarray,
    fit: Fit,
    out: np.ndarray,
    top: int = FULL_16_BIT,
    cut: Callable[[Outside], None] = lambda outside: None,
) -> dict[int, str]:
    """Fill `out` uint8 [len(index), C, H, W] with the pool's images; returns the rows that failed,
    with name and reason. Threads tell `cut` of values that are cut off (`decode`).

    Colour becomes grey by the usual luma weights (ITU-R 601), grey becomes colour by repetition;
    grey integers of more than 8 bits are scaled from 0..`top`.
    """
    channels, height, width = out.shape[1:]
    if isinstance(pool, ArrayPool):
        most = (0, max(3, channels), max(int(np.prod(pool.size)), height * width))
        step = min(4096, block_rows(most))
        for start in range(0, len(index), step):
            pixels = torch.from_numpy(pool.pixels[index[start : start + step]])
            fitted = fit_images(_recolor(pixels, channels), (height, width), fit)
            out[start : start + step] = fitted.numpy()
        return {}

    def one(row: int) -> str | None:
        path = pool.paths[index[row]]
        try:
            pixels = torch.from_numpy(decode(path, channels, top, cut))
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            return f"{path} ({why_unreadable(error)})"
        out[row] = fit_images(pixels[None], (height, width), fit)[0].numpy()
        return None

    # in the order in which they lie in their files
    order = np.argsort(index, kind="stable").tolist()
    with _quiet(), ThreadPoolExecutor(_threads()) as threads:
        reasons = dict(zip(order, threads.map(one, order)))
    return {row: why for row, why in sorted(reasons.items()) if why is not None}


def _header(path: ImagePath) -> Header | None:
    """The header of an image file; None where it cannot be read."""
    try:
        return read_header(path)
    except Exception:  # counted and named when it is decoded
        return None


def _reason(path: ImagePath) -> str:
    """Why the header of an image file cannot be read, in brackets; '' if it can."""
    try:
        read_header(path)
    except Exception as error:  # of any type, as in `render`
        return f" ({why_unreadable(error)})"
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warning of large images, whose number of pixels `decoding` checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _recolor(images: torch.Tensor, channels: int) -> torch.Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).round().byte()


def _threads() -> int:
    return min(16, available_cores())
