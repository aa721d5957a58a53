"""`equisearch soften module:function`: any torch model at every softness of its kernels and
averaged over the orbit, on the validation images of a study, and the best of these as candidates of
a study's front.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.groups import Element, Group
from searchspace.weights.softened import Softened
from studies import config
from studies.config import Study
from studies.errors import StudyError
from studies.evidence.front import scored
from studies.journal.directory import STUDY, read_study
from studies.journal.reader import read_trials
from studies.journal.trial import TrialRecord
from studies.pareto import dominates, larger_is_better
from studies.results.after.points import (
    DerivedPoint,
    Scored,
    require_shape,
    softening_group,
)
from studies.results.after.softening import SOFTNESS, unbeaten
from studies.results.tables import open_records
from studies.search.softened import AS_IT_IS, ModelPoint, add_models
from studies.tasks import require_classes
from trainers.cores import available_cores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.data.datasets import Splits

TWIN_IMAGES = 256  # training images for the statistics of batch norm


@dataclass(frozen=True)
class _Data:
    """The study whose images a model is scored on, and its trials."""

    study: Study
    records: Sequence[TrialRecord]  # none of a study file


@dataclass(frozen=True)
class _Made:
    """A point of a model, and what was made of it."""

    point: DerivedPoint
    model: nn.Module
    weights: dict[str, Tensor]  # of the module that the user's function returns
    surviving: tuple[Element, ...]  # of the declared group, for certain


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

    With `front`, the points that no other beats become trials of the study directory, scored as
    its trials are, on all of its validation images; beside each of these stands which trial of the
    front of before beats it in all objectives. Raises StudyError or ValueError for what cannot be
    loaded or softened, and for a task other than classification.
    """
    from trainers.data.datasets import load_data
    from trainers.instruments.loading import check_model, load_model
    from trainers.process import tune_process

    tune_process(available_cores())
    found = _data(data, settings or {}, front)
    declared = softening_group(group or found.study.symmetry.group)
    model, splits = load_model(source).eval(), load_data(found.study.data, None)
    require_shape(declared, splits.size)
    check_model(model, splits.validation.pixels[:2], len(splits.classes))
    began = time.perf_counter()
    subject = _subject(model, found.study, declared, splits, images)
    try:
        made = _points(model, subject, softness, splits, Group.parse(found.study.symmetry.group))
    except ValueError as error:
        raise StudyError(f"{source} cannot be softened: {error}") from None
    added = _add(Path(data), source, made, splits) if front else None
    beaten = _beaten(Path(data), added or (), found)
    return {
        "model": source,
        "architecture": None,
        "group": str(declared),
        "num_images": len(subject.labels),
        "params": sum(p.numel() for p in model.parameters()),
        "points": [_row(one.point, beaten) for one in made],
        "seconds": time.perf_counter() - began,
        "training_seconds": None,
        "share_of_training": None,
        "front": added,
        "beside_front": front,
    }


def _data(name: str, settings: dict[str, Any], front: bool) -> _Data:
    place = Path(name)
    if not (place / STUDY).is_file():
        if front:
            raise StudyError(
                f"'{name}' is not a study's directory, to which --front adds candidates; give one "
                "with --data, or leave --front out"
            )
        return _classes(_Data(config.load_study(name, settings), ()))
    if settings:
        raise StudyError(f"{name} is a study as it was started; leave --set out")
    return _classes(_Data(*open_records(place)))


def _classes(found: _Data) -> _Data:
    """The same. Raises StudyError for a task other than classification."""
    require_classes(found.study, "soften")
    return found


def _subject(model: nn.Module, study: Study, group: Group, splits: Splits, images: int) -> Scored:
    from trainers.data.borders import see

    step = max(1, len(splits.validation) // images)
    return Scored(
        folded=model,
        group=group,
        pixels=splits.validation.pixels[::step][:images],
        labels=splits.validation.labels[::step][:images],
        normalise=partial(see, corners=study.symmetry.filling),
        seen=(),
        over=study.symmetry.scored,
        corners=study.symmetry.filling,
    )


def _points(
    model: nn.Module, subject: Scored, softness: Sequence[float], splits: Splits, declared: Group
) -> list[_Made]:
    """The points with their networks; `declared` is the group under which they are exact or not."""
    from trainers.data.borders import see
    from trainers.instruments.audit.audit import audit
    from trainers.instruments.feature_maps import pixels
    from trainers.networks.orbit import orbit_average
    from trainers.networks.soft.any_module import kept_by_kernels, project

    few = see(pixels(splits.train.pixels[:TWIN_IMAGES], model), subject.corners)
    size, channels = (few.shape[-2], few.shape[-1]), few.shape[1]
    exact = audit(model, size, subject.group, channels, sizes=False).exact
    grid = audit(model, size, declared.grid, channels, sizes=False).surviving
    made = []
    for s in softness:
        network = project(model, subject.group, s, few)
        bound = _bound(network, subject) if exact else None
        how = None if s == 1 else str(Softened("softness", (subject.group,), s))
        point = subject.point(f"{s:g}", network, how=how, softness=s, bound=bound)
        kept = kept_by_kernels(network, grid)
        made.append(_Made(point, network, network.state_dict(), kept))
    averaged = orbit_average(model, subject.group)
    kept = tuple(e for e in declared.elements if e in subject.group.elements)
    return [*made, _Made(subject.averaged(), averaged, model.state_dict(), kept)]


def _bound(network: nn.Module, subject: Scored) -> float | None:
    """The largest bound on a change over the images that are compared; None where a layer has
    none.
    """
    from trainers.instruments.convert.change_bound import change_bound

    try:
        return float(change_bound(network, subject.group, subject.few).max())
    except ValueError:
        return None


def _add(
    directory: Path, source: str, made: Sequence[_Made], splits: Splits
) -> list[dict[str, Any]]:
    """The best points as trials of the study in `directory`."""
    from studies.workers.launch import open_driver

    study = read_study(directory)
    best = unbeaten([one.point for one in made], study)
    chosen = [one for one in made if one.point in best]
    points = [
        ModelPoint(role(one.point), one.model, one.weights, tuple(map(str, one.surviving)))
        for one in chosen
    ]
    with open_driver(directory, study) as driver:
        added = add_models(driver, source, points, splits)
    return [
        {"how": role(one.point), "trial": number, "what": what}
        for one, (number, what) in zip(chosen, added)
    ]


def role(point: DerivedPoint) -> str:
    """What a point is called as a trial."""
    return AS_IT_IS if point.how is None else point.how


def _row(point: DerivedPoint, beaten: dict[str, int | None]) -> dict[str, Any]:
    return {**asdict(point), "architecture": None, "beaten_by": beaten.get(role(point))}


def _beaten(
    directory: Path, added: Sequence[dict[str, Any]], found: _Data
) -> dict[str, int | None]:
    """By the role of each new trial, the trial of the front of before that beats it in all
    objectives; None: it stands there.
    """
    if not added:
        return {}
    objectives, now = found.study.objectives, read_trials(directory)
    before = [
        (r.number, larger_is_better(r.values or (), objectives)) for r in scored(found.records)
    ]
    beaten = {}
    for one in added:
        if one["trial"] is not None:
            mine = larger_is_better(now[one["trial"]].values or (), objectives)
            beaten[one["how"]] = next((n for n, theirs in before if dominates(theirs, mine)), None)
    return beaten
