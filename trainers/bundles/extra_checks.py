"""Checks of what lies in a bundle beside its formats; they execute nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainers.bundles.findings import CheckResult
from trainers.bundles.manifest import Manifest, shown
from trainers.bundles.model import Model
from trainers.bundles.pixel_graph import (
    PIXELS_FILE,
    TOLERANCE,
    compare,
    compared_images,
    pixel_runner,
    reader,
)


def pixel_check(folder: Path, manifest: Manifest, model_of: Callable[[], Model]) -> CheckResult:
    """Whether the graph from pixels gives the probabilities of images as training reads them."""
    about = manifest.predict
    if about is None or about.refused is not None:
        return CheckResult("predict", True, f"absent since the export: {shown([str(about)])}")
    try:
        model = model_of()
        images = compared_images(model.size)
        difference = compare(pixel_runner(folder), model, reader(model), images)
    except Exception as error:  # files and runtimes fail in any way
        text = f"does not run: {type(error).__name__}: {shown([str(error)])}"
        return CheckResult("predict", False, text)
    return CheckResult(
        "predict",
        difference <= TOLERANCE,
        f"probabilities of {PIXELS_FILE} on {len(images)} images of several sizes and modes differ "
        f"by {difference:.2g} from those of the network (allowed {TOLERANCE:g})",
    )
