"""Over which elements a study's symmetry accuracy is a mean, and what fills the corners of turned
images: the same for all trials of a study, whatever each of them was trained on.

Version 0.1.0 did not write it down. In its studies it is a mean over the elements that
training has not seen, and corners are black; they go on with that, and every table says so of the
mean.
"""

from __future__ import annotations

from searchspace.groups import Group
from studies.config import Study
from trainers.settings import Corners

DEFINITIONS = {
    "others": "mean over the declared elements other than the identity, whatever training has seen",
    "unseen": "mean over the declared elements that training has not seen",
}
CORNERS: dict[Corners, str] = {
    "black": "black corners",
    "reflect": "corners filled with the image mirrored at its borders",
    "replicate": "corners filled with the image's border pixels",
    "circle": "black outside the inscribed circle",
    "crop": "cut to the centre that no corner reaches, enlarged to the input size",
}
ATTRIBUTE = "symmetry_accuracy"  # of the study in its journal: its definition in words


def as_stored(study: Study, like: Study | None = None) -> Study:
    """The study with the definition that it was started with.

    A study whose text does not say one takes that of `like`, else that of earlier versions.
    """
    study = with_stored_corners(study, like)
    if "scored" in study.symmetry.model_fields_set:
        return study
    scored = "unseen" if like is None else like.symmetry.scored
    symmetry = study.symmetry.model_copy(update={"scored": scored})
    return study.model_copy(update={"symmetry": symmetry})


def with_stored_corners(study: Study, like: Study | None = None) -> Study:
    """The study with the corners that it was started with: where its text leaves them open, those
    of `like`; where it does not have the key and there is no `like`, black, as in earlier versions.
    """
    given = "corners" in study.symmetry.model_fields_set
    if given and (like is None or study.symmetry.corners != "auto"):
        return study
    corners = "black" if like is None else like.symmetry.corners
    symmetry = study.symmetry.model_copy(update={"corners": corners})
    return study.model_copy(update={"symmetry": symmetry})


def definition_attribute(study: Study) -> dict[str, str]:
    """What a journal says of the definition."""
    return {ATTRIBUTE: DEFINITIONS[study.symmetry.scored]}


def definition_note(study: Study) -> str | None:
    """A sentence for tables of a study that keeps the definition of earlier versions; else None."""
    if study.symmetry.scored == "others":
        return None
    return (
        f"symmetry accuracy of this study is the {DEFINITIONS['unseen']}, as it was defined when "
        f"the study was started; in new studies it is the {DEFINITIONS['others']}"
    )


def corners_note(study: Study) -> str | None:
    """A sentence on the corners of turned images for reports; None where the declared group turns
    by quarter turns only, unless upright images differ too.
    """
    filling = study.symmetry.filling
    if filling in ("circle", "crop"):
        return (
            f"All images, upright ones too, are {CORNERS[filling]}, in training and for scores, "
            "and the exported network does it itself"
        )
    if Group.parse(study.symmetry.group).on_grid:
        return None
    return (
        "Images turned by angles between quarter turns have "
        f"{CORNERS[study.symmetry.filling]}, in training and for scores"
    )


def sees_more(study: Study) -> bool:
    """Whether training sees orientations other than upright ones, so that definitions differ."""
    return study.training.augment.rotation != "none" or study.training.augment.mirror
