"""Dropout of a stage's result, in training alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DropoutKind = Literal["none", "values", "fields"]
DROPOUT_KINDS: tuple[DropoutKind, ...] = get_args(DropoutKind)


@dataclass(frozen=True)
class Dropout:
    """What training sets to zero at random in a stage's maps: a share `rate` of single values, or
    of whole fields, whose group elements and pixels share one draw.

    What is kept is divided by 1 - rate. Evaluation drops nothing: a rate of 0 is none.
    """

    kind: DropoutKind = "none"
    rate: float = 0.0  # from 0 to below 1

    def __post_init__(self) -> None:
        if self.kind not in DROPOUT_KINDS:
            raise ValueError(
                f"the kind of dropout is '{self.kind}'; choose one of {', '.join(DROPOUT_KINDS)}"
            )
        if not 0 <= self.rate < 1:
            raise ValueError(
                f"the rate of a dropout is {self.rate}; it must be at least 0 and below 1"
            )
        if (self.kind == "none") != (self.rate == 0):
            object.__setattr__(self, "kind", "none")
            object.__setattr__(self, "rate", 0.0)

    def __bool__(self) -> bool:
        return self.rate > 0

    def __str__(self) -> str:
        """The modifier of the text form, such as drop0.3; nothing for none."""
        return f"{'field' if self.kind == 'fields' else ''}drop{self.rate!r}" if self else ""


NO_DROPOUT = Dropout()
