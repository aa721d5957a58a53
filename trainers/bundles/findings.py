"""What checking a bundle found, and the checks of what lies beside its formats, which execute
nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from searchspace.geometry import counted
from trainers.bundles.formats import SIGNATURE, careful_onnx_runner, logits
from trainers.bundles.manifest import Extra, Manifest, shown_names
from trainers.bundles.model import Model
from trainers.bundles.pixel_graph import (
    PIXELS_FILE,
    TOLERANCE,
    compared_images,
    image_reader,
    largest_difference,
    pixel_runner,
)
from trainers.bundles.quantised import INT8_FILE, integer_equal
from trainers.bundles.signing import signed_by
from trainers.bundles.symmetry_check import parity_tolerance


@dataclass(frozen=True)
class CheckResult:
    """One check and how it ended."""

    check: str  # files | a format's name | agreement | symmetry
    good: bool | None  # None: not checked, or nothing there to check; the text says which
    text: str
    code: bool = False  # not checked because that executes code of the bundle


@dataclass(frozen=True)
class BundleReport:
    """The results of all checks of a bundle."""

    bundle: Path
    architecture: str
    findings: tuple[CheckResult, ...]
    trusted: Path | None = None  # the public key that has signed it

    @property
    def good(self) -> bool:
        """True if no check failed; `not_run` are those that were left out."""
        return all(finding.good is not False for finding in self.findings)

    @property
    def not_run(self) -> tuple[str, ...]:
        """The checks that were left out, because they execute code of the bundle."""
        return tuple(finding.check for finding in self.findings if finding.code)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "bundle": str(self.bundle),
            "architecture": self.architecture,
            "good": self.good,
            "not_run": list(self.not_run),
            "findings": [{"check": f.check, "good": f.good, "text": f.text} for f in self.findings],
        }

    def text(self) -> str:
        """The findings, a line each whatever files are called, and the verdict."""
        marks = {True: "ok ", False: "BAD", None: "-- "}
        lines = [
            f"{marks[finding.good]}  {finding.check}: {finding.text}" for finding in self.findings
        ]
        heading = f"{self.bundle}: {shown_names([self.architecture])}"
        lines = [heading, *lines, self._verdict()]
        return "\n".join(" ".join(line.splitlines()) for line in lines)

    def _verdict(self) -> str:
        bad = sum(finding.good is False for finding in self.findings)
        if bad:
            return (
                f"the bundle is damaged or was changed ({bad} of {len(self.findings)} checks "
                "failed); export the trial again"
            )
        if self.not_run:
            return (
                f"nothing wrong was found{self._by()}; not run: {', '.join(self.not_run)} "
                "(--run-code runs it, if you trust where the bundle came from)"
            )
        return f"the bundle is sound: whole and as it was exported{self._by()}" + (
            "" if self.trusted else "; that does not say who made it"
        )

    def _by(self) -> str:
        return f", and signed by the key in {self.trusted}" if self.trusted else ""


def pixel_check(folder: Path, manifest: Manifest, model_of: Callable[[], Model]) -> CheckResult:
    """Whether the graph from pixels gives the probabilities of images as training reads them."""
    absent = _absent(manifest, "predict", manifest.predict, PIXELS_FILE)
    if absent is not None:
        return absent
    try:
        model = model_of()
        images = compared_images(model.size)
        difference = largest_difference(
            pixel_runner(folder), model, image_reader(model), images, manifest.plain_content
        )
    except Exception as error:  # files and runtimes fail in any way
        text = f"does not run: {type(error).__name__}: {shown_names([str(error)])}"
        return CheckResult("predict", False, text)
    return CheckResult(
        "predict",
        difference <= TOLERANCE,
        f"probabilities of {PIXELS_FILE} on {counted(len(images), 'image')} of several "
        "sizes and modes differ "
        f"by {difference:.2g} from those of the network (allowed {TOLERANCE:g})",
    )


def int8_check(folder: Path, manifest: Manifest, probes: Tensor, recorded: Tensor) -> CheckResult:
    """Whether the integers are as at the export, and under which exact elements they are equal."""
    about = manifest.int8
    absent = _absent(manifest, "int8", about, INT8_FILE)
    if absent is not None or about is None:
        return absent or CheckResult("int8", None, "not exported")
    try:
        run = careful_onnx_runner(folder, INT8_FILE)
        units = torch.tensor(manifest.units)
        difference = float(((logits(run, probes) - recorded) / units).abs().max())
        equal = {str(e): same for e, same in integer_equal(run, probes, manifest.claimed).items()}
    except Exception as error:  # files and runtimes fail in any way
        text = f"does not run: {type(error).__name__}: {shown_names([str(error)])}"
        return CheckResult("int8", False, text)
    same = [name for name, holds in equal.items() if holds]
    lost = [name for name, holds in equal.items() if not holds]
    broken = [name for name in lost if about.integer_equal.get(name)]
    allowed = 1.5 * about.max_difference + parity_tolerance(recorded / units)
    parts = [f"logits differ by up to {difference:.2g} from the network's (allowed {allowed:.2g})"]
    if same:
        parts.append(
            f"integer outputs equal on {counted(len(probes), 'image')} under {' '.join(same)}"
        )
    if lost:
        parts.append(f"exact in floating point, but not in integers: {' '.join(lost)}")
    if broken:
        parts.append(f"equal at the export, but not here: {' '.join(broken)}")
    return CheckResult("int8", difference <= allowed and not broken, "; ".join(parts))


def _absent(manifest: Manifest, check: str, about: Extra | None, file: str) -> CheckResult | None:
    """The result for a file that the export left out, or that no hash speaks for; else None."""
    if about is not None and about.refused is not None:
        return CheckResult(check, None, f"absent since the export: {shown_names([about.refused])}")
    if file not in manifest.files:
        text = f"{file} is not among the files that bundle.json lists, so nothing says whether it "
        return CheckResult(check, False, text + "has changed")
    return None


def signature_check(folder: Path, trusted: Path | None) -> CheckResult:
    """Whether the bundle is signed by the public key in `trusted`; without a key only whether there
    is a signature. Raises ValueError for a file that holds no key.
    """
    if trusted is not None:
        problem = signed_by(folder, trusted)
        return CheckResult("signature", problem is None, problem or f"by the key in {trusted}")
    there = (folder / SIGNATURE).exists()
    text = (
        "not checked: there is one, and --trusted KEY says whose it is"
        if there
        else "there is none, so nothing says who made the bundle"
    )
    return CheckResult("signature", None, text)
