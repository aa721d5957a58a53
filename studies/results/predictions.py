"""`equisearch predict`: which files are meant, and what a bundle says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studies.errors import StudyError
from studies.output import Column, percent
from trainers.files import require_local
from trainers.settings import Task

SHOWN = 3  # classes of a table


@dataclass(frozen=True)
class Predicted:
    """The predictions for image files, and the files that could not be read."""

    # image, class, probability, probabilities by class; of labels: image, labels, probabilities;
    # of targets: image, values
    rows: tuple[dict[str, Any], ...]
    skipped: tuple[str, ...]  # `PATH (reason)`
    task: Task = "classification"
    names: tuple[str, ...] = ()  # of classes, labels or targets

    def table(self) -> tuple[list[Column], list[list[str]]]:
        """Columns and cells: the likeliest classes of each image, its labels, or its values."""
        if self.task != "classification":
            return self._other_table()
        columns = [
            Column("image"),
            Column("class"),
            Column("probability %", True),
            Column("then"),
        ]
        cells = []
        for row in self.rows:
            ranked = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])
            then = ", ".join(f"{name} {percent(share)} %" for name, share in ranked[1:SHOWN])
            cells.append([row["image"], row["class"], percent(row["probability"]), then])
        return columns, cells

    def _other_table(self) -> tuple[list[Column], list[list[str]]]:
        if self.task == "regression":
            columns = [Column("image"), *(Column(name, True) for name in self.names)]
            return columns, [
                [row["image"], *(f"{value:.6g}" for value in row["values"].values())]
                for row in self.rows
            ]
        columns = [Column("image"), Column("labels"), Column("probabilities %")]
        cells = []
        for row in self.rows:
            ranked = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])
            shown = ", ".join(f"{name} {percent(share)}" for name, share in ranked[:SHOWN])
            cells.append([row["image"], ", ".join(row["labels"]) or "none", shown])
        return columns, cells


def _row(path: Path, names: Sequence[str], found: Sequence[float], task: Task) -> dict[str, Any]:
    """What a bundle says of one image, as plain values."""
    by_name = dict(zip(names, found))
    if task == "regression":
        return {"image": str(path), "values": by_name}
    if task == "multilabel":
        held = [name for name, share in by_name.items() if share >= 0.5]
        return {"image": str(path), "labels": held, "probabilities": by_name}
    best = max(by_name, key=lambda name: by_name[name])
    return {
        "image": str(path),
        "class": best,
        "probability": by_name[best],
        "probabilities": by_name,
    }


def predict_images(
    bundle: Path | str,
    images: Sequence[Path | str],
    *,
    runtime: Literal["torch", "onnx"] = "torch",
    orbit: bool = False,
) -> Predicted:
    """The predictions of a bundle for image files, folders of them and patterns such as `a/*.png`.

    `runtime` is `torch` or `onnx`; neither executes code of the bundle. `orbit` averages the
    probabilities over the declared quarter turns and flips. Raises StudyError for a bundle that is
    damaged, and where no file is meant.
    """
    from trainers.bundles.predict import load_predictor, predict_files
    from trainers.cores import available_cores
    from trainers.process import tune_process

    paths = list(image_files(images))
    if not paths:
        raise StudyError(
            f"no image file is meant by {', '.join(map(str, images)) or 'nothing'}; give files, "
            "folders with image files, or patterns such as 'images/*.png'"
        )
    tune_process(available_cores())
    try:
        predictor = load_predictor(Path(bundle), runtime=runtime, orbit=orbit)
    except ValueError as error:
        raise StudyError(str(error)) from None
    rows, skipped, task = [], [], predictor.manifest.task
    for path, prediction in predict_files(predictor, paths):
        if isinstance(prediction, str):
            skipped.append(f"{path} ({prediction})")
            continue
        rows.append(_row(path, predictor.classes, prediction.tolist(), task))
    return Predicted(tuple(rows), tuple(skipped), task, predictor.classes)


def image_files(names: Sequence[Path | str]) -> Iterator[Path]:
    """The files that names mean: a file itself (also one that is missing: it is skipped by name), a
    folder's image files at any depth, what a pattern matches; in order, each once.
    """
    seen = set()
    for name in names:
        if not str(name).strip():
            raise StudyError("the name of an image is empty; give a file, a folder or a pattern")
        require_local(name)
        for path in _meant(Path(name)):
            if path not in seen:
                seen.add(path)
                yield path


def _meant(path: Path) -> Iterator[Path]:
    import glob

    from trainers.data.decoding import extensions

    if path.is_dir():
        endings = extensions()
        yield from sorted(
            inner
            for inner in path.rglob("*")
            if inner.suffix.lower() in endings and inner.is_file()
        )
    elif not path.exists() and glob.has_magic(str(path)):
        for name in sorted(glob.glob(str(path.expanduser()), recursive=True)):
            if Path(name).is_file():
                yield Path(name)
    else:
        yield path
