"""The declaration is checked before a study trains: do the labels contradict the declared symmetry,
or do the images already show every orientation? A short form of `equisearch probe`, whose answer is
cached for each data set and kept in the study's directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.cost import cost
from searchspace.geometry import counted
from searchspace.groups import IDENTITY, Group
from searchspace.recipe import Candidate
from studies.config import Study
from trainers.files import read_whole, write_whole
from trainers.instruments.data_symmetry import PLURALS

if TYPE_CHECKING:
    from trainers.instruments.data_symmetry import DataSymmetry, ElementProbe, Likeness

DECLARATION = "declaration.json"  # in the study's directory
DECLARATION_VERSION = 1  # of the answer in the cache: raise it when the question changes
DECLARATION_IMAGES = 1000
COST_SHARE = 0.05  # of a study's multiply-accumulates that the question may cost
# of the two classifiers: images seen, multiply-accumulates of one
VISITS, VISIT_MACS = 46_000, 450_000
USUAL_MACS = 1_000_000  # of a candidate, where `search.first` names none
SECONDS = 5  # of a core, measured


@dataclass(frozen=True)
class Declaration:
    """What the images and labels say of the declared group: `warnings` in sentences, empty where
    nothing speaks against it.
    """

    group: str
    elements: tuple[str, ...]  # that were examined: those on the pixel grid
    images: int
    warnings: tuple[str, ...]
    kind: str = "class"  # what the labels were asked of: classes, label sets, ranges of targets

    @property
    def line(self) -> str:
        """One sentence for a study whose declaration nothing contradicts."""
        return (
            f"the declared {self.group} was checked on {counted(self.images, 'image')}: no "
            f"two {PLURALS[self.kind]} are exchanged, and training does not show every orientation"
        )


def check_declaration(study: Study) -> Declaration | None:
    """What the study's images and labels say of its declared group.

    None where there is nothing to examine (no element on the pixel grid but the identity), and for
    a study so small that the question would cost more than 5 % of it. Raises ValueError for data
    that cannot be read.
    """
    group = Group.parse(study.symmetry.group)
    if not any(e.on_grid for e in group.elements if e != IDENTITY) or not _affordable(study):
        return None
    from trainers import cached_arrays
    from trainers.data.fingerprint import data_fingerprint
    from trainers.instruments.probe import probe

    asked = [
        DECLARATION_VERSION,
        "declaration",
        data_fingerprint(study.data).fingerprint,
        str(group),
        DECLARATION_IMAGES,
    ]
    if study.data.task != "classification":
        asked.append(study.data.task)
    key = cached_arrays.key(asked)

    def build(allocate: cached_arrays.Allocate) -> tuple[None, dict[str, Any]]:
        allocate((1,))[:] = 0  # the content is what matters
        probed = probe(study.data, group, images=DECLARATION_IMAGES, joint=True)
        return None, asdict(judged(probed, group))

    _, content = cached_arrays.cached(key, build)
    return _read(content)


def keep_declaration(directory: Path, declaration: Declaration) -> None:
    """Writes it into the study's directory."""
    write_whole(directory / DECLARATION, json.dumps(asdict(declaration), indent=1) + "\n")


def read_declaration(directory: Path) -> Declaration | None:
    """What `keep_declaration` wrote; None where nothing, or nothing readable, lies there."""
    try:
        return _read(json.loads(read_whole(directory / DECLARATION)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read(content: dict[str, Any]) -> Declaration:
    return Declaration(
        str(content["group"]),
        tuple(map(str, content["elements"])),
        int(content["images"]),
        tuple(map(str, content["warnings"])),
        str(content.get("kind", "class")),
    )


def judged(probed: DataSymmetry, group: Group) -> Declaration:
    """What a probe says of the declared group."""
    return Declaration(
        str(group),
        tuple(e.element for e in probed.elements),
        probed.images,
        (*_contradictions(probed, group), *_shown(probed, group)),
        probed.kind,
    )


def _contradictions(probed: DataSymmetry, group: Group) -> Iterator[str]:
    """One sentence for all elements that exchange classes, or other kinds."""
    colliding = [e for e in probed.elements if e.labels == "collide"]
    if not colliding:
        return
    element = min(colliding, key=lambda e: e.likenesses[0].apart.value)
    pair = element.likenesses[0]
    others = len(colliding) - 1
    yield (
        f"the labels contradict the declared {group}: {_exchanged(element, pair, probed.kind)}"
        f"{f', and {others} more exchange {probed.kinds}' if others else ''}. A network invariant "
        "to it confuses them, and one that is right about upright images is wrong about moved "
        f"ones. Declare at most {_largest(probed, group)}, or look closer with `equisearch probe`"
    )


def _exchanged(element: ElementProbe, pair: Likeness, kind: str) -> str:
    return (
        f"under {element.element} {kind} {pair.moved} cannot be told from {kind} {pair.like} "
        f"({pair.apart.short()} told apart, upright {pair.apart_upright.short()}, "
        f"p = {max(pair.p, 1e-12):.1g})"
    )


def _largest(probed: DataSymmetry, group: Group) -> str:
    """The largest subgroup without an element that exchanges classes."""
    colliding = {e.element for e in probed.elements if e.labels == "collide"}
    fitting = [
        subgroup
        for subgroup in group.subgroups()
        if not any(str(e) in colliding for e in subgroup.elements)
    ]
    return str(max(fitting, key=lambda subgroup: (subgroup.order, subgroup.rotations)))


def _shown(probed: DataSymmetry, group: Group) -> Iterator[str]:
    """A sentence where no element changes how the images are distributed."""
    if not all(e.inputs == "symmetric" and e.apart.high < 0.6 for e in probed.elements):
        return
    widest = max(probed.elements, key=lambda e: e.apart.high)
    yield (
        f"the images already show every orientation of {group} (a classifier tells moved images "
        f"from others {widest.apart.short()} of the time at most; 50 % is a guess): accuracy "
        "and symmetry accuracy measure the same here, and augmentation over the group adds nothing"
    )


def _affordable(study: Study) -> bool:
    """True if the question costs at most 5 % of the study's training, or of its timeout."""
    from trainers.data.datasets import load_data

    size = study.space.pixels[0]
    splits = load_data(study.data, (size, size))
    macs = USUAL_MACS
    if study.search.first:
        architecture = Candidate.parse(study.search.first[0]).architecture
        macs = cost(architecture, splits.channels, len(splits.classes)).macs
    # half of the epochs, since rungs stop trials
    visits = study.search.trials * study.training.epochs * len(splits.train) / 2
    seconds = study.search.timeout
    return COST_SHARE * visits * macs >= VISITS * VISIT_MACS and (
        seconds is None or seconds * COST_SHARE >= SECONDS
    )
