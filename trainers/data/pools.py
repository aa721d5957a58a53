"""Labelled images before they are decoded: arrays in memory, or files; and `render`, which decodes
them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps

from trainers.cores import available_cores
from trainers.data.fitting import Fit, fit_images

# of Pillow; `I;16` and its relatives start with I, too
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
# files, evenly spread, whose headers decide on colour and common size
LOOKED_AT = 500


@dataclass(frozen=True, eq=False)
class ArrayPool:
    """Images of one size in memory: uint8 [N, C, H, W] and their labels int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of all images."""
        return self.pixels.shape[2:]


@dataclass(frozen=True, eq=False)
class FilePool:
    """Image files of any sizes and their labels int64 [N]."""

    paths: tuple[Path, ...]
    labels: np.ndarray

    @property
    def channels(self) -> int:
        """3 if any of the files looked at holds colour, else 1."""
        return self._common[0]

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of most files looked at; where no size has the majority, the median
        of each.
        """
        return self._common[1]

    @cached_property
    def _common(self) -> tuple[int, tuple[int, int]]:
        looked_at = [
            self.paths[i]
            for i in np.unique(np.linspace(0, len(self.paths) - 1, LOOKED_AT).astype(int))
        ]
        with ThreadPoolExecutor(_threads()) as threads:
            facts = [fact for fact in threads.map(_facts, looked_at) if fact is not None]
        if not facts:
            raise ValueError(
                f"none of the images around {looked_at[0]} can be read; check that they are "
                "image files"
            )
        size, count = Counter(size for _, size in facts).most_common(1)[0]
        if 2 * count <= len(facts):
            size = (
                round(median(height for _, (height, _) in facts)),
                round(median(width for _, (_, width) in facts)),
            )
        return (3 if any(colored for colored, _ in facts) else 1), size


Pool = ArrayPool | FilePool


@dataclass(frozen=True, eq=False)
class Source:
    """Where a data set's images come from, before it is split.

    `validation` is None where validation images are taken from `train`. `test` opens the official
    test split; where it is None and `holds_out_test` is set, test images are taken from `train`,
    otherwise there is none. `validation_images` is the customary number of validation images, where
    the set has one.
    """

    classes: tuple[str, ...]
    train: Pool
    validation: Pool | None = None
    test: Callable[[], Pool] | None = None
    holds_out_test: bool = False
    validation_images: int | None = None


def file_pool(paths: Sequence[Path | str], labels: Sequence[int] | np.ndarray) -> FilePool:
    """A pool of image files; none is opened yet."""
    return FilePool(tuple(Path(path) for path in paths), np.asarray(labels, dtype=np.int64))


def render(pool: Pool, index: np.ndarray, fit: Fit, out: np.ndarray) -> dict[int, str]:
    """Fill `out` uint8 [len(index), C, H, W] with the pool's images; returns the rows that failed,
    with name and reason.

    Colour becomes grey by the usual luma weights (ITU-R 601), grey becomes colour by repetition.
    """
    if isinstance(pool, ArrayPool):
        for start in range(0, len(index), 4096):
            pixels = torch.from_numpy(pool.pixels[index[start : start + 4096]])
            out[start : start + 4096] = fit_images(
                _recolor(pixels, out.shape[1]), out.shape[2:], fit
            ).numpy()
        return {}

    def one(row: int) -> str | None:
        path = pool.paths[index[row]]
        try:
            pixels = torch.from_numpy(decode(path, out.shape[1]))
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            return f"{path} ({type(error).__name__}: {error})"
        out[row] = fit_images(pixels[None], out.shape[2:], fit)[0].numpy()
        return None

    with ThreadPoolExecutor(_threads()) as threads:
        reasons = threads.map(one, range(len(index)))
        return {row: reason for row, reason in enumerate(reasons) if reason is not None}


def decode(path: Path, channels: int) -> np.ndarray:
    """The image in a file as uint8 [channels, H, W], upright by its EXIF orientation.

    Palettes are looked up; transparent pixels become black, as the zeros around a turned image are;
    16-bit grey (0..65535) and floating point grey (0..1) are scaled to 0..255; of several frames
    the first is taken. Raises whatever Pillow raises on a damaged file, and ValueError for values
    outside those ranges.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    pixels = _eight_bits(upright)
    target = "L" if channels == 1 else "RGB"
    array = np.array(pixels if pixels.mode == target else pixels.convert(target))
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB (or one that converts to them without loss of range), without
    transparency.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        top = 1.0 if image.mode.startswith("F") else 65535.0
        if not (values.min() >= 0 and values.max() <= top):  # also catches NaN
            raise ValueError(
                f"grey values {values.min():g}..{values.max():g} are outside 0..{top:g}"
            )
        return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, layered).convert("RGB")
        return flat.convert("L") if image.mode in ("LA", "La", "L", "1") else flat
    return (
        image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    )


def _facts(path: Path) -> tuple[bool, tuple[int, int]] | None:
    """Whether an image file holds colour, and its upright (height, width); None where its header
    cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                if image.getexif().get(0x0112, 1) >= 5:  # orientations 5 to 8 swap the axes
                    width, height = height, width
                return _colored(image), (height, width)
    except Exception:  # counted and named when it is decoded
        return None


def _colored(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return not image.mode.startswith("I") and image.mode not in GREY_MODES


def _recolor(images: torch.Tensor, channels: int) -> torch.Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).round().byte()


def _threads() -> int:
    return min(16, available_cores())
