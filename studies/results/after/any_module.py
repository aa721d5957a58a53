"""`equisearch soften module:function`: any torch model at every softness of its kernels and
averaged over the orbit, on the validation images of a study, and beside the front of one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.groups import TRIVIAL, Group
from studies import config
from studies.config import Study
from studies.errors import StudyError
from studies.evidence.front import scored
from studies.journal.directory import STUDY
from studies.journal.trial import TrialRecord
from studies.pareto import dominates, larger_is_better
from studies.results.after.points import DerivedPoint, Scored
from studies.results.after.softening import SOFTNESS
from studies.results.tables import open_records
from trainers.cores import available_cores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.data.datasets import Splits

COMPARED_SCORES = ("accuracy", "symmetry_accuracy", "params")  # objectives that any model has
TWIN_IMAGES = 256  # training images for the statistics of batch norm


@dataclass(frozen=True)
class _Data:
    """The study whose images a model is scored on, and its trials."""

    study: Study
    records: Sequence[TrialRecord] | None  # None: a study file, which has none


def soften_module(
    source: str,
    data: str,
    settings: dict[str, Any] | None = None,
    *,
    group: str | None = None,
    softness: Sequence[float] = SOFTNESS,
    images: int = 500,
    front: bool = False,
) -> dict[str, Any]:
    """The points of the model that `source` names, which takes images in 0..1, on at most `images`
    validation images of `data`, a study file, preset or study directory.

    With `front`, beside each point stands which trial of the directory's front beats it in all
    objectives; nothing is written. Raises StudyError or ValueError for what cannot be loaded or
    softened, and for objectives that only trials have.
    """
    from trainers.data.datasets import load_data
    from trainers.instruments.loading import check_model, load_model
    from trainers.process import tune_process

    tune_process(available_cores())
    found = _data(data, settings or {}, front)
    declared = _group(group or found.study.symmetry.group)
    model = load_model(source).eval()
    splits = load_data(found.study.data, None)
    check_model(model, splits.validation.pixels[:2], len(splits.classes))
    began = time.perf_counter()
    subject = _subject(model, found.study, declared, splits, images)
    try:
        points = _points(model, subject, softness, splits)
    except ValueError as error:
        raise StudyError(f"{source} cannot be softened: {error}") from None
    params = sum(p.numel() for p in model.parameters())
    beaten = [_beaten(p, params, found) for p in points] if front else [None] * len(points)
    return {
        "model": source,
        "architecture": None,
        "group": str(declared),
        "num_images": len(subject.labels),
        "params": params,
        "points": [
            asdict(p) | {"architecture": None, "beaten_by": by} for p, by in zip(points, beaten)
        ],
        "seconds": time.perf_counter() - began,
        "training_seconds": None,
        "share_of_training": None,
        "front": None,
        "beside_front": front,
    }


def _data(name: str, settings: dict[str, Any], front: bool) -> _Data:
    place = Path(name)
    if not (place / STUDY).is_file():
        if front:
            raise StudyError(
                f"'{name}' is not a study's directory, whose front --front compares with; give one "
                "with --data, or leave --front out"
            )
        return _Data(config.load_study(name, settings), None)
    if settings:
        raise StudyError(f"{name} is a study as it was started; leave --set out")
    study, records = open_records(place)
    others = [o for o in study.objectives if o not in COMPARED_SCORES]
    if front and others:
        raise StudyError(
            f"the study's objectives hold {', '.join(others)}, which a model from outside does not "
            f"have; --front compares {', '.join(COMPARED_SCORES)}"
        )
    return _Data(study, records)


def _group(name: str) -> Group:
    group = Group.parse(name)
    if group == TRIVIAL or not group.on_grid:
        raise StudyError(
            f"kernels cannot be softened under {group}, whose elements are not quarter turns and "
            "flips; name one of C2, C4, D1, D2, D4 with --group"
        )
    return group


def _subject(model: nn.Module, study: Study, group: Group, splits: Splits, images: int) -> Scored:
    step = max(1, len(splits.validation) // images)
    return Scored(
        folded=model,
        group=group,
        pixels=splits.validation.pixels[::step][:images],
        labels=splits.validation.labels[::step][:images],
        normalise=_as_they_are,
        seen=(),
        over=study.symmetry.scored,
        corners=study.symmetry.filling,
    )


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _points(
    model: nn.Module, subject: Scored, softness: Sequence[float], splits: Splits
) -> list[DerivedPoint]:
    from trainers.instruments.audit.audit import audit
    from trainers.instruments.feature_maps import pixels
    from trainers.networks.soft.any_module import project

    few = pixels(splits.train.pixels[:TWIN_IMAGES], model)
    made = [project(model, subject.group, s, few) for s in softness]
    height, width = few.shape[-2:]
    exact = audit(model, (height, width), subject.group, few.shape[1], sizes=False).exact
    return [
        *(
            subject.point(
                f"{s:g}", network, softness=s, bound=_bound(network, subject) if exact else None
            )
            for s, network in zip(softness, made)
        ),
        subject.averaged(),
    ]


def _bound(network: nn.Module, subject: Scored) -> float | None:
    """The largest bound on a change over the images that are compared; None where a layer has
    none.
    """
    from trainers.instruments.convert.change_bound import change_bound

    try:
        return float(change_bound(network, subject.group, subject.few).max())
    except ValueError:
        return None


def _beaten(point: DerivedPoint, params: int, data: _Data) -> int | None:
    """The trial of the front that beats a point in all objectives; None: it would stand there."""
    objectives = data.study.objectives
    own = {
        "accuracy": point.accuracy,
        "symmetry_accuracy": point.symmetry_accuracy,
        "params": params,
    }
    mine = larger_is_better([own[name] for name in objectives], objectives)
    for record in scored(data.records or ()):
        if dominates(larger_is_better(record.values or (), objectives), mine):
            return record.number
    return None
