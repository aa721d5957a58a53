"""`TrainingConfig`: everything beside the architecture that decides what a training gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from searchspace.groups import Group
from searchspace.recipe import Recipe
from trainers.settings import Augment, Corners, Data, Normal, Symmetry, Training


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training. `Study.training_config` makes it from a study."""

    data: Data
    training: Training
    symmetry: Symmetry
    seed: int = 0  # of weights, order and augmentation
    recipe: Recipe = field(default_factory=Recipe)
    # parts that a batch is computed in, gradients summed: less memory, the same step size
    batch_divisor: int = 1
    # trains on the validation images too, so that none are left to score on
    merge_validation: bool = False

    @property
    def peak_rate(self) -> float:
        """The learning rate that the schedule scales."""
        rate = self.recipe.learning_rate
        return self.training.learning_rate if rate is None else rate

    @property
    def augment(self) -> Augment:
        """How images are mirrored, turned and shifted: the recipe's rotation, where it has one.

        Learned maps come on top of this (`trainers.training.augmentation`).
        """
        chosen, augment = self.recipe.augment, self.training.augment
        if chosen is None:
            return augment
        rotation: Any = "none" if chosen.kind == "learned" else chosen.kind
        if chosen.kind == "normal":
            rotation = Normal(normal=(chosen.mean, chosen.deviation))
        return augment.model_copy(update={"rotation": rotation})

    @property
    def corners(self) -> Corners:
        """What fills the corners of images turned by an angle off the grid."""
        return self.symmetry.filling

    @property
    def group(self) -> Group:
        """The declared group: under which the model will be used."""
        return Group.parse(self.symmetry.group)


def check_training(training: Training, images: int, size: int) -> list[str]:
    """What a user should know of `training` on that many images, one line each.

    `size` is the shortest side of an input in pixels. Raises ValueError for settings under which
    nothing can be learned.
    """
    if training.augment.shift >= size:
        raise ValueError(
            f"training.augment.shift is {training.augment.shift} pixels, and inputs have {size}: a "
            f"shifted image may be empty; take at most {size - 1}"
        )
    if training.batch_size > images:
        return [
            f"training.batch_size is {training.batch_size}, and there are {images} training "
            "images: each epoch is one step on all of them"
        ]
    return []
