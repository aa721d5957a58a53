"""`equisearch measure`: every symmetry instrument on a bundle, on a trial of a study, or on any
torch model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from searchspace.groups import Element, Group
from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import STUDY, TRIALS
from studies.results.tables import open_records
from studies.results.trained import load_trained
from studies.search.inheritance import has_checkpoint
from studies.tasks import require_classes
from studies.workers.corners import with_corners
from trainers.cores import available_cores
from trainers.files import as_word, require_local
from trainers.settings import Augment, Corners

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.bundles.manifest import TrainingAccount
    from trainers.instruments.measurement import Measurement
    from trainers.networks.networks import Network


@dataclass(frozen=True)
class Subject:
    """A model with what it takes to measure it."""

    model: Callable[..., Any]
    size: tuple[int, int] | None  # of its images; None: as the data has them
    study: Study | None  # whose data, symmetry and training it belongs to
    normalise: Callable[[Any], Any] | None  # what its images go through first; None: nothing
    # whose regular fields the channels of its stages are, where the model itself does not say
    fields: dict[str, Group] | None = None
    # elements of a declared group that its training has seen; None: as the data's study trains
    seen: Callable[[Group], tuple[Element, ...]] | None = None
    # of turned images, as its training had them; None: as the data's study has them
    corners: Corners | None = None


def find_subject(name: str, *, run_code: bool = False) -> Subject:
    """The model that `name` means: a bundle's folder, `DIR:TRIAL`, or `module:function`. Raises
    StudyError or ValueError.

    Of a bundle nothing is executed unless `run_code`: its weights are given to this program's own
    network.
    """
    from trainers.instruments.loading import load_model

    require_local(name)
    if (Path(name) / "bundle.json").is_file():
        return _from_bundle(Path(name), run_code)
    if (trial := _trial_of(name)) is not None:
        return _from_trial(*trial)
    if Path(name).exists() or ":" not in name:
        raise StudyError(
            f"'{name}' is not a bundle (it has no bundle.json); give a bundle's folder, DIR:TRIAL "
            "such as runs/quickstart:3, "
            "or module:function"
        )
    return Subject(load_model(name), None, None, None)


def _trial_of(name: str) -> tuple[Path, int] | None:
    """(directory, number) where `name` is `DIR:TRIAL`, else None. Raises StudyError for a study's
    directory with something else behind it.
    """
    place, _, last = name.rpartition(":")
    if place and last.isascii() and last.isdecimal():
        return Path(place), int(last)
    if place and (Path(place) / STUDY).is_file():
        raise StudyError(
            f"'{last}' is not the number of a trial; write one behind the study's directory, such "
            f"as {place}:3 (`equisearch trials {as_word(place)}` lists them)"
        )
    return None


def _from_bundle(folder: Path, run_code: bool) -> Subject:
    from searchspace.architecture import Architecture
    from trainers.bundles.verify import load_checked
    from trainers.data.datasets import normalise

    manifest, model = load_checked(folder, run_code=run_code)
    given = manifest.content
    fields = {
        f"stage {number}": stage.group
        for number, stage in enumerate(Architecture.parse(manifest.architecture).stages, start=1)
    }
    return Subject(
        model.network.eval(),
        tuple(model.size),
        None,
        partial(normalise, mean=given.mean, std=given.std, corners=manifest.corners),
        fields,
        _seen_in(manifest.training),
        manifest.corners,
    )


def _from_trial(directory: Path, number: int) -> Subject:
    from studies.results import tables
    from trainers.data.datasets import normalise

    study, records = tables.open_records(directory)
    record = tables.find_trial(records, number, directory)
    trial = load_trained(study, record, directory)
    return Subject(
        trial.network,
        trial.network.architecture.size,
        study,
        partial(
            normalise,
            mean=trial.splits.mean,
            std=trial.splits.std,
            corners=trial.config.corners,
        ),
        seen=_seen_of(trial.config.augment, (record.scores or {}).get("learned")),
        corners=trial.config.corners,
    )


def _seen_in(training: TrainingAccount) -> Callable[[Group], tuple[Element, ...]] | None:
    """What a bundle's training has seen; None where the bundle does not say."""
    if training.augment is None:
        return None
    return _seen_of(training.augment, training.learned)


def _seen_of(
    augment: Augment, learned: Mapping[str, float] | None
) -> Callable[[Group], tuple[Element, ...]]:
    from trainers.data.augment import seen
    from trainers.training.evaluate import degrees_learned

    return lambda declared: seen(augment, declared, degrees_learned(learned))


def measure_subject(
    name: str,
    *,
    data: Study | None = None,
    group: str | None = None,
    images: int = 2000,
    figure: Path | None = None,
    run_code: bool = False,
    control: str | None = None,
) -> Measurement:
    """Every measurement of the model called `name` on the validation images of `data`, at most
    `images` of them.

    `data` is needed where the model brings no study; `group` replaces the declared one. `figure` is
    where the curve of accuracy by angle is drawn (png, svg or pdf). With `run_code` a bundle's own
    model.py is executed. `control` names another training of the same architecture, whose merge
    barrier stands beside that of the model; None: another trial of the study that has one.
    """
    from trainers.data.datasets import load_data
    from trainers.data.splitting import evenly_spaced
    from trainers.figures import require_figure
    from trainers.instruments.angle_plot import save_angle_figure
    from trainers.instruments.loading import check_model
    from trainers.process import tune_process

    if figure is not None:
        require_figure(figure)
    # what affinity and container leave; nothing else runs in this process
    tune_process(available_cores())
    subject = find_subject(name, run_code=run_code)
    study = data or subject.study
    if study is None:
        raise StudyError(
            f"'{name}' does not say on which images to measure; give a study whose data they "
            "are: --data STUDY"
        )
    require_classes(study, "measure")
    splits = load_data(study.data, subject.size)
    pixels, labels = splits.validation.pixels, splits.validation.labels
    check_model(subject.model, pixels[:2], len(splits.classes), subject.normalise)
    chosen = evenly_spaced(len(labels), images)
    declared = Group.parse(group or study.symmetry.group)
    other = _control(name, control)
    measurement = _measure(subject, pixels[chosen], labels[chosen], study, declared, other)
    if figure is not None:
        save_angle_figure({name: measurement.curve}, figure)
    return measurement


def _control(name: str, control: str | None) -> Network | None:
    """The network of another training of the same architecture as the model called `name`: the one
    that `control` names, else that of a trial of the same study; None without one. Raises
    StudyError for a `control` that is not a trial.
    """
    if control is not None:
        if (trial := _trial_of(control)) is None:
            raise StudyError(
                f"'{control}' is not a trial; the control of the merge barrier is one of the same "
                "architecture, such as runs/quickstart:3"
            )
        return cast("Network", _from_trial(*trial).model)
    trial = _trial_of(name)
    if trial is None or not (trial[0] / TRIALS).is_dir():
        return None
    place, number = trial
    _, records = open_records(place)
    mine = records[number]
    for record in records:
        if (
            record.number != mine.number
            and record.state == "complete"
            and record.architecture == mine.architecture
            and record.inherited_from is None
            and has_checkpoint(place, record.number)
        ):
            return cast("Network", _from_trial(place, record.number).model)
    return None


def _measure(
    subject: Subject,
    pixels: Tensor,
    labels: Tensor,
    study: Study,
    declared: Group,
    control: Network | None,
) -> Measurement:
    from trainers.data.borders import see
    from trainers.instruments.measure import measure

    corners = subject.corners or with_corners(study).symmetry.filling
    seen = subject.seen or _seen_of(study.training.augment, None)

    with warnings.catch_warnings():
        # torch's forward-mode differentiation compiles its decompositions with the deprecated
        # torch.jit.script (torch 2.15)
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", FutureWarning)
        return measure(
            subject.model,
            pixels,
            labels,
            declared,
            seen=seen(declared),
            normalise=subject.normalise
            or (partial(see, corners=corners) if corners in ("circle", "crop") else None),
            step=study.symmetry.angles,
            corners=corners,
            fields=subject.fields,
            control=control,
        )
