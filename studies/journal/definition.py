"""Over which elements a study's symmetry accuracy is a mean: the same for all trials of a study,
whatever each of them was trained on.

Version 0.1.0 did not write it down. In its studies it is a mean over the elements that
training has not seen; they go on with that, and every table says so.
"""

from __future__ import annotations

from studies.config import Study

DEFINITIONS = {
    "others": "mean over the declared elements other than the identity, whatever training has seen",
    "unseen": "mean over the declared elements that training has not seen",
}
ATTRIBUTE = "symmetry_accuracy"  # of the study in its journal: its definition in words


def as_stored(study: Study, like: Study | None = None) -> Study:
    """The study with the definition that it was started with.

    A study whose text does not say one takes that of `like`, else that of earlier versions.
    """
    if "scored" in study.symmetry.model_fields_set:
        return study
    scored = "unseen" if like is None else like.symmetry.scored
    symmetry = study.symmetry.model_copy(update={"scored": scored})
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


def sees_more(study: Study) -> bool:
    """Whether training sees orientations other than upright ones, so that definitions differ."""
    return study.training.augment.rotation != "none" or study.training.augment.mirror
