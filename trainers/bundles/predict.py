"""Predictions of a bundle for image files, with nothing of the bundle executed: by this program's
own network with the bundle's weights, or by onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from searchspace.groups import IDENTITY, Element, Group
from trainers.actions import act
from trainers.bundles.manifest import Manifest
from trainers.bundles.model import Model
from trainers.bundles.pixel_graph import PIXELS_FILE, pixel_runner
from trainers.bundles.symmetry_check import movable
from trainers.bundles.verify import load_checked
from trainers.cache import say_once
from trainers.data.decoding import Outside, decode, describe_outside, why_unreadable
from trainers.data.fitting import Fit, fit_images
from trainers.data.tasks import task_activation
from trainers.settings import Task

PREDICTION_BATCH = 64  # images at once
Runtime = Literal["torch", "onnx"]


@dataclass(frozen=True)
class Predictor:
    """A bundle that is ready to predict."""

    manifest: Manifest
    # probabilities (or values of targets) of uint8 images of the model's size
    run: Callable[[Tensor], Tensor]
    elements: tuple[Element, ...]  # the images are moved by each, and probabilities averaged

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of probabilities."""
        return self.manifest.classes

    def read(self, path: Path, cut: Callable[[Outside], None] = lambda outside: None) -> Tensor:
        """An image file as training reads it, uint8 [channels, height, width] in the model's size;
        `cut` is told of values that are cut off.

        Raises whatever Pillow raises on a damaged file, and ValueError.
        """
        given, content = self.manifest.input, self.manifest.content
        pixels = torch.from_numpy(decode(path, given.channels, self.manifest.data.top, cut))
        fit: Fit = "resize" if content.fit == "resize" else "pad"
        return fit_images(pixels[None], (given.height, given.width), fit)[0]

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """[image, class] of uint8 images of the model's size."""
        return torch.stack([self.run(act(pixels, e)) for e in self.elements]).mean(0)


def load_predictor(folder: Path, *, runtime: Runtime = "torch", orbit: bool = False) -> Predictor:
    """The bundle in `folder`, whose files must be those that were written. `orbit` averages over
    the declared quarter turns and flips. Raises ValueError.
    """
    manifest, model = load_checked(folder)
    if runtime == "onnx" and PIXELS_FILE not in manifest.files:
        raise ValueError(
            f"the bundle {folder} holds no {PIXELS_FILE}"
            + (f" ({manifest.predict.refused})" if manifest.predict else "")
            + "; export it again with this version, or predict with torch"
        )
    run = _torch_runner(model, manifest.task) if runtime == "torch" else pixel_runner(folder)
    size = manifest.input.height, manifest.input.width
    declared = Group.parse(manifest.declared)
    elements = (IDENTITY, *(movable(declared, size) if orbit else ()))
    return Predictor(manifest, run, elements)


def _torch_runner(model: Model, task: Task) -> Callable[[Tensor], Tensor]:
    return lambda pixels: task_activation(task, model(pixels.float() / 255))


def predict_files(
    predictor: Predictor, paths: Iterable[Path]
) -> Iterator[tuple[Path, Tensor | str]]:
    """(path, probabilities [class] or why the file cannot be read) for each, in their order. What
    was cut off of their values is logged at the end.
    """
    waiting: list[tuple[Path, Tensor | str]] = []
    cut: list[Outside] = []
    number = 0
    for path in paths:
        number += 1
        try:
            waiting.append((path, predictor.read(path, cut.append)))
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            waiting.append((path, why_unreadable(error)))
        if len(waiting) == PREDICTION_BATCH:
            yield from _predicted(predictor, waiting)
            waiting = []
    yield from _predicted(predictor, waiting)
    for line in describe_outside(cut, number, "image"):
        say_once(line)


def _predicted(
    predictor: Predictor, read: Sequence[tuple[Path, Tensor | str]]
) -> Iterator[tuple[Path, Tensor | str]]:
    images = [pixels for _, pixels in read if isinstance(pixels, Tensor)]
    shares = iter(predictor.probabilities(torch.stack(images)) if images else ())
    for path, pixels in read:
        yield path, pixels if isinstance(pixels, str) else next(shares)
