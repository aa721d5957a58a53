"""What a converted network keeps, element by element: claimed from its grid, and
measured in float64.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from searchspace.groups import Group
from trainers.instruments.audit.audit import audit
from trainers.instruments.audit.symmetrised import (
    AUDIT_DRAWS,
    THRESHOLD,
    calibrated,
    double_copy,
    draw_weights,
    own_errors,
    symmetry_deviation,
)
from trainers.instruments.audit.verdict import Audit, AuditClaim, ElementAudit


def verdict_of(twin: nn.Module, plain: nn.Module, group: Group, size: tuple[int, int],
               channels: int, name: str) -> Audit:  # fmt: skip
    """The verdict of a twin whose counterpart without a group is `plain`.

    Both read the same windows, so that the twin is exact under an element wherever `plain` is with
    kernels that the element keeps: what the audit claims. Measured are the twin's own layers, with
    weights drawn at random and with those that it has; a claim that the measurement does not bear
    out is not made.
    """
    claimed = audit(plain, size, group, channels, name=name)
    measured = _errors(twin, claimed)
    copied = double_copy(twin)
    own = own_errors(copied, (1, channels, *size), group.elements)
    findings = tuple(
        replace(f, claim=_claim(f), measured=error, own=mine, doubted=False).settled()
        for f, error, mine in zip(claimed.findings, measured, own)
    )
    return replace(claimed, findings=findings)


def _claim(finding: ElementAudit) -> AuditClaim:
    """What the layers say, where the counterpart's rounding errors left it in doubt."""
    if not finding.doubted or finding.measured is None:
        return finding.claim
    return "exact" if finding.measured > THRESHOLD else "broken"


@torch.no_grad()
def _errors(twin: nn.Module, claimed: Audit) -> list[float | None]:
    """For each element the largest measured difference over draws of weights and images."""
    module, found = double_copy(twin), dict.fromkeys(claimed.findings, 0.0)
    for draw in range(AUDIT_DRAWS):
        left = [f for f in found if draw == 0 or _open(f, found[f])]
        if not left:
            break
        draw_weights(module, draw)
        images = _images((1, claimed.channels, *claimed.size), draw)
        with calibrated(module):
            module(images)
        upright = module(images)
        for finding in left:
            error = symmetry_deviation(module, images, upright, finding.element)
            found[finding] = error if math.isnan(error) else max(found[finding], error)
    return [None if math.isnan(error) else error for error in found.values()]


def _open(finding: ElementAudit, error: float) -> bool:
    """Whether another draw may show that an element is lost."""
    return finding.claim != "exact" and error <= THRESHOLD


def _images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
