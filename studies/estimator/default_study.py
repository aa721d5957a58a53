"""The study that a classifier runs where it was given none: the template `folder`, with sizes,
groups and widths that suit the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchspace.architecture import Architecture
from searchspace.groups import TRIVIAL, Group
from studies.config import Study, load_study
from studies.evidence.variants import matched, with_group

TEMPLATE = "folder"
SMALLEST, LARGEST = 16, 64  # pixels of the smallest input size that is searched
INPUT_SIZES = 6  # input sizes that are searched, one beside the other
PARAMS = 40_000
# avg3/2p1 twice keeps every quarter turn and flip where the size is one more than a multiple of 4
KNOWN = "6k3@D4, 6k3 avg3/2p1, 12k3, 12k3 avg3/2p1, 12k3, 13k3"


def default_study(
    shape: tuple[int, int],
    channels: int,
    classes: int,
    symmetry: str,
    overrides: Mapping[str, Any] | None = None,
) -> Study:
    """The template for images of `shape` (height, width) under a declared symmetry, such as D4;
    `overrides` are dotted keys of the study file. Raises ValueError and StudyError for what no
    study may have.
    """
    declared = Group.parse(symmetry)
    smallest = min(max(*shape, SMALLEST), LARGEST)
    sizes = range(smallest, smallest + INPUT_SIZES)
    exact_size = next(size for size in sizes if size % 4 == 1)
    ends = [
        str(matched(_known(group, exact_size), "params", PARAMS, channels, classes))
        for group in dict.fromkeys((declared, TRIVIAL))
    ]
    groups = searched_groups(declared)
    content = {
        "data.folder": "images",  # which the arrays replace
        "symmetry.group": str(declared),
        "space.group": [str(group) for group in groups],
        "space.input_size": {"low": sizes[0], "high": sizes[-1]},
        "space.width": {"match": "params", "to": PARAMS},
        "search.first": ends,
        "controls": "none",
    }
    if not declared.on_grid:  # whose stages have filters in a basis
        content["space.filters"] = ["free", "basis"]
    if declared == TRIVIAL:  # nothing to restrict, and no element to compare with
        content |= {"space.family": ["plain"], "space.restrict": {"after": ["none"], "to": ["C1"]}}
        content |= {"space.equivariance_loss": {"kind": ["none"], "weight": 1.0}}
    return load_study(TEMPLATE, {**content, **(overrides or {})})


def searched_groups(declared: Group) -> tuple[Group, ...]:
    """The degrees of equivariance that a search for `declared` compares: none, the mirror image,
    quarter turns, those of the declared rotations, and all of it.
    """
    usual = [Group.parse(name) for name in ("C1", "D1", "C2", "C4", "D4")]
    inner = [group for group in usual if group <= declared]
    return tuple(dict.fromkeys((*inner, declared)))


def _known(group: Group, size: int) -> Architecture:
    return with_group(Architecture.parse(f"{size}px: {KNOWN}"), group)
