"""Data sets as splits in memory: `load_data` gives training and validation images now, and the test
split only when asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from searchspace.geometry import counted
from trainers import cached_arrays
from trainers.cache import say_once
from trainers.data import folders, sources
from trainers.data.borders import see
from trainers.data.decoding import FULL_16_BIT, Outside, describe_outside
from trainers.data.describing import image_warnings
from trainers.data.formats.labels import doubtful_classes
from trainers.data.formats.opening import file_reader
from trainers.data.formats.targets import check_targets
from trainers.data.grouping import require_apart
from trainers.data.leaks import NamedImages, identical, leakage
from trainers.data.pools import Pool, Source, render
from trainers.data.splitting import check_classes, draw_split, draw_test, remaining_indices
from trainers.data.tasks import Outputs, about_task, held_labels, read_labels
from trainers.settings import Corners, Data, Task

# of decoding, splitting and what the cache holds: raise it when one of them changes
DATA_VERSION = 5
# settings of how files are read, which decide on labels and splits
OF_FILES = ("columns", "classes", "group_by", "folds", "fold")
LOST = 0.01  # the fraction of unreadable images that is accepted


class DataWarning(UserWarning):
    """Images were left out or scaled, or lie so that they may be read wrongly."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images: `pixels` uint8 [N, C, H, W], `labels` int64 [N] (of other tasks than
    classification float32 [N, K]: `Outputs.learned`); `skipped` names files that could not be read,
    and why.
    """

    pixels: Tensor
    labels: Tensor
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Layout:
    """What a user should know of how the files of a data set lie, each a sentence without a full
    stop: what may be wrong, and what is as expected.
    """

    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set at one input size. `mean` and `std`, one per channel, are of the training pixels
    scaled to 0..1.
    """

    data: Data
    train: Images
    validation: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]  # 1 for a channel that does not vary
    has_test: bool
    # the grey value of more than 8 bits that became 255
    top: int = FULL_16_BIT
    # what was left out or scaled in reading the images, each a sentence without a full stop
    notes: tuple[str, ...] = ()
    task: Task = "classification"
    # of the training images, each target's mean and standard deviation; empty for other tasks
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def outputs(self) -> Outputs:
        """What a network predicts for these images; `classes` are the names of its outputs."""
        return Outputs(self.task, self.classes, self.shift, self.scale)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.train.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of all images."""
        return self.train.pixels.shape[2], self.train.pixels.shape[3]

    @property
    def skipped(self) -> tuple[str, ...]:
        """The files among training and validation images that could not be read, and why."""
        return self.train.skipped + self.validation.skipped

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """The number of (training, validation) images of each class, or with each label; of targets
        none.
        """
        if self.task == "regression":
            return {}
        train, validation = (
            part.labels.bincount(minlength=len(self.classes)).tolist()
            if self.task == "classification"
            else part.labels.sum(0).long().tolist()
            for part in (self.train, self.validation)
        )
        return dict(zip(self.classes, zip(train, validation)))

    def test(self) -> Images | None:
        """The test split at the same size; None where the data has none. Nothing of it is decoded
        before this call.
        """
        return _load_test(self) if self.has_test else None


def load_data(data: Data, size: tuple[int, int] | None = None, *, merge: bool = False) -> Splits:
    """The training and validation images, resized or padded to `size` (height, width); None: the
    size most images have.

    Decoded images are kept in a cache directory and mapped from there, so all workers share one
    copy (`trainers.cached_arrays`). The split depends on the data and on `data.seed` only, and
    takes every class in proportion. Official validation and test splits are used where there are
    any. Otherwise test images (a fifth, or `data.test`) are taken first (but not from a folder that
    has `train/` and no `test/`), then validation images (a fifth of what is left), then training
    images. With `merge` the validation images are training images too, and none are left to
    validate on; mean and standard deviation stay those of the training images alone. Files that
    cannot be read are left out with a warning, and named in `skipped`. Raises ValueError for data
    that is missing, cannot be split, has fewer images than asked for, or is unreadable for more
    than 1 %.
    """
    files, source, layout = open_source(data)
    name = _key(data, files, size, "selection", ("train", "validation", "test"))
    pixels, about = cached_arrays.cached(
        name, lambda allocate: _select(source(), data, size, allocate)
    )
    labels, outputs = read_labels(about)
    num_train, skipped = about["num_train"], about["skipped"]
    if merge:
        num_train, skipped = len(labels), [[line for part in skipped for line in part], []]
    parts = [
        Images(torch.from_numpy(pixels[rows]), labels[rows], tuple(lost))
        for rows, lost in zip((slice(0, num_train), slice(num_train, None)), skipped)
    ]
    _warn(parts[0].skipped + parts[1].skipped, len(labels))
    doubts = (*layout.warnings, *about["warnings"])
    for doubt in doubts:
        warnings.warn(doubt, DataWarning, stacklevel=2)
    return Splits(
        data,
        parts[0],
        parts[1],
        tuple(about["classes"]),
        tuple(about["mean"]),
        tuple(about["std"]),
        about["has_test"],
        about["top"],
        (*layout.notes, *doubts, *about["leaks"]),
        outputs.task,
        outputs.shift,
        outputs.scale,
    )


def batch(
    images: Images, index: Tensor, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The images at `index` [B] as float32 [B, C, H, W] in 0..1 on the device, and their labels
    [B].
    """
    pixels, labels = images.pixels[index], images.labels[index]
    return pixels.to(device).float().div_(255), labels.to(device)


def normalise(
    pixels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    corners: Corners = "black",
) -> Tensor:
    """(pixels - mean) / std with one pair of numbers per channel, so that it commutes with every
    motion of the pixels; `see` comes before it.
    """
    return normaliser(mean, std, pixels.device, pixels.dtype, corners)(pixels)


def normaliser(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    corners: Corners = "black",
) -> Callable[[Tensor], Tensor]:
    """`normalise` with its numbers on the device already: to send them there with every batch
    would wait for a GPU.
    """
    shift, scale = (
        torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1) for values in (mean, std)
    )
    return lambda pixels: (see(pixels, corners) - shift) / scale


def _load_test(splits: Splits) -> Images:
    data, size = splits.data, splits.size
    files, source, _ = open_source(data)
    name = _key(data, files, (splits.channels, *size, splits.top), "test", ("test",))
    pixels, about = cached_arrays.cached(
        name, lambda allocate: _take_test(source(), splits, allocate)
    )
    _warn(about["skipped"], len(pixels))
    for line in about["said"]:
        say_once(line)
    return Images(
        torch.from_numpy(pixels),
        read_labels(about, splits.outputs)[0],
        tuple(about["skipped"]),
    )


def open_source(data: Data) -> tuple[list, Callable[[], Source], Layout]:
    """What identifies the files behind the data, a function that opens them, and what a user should
    know of their layout. Raises ValueError for data that is missing.
    """
    require_files(data)
    if data.folder is not None:
        folder = folders.list_folder(data.folder)
        place = str(data.folder.expanduser().absolute())
        layout = Layout(folder.warnings, folder.notes)
        opened = partial(folders.open_folder, folder, data.group_by)
        return [place, folder.fingerprint()], opened, layout
    if data.files is not None:
        files = file_reader(data)
        place = str(data.files.expanduser().absolute())
        return [place, files.state()], files.open, Layout((), ())
    place = [] if data.name == "digits" else [str(data.root.expanduser().absolute())]
    return [*place, *sources.files(data)], lambda: sources.open_named(data), Layout((), ())


def require_files(data: Data) -> None:
    """Raises ValueError where labels other than classes are asked of a data set that has classes:
    by name, or a folder for each.
    """
    if data.files is None and data.task not in ("classification", "auto"):
        raise ValueError(
            f"data.task is {data.task}, and {data.called} has one class for each image; give the "
            "images and labels by `files:` (.npz, .csv, .parquet), or leave task out"
        )


def _key(data: Data, files: list, size: Any, part: str, numbers: tuple[str, ...]) -> str:
    chosen = data.model_dump(
        mode="json", include={"name", *OF_FILES, "fit", "color", "seed", *numbers}
    )
    if data.task != "classification":  # what is cached of classes stays
        chosen["task"] = data.task
    return cached_arrays.key([DATA_VERSION, part, chosen, size, files])


def _select(
    source: Source, data: Data, size: tuple[int, int] | None, allocate: cached_arrays.Allocate
) -> tuple[np.ndarray | None, dict]:
    """Draw the training and validation images and decode them, in this order, into one array."""
    drawn = draw_split(source, data)
    pools = (source.train, source.train if source.validation is None else source.validation)
    top = _top(pools)
    channels = source.train.channels if data.color is None else 3 if data.color else 1
    num_train = len(drawn[0])
    out = allocate((sum(map(len, drawn)), channels, *(size or source.train.size)))
    cut: list[Outside] = []
    lost = [
        render(pool, index, data.fit, rows, top, cut.append)
        for pool, index, rows in zip(pools, drawn, (out[:num_train], out[num_train:]))
    ]
    _check_lost([*lost[0].values(), *lost[1].values()], len(out))
    readable = [remaining_indices(len(index), list(failed)) for index, failed in zip(drawn, lost)]
    labels = [pool.labels[index[rows]] for pool, index, rows in zip(pools, drawn, readable)]
    for part, left in zip(("train", "validation"), labels):
        check_classes(source, part, left)
    rows = np.concatenate([readable[0], num_train + readable[1]])
    train = NamedImages(out[:num_train], lambda i: pools[0].called(int(drawn[0][i])), readable[0])
    valid = NamedImages(out[num_train:], lambda i: pools[1].called(int(drawn[1][i])), readable[1])
    leaks = leakage(train, valid, ("training", "validation"))
    held = [held_labels(pool, index[rows]) for pool, index, rows in zip(pools, drawn, readable)]
    learned = about_task(source, held)
    leaks += identical(train, labels[0], () if learned else source.classes)
    mean, std = _moments(out, readable[0])
    own = data.name is None  # EMNIST has A and a
    return (None if len(rows) == len(out) else rows), {
        "labels": np.concatenate(held).tolist(),
        "num_train": len(readable[0]),
        **learned,
        "classes": source.classes,
        "mean": mean,
        "std": std,
        "skipped": [list(failed.values()) for failed in lost],
        "has_test": source.holds_out_test or source.test is not None,
        "top": top,
        "leaks": leaks,
        "warnings": [
            *source.notes,
            *describe_outside(cut, len(out), "image", data.where),
            *(doubtful_classes(source.classes, source.train.labels) if own and not learned else ()),
            *image_warnings(source, data, drawn, top, out),
        ],
    }


def _top(pools: tuple[Pool, ...]) -> int:
    """The grey value of more than 8 bits that becomes 255, the same for all images."""
    whites = [round(pool.white) for pool in pools if pool.white is not None]
    return max((white for white in whites if white > 255), default=FULL_16_BIT)


def _take_test(
    source: Source, splits: Splits, allocate: cached_arrays.Allocate
) -> tuple[np.ndarray | None, dict]:
    """Decode the test images: the official split, or those that `draw_split` leaves out."""
    pool: Pool = source.test() if source.test is not None else source.train
    for other, name in ((source.train, "training"), (source.validation, "validation")):
        if source.test is not None and other is not None:
            require_apart(other, pool, (name, "test"))
    index = draw_test(source, splits.data, pool.labels)
    out = allocate((len(index), splits.channels, *splits.size))
    cut: list[Outside] = []
    lost = render(pool, index, splits.data.fit, out, splits.top, cut.append)
    _check_lost(list(lost.values()), len(out))
    readable = remaining_indices(len(index), list(lost))
    check_classes(source, "test", pool.labels[index[readable]])
    if source.task != "classification":
        check_targets(source.task, source.classes, "test", held_labels(pool, index[readable]))
    learned = (("training", splits.train), ("validation", splits.validation))
    leaks = [
        leak
        for name, part in learned
        for leak in leakage(
            NamedImages(
                part.pixels.cpu().numpy(), lambda i, name=name: f"image {i} of the {name} images"
            ),
            NamedImages(out, lambda i: pool.called(int(index[i])), readable),
            (name, "test"),
        )
    ]
    return (readable if lost else None), {
        "labels": held_labels(pool, index[readable]).tolist(),
        "said": [*describe_outside(cut, len(out), "test image", splits.data.where), *leaks],
        "skipped": list(lost.values()),
    }


def _moments(pixels: np.ndarray, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over these rows, exactly, in units of 0..1."""
    counts = np.zeros((pixels.shape[1], 256), dtype=np.int64)
    # counting takes 8 bytes a value
    step = cached_arrays.block_rows(pixels.shape, 8)
    for start in range(0, len(rows), step):
        block = pixels[rows[start : start + step]]
        for channel in range(pixels.shape[1]):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return mean.tolist(), np.where(variance > 0, np.sqrt(variance), 1.0).tolist()


def _check_lost(lost: list[str], total: int) -> None:
    if len(lost) > LOST * total:
        raise ValueError(
            f"{len(lost)} of {counted(total, 'image')} cannot be read, more than {LOST:.0%}; "
            f"the first are: {'; '.join(lost[:3])}; replace or remove these files"
        )


def _warn(lost: tuple[str, ...] | list[str], total: int) -> None:
    if lost:
        more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
        warnings.warn(
            f"{len(lost)} of {counted(total + len(lost), 'image')} cannot be read, and left out: "
            f"{'; '.join(lost[:3])}{more}",
            DataWarning,
            stacklevel=3,
        )
