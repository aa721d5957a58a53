"""The settings of a training: the `data`, `training` and `symmetry` sections of a study file, as
immutable values.

Nothing here imports torch, so that reading a study file is cheap.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from searchspace.groups import Group
from searchspace.recipe import HIGHEST_RATE, LOWEST_RATE
from searchspace.training.augmentation import MOST_DEGREES
from trainers.catalogue import CATALOGUE, DATA_FORMATS
from trainers.files import require_local

MOST_EPOCHS = 10**6
MOST_BATCH = 2**16  # images: a batch of more is a slip of the keyboard


class Settings(BaseModel):
    """An immutable section of a study file: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# keys that came after the first release, with what they are where they say nothing: checkpoints of
# studies without them stay valid
LATER = {
    "data": {"columns": {"image": None, "label": None, "split": None}, "classes": None}
    | {"group_by": None, "folds": None, "fold": 0, "task": "classification"},
    "columns": {"separator": None},
    "training": {"class_weights": "none"},
    "augment": {
        "crop": 1.0,
        "colour_jitter": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    },
}


def as_identity(section: Settings, exclude: set[str]) -> dict[str, Any]:
    """What of the `data` or `training` section decides on a result, as plain values, without keys
    that came after the first release and say nothing.
    """
    content = section.model_dump(mode="json", exclude=exclude)
    own = LATER["training" if isinstance(section, Training) else "data"]
    inner = [(content.get(name, {}), LATER[name]) for name in ("augment", "columns")]
    for place, later in (*inner, (content, own)):
        for key, silent in later.items():
            if place.get(key) == silent:
                place.pop(key, None)
    return content


def _group_name(value: Any) -> str:
    return str(value if isinstance(value, Group) else Group.parse(value))


def _data_name(value: Any) -> Any:
    """The canonical name of a data set: `FashionMNIST`, `fashion-mnist` and `fashion_mnist` are the
    same.
    """
    if not isinstance(value, str):
        return value
    folded = re.sub(r"[^a-z0-9]", "", value.lower())
    for name in CATALOGUE:
        if name.replace("_", "") == folded:
            return name
    raise ValueError(
        f"there is no data set '{value}'; choose one of {', '.join(CATALOGUE)}, or give `folder:` "
        "or `files:`"
    )


def _place(path: Path) -> Path:
    """The path, if a file system can hold it."""
    if "\0" in str(path):
        raise ValueError("a path holds no NUL character; remove it")
    require_local(path)
    return path


def _divides_turn(angle: int) -> int:
    """The angle, if whole steps of it make a full turn."""
    if 360 % angle:
        divisors = [str(n) for n in range(1, 181) if 360 % n == 0]
        raise ValueError(
            f"{angle} degrees do not divide a full turn of 360; choose one of {', '.join(divisors)}"
        )
    return angle


def _device_name(name: str) -> str:
    """The name, if it names a device to train on; `devices.pick_device` looks for the device."""
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", name):
        raise ValueError(
            f"'{name}' is not a device to train on; write auto, cpu, cuda, or a certain GPU such "
            "as cuda:1"
        )
    return name


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What random numbers are drawn from; torch takes 64 bits."""

Place = Annotated[Path, AfterValidator(_place)]
"""A path of a file system."""

Corners = Literal["black", "reflect", "replicate", "circle", "crop"]
"""What fills the pixels that a rotation off the pixel grid brings in from outside the image: zeros,
the image mirrored at its borders, or its border pixels. With `circle` every image, upright ones
too, is black outside its inscribed circle, so that all angles show the same content. With `crop`
every image is cut to its centre, which no corner reaches at any angle, and enlarged to its size.
"""

GroupName = Annotated[str, BeforeValidator(_group_name)]
"""The name of a group such as `D4`, checked and spelled canonically."""


def _one_or_several(value: Any) -> Any:
    """Several names as a tuple, a single one as text."""
    if not isinstance(value, (list, tuple)):
        return value
    names = list(value)
    if not names or len(set(map(str, names))) < len(names):
        raise ValueError("name each column of labels once, such as [atelectasis, mass]")
    return tuple(names) if len(names) > 1 else names[0]


Task = Literal["classification", "multilabel", "regression"]
"""What is predicted: one class of each image, any of several labels, or numbers."""


class Columns(Settings):
    """The columns of a table of images, and the keys of labels in JSON; None: the usual names."""

    image: str | None = None
    # several: a column of 0 and 1 for each label, or a column for each number to be predicted
    label: Annotated[str | tuple[str, ...] | None, BeforeValidator(_one_or_several)] = None
    split: str | None = None
    # between the names of labels in one column of a multilabel table; None: |
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None


class Data(Settings):
    """Which images: a data set by `name`, a `folder` with one sub-folder per class, or `files` that
    hold images and labels.
    """

    name: Annotated[str | None, BeforeValidator(_data_name)] = None
    folder: Place | None = None
    # a file, a folder of files or a pattern such as `shards/*.tar`: the formats of FORMATS
    files: Place | None = None
    columns: Columns = Columns()  # of `files` that are tables
    # what the labels of `files` are; auto: decided by their form when a study starts
    task: Task | Literal["auto"] = "classification"
    # names of the labels 0, 1, ... in `files`; None: as the files name them
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    # a column of `files`, or a pattern with one group that finds the group in the name of a file:
    # images of one group (a patient, a module, a slide) are never in two splits
    group_by: str | None = None
    # cross-validation: each trial trains so many networks, each validated on another part of the
    # images; `fold` is the part that a single training validates on
    folds: Annotated[int, Field(ge=2, le=20)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    # where torchvision's sets lie, or are downloaded to
    root: Place = Path("data")
    download: bool = False
    # two at least of each: a score of one image says nothing, and batch norm needs two
    train: int | None = Field(default=None, ge=2)  # images; None: all that are left
    # images taken from the training data; None: a fifth
    validation: int | None = Field(default=None, ge=2)
    test: int | None = Field(default=None, ge=2)  # images; None: the whole test split
    # how the input size is reached: bilinear resize, or padding / cropping
    fit: Literal["resize", "pad"] = "resize"
    color: bool | None = None  # None: as the images are (grey or colour)
    seed: Seed = 0  # of the split, the same for every trial

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        given = [key for key in ("name", "folder", "files") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "data needs one of `name:` (a known data set), `folder:` (a folder with one "
                f"sub-folder per class) and `files:` ({', '.join(DATA_FORMATS)})"
                + (f", and has {' and '.join(given)}" if given else "")
            )
        if self.name is not None and self.group_by is not None:
            raise ValueError("group_by is for `folder:` and `files:`; leave it out with `name:`")
        if self.folds is not None and self.validation is not None:
            raise ValueError(
                "validation is a number of images, and with folds each fold is validated on; leave "
                "one of the two out"
            )
        if self.fold >= (self.folds or 1):
            raise ValueError(
                f"fold is {self.fold}, and there are {self.folds or 'no'} folds, counted from 0"
            )
        of_files = {"columns": self.columns != Columns(), "classes": self.classes is not None}
        for key, is_set in of_files.items():
            if is_set and self.files is None:
                raise ValueError(f"{key} is for `files:`; leave it out with `{given[0]}:`")
        if self.classes is not None and len(self.classes) < 2 and self.task == "classification":
            raise ValueError(
                f"classes has the one name '{', '.join(self.classes)}'; a classifier needs two at "
                "least"
            )
        return self

    @property
    def called(self) -> str:
        """What texts call the data set: its name, or that of its folder or files."""
        return self.name or Path(self.folder or self.files or "").name

    @property
    def where(self) -> str:
        """The data set's name, or the path of its folder or files."""
        return self.name or str(self.folder or self.files)

    @property
    def place(self) -> Path | None:
        """Where the images lie, which workers on other machines must see; None where there is no
        such place (embedded, or downloaded by each machine).
        """
        if self.files is not None:  # of a pattern, the folder
            return next((p for p in (self.files, *self.files.parents) if "*" not in str(p)), None)
        entry = None if self.name is None else CATALOGUE[self.name]
        if entry is not None and (not entry.places or entry.package or self.download):
            return None
        return self.folder or self.root


class Normal(Settings):
    """Rotation angles drawn from a normal distribution."""

    normal: tuple[float, float]  # mean and standard deviation, degrees

    @model_validator(mode="after")
    def _positive(self) -> Normal:
        mean, deviation = self.normal
        if not (abs(mean) <= MOST_DEGREES and 0 <= deviation <= MOST_DEGREES):
            raise ValueError(
                f"rotation has mean {mean:g} and standard deviation {deviation:g} degrees; both "
                f"must be at most {MOST_DEGREES}, and a deviation not negative; write {{normal: "
                "[0, 30]}, or uniform for any angle"
            )
        return self


Rotation = Annotated[
    Annotated[Literal["none", "group", "uniform"], Tag("text()")]
    | Annotated[Normal, Tag("Normal")],
    Discriminator(lambda value: "Normal" if isinstance(value, (dict, Normal)) else "text()"),
]


Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
ClassWeights = Literal["none", "balanced"] | dict[str, Weight]


class ColourJitter(Settings):
    """Random changes of colour, as torchvision's ColorJitter has them: factors are drawn from 1 - b
    to 1 + b (0 at least), and the hue is turned by up to `hue` of a full circle either way.
    """

    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)


class Augment(Settings):
    """Which orientations and other variants training sees, drawn anew for each image and epoch."""

    # group: a random element of `symmetry.group`
    rotation: Rotation = "none"
    # random translation of at most this many pixels
    shift: Annotated[int, Field(ge=0)] = 0
    mirror: bool = False  # random left-right mirroring
    # a random part of the image with at least this share of its area, resized to the whole
    crop: float = Field(default=1.0, ge=0.05, le=1)
    colour_jitter: ColourJitter = ColourJitter()


class Training(Settings):
    """How one architecture is trained."""

    epochs: int = Field(default=18, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(default=128, ge=2, le=MOST_BATCH)  # images
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    # the peak, where the schedule has one
    learning_rate: float = Field(default=0.01, ge=LOWEST_RATE, le=HIGHEST_RATE)
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    weight_decay: float = Field(default=1e-5, ge=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of sgd
    # share of a batch that the equivariance loss is measured on
    equivariance_batch: float = Field(default=0.2, gt=0, le=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    augment: Augment = Augment()
    # of the cross entropy: balanced, or a weight for each named class and 1 for the others
    class_weights: ClassWeights = "none"
    device: Annotated[str, AfterValidator(_device_name)] = "auto"  # auto | cpu | cuda | cuda:1
    # on a GPU, replay steps from a graph where that is right and faster
    cuda_graphs: bool = True


class Symmetry(Settings):
    """Under which transformations the model will be used: what symmetry generalisation is scored
    on.
    """

    group: GroupName = "C4"
    # elements that symmetry accuracy is a mean over: all but the identity, or, in studies of
    # earlier versions, those that training has not seen
    scored: Literal["others", "unseen"] = "others"
    # degrees between the points of the accuracy-by-angle curve
    angles: Annotated[int, Field(ge=1, le=180), AfterValidator(_divides_turn)] = 10
    # what fills the corners of images turned by an angle off the pixel grid; auto: chosen by the
    # borders of the training images when a study starts
    corners: Corners | Literal["auto"] = "auto"

    @property
    def filling(self) -> Corners:
        """What fills the corners: black as long as the choice is left open."""
        return "black" if self.corners == "auto" else self.corners
