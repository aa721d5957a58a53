"""Published networks in text form, at the input size that their papers use.

Blocks are ours (convolution, batch norm, ReLU; residual blocks end with the ReLU), so parameter
counts differ from the papers' by norms, biases and heads, and pre-activation networks are written
in post-activation form; sizes, strides, paddings and therefore exactness are theirs. Widths of
G-CNNs are those that the papers match to the plain network's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from searchspace.architecture import Architecture


@dataclass(frozen=True)
class Published:
    """One published network: its text form, the paper, and what to know when comparing."""

    text: str
    channels: int  # of its usual images
    classes: int
    source: str
    note: str = ""

    @property
    def architecture(self) -> Architecture:
        """The network as a value."""
        return Architecture.parse(self.text)


_EDIXHOVEN = "Edixhoven et al. 2023, arXiv:2308.11316"
_COHEN = "Cohen & Welling 2016, arXiv:1602.07576"
_E2 = "Weiler & Cesa 2019, arXiv:1911.08251"


def _resnet44(fields: int, group: str) -> str:
    return f"32px: {fields}k3{group}, {fields}k3x7r, {2 * fields}k3s2x7r, {4 * fields}k3s2x7r"


def _resnet26(fields: int, group: str) -> str:
    return f"32px: {fields}k3{group}, {fields}k3x4r, {2 * fields}k3s2x4r, {4 * fields}k3s2x4r"


def _resnet18(fields: int, group: str) -> str:
    stages = ", ".join(
        f"{fields * factor}k3{'s2' if factor > 1 else ''}x2r" for factor in (1, 2, 4, 8)
    )
    return f"32px: {fields}k3{group}, {stages}"


def _all_cnn(fields: int, group: str) -> str:
    a, b = fields, 2 * fields
    return f"32px: {a}k3{group}, {a}k3, {a}k3s2, {b}k3, {b}k3, {b}k3s2, {b}k3p0, {b}k1"


def _wide(stem: int, fields: int, group: str) -> str:
    return f"32px: {stem}k3@{group}, {fields}k3x4r, {2 * fields}k3s2x4r, {4 * fields}k3s2x4r"


PUBLISHED: Mapping[str, Published] = {
    "p4cnn": Published(
        "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0",
        1,
        10,
        _EDIXHOVEN,
        "padded variant; 24,990 parameters there: its images have 3 channels and its "
        "convolutions biases",
    ),
    "z2cnn": Published(
        "28px: 20k3, 20k3 max2/2, 20k3, 20k3, 20k3, 20k3, 20k4p0", 1, 10, _EDIXHOVEN
    ),
    "p4cnn-valid": Published(
        "28px: 10k3p0@C4, 10k3p0 max2/2ceil, 10k3p0, 10k3p0, 10k3p0, 10k3p0, 10k4p0", 1, 10, _COHEN
    ),
    "z2cnn-valid": Published(
        "28px: 20k3p0, 20k3p0 max2/2ceil, 20k3p0, 20k3p0, 20k3p0, 20k3p0, 20k4p0", 1, 10, _COHEN
    ),
    "all-cnn": Published(_all_cnn(96, ""), 3, 10, "Springenberg et al. 2015, arXiv:1412.6806"),
    "all-cnn-p4": Published(_all_cnn(48, "@C4"), 3, 10, _COHEN),
    "all-cnn-p4m": Published(_all_cnn(32, "@D4"), 3, 10, _COHEN),
    "resnet18-z2": Published(_resnet18(64, ""), 3, 10, _EDIXHOVEN),
    "resnet18-p4": Published(_resnet18(32, "@C4"), 3, 10, _EDIXHOVEN),
    "resnet18-p4m": Published(_resnet18(23, "@D4"), 3, 10, _EDIXHOVEN),
    "resnet26-z2": Published(
        _resnet26(71, ""), 3, 10, _COHEN, "fields recovered from the published 7.24 M parameters"
    ),
    "resnet26-p4": Published(
        _resnet26(35, "@C4"),
        3,
        10,
        _COHEN,
        "not in the paper; fields chosen for the parameters of the others",
    ),
    "resnet26-p4m": Published(
        _resnet26(25, "@D4"), 3, 10, _COHEN, "fields recovered from the published 7.17 M parameters"
    ),
    "resnet44-z2": Published(_resnet44(32, ""), 3, 10, _EDIXHOVEN),
    "resnet44-p4": Published(_resnet44(16, "@C4"), 3, 10, _EDIXHOVEN),
    "resnet44-p4m": Published(_resnet44(12, "@D4"), 3, 10, _EDIXHOVEN),
    "e2sfcnn": Published(
        "28px: 16k7p1@C16, 24k5 max2/2, 32k5, 32k5 max2/2, 48k5, 64k5p0",
        1,
        10,
        _E2,
        "the paper's grid scales the fields by sqrt(16 / |G|)",
    ),
    "equinas": Published(
        "28px: 16k5@D4, 16k5, 16k5 avg3/2p1, 16k5, 32k5 avg3/2p1, 32k5, 32k5 avg3/2p1, 32k5",
        1,
        10,
        "Maile et al. 2023, arXiv:2210.05484",
        "25 px is the exact size next to the paper's 28",
    ),
    "wrn28-10-c4": Published(_wide(8, 80, "C4"), 3, 10, _E2),
    "wrn28-10-d4": Published(_wide(6, 57, "D4"), 3, 10, _E2),
    "wrn28-10-c8": Published(_wide(6, 57, "C8"), 3, 10, _E2),
    "resnet18-torchvision": Published(
        "224px: 64k7s2 max3/2p1, 64k3x2r, 128k3s2x2r, 256k3s2x2r, 512k3s2x2r",
        3,
        1000,
        "He et al. 2016, arXiv:1512.03385, as in torchvision",
    ),
}
