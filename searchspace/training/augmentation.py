"""`Augmentation`: the orientations at which training sees images, as part of a recipe.

>>> [str(Augmentation.parse(text)) for text in ("group", "normal:0:30", "learned:0.01")]
['group', 'normal:30', 'learned']
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from searchspace.groups import TRIVIAL, Group

AugmentationKind = Literal["none", "group", "uniform", "normal", "learned"]
AUGMENTATION_KINDS: tuple[AugmentationKind, ...] = get_args(AugmentationKind)
FORMS = "none, group, uniform, normal:30, normal:45:20 or learned:0.01"
# of the widths' norm, that the loss is lowered by (arXiv:2010.11882, CIFAR-10)
REGULARISATION = 0.01
MOST_REGULARISATION = 100
MOST_DEGREES = 360  # of a mean or a deviation


@dataclass(frozen=True)
class Augmentation:
    """How images are turned, drawn anew for each image and epoch.

    `group`: by a random element of the declared group; `uniform`: by any angle; `normal`: by angles
    of that mean and standard deviation in degrees; `learned`: by affine maps whose widths are
    trained (Augerino, arXiv:2010.11882), where `regularisation` times their norm lowers the loss.
    """

    kind: AugmentationKind
    mean: float = 0.0  # degrees; of `normal`
    deviation: float = 0.0  # degrees; of `normal`
    regularisation: float = 0.0  # of `learned`

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATION_KINDS:
            raise ValueError(f"augment is '{self.kind}'; write {FORMS}")
        angles = (self.mean, self.deviation)
        if not all(abs(angle) <= MOST_DEGREES for angle in angles) or self.deviation < 0:
            raise ValueError(
                f"augment is '{self}'; its angles must be at most {MOST_DEGREES} degrees, and a "
                f"deviation not negative; write {FORMS}"
            )
        if not 0 <= self.regularisation <= MOST_REGULARISATION:
            raise ValueError(
                f"augment is '{self}'; its regularisation must be from 0 to "
                f"{MOST_REGULARISATION}; write {FORMS}"
            )

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """The augmentation that `text` describes. Raises ValueError that says what to write."""
        kind, *numbers = text.split(":")
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = [math.nan] * 3
        if kind == "normal" and 1 <= len(values) <= 2 and all(map(math.isfinite, values)):
            mean, deviation = values if len(values) == 2 else (0.0, values[0])
            return cls("normal", mean, deviation)
        if kind == "learned" and len(values) <= 1 and all(map(math.isfinite, values)):
            return cls("learned", regularisation=values[0] if values else REGULARISATION)
        if kind in ("none", "group", "uniform") and not values:
            return cls(kind)
        raise ValueError(f"augment is '{text}'; write {FORMS}")

    def check(self, declared: Group) -> None:
        """Raises ValueError where it would turn no image: by the elements of C1."""
        if self.kind == "group" and declared == TRIVIAL:
            raise ValueError(
                "augmentation by the group turns images by elements of C1, which leave them as "
                "they are; declare a larger group (symmetry.group), or choose none or uniform"
            )

    def __str__(self) -> str:
        if self.kind == "normal":
            return f"normal:{_number(self.mean)}:{_number(self.deviation)}".replace(":0:", ":")
        if self.kind == "learned" and self.regularisation != REGULARISATION:
            return f"learned:{_number(self.regularisation)}"
        return self.kind


def augmentation_texts(values: tuple[str, ...]) -> tuple[str, ...]:
    """Augmentations in text form, each spelled as it prints. Raises ValueError for another text."""
    return tuple(str(Augmentation.parse(str(value))) for value in values)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
