"""What becomes of a trained trial without training it from the beginning: `equisearch relax` adds a
trial that begins with its weights, held to a smaller group; `equisearch soften` evaluates its
softness and its orbit average.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import TRIVIAL, Group
from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import read_study
from studies.journal.trial import TrialRecord
from studies.output import Column, formatted, percent
from studies.results.tables import find_trial, open_study
from studies.results.trained import TrainedTrial, load_trained
from studies.search.inheritance import Child, child_of
from studies.search.proposals import facts
from trainers.cores import available_cores

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.instruments.feature_maps import Model, Normalise
    from trainers.networks.plain import PlainNetwork
    from trainers.networks.softening import Action

SOFTNESS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHANGE_IMAGES = 64  # validation images whose logits are compared, and bounded
STATISTICS_IMAGES = 512  # training images for the statistics of batch norm


@dataclass(frozen=True)
class SoftPoint:
    """A trained network at one softness, or averaged over an orbit, on validation images."""

    softness: float | None  # None: the orbit average of the trained network
    accuracy: float
    symmetry_accuracy: float
    symmetry_accuracy_worst: float
    change: float  # Euclidean, of the logits of an image when it is moved, at most
    bound: float | None  # on that change, computed from the weights; None where there is none

    @property
    def name(self) -> str:
        """What it is called in a table."""
        return "orbit average" if self.softness is None else f"{self.softness:g}"


@dataclass(frozen=True)
class _Scoring:
    """What every point is scored on."""

    trial: TrainedTrial
    study: Study
    group: Group  # of the accuracies' elements, under which the weights are softened
    pixels: Tensor
    labels: Tensor
    normalise: Normalise


def _softening_group(name: str) -> Group:
    """The group. Raises StudyError where weights cannot be softened under it."""
    group = Group.parse(name)
    if group == TRIVIAL or not group.on_grid:
        raise StudyError(
            f"weights cannot be softened under {group}, whose elements are not quarter turns "
            "and flips; name one of C2, C4, D1, D2, D4 with --group"
        )
    return group


def soften_trial(
    directory: Path | str,
    number: int,
    *,
    group: str | None = None,
    softness: Sequence[float] = SOFTNESS,
    images: int = 500,
) -> dict[str, Any]:
    """The points of trial `number` at each softness and of its orbit average, on at most `images`
    validation images, and how long that took beside its training.

    `group` replaces the declared one. Raises StudyError for a trial that is unknown or has no
    checkpoint, and where the group does not act on its channels.
    """
    from trainers.data.datasets import normalise
    from trainers.networks.fold import fold
    from trainers.networks.orbit import orbit_average
    from trainers.process import tune_process

    tune_process(available_cores())
    directory = Path(directory)
    study, records = open_study(directory)
    record = find_trial(records, number, directory)
    trial = load_trained(study, record, directory, device="cpu")
    began = time.perf_counter()
    declared = _softening_group(group or study.symmetry.group)
    validation = trial.splits.validation
    step = max(1, len(validation) // images)
    pixels, labels = (part[::step][:images] for part in (validation.pixels, validation.labels))
    normal = partial(normalise, mean=trial.splits.mean, std=trial.splits.std)
    scoring = _Scoring(trial, study, declared, pixels, labels, normal)
    try:
        points = [_soft_point(scoring, s) for s in softness]
    except ValueError as error:
        raise StudyError(f"trial {number} cannot be softened: {error}") from None
    averaged = orbit_average(fold(trial.network), declared)
    points.append(_point(scoring, averaged, None, None))
    seconds, trained = time.perf_counter() - began, (record.scores or {}).get("seconds")
    return {
        "trial": number,
        "architecture": record.architecture,
        "group": str(declared),
        "num_images": len(scoring.labels),
        "points": [{**asdict(point), "name": point.name} for point in points],
        "seconds": seconds,
        "training_seconds": trained,
        "share_of_training": seconds / trained if trained else None,
    }


def _soft_point(scoring: _Scoring, softness: float) -> SoftPoint:
    from trainers.instruments.feature_maps import pixels
    from trainers.networks.fold import fold
    from trainers.networks.softening import actions, soften

    trial = scoring.trial
    few = pixels(trial.splits.train.pixels[:STATISTICS_IMAGES], trial.network)
    network = soften(trial.network, scoring.group, softness, scoring.normalise(few))
    acting = actions(trial.network, scoring.group)
    folded = fold(network)
    bound = None
    if _exact(trial.network.architecture, acting, scoring.group):
        bound = _bound(scoring, folded, acting)
    return _point(scoring, folded, softness, bound)


def _exact(architecture: Architecture, acting: Sequence[Action], group: Group) -> bool:
    """Whether the strict network is invariant under the group: its layout keeps all elements."""
    fields = acting[-1].fields
    stages = tuple(
        replace(
            s,
            relaxation=None,
            **({} if group <= s.group else {"group": fields, "fields": s.channels // fields.order}),
        )
        for s in architecture.stages
    )
    strict = replace(architecture, stages=stages, head="group_max", filters="free")
    return verdict(strict, group).exact


def _bound(scoring: _Scoring, folded: PlainNetwork, acting: Sequence[Action]) -> float | None:
    """The largest bound on a change over the images that are compared; None where a layer has
    none.
    """
    import torch

    from trainers.actions import act
    from trainers.networks.logit_bound import logit_bounds

    few, elements = _few(scoring), scoring.group.elements
    moved = torch.cat([scoring.normalise(act(few, e)) for e in elements])
    try:
        bounds = logit_bounds(folded, acting, scoring.group, moved).view(len(elements), -1)
    except ValueError:
        return None
    return float((bounds[0] + bounds.amax(0)).max())


def _few(scoring: _Scoring) -> Tensor:
    """The images that logits are compared on, floating point in 0..1."""
    from trainers.instruments.feature_maps import pixels

    return pixels(scoring.pixels[:CHANGE_IMAGES], scoring.trial.network)


def _point(
    scoring: _Scoring, model: Model, softness: float | None, bound: float | None
) -> SoftPoint:
    import torch

    from trainers.actions import act
    from trainers.data.augment import seen
    from trainers.instruments.accuracy import summarise
    from trainers.instruments.predictions import predict
    from trainers.networks.convolution import channels_last

    def prepared(batch: Tensor) -> Tensor:
        return channels_last(scoring.normalise(batch))

    group = scoring.group
    found = predict(model, scoring.pixels, group.elements, normalise=prepared)
    augment = scoring.trial.config.augment
    symmetry = summarise(
        found, scoring.labels, group, seen(augment, group), over=scoring.study.symmetry.scored
    )
    few = _few(scoring)
    with torch.no_grad():
        still = model(prepared(few))
        changes = [(model(prepared(act(few, e))) - still).norm(dim=1).max() for e in group.elements]
    return SoftPoint(
        softness,
        symmetry.accuracy.value,
        symmetry.mean.value,
        symmetry.worst[1].value,
        float(torch.stack(changes).max()),
        bound,
    )


def soften_table(result: dict[str, Any]) -> tuple[list[Column], list[list[str]]]:
    """The points as the columns and cells of a table."""
    columns = [
        Column("softness"),
        Column("accuracy %", True),
        Column("symmetry %", True),
        Column("worst %", True),
        Column("change of logits", True),
        Column("at most", True),
    ]
    cells = [
        [
            point["name"],
            percent(point["accuracy"]),
            percent(point["symmetry_accuracy"]),
            percent(point["symmetry_accuracy_worst"]),
            formatted(point["change"], ".3g"),
            formatted(point["bound"], ".3g") if point["bound"] is not None else "-",
        ]
        for point in result["points"]
    ]
    return columns, cells


def soften_note(result: dict[str, Any]) -> str:
    """One sentence about what the table cost."""
    share = result["share_of_training"]
    beside = "" if share is None else f", {100 * share:.1f} % of the training's time"
    return (
        f"{result['num_images']} validation images, elements of {result['group']}, "
        f"{result['seconds']:.1f} s{beside}; nothing was trained"
    )


def relax_trial(
    directory: Path | str,
    number: int,
    stage: int,
    group: str,
    *,
    pathway: bool = False,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The new trial, which waits for `equisearch resume`: its number and text, the trial whose
    weights it begins with, and after how many epochs of the schedule.

    Its stages from `stage` on are held to `group`, or get a `pathway` to it; it trains `epochs`
    (None: the last third of the schedule). Everything that can be refused is refused before it is
    written: StudyError for a trial that is unknown or has no weights, for what is not a relaxation,
    and for what breaks a constraint; LockedError while another process drives the study.
    """
    from studies.workers.launch import open_driver

    directory = Path(directory)
    study, records = open_study(directory)
    parent = find_trial(records, number, directory)
    child = child_of(study, parent, directory, stage, group, pathway=pathway, epochs=epochs)
    _require_weights(study, parent, child, directory)
    with open_driver(directory, read_study(directory)) as driver:
        text = str(child.candidate)
        reason = facts(child.candidate.architecture, study, driver.channels, driver.classes).broken
        if reason:
            raise StudyError(f"'{text}' cannot be trained in this study: {reason}")
        return {
            "trial": driver.queue(child),
            "architecture": text,
            "inherited_from": child.parent,
            "inherited_epoch": child.epoch,
            "epochs": study.training.epochs - child.epoch,
        }


def _require_weights(study: Study, parent: TrialRecord, child: Child, directory: Path) -> None:
    """Raises StudyError where the parent's weights cannot be loaded, or cannot be relaxed."""
    from trainers.networks.relaxing import relax

    try:
        relax(
            load_trained(study, parent, directory, device="cpu").network,
            child.candidate.architecture,
        )
    except ValueError as error:
        raise StudyError(f"trial {parent.number} cannot be relaxed so: {error}") from None


def relax_lines(directory: Path, made: dict[str, Any]) -> list[str]:
    """The new trial as text, and the command that trains it."""
    epochs = made["epochs"]
    return [
        f"trial {made['trial']} waits: {made['architecture']}",
        f"it begins with the weights of trial {made['inherited_from']} and trains the last "
        f"{epochs} epoch{'' if epochs == 1 else 's'} of the schedule: equisearch resume "
        f"{quote(str(directory))} --trials N",
    ]
