"""What fills the corners of images turned by an angle off the pixel grid: chosen once, by the
images, before anything trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from searchspace.groups import Group
from searchspace.recipe import Candidate
from searchspace.training.augmentation import Augmentation
from searchspace.training.spaces import DECLARED, without_weights
from studies.config import Study
from trainers.settings import Normal

OFF_GRID = ("uniform", "normal", "learned")  # kinds of augmentation that turn by any angle


def with_corners(
    study: Study,
    first: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Study:
    """The study with `symmetry.corners` decided where it is auto; `note` receives the choice.

    Where neither the study nor the architectures tried `first` turn images by an angle off the
    grid, that is black, and nothing is read or noted. Raises ValueError or OSError for data that
    cannot be read.
    """
    if study.symmetry.corners != "auto":
        return study
    chosen = study.symmetry.filling
    if turns_off_grid(study, first):
        from trainers.data.borders import choose_corners
        from trainers.data.datasets import load_data

        size = study.space.pixels[0]
        choice = choose_corners(load_data(study.data, (size, size)).train.pixels)
        chosen = choice.corners
        note(f"corners: {chosen}, since {choice.reason}")
    symmetry = study.symmetry.model_copy(update={"corners": chosen})
    return study.model_copy(update={"symmetry": symmetry})


def turns_off_grid(study: Study, first: Sequence[str] = ()) -> bool:
    """Whether images are turned by angles that are not quarter turns, in training or for scores."""
    rotation = study.training.augment.rotation
    return (
        rotation == "uniform"
        or isinstance(rotation, Normal)
        or any(not group.on_grid for group in _groups(study, first))
        or any(each.kind in OFF_GRID for each in _augmentations(study, first))
    )


def _groups(study: Study, first: Sequence[str]) -> Iterator[Group]:
    """Those that are declared, or whose elements move images for a loss."""
    declared = Group.parse(study.symmetry.group)
    yield declared
    space = study.space.equivariance_loss
    yield from (Group.parse(name) for name in space.group if name != DECLARED)
    for text in space.kind:
        yield from (loss.elements_group(declared) for loss in without_weights(text))
    for text in (*study.search.first, *first):
        losses = Candidate.parse(text).recipe.losses
        yield from (loss.elements_group(declared) for loss in losses)


def _augmentations(study: Study, first: Sequence[str]) -> Iterator[Augmentation]:
    yield from map(Augmentation.parse, study.space.augment or ())
    for text in (*study.search.first, *first):
        augment = Candidate.parse(text).recipe.augment
        if augment is not None:
            yield augment
