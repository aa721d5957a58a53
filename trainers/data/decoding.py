"""Reading one image file with Pillow: what its header says, and its pixels as 8 bits, upright."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from searchspace.geometry import counted

# of Pillow; `I;16` and its relatives start with I, too
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # per image: 13,000 x 13,000 are 500 MB in colour
FULL_16_BIT = 65535  # the largest value of 16 bits
# the share of values beyond the range of the training images that are cut off, such as hot pixels
CUT_OFF = 0.01

# Formats that Pillow registers without a decoder, or for which it starts another program.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats whose files may be sequences; in others, further images are previews and the like.
_FRAMES = {"GIF", "TIFF", "WEBP", "PNG", "AVIF", "FLI"}
# Formats that Pillow registers also where it was built without their library.
_LIBRARIES = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "PNG": "zlib", "WEBP": "webp"}


@dataclass(frozen=True)
class Outside:
    """Values of one image that were outside the range of the training images, and cut off."""

    number: int
    lowest: float  # of all values of the image
    highest: float
    most: float  # the end of the range, which begins at 0


@dataclass(frozen=True)
class Header:
    """What the header of an image file says."""

    colored: bool
    size: tuple[int, int]  # (height, width) of the upright image
    deep: bool  # grey integers of more than 8 bits
    fractions: bool  # grey in floating point
    cut: bool  # several channels of 16 bits, of which Pillow reads the upper 8
    frames: bool  # several images, of which the first is read


class Encoded(Protocol):
    """An image file that lies inside another file; `str` of it is what messages call it."""

    def read(self) -> bytes:
        """The bytes of the image file."""
        ...


ImagePath = Path | Encoded


@cache
def extensions() -> frozenset[str]:
    """The endings, such as `.png`, of the files that this installation of Pillow decodes."""
    return frozenset(
        ending
        for ending, form in Image.registered_extensions().items()
        if form in Image.OPEN
        and form not in _NOT_DECODED
        and (form not in _LIBRARIES or features.check(_LIBRARIES[form]))
    )


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are looked for in a file, whatever its name ends in: not those that Pillow
    gives to another program, which would run what the file says (PostScript).
    """
    Image.init()
    return tuple(form for form in Image.OPEN if form not in _NOT_DECODED)


def read_header(path: ImagePath) -> Header:
    """The header of an image file. Raises whatever Pillow raises on a damaged file, and ValueError
    for an image of more than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        tiles = getattr(image, "tile", ())
        raw_mode = str(tiles[0][3]) if tiles else ""
        size = _upright_size(image)  # before a palette is read, which takes the orientation away
        return Header(
            _colored(image),
            size,
            image.mode.startswith("I"),
            image.mode.startswith("F"),
            not image.mode.startswith("I") and ";16" in raw_mode,
            image.format in _FRAMES and bool(getattr(image, "is_animated", False)),
        )


def decode(
    path: ImagePath,
    channels: int,
    top: int = FULL_16_BIT,
    cut: Callable[[Outside], None] = lambda outside: None,
) -> np.ndarray:
    """The image in a file as uint8 [channels, H, W], upright by its EXIF orientation.

    Palettes are looked up; transparent pixels become black, as the zeros around a turned image are;
    grey integers of more than 8 bits (0..`top`) and floating point grey (0..1) are scaled to
    0..255; of several frames the first is taken. Single values outside those ranges (a share of
    `CUT_OFF`) are cut off, and `cut` is told of them. Raises whatever Pillow raises on a damaged
    file, and ValueError for more of them, for NaN and for an image of more than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    pixels = _eight_bits(upright, top, cut)
    target = "L" if channels == 1 else "RGB"
    array = np.array(pixels if pixels.mode == target else pixels.convert(target))
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def describe_outside(cut: Sequence[Outside], images: int, what: str, where: str = "") -> list[str]:
    """What was cut off in `images` images, each a sentence without a full stop."""
    of = f" of {where}" * bool(where)
    said = []
    for most in sorted({outside.most for outside in cut}):
        found = [outside for outside in cut if outside.most == most]
        number = sum(outside.number for outside in found)
        lowest = min(outside.lowest for outside in found)
        highest = max(outside.highest for outside in found)
        said.append(
            f"{counted(number, 'value')} in {len(found)} of {counted(images, what)}{of} "
            f"{'are' if number > 1 else 'is'} outside 0..{most:g} (from {lowest:g} to "
            f"{highest:g}), and cut off there"
        )
    return said


def head_of(path: ImagePath, most: int = 1 << 20) -> bytes:
    """The first `most` bytes of an image file. Raises OSError, and ValueError for a pipe."""
    with _file(path) as file:
        return file.read(most)


def why_unreadable(error: Exception) -> str:
    """Why an image file cannot be read, without numbers and objects of the library."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        return f"an image may have at most {MAX_PIXELS:,} pixels, so make it smaller"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def highest_value(path: ImagePath) -> int:
    """The largest value in an image of grey integers of more than 8 bits; 0 for other images and
    for those that cannot be read.
    """
    try:
        with _opened(path) as image:
            return int(_grey(image).max()) if image.mode.startswith("I") else 0
    except Exception:  # counted and named when it is decoded
        return 0


@contextmanager
def _opened(path: ImagePath) -> Iterator[Image.Image]:
    """The image, its header read. Pillow gets an open file instead of a path: it would map an
    uncompressed TIFF into memory and then read one of orientation 5 to 8 with its sides exchanged.
    """
    with _file(path) as file, Image.open(file, formats=_formats()) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{width} x {height} pixels; an image may have at most {MAX_PIXELS:,}, "
                "so make it smaller"
            )
        yield image


def _file(path: ImagePath) -> BinaryIO:
    if not isinstance(path, Path):
        return BytesIO(path.read())
    # a pipe that took an image's place does not block
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("not a regular file")
    return file


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # newer versions of Pillow have exchanged the sides of `size` already
        width = image.tag_v2.get(TiffImagePlugin.IMAGEWIDTH, width)
        height = image.tag_v2.get(TiffImagePlugin.IMAGELENGTH, height)
    exchanged = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if exchanged else (height, width)


def _colored(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return not image.mode.startswith("I") and image.mode not in GREY_MODES


def _grey(image: Image.Image) -> np.ndarray:
    """The values of an image of one channel; a transparent one is 0."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    return np.where(values == transparent, 0, values) if isinstance(transparent, int) else values


def _eight_bits(image: Image.Image, top: int, cut: Callable[[Outside], None]) -> Image.Image:
    """The image in mode L or RGB (or one that converts to them without loss of range), without
    transparency.
    """
    if image.mode.startswith(("I", "F")):
        values = _grey(image).astype(np.float64)
        most = 1 if image.mode.startswith("F") else top
        lowest, highest = float(values.min()), float(values.max())
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values; correct or remove it")
        outside = np.count_nonzero((values < 0) | (values > most))
        if outside > CUT_OFF * values.size:
            fractions = "; floating point grey goes from 0 to 1, so divide by the largest value"
            whole = ", as the training images have them; scale all alike, from 0"
            raise ValueError(
                f"grey values {lowest:g}..{highest:g} are outside 0..{most}"
                f"{fractions if most == 1 else whole}"
            )
        if outside:
            cut(Outside(int(outside), lowest, highest, most))
        return Image.fromarray(np.rint(values.clip(0, most) * (255 / most)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # a colour of 16 bits, of which the image holds the upper 8
        color = np.array(transparent) >> 8
        values = np.asarray(image)
        return Image.fromarray(values * (values != color).any(-1, keepdims=True))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent is not None:
        layered = image.convert("RGBA")
        black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, layered).convert("RGB")
        return flat.convert("L") if image.mode in ("LA", "La", "L", "1") else flat
    return (
        image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    )
