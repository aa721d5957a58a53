"""What governs gamma, the strength of a residual pathway E_G(theta) + gamma E_H(phi), in training.

fixed:1      gamma stays what it is (the default, with 1)
prior:1e-6   gamma stays 1, and 1e-6 ||phi||^2 is added to the loss (RPP, Finzi et al. 2021);
             of banks, 1e-6 times the sum of |w_b(g) - w_b(h)| (Wang et al. 2022)
dual         gamma trains under the constraint gamma = 0, which a dual variable lambda tightens
             (ACE, arXiv:2505.13631)
resilient:1  gamma trains under |gamma| <= u, and 1/2 u^2 costs: u = lambda / 1 (ACE)
triangle     gamma rises from 0 to 1 in the first half of the training and falls to 0 in the
             second, so that it ends exact (constraint relaxation, Pertigkiozoglou et al. 2024);
             triangle:0.1 also adds 0.1 times the sum over layers of ||phi|| to the loss, which
             keeps the exact part at work (theirs: 0.01, and 0.01 for the part that breaks G)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

if TYPE_CHECKING:
    from searchspace.architecture import Architecture

GovernorKind = Literal["fixed", "prior", "dual", "resilient", "triangle"]
GOVERNOR_KINDS: tuple[GovernorKind, ...] = get_args(GovernorKind)
GOVERNOR_FORM = "write one of fixed:1, prior:1e-6, dual, resilient:1, triangle and triangle:0.1"
# gamma itself | weight of the prior | cost of slack (rho) | weight of the sizes of phi
DEFAULTS = {"fixed": 1.0, "prior": 1e-6, "resilient": 1.0, "triangle": 0.0}
MOST_GAMMA = 100.0


@dataclass(frozen=True)
class Governor:
    """What governs gamma: a kind, with its number where it has one."""

    kind: GovernorKind = "fixed"
    value: float = 0.0  # of `DEFAULTS`; 0 for a kind without one

    def __post_init__(self) -> None:
        if self.kind not in GOVERNOR_KINDS:
            raise ValueError(f"gamma is governed by '{self.kind}'; {GOVERNOR_FORM}")
        lowest = 0.0 if self.kind != "resilient" else 1e-6
        if not (math.isfinite(self.value) and 0 <= self.value <= MOST_GAMMA) or (
            self.kind in DEFAULTS and self.value < lowest
        ):
            raise ValueError(
                f"gamma={self.kind}:{self.value:g} has a number out of range; it must be from "
                f"{lowest:g} to {MOST_GAMMA:g}; {GOVERNOR_FORM}"
            )
        if self.kind not in DEFAULTS and self.value:
            raise ValueError(f"gamma={self.kind} has no number; {GOVERNOR_FORM}")

    @classmethod
    def parse(cls, text: str) -> Governor:
        """The governor of a text such as `dual` or `prior:1e-6`. Raises ValueError."""
        if "+" in text.replace("e+", ""):
            raise ValueError(
                f"gamma is '{text}', but one thing alone can govern gamma; {GOVERNOR_FORM}"
            )
        name, colon, number = text.partition(":")
        if name not in GOVERNOR_KINDS or (colon and name not in DEFAULTS):
            raise ValueError(f"gamma is '{text}'; {GOVERNOR_FORM}")
        try:
            value = float(number) if colon else DEFAULTS.get(name, 0.0)
        except ValueError:
            raise ValueError(f"gamma is '{text}'; {GOVERNOR_FORM}") from None
        return cls(cast(GovernorKind, name), value)

    def __str__(self) -> str:
        shown = self.kind in DEFAULTS and (self.value or self.kind != "triangle")
        return f"{self.kind}:{self.value!r}" if shown else self.kind

    @property
    def start(self) -> float:
        """gamma at the start of the training."""
        return {"fixed": self.value, "triangle": 0.0}.get(self.kind, 1.0)

    @property
    def trains_gamma(self) -> bool:
        """True if the gradient moves gamma."""
        return self.kind in ("dual", "resilient")

    def at(self, share: float) -> float:
        """gamma of a triangle at a share of the training's steps, from 0 for the first to 1 for
        the last: 0, 1 in the middle, 0.
        """
        return max(0.0, 1.0 - abs(2.0 * share - 1.0))

    def check(self, architecture: Architecture) -> None:
        """Raises ValueError where the architecture has nothing that it could govern."""
        kinds = {s.relaxation.kind for s in architecture.stages if s.relaxation is not None}
        if "pathway" not in kinds and not (self.kind == "prior" and "banks" in kinds):
            raise ValueError(
                f"gamma={self} governs residual pathways, and no stage has one; give a stage a "
                "pathway, such as @C4+C1, or leave gamma out"
            )

    def check_epochs(self, epochs: int) -> None:
        """Raises ValueError for a training too short for the schedule."""
        if self.kind == "triangle" and epochs < 2:
            raise ValueError(
                f"gamma={self} rises and falls, which needs 2 epochs, and the training has "
                f"{epochs}; choose more epochs, or gamma=dual"
            )


DEFAULT_GOVERNOR = Governor("fixed", 1.0)
