"""`equisearch soften`: the points of a trained trial, or of a bundle, over softness, averaged over
an orbit, and with mixed layers held to one group; and the best of them as candidates of the front.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.architecture import Architecture
from searchspace.groups import TRIVIAL, Group
from searchspace.weights.softened import Softened
from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import read_study
from studies.output import Column, formatted, percent
from studies.pareto import dominates
from studies.results.after.points import (
    DerivedPoint,
    ScoredNetwork,
    require_shape,
    softening_group,
)
from studies.results.tables import find_trial, open_records
from studies.results.trained import TrainedTrial, load_trained
from studies.search.softened import AS_IT_IS, SoftenedSource, add_softened
from studies.tasks import require_classes
from trainers.cores import available_cores

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.data.datasets import Images

SOFTNESS = (0.0, 0.25, 0.5, 0.75, 1.0)
COPIES = 4  # of each image, whose log-probabilities a learned augmentation averages


def soften_trial(
    directory: Path | str,
    number: int,
    *,
    group: str | None = None,
    softness: Sequence[float] = SOFTNESS,
    images: int = 500,
    front: bool = False,
) -> dict[str, Any]:
    """The points of trial `number` at each softness, of its orbit average and of its mixed layers
    held to one group, on at most `images` validation images, and how long that took beside its
    training. With `front`, those that no other beats become trials of the study.

    `group` replaces the declared one. Raises StudyError for a trial that is unknown or has no
    checkpoint, and where the group does not act on its channels.
    """
    from trainers.process import tune_process

    tune_process(available_cores())
    directory = Path(directory)
    study, records = open_records(directory)
    require_classes(study, "soften")
    record = find_trial(records, number, directory)
    trial = load_trained(study, record, directory, device="cpu")
    began = time.perf_counter()
    declared = softening_group(group or study.symmetry.group)
    require_shape(declared, trial.network.architecture.size)
    subject = _of_trial(trial, study, declared, images, (record.scores or {}).get("learned"))
    wanted = [*softness, *([1.0] if front and 1 not in softness else [])]
    try:
        points = [subject.at_softness(s) for s in wanted]
    except ValueError as error:
        raise StudyError(f"trial {number} cannot be softened: {error}") from None
    points += [*_orbit(subject), *_held(subject, trial), *_copies(subject, trial)]
    added: list[dict[str, Any]] = []
    if front:
        from studies.workers.launch import open_driver

        ways = _worth(points, study)
        with open_driver(directory, read_study(directory)) as driver:
            source = SoftenedSource(record, trial.network, trial.splits)
            made = add_softened(driver, source, ways)
        added = [{"how": str(w), "trial": n, "what": text} for w, (n, text) in zip(ways, made)]
    trained = (record.scores or {}).get("seconds")
    return {
        "trial": number,
        "architecture": record.architecture,
        **_result(subject, points, time.perf_counter() - began, trained),
        "front": added if front else None,
    }


def soften_bundle(
    folder: Path | str,
    study: Study,
    *,
    group: str | None = None,
    softness: Sequence[float] = SOFTNESS,
    images: int = 500,
) -> dict[str, Any]:
    """The points of the network in a bundle, on the validation images of `study`; nothing of the
    bundle is executed. Raises StudyError or ValueError for a bundle that is damaged, is the mean of
    several networks, or does not fit the images.
    """
    from trainers.process import tune_process

    require_classes(study, "soften")
    tune_process(available_cores())
    declared = softening_group(group or study.symmetry.group)
    subject = _of_bundle(Path(folder), study, declared, images)
    began = time.perf_counter()
    try:
        points = [subject.at_softness(s) for s in softness]
    except ValueError as error:
        raise StudyError(f"the bundle {folder} cannot be softened: {error}") from None
    points += _orbit(subject)
    return {
        "bundle": str(folder),
        "architecture": str(subject.architecture),
        **_result(subject, points, time.perf_counter() - began, None),
        "front": None,
    }


def _of_bundle(folder: Path, study: Study, group: Group, images: int) -> ScoredNetwork:
    from trainers.bundles.verify import load_checked
    from trainers.data.datasets import load_data, normalise
    from trainers.instruments.loading import check_model
    from trainers.networks.networks import build
    from trainers.networks.plain import PlainNetwork
    from trainers.networks.soft.softening import actions, soften_folded

    manifest, model = load_checked(folder)
    folded = model.network.eval()
    if not isinstance(folded, PlainNetwork):
        raise StudyError(
            f"the bundle {folder} is the mean of several networks; soften one of them: export a "
            "trial, or one seed"
        )
    given = manifest.content
    normal = partial(normalise, mean=given.mean, std=given.std, corners=manifest.corners)
    architecture = Architecture.parse(manifest.architecture)
    require_shape(group, architecture.size)
    splits = load_data(study.data, architecture.size)
    pixels, labels = _some(splits.validation, images)
    check_model(folded, pixels[:2], len(splits.classes), normal)
    skeleton = build(architecture, channels=splits.channels, classes=len(splits.classes))
    return ScoredNetwork(
        architecture=architecture,
        folded=folded,
        group=group,
        acting=lambda: actions(skeleton, group),
        at=lambda s: soften_folded(folded, actions(skeleton, group), group, s),
        pixels=pixels,
        labels=labels,
        normalise=normal,
        seen=(),
        over=study.symmetry.scored,
        corners=manifest.corners,
    )


def _result(
    subject: ScoredNetwork, points: Sequence[DerivedPoint], seconds: float, trained: float | None
) -> dict[str, Any]:
    return {
        "group": str(subject.group),
        "num_images": len(subject.labels),
        "points": [
            asdict(p) | {"architecture": _text(subject.architecture, p.how)} for p in points
        ],
        "seconds": seconds,
        "training_seconds": trained,
        "share_of_training": seconds / trained if trained else None,
    }


def _text(architecture: Architecture, how: str | None) -> str | None:
    """What a point is as an architecture; None where it is none of its own."""
    try:
        return None if how is None else str(Softened.parse(how).architecture(architecture))
    except ValueError:
        return None


def _some(validation: Images, images: int) -> tuple[Tensor, Tensor]:
    from trainers.data.splitting import evenly_spaced

    chosen = evenly_spaced(len(validation), images)
    return validation.pixels[chosen], validation.labels[chosen]


def _of_trial(
    trial: TrainedTrial, study: Study, group: Group, images: int, learned: dict[str, float] | None
) -> ScoredNetwork:
    from trainers.data.augment import seen
    from trainers.data.datasets import normalise
    from trainers.networks.fold import fold
    from trainers.networks.soft.softening import actions, soften_network
    from trainers.training.evaluate import degrees_learned
    from trainers.training.softened import statistics_images

    network = trial.network
    corners = trial.config.corners
    few = statistics_images(network, trial.splits, corners)
    pixels, labels = _some(trial.splits.validation, images)
    return ScoredNetwork(
        architecture=network.architecture,
        folded=fold(network),
        group=group,
        acting=lambda: actions(network, group),
        at=lambda s: fold(soften_network(network, group, s, few)),
        pixels=pixels,
        labels=labels,
        normalise=partial(normalise, mean=trial.splits.mean, std=trial.splits.std, corners=corners),
        seen=seen(trial.config.augment, group, degrees_learned(learned)),
        over=study.symmetry.scored,
        corners=corners,
    )


def _orbit(subject: ScoredNetwork) -> list[DerivedPoint]:
    return [subject.averaged()] if subject.architecture.orbit == TRIVIAL else []


def _held(subject: ScoredNetwork, trial: TrainedTrial) -> list[DerivedPoint]:
    """The network with its mixed layers held to the group to which alpha points, and to the last of
    their chains, which keeps the function.
    """
    from trainers.networks.fold import fold
    from trainers.networks.soft.expressing import held_groups
    from trainers.training.softened import soften_trained

    chosen = held_groups(trial.network)
    if chosen is None:
        return []
    points: list[DerivedPoint] = []
    for groups in dict.fromkeys((chosen, tuple(trial.network.architecture.certain_groups))):
        how = Softened("held", groups)
        try:
            made = soften_trained(trial.network, how, trial.splits, trial.config.corners)
        except ValueError:
            continue
        points.append(subject.point(str(how), fold(made), how=str(how)))
    return points


def _copies(subject: ScoredNetwork, trial: TrainedTrial) -> list[DerivedPoint]:
    """The network averaged over copies moved by what its augmentation has learned (Augerino)."""
    import torch
    from torch.nn.functional import log_softmax

    augmentation = trial.augmentation
    if augmentation is None:
        return []

    def averaged(images: Tensor) -> Tensor:
        draws = torch.Generator().manual_seed(0)
        moved = (augmentation(images, draws) for _ in range(COPIES))
        logits = [subject.folded(subject.normalise(m)) for m in moved]
        return torch.stack([log_softmax(each, 1) for each in logits]).mean(0)

    with torch.no_grad():
        return [subject.unnormalised().point(f"{COPIES} learned copies", averaged)]


def _worth(points: Sequence[DerivedPoint], study: Study) -> list[Softened]:
    """What the points with networks of their own are, where no other point beats them in what the
    study asks for, and the trained network does not equal them.
    """
    trained = [_scores(p) for p in points if p.softness == 1] if _alone(study) else []
    return [
        Softened.parse(p.how)
        for p in unbeaten(points, study)
        if p.how is not None and _scores(p) not in trained
    ]


def unbeaten(points: Sequence[DerivedPoint], study: Study) -> list[DerivedPoint]:
    """The points that no other beats; all where the study asks for more than they tell."""
    scores = [_scores(p) for p in points]
    return [
        p
        for p, score in zip(points, scores)
        if not (_alone(study) and any(dominates(other, score) for other in scores))
    ]


def _scores(point: DerivedPoint) -> tuple[float, float]:
    return point.accuracy, point.symmetry_accuracy


def _alone(study: Study) -> bool:
    """Whether the study asks for nothing but what a point tells."""
    return {*study.objectives} <= {"accuracy", "symmetry_accuracy"}


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
    if result.get("beside_front"):
        columns.append(Column("front"))
        made = {one["how"] for one in result["front"] if one["trial"] is not None}
        for row, point in zip(cells, result["points"]):
            by, new = point["beaten_by"], (point["how"] or AS_IT_IS) in made
            said = "on it" if by is None else f"beaten by trial {by}"
            row.append(said if new else "no new trial")
    return columns, cells


def soften_notes(result: dict[str, Any]) -> list[str]:
    """Sentences about what the table cost, and about the candidates of the front."""
    share = result["share_of_training"]
    beside = "" if share is None else f", {100 * share:.1f} % of the training's time"
    lines = [
        f"{result['num_images']} validation images, elements of {result['group']}, "
        f"{result['seconds']:.1f} s{beside}; nothing was trained"
    ]
    if result["front"] is None:
        return lines
    lines += [
        f"trial {one['trial']} of the study: {one['how']}: {one['what']}"
        if one["trial"] is not None
        else f"no trial: {one['what']}"
        for one in result["front"]
    ]
    return (
        lines if result["front"] else [*lines, "no point beats the trained network: no new trial"]
    )
