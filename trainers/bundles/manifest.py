"""The manifest of a bundle (bundle.json), validated when it is read: a bundle may come from
anywhere, and nothing in it is trusted before it is checked.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from searchspace.architecture import Architecture
from searchspace.groups import Element, Group
from trainers.bundles.formats import BUNDLE_FORMATS, CARD, MANIFEST, REQUIRED, SIGNATURE
from trainers.data.decoding import FULL_16_BIT
from trainers.files import read_whole, require_local
from trainers.settings import Augment, Corners, Task

FORMAT_VERSION = 1
MOST_PROBE_VALUES = 2**26  # values in all probe images together: 256 MB of float32
PLAIN_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # a file in the bundle's own folder
# what Python loads from the folder of a script, in place of torch or numpy
IMPORTED = (".py", ".pyc", ".pyd", ".so", ".pth")

ShortText = Annotated[str, Field(min_length=1, max_length=10_000)]
Count = Annotated[int, Field(ge=1, le=2**40)]
ImageSide = Annotated[int, Field(ge=1, le=2**14)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


class Hashed(_Part):
    """A file as it was written."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=2**50)]


class Input(_Part):
    """The images that the bundle takes."""

    channels: ImageSide
    height: ImageSide
    width: ImageSide


class FormatEntry(_Part):
    """One format that lies in the bundle."""

    files: tuple[ShortText, ...]
    max_difference: float = 0.0
    tolerance: float = 0.0
    accuracy: float = 0.0


class ElementRow(_Part):
    """One declared element: do the logits stay the same under it."""

    element: ShortText
    exact: bool
    lost: str | None = None
    relative_change: dict[str, float] | None = None


class Extra(_Part):
    """A file beside the formats: the graph from pixels, or the quantised one."""

    file: ShortText = "-"
    refused: str | None = None  # why it is not there
    opset: Count = 1
    max_difference: float = 0.0
    integer_equal: dict[str, bool] = {}  # by element


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("is null, which no export writes")
    return value


# absent from bundles that do not have it, never null
OptionalExtra = Annotated[Extra | None, BeforeValidator(_given)]


class DataAccount(_Part):
    """What an export says of the data."""

    # the grey value of files with more than 8 bits that became 255
    top: Annotated[int, Field(ge=1, le=2**64)] = FULL_16_BIT


class TrainingAccount(_Part):
    """What an export says of the training."""

    augment: Annotated[Augment | None, BeforeValidator(_given)] = None  # None: not said
    corners: Corners = "black"
    learned: dict[str, float] | None = None  # widths of a learned augmentation


class ProbeLogits(_Part):
    """The logits [image, class] on `images` random images at the export."""

    images: Count
    logits: tuple[tuple[float, ...], ...]


class Normalisation(_Part):
    """Of the images, for every channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    inside: bool = True


class Content(_Part):
    """What `standalone.Model` is built from."""

    network: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: ShortText
    classes: tuple[str, ...]


class Manifest(_Part):
    """What an export says of its bundle. Keys with a default are not needed to check or run it."""

    format_version: Annotated[int, Field(ge=1)]
    architecture: ShortText
    declared: ShortText
    input: Input
    formats: dict[str, FormatEntry]
    refused: dict[str, str]
    elements: tuple[ElementRow, ...]
    probe: ProbeLogits
    content: Content
    files: dict[str, Hashed]
    classes: tuple[str, ...]
    task: Task = "classification"
    scale: tuple[float, ...] = ()  # of regression: each target's standard deviation in training
    origin: dict[str, Any] = {}
    family: str = ""
    group: str = "C1"
    output: dict[str, Any] = {}
    normalisation: Normalisation = Normalisation(mean=(), std=())
    data: DataAccount = DataAccount()
    training: TrainingAccount = TrainingAccount()
    scores: dict[str, float | None] = {}
    scores_on: str = "validation"  # or test
    test: dict[str, Any] | None = None  # of the architecture, over seeds
    intervals: dict[str, dict[str, float]] = {}
    exactness: dict[str, Any] = {}
    cost: dict[str, int] = {}
    versions: dict[str, str] = {}
    written: str = ""
    predict: OptionalExtra = None
    int8: OptionalExtra = None
    compared_images: Count = 1
    moved_images: Count = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        given, layout = self.input, Architecture.parse(self.architecture)
        if (given.height, given.width) != tuple(layout.size):
            raise ValueError(
                f"input: {given.height}x{given.width} pixels, but the architecture takes "
                f"{layout.size[0]}x{layout.size[1]}"
            )
        if self.probe.images * given.channels * given.height * given.width > MOST_PROBE_VALUES:
            raise ValueError(f"probe: more than {MOST_PROBE_VALUES} values")
        rows, classes = self.probe.logits, len(self.classes)
        if (
            len(rows) != self.probe.images
            or not classes
            or any(len(row) != classes for row in rows)
        ):
            raise ValueError(
                f"probe: the logits are not those of {self.probe.images} images and {classes} "
                "classes"
            )
        targets = classes if self.task == "regression" else 0
        if len(self.scale) != targets or not all(0 < unit < math.inf for unit in self.scale):
            raise ValueError(f"scale: not a number above 0 for each of the {targets} targets")
        declared = [str(element) for element in Group.parse(self.declared).elements[1:]]
        if [str(Element.parse(row.element)) for row in self.elements] != declared:
            raise ValueError(f"elements: not those of the declared group {self.declared}")
        if foreign := (self.formats.keys() | self.refused.keys()) - BUNDLE_FORMATS.keys():
            raise ValueError(f"formats: {shown_names(foreign)} is unknown")
        if unusual := [name for name in self.files if not PLAIN_NAME.fullmatch(name)]:
            raise ValueError(
                f"files: {shown_names(unusual)} is not the name of a file in the bundle's folder"
            )
        return self

    @property
    def units(self) -> tuple[float, ...]:
        """What one unit of each output is: the scale of a target, 1 of a logit."""
        return self.scale or (1.0,) * len(self.classes)

    @property
    def claimed(self) -> list[Element]:
        """The elements under which the logits stay the same."""
        return [Element.parse(row.element) for row in self.elements if row.exact]

    @property
    def corners(self) -> Corners:
        """What fills the corners of turned images; bundles that do not say have black ones."""
        return self.training.corners

    @property
    def plain_content(self) -> dict[str, Any]:
        """The plain values that `standalone.Model` is built from, as an export writes them."""
        return json.loads(self.content.model_dump_json())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`. Raises ValueError, in one sentence, if there is none,
    or a damaged or later one.
    """
    require_local(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a bundle: "
            f"{'its' if os.path.lexists(path) else 'it has no'} {MANIFEST}"
            f"{' is not a file' if os.path.lexists(path) else ''}; `equisearch export DIR TRIAL` "
            "writes bundles"
        )
    text = read_whole(path)
    if (version := _version(text)) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}, this program reads up to {FORMAT_VERSION}; install a "
            "later equisearch"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = (
            f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
        )
    except (ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        problem = str(error) or type(error).__name__
    raise ValueError(
        f"{path} is damaged: it is not what an export writes ({shown_names([problem])}); export "
        "the trial again"
    )


def _version(text: bytes) -> int:
    class Version(_Part):
        format_version: Annotated[int, Field(ge=1, le=10**6)]

    try:
        return Version.model_validate_json(text).format_version
    except ValidationError:
        return 0  # damaged: `read_manifest` says how


def gaps(manifest: Manifest) -> list[str]:
    """What an export would have written and this manifest lacks or contradicts, a phrase each."""
    problems = [
        f"{MANIFEST} says nothing of the format {name}, neither that it is there nor why not"
        for name in BUNDLE_FORMATS
        if name not in manifest.formats and name not in manifest.refused
    ]
    problems += [
        f"{MANIFEST} has no format {name}, which every export writes"
        for name in REQUIRED
        if name in manifest.refused
    ]
    for name, entry in manifest.formats.items():
        if entry.files != BUNDLE_FORMATS[name]:
            problems.append(
                f"{MANIFEST} lists {shown_names(entry.files) or 'no file'} for the format {name}, "
                f"which consists of {shown_names(BUNDLE_FORMATS[name])}"
            )
    for name in (CARD, *(file for form in manifest.formats for file in BUNDLE_FORMATS[form])):
        if name not in manifest.files:
            problems.append(
                f"{name} is not among the files that {MANIFEST} lists, so nothing says whether "
                "it has changed"
            )
    return problems


def strangers(manifest: Manifest, folder: Path) -> tuple[list[str], list[str]]:
    """(names that Python would import from the folder, other names) that the manifest does not
    list, sorted.
    """
    listed = {
        *manifest.files,
        MANIFEST,
        SIGNATURE,
        *(file for form in manifest.formats for file in BUNDLE_FORMATS[form]),
    }
    entries = sorted(
        (path for path in folder.iterdir() if path.name not in listed), key=lambda path: path.name
    )
    loaded = [
        path.name
        for path in entries
        if path.suffix.lower() in IMPORTED or (path.is_dir() and path.name != "__pycache__")
    ]
    return loaded, [path.name for path in entries if path.name not in loaded]


def shown_names(
    names: Mapping[str, Any] | tuple[str, ...] | list[str] | set[str], most: int = 5
) -> str:
    """The names in one line that a terminal can print, long ones and long lists cut."""
    clean = ["".join(c if c.isprintable() else "?" for c in name)[:200] for name in sorted(names)]
    return ", ".join(clean[:most]) + (f" and {len(clean) - most} more" if len(clean) > most else "")
