"""`model.int8.onnx`: the network in 8-bit integers, by onnxruntime's static quantisation, and what
it costs in both scores and gains in time.

Weights are quantised per channel, to 7 bits: the channels of a field hold the same filter moved, so
they have one scale, and sums of 7-bit products do not saturate on any CPU. What is exact in
floating point can therefore be equal to the last bit in integers; where a mean over pixels is
computed in floating point between them, its rounding may tip a last digit. `integer_equal` says
which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from searchspace.groups import Element
from trainers.actions import act
from trainers.bundles.facts import TrainedNetwork
from trainers.bundles.formats import INPUT, FormatError, Runner, logits, onnx_runner, silence
from trainers.data.augment import seen
from trainers.instruments.accuracy import summarise
from trainers.instruments.predictions import predict_elements
from trainers.training.evaluate import degrees_learned

INT8_FILE, SOURCE_FILE = "model.int8.onnx", "model.onnx"
CALIBRATION = 256  # training images, evenly spaced
TIMED, REPEATS = 64, 7  # images per forward, forwards


class _Images:
    """The images that ranges of values are taken from, one batch after the other."""

    def __init__(self, images: Tensor) -> None:
        self._batches = iter(images.split(32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch in 0..1, by the name of the input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: (batch.float() / 255).numpy()}


def write_int8(folder: Path, images: Tensor) -> None:
    """Writes `model.int8.onnx` beside `model.onnx`, calibrated on uint8 `images`. Raises
    FormatError where the network cannot be quantised.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    reader = type("Reader", (_Images, CalibrationDataReader), {})(images)
    try:
        with silence():
            quantize_static(
                str(folder / SOURCE_FILE),
                str(folder / INT8_FILE),
                reader,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except OSError:
        raise
    except Exception as error:  # of any type, from onnx and onnxruntime
        (folder / INT8_FILE).unlink(missing_ok=True)
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise FormatError(f"the network cannot be quantised: {reason}") from error


def add_int8(
    folder: Path,
    trained: TrainedNetwork,
    chosen: Tensor,
    elements: Iterable[Element],
    probes: Tensor,
) -> dict[str, Any]:
    """Writes `model.int8.onnx`, and returns what the manifest says of it, measured on the `chosen`
    images of the validation split. Raises FormatError.
    """
    train = trained.splits.train.pixels.cpu()
    spaced = torch.linspace(0, len(train) - 1, min(CALIBRATION, len(train))).round().long()
    write_int8(folder, train[spaced])
    whole, small = (onnx_runner(folder, name) for name in (SOURCE_FILE, INT8_FILE))
    images = trained.splits.validation.pixels.cpu()[chosen]
    labels = trained.splits.validation.labels.cpu()[chosen]
    before, after = (_scores(run, trained, images, labels) for run in (whole, small))
    outputs = trained.splits.outputs
    times = _milliseconds({"float": whole, "int8": small}, images)
    return {
        "file": INT8_FILE,
        "bytes": (folder / INT8_FILE).stat().st_size,
        "float_bytes": (folder / SOURCE_FILE).stat().st_size,
        "calibration_images": len(spaced),
        "images": len(images),
        "scores": {name: {"float": before[name], "int8": after[name]} for name in before},
        "latency": times,
        "max_difference": float(
            ((logits(small, probes) - logits(whole, probes)) / outputs.units).abs().max()
        ),
        "integer_equal": {
            str(e): equal for e, equal in integer_equal(small, probes, elements).items()
        },
    }


def integer_equal(run: Runner, images: Tensor, elements: Iterable[Element]) -> dict[Element, bool]:
    """By element, whether the logits, which are whole multiples of one number, are equal to the
    last bit when the images are moved.
    """
    upright = logits(run, images)
    return {e: bool(torch.equal(logits(run, act(images, e)), upright)) for e in elements}


def _scores(
    run: Runner, trained: TrainedNetwork, images: Tensor, labels: Tensor
) -> dict[str, float]:
    config = trained.config
    turned = degrees_learned(trained.scores.get("learned"))
    outputs = trained.splits.outputs

    def learned(values: Tensor) -> Tensor:
        return outputs.learned(run(values))

    measured = summarise(
        predict_elements(
            learned, images, config.group.elements, corners=config.corners, keep_logits=True
        ),
        labels,
        config.group,
        seen(config.augment, config.group, turned),
        over=config.symmetry.scored,
        task=outputs.task,
    )
    return {"accuracy": measured.accuracy.value, "symmetry_accuracy": measured.mean.value}


def _milliseconds(
    runs: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor
) -> dict[str, float]:
    """Milliseconds per image of a forward, one runner after the other in turn: medians."""
    batch = images[:TIMED].float() / 255
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            began = time.perf_counter()
            run(batch)
            times[name].append(1000 * (time.perf_counter() - began) / len(batch))
    return {name: median(values) for name, values in times.items()}
