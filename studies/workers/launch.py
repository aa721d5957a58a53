"""How a new study begins: everything that can be refused is refused before a file is written."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from searchspace.geometry import counted
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.errors import StudyError
from studies.evidence.intervals import Evidence, resolution_text
from studies.journal.directory import require_new_place
from studies.journal.origin import DataIdentity
from studies.pareto import OVER_CLASSES
from studies.search.driver import SearchDriver
from studies.search.proposals import architecture_facts
from studies.search.warm_start import require_alike
from studies.sections import Resources
from studies.tasks import task_score, with_task
from studies.unused import unused_keys
from studies.workers.corners import with_corners
from studies.workers.declaration import Declaration, check_declaration, keep_declaration
from studies.workers.executors import on_ray, require_cluster
from trainers.cores import available_cores, machine_memory

ROOM, LEAST_ROOM = 16, 64  # threads of all workers: of each core, and anyhow
MOST_DRAFTS = 20  # of the space, of which one that can be trained is enough
LEAST_BATCH = 16  # images, below which no batch is made smaller for more steps


@dataclass(frozen=True)
class Prepared:
    """A study as it would start, after everything that can be refused beforehand."""

    study: Study  # with the epochs and rungs that its images need
    channels: int
    classes: int
    images: DataIdentity
    declaration: Declaration | None  # None: not checked


def new_driver(
    study: Study,
    directory: Path,
    *,
    enqueue: Sequence[str] = (),
    warm_start: Path | None = None,
    probe: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> SearchDriver:
    """The driver of `study` in a directory that holds no study yet; a context manager.

    `enqueue` are architectures to try first, before `search.first`; `warm_start` is the directory
    of an earlier study over the same space. `probe`: whether the declared symmetry is checked
    against the data. `note` receives what a user should know about the data. Raises as `prepare`.
    """
    require_alike(study, warm_start)
    ready = prepare(
        study, directory, enqueue=enqueue, warm_start=warm_start, probe=probe, note=note
    )
    driver = SearchDriver.create(
        directory,
        ready.study,
        channels=ready.channels,
        classes=ready.classes,
        enqueue=enqueue,
        warm_start=warm_start,
        images=ready.images,
    )
    if ready.declaration is not None:
        keep_declaration(driver.directory, ready.declaration)
    return driver


def prepare(
    study: Study,
    directory: Path,
    *,
    enqueue: Sequence[str] = (),
    warm_start: Path | None = None,
    probe: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> Prepared:
    """What `study` would start with in `directory`, where nothing is written.

    Raises ExistsError for a file and a directory with a study, StudyError where nothing can be
    written and for a cluster without answer, ValueError or OSError for data that cannot be read.
    """
    require_new_place(directory)
    require_cluster(study.resources)
    study = _with_task(study, note)
    require_room(study.resources)
    require_devices(study)
    images = images_of(study)
    first = [*enqueue, *study.search.first]
    require_memory(study, first, images)
    channels, classes = read_dimensions(study, note)
    require_buildable(first, study, channels, classes)
    for text in unused_keys(study, on_ray=on_ray(study.resources)):
        note(f"warning: {text}")
    for text in study.space.width_warnings(channels, classes):
        note(f"warning: space.width: {text}")
    if not first:
        require_candidate(study, channels, classes, warm_start)
    study = with_rungs_reached(study, note)
    study = with_least_steps(study, images.images["train"], note)
    study = with_corners(study, enqueue, note)
    resolution = Evidence(images=images.images["validation"]).resolution(
        [], task_score(study.data.task)
    )
    if resolution is not None:
        note(resolution_text(resolution))
    declaration = check_declaration(study) if probe else None
    for text in () if declaration is None else declaration.warnings:
        note(f"warning: {text}")
    return Prepared(study, channels, classes, images, declaration)


def _with_task(study: Study, note: Callable[[str], None]) -> Study:
    try:
        return with_task(study, note)
    except (ValueError, OSError) as error:
        raise StudyError(f"the study's data cannot be used: {error}") from error


def with_least_steps(
    study: Study, images: int, note: Callable[[str], None] = lambda text: None
) -> Study:
    """The study as its first rung comes after `search.least_steps` steps of the optimizer on that
    many training images: with batches of half the size, down to LEAST_BATCH, and after that more
    epochs, rungs in proportion; `note` says so.

    Smaller batches cost nothing: on 84 images in 5 folds, batches of 16 gave 74 % after as many
    epochs as batches of 64 gave 55 % (tests/benchmarks/README.md).
    """
    least, batch, first = study.search.least_steps, study.training.batch_size, study.rungs[0]
    steps = before = first * math.ceil(images / batch)
    if least is None or steps >= least:
        return study
    while steps < least and batch > LEAST_BATCH:
        batch = max(LEAST_BATCH, batch // 2)
        steps = first * math.ceil(images / batch)
    factor = math.ceil(least / steps)
    epochs = study.training.epochs * factor
    rungs = tuple(rung * factor for rung in study.search.rungs)
    changes = [
        f"trains in batches of {counted(batch, 'image')} instead of {study.training.batch_size}"
        if batch < study.training.batch_size
        else "",
        f"trains {counted(epochs, 'epoch')} instead of {study.training.epochs}, with rungs at "
        f"{', '.join(map(str, rungs))}"
        if factor > 1
        else "",
    ]
    note(
        f"{counted(images, 'training image')}: {counted(before, 'step')} before the first "
        "rung, and "
        f"search.least_steps is {least}: {' and '.join(filter(None, changes))}"
    )
    training = {"epochs": epochs, "batch_size": batch}
    return study.model_copy(
        update={
            "training": study.training.model_copy(update=training),
            "search": study.search.model_copy(update={"rungs": rungs}),
        }
    )


def require_memory(study: Study, first: Sequence[str], images: DataIdentity) -> None:
    """Raises StudyError where this machine's memory cannot hold the images, one byte a pixel, at
    the largest input size of the space or of the architectures that are tried `first`.
    """
    sizes = [max(study.space.pixels) ** 2]
    for text in first:
        with contextlib.suppress(ValueError):  # `require_buildable` says what is wrong
            sizes.append(math.prod(Candidate.parse(text).architecture.size))
    pixels = max(sizes)
    held = images.images["train"] + images.images["validation"]
    memory = machine_memory()
    if held * pixels > memory:
        raise StudyError(
            f"{held:,} training and validation images of {pixels:,} pixels take "
            f"{held * pixels / 1e9:,.0f} GB or more, and this machine has {memory / 1e9:,.0f}; "
            "choose smaller inputs (space.input_size, search.first) or fewer images (data.train)"
        )


def require_buildable(
    architectures: Sequence[str], study: Study, channels: int, classes: int
) -> None:
    """Raises StudyError for the first of the architectures that the study could not train."""
    for text in architectures:
        try:
            candidate = Candidate.parse(text)
            candidate.recipe.check(Group.parse(study.symmetry.group), study.training.epochs)
            reason = architecture_facts(candidate.architecture, study, channels, classes).broken
        except ValueError as error:
            reason = str(error)
        if reason:
            raise StudyError(
                f"the architecture '{text}', which is to be tried first, cannot be trained: "
                f"{reason}; correct it or leave it out (search.first, --enqueue)"
            )


def require_candidate(study: Study, channels: int, classes: int, warm_start: Path | None) -> None:
    """Raises StudyError where the study's first proposals would all be refused: drafts are, and so
    is what its sampler proposes, which is then asked in a directory of its own.
    """
    import numpy

    from studies.samplers.planned import draw_planned

    rng = numpy.random.default_rng(study.search.seed)
    for _ in range(MOST_DRAFTS):
        with contextlib.suppress(ValueError):
            _, candidate = draw_planned(study, {}, rng)
            if not architecture_facts(candidate.architecture, study, channels, classes).broken:
                return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "study"
        with SearchDriver.create(
            place, study, channels=channels, classes=classes, warm_start=warm_start
        ) as driver:
            driver.next()


def with_rungs_reached(study: Study, note: Callable[[str], None] = lambda text: None) -> Study:
    """The study without rungs beyond its epochs; `note` says so of those that its file names."""
    epochs = study.training.epochs
    beyond = [rung for rung in study.search.rungs if rung > epochs]
    if not beyond:
        return study
    if "rungs" in study.search.model_fields_set:
        note(
            f"search.rungs: left out, since a training has {counted(epochs, 'epoch')}: "
            f"{', '.join(map(str, beyond))}"
        )
    rungs = study.search.rungs[: -len(beyond)]
    search = study.search.model_copy(update={"rungs": rungs})
    return study.model_copy(update={"search": search})


def require_room(resources: Resources) -> None:
    """Raises StudyError for more workers, or cores of a worker, than this machine could start."""
    if resources.address is not None or os.environ.get("RAY_ADDRESS"):
        return
    cores, workers = available_cores(), 1 if resources.workers == "auto" else resources.workers
    most = max(LEAST_ROOM, ROOM * cores)
    if workers * max(1, resources.cpus_per_trial) > most:
        raise StudyError(
            f"resources ask for {counted(workers, 'worker')} with cpus_per_trial "
            f"{resources.cpus_per_trial:g}, and this "
            f"machine has {cores}: here both together may be at most {most}, and more than {cores} "
            "gain nothing; lower resources.workers or resources.cpus_per_trial, or name a cluster "
            "(--ray-address)"
        )


def require_devices(study: Study) -> None:
    """Raises StudyError where a study for this machine needs a GPU, or a device, that it lacks."""
    require_device(study)
    share = study.resources.gpus_per_trial
    needs = [
        *(["constraints.memory"] if study.constraints.memory is not None else []),
        *([f"resources.gpus_per_trial={share}"] if share not in ("auto", 0) else []),
    ]
    if not needs or study.resources.address is not None or os.environ.get("RAY_ADDRESS"):
        return
    import torch

    count = torch.cuda.device_count()
    if count < (1 if share == "auto" else max(1.0, share)):
        raise StudyError(
            f"the study needs GPUs ({' and '.join(needs)}), and this machine has {count}: leave "
            "that out, or name a cluster (--ray-address)"
        )


def require_device(study: Study) -> None:
    """Raises StudyError if trials cannot have the device that the study names. What the nodes of a
    cluster have is seen when it is joined.
    """
    device, share = study.trial_training.device, study.resources.gpus_per_trial
    if on_ray(study.resources):
        seen = 1 if share == "auto" else max(1, int(share))
        if int(device.partition(":")[2] or 0) >= seen:
            raise StudyError(
                f"training.device is {device}, and on Ray a trial sees {seen} of the GPUs, counted "
                "from 0; take device: auto, with resources.gpus_per_trial"
            )
        if study.resources.address is not None or os.environ.get("RAY_ADDRESS"):
            return
    from trainers.devices import pick_device

    try:
        pick_device(device)
    except ValueError as error:
        raise StudyError(f"training.device: {error}") from None


def open_driver(
    directory: Path,
    study: Study,
    *,
    trusted: bool = False,
    accept_data: bool = False,
    partners: int = 0,
) -> SearchDriver:
    """The driver of the study in `directory`, which goes on as `study`; its data is looked at
    before any trial. `accept_data` accepts data that has changed; `partners` of pairs are trained
    when the search has ended (`studies.evidence.pairs`). Raises StudyError.
    """
    require_room(study.resources)
    require_device(study)
    driver = SearchDriver.open(
        directory, study, trusted=trusted, look=images_of, accept_data=accept_data
    )
    driver.beside.partners = partners
    return driver


def images_of(study: Study) -> DataIdentity:
    """What identifies the study's images. Raises StudyError for data that is missing or cannot be
    split.
    """
    from trainers.data.fingerprint import data_fingerprint

    try:
        identity = data_fingerprint(study.data)
    except (ValueError, OSError) as error:
        raise StudyError(f"the study's data cannot be used: {error}") from error
    return DataIdentity(identity.fingerprint, identity.images, identity.classes, identity.content)


def read_dimensions(
    study: Study, note: Callable[[str], None] = lambda text: None
) -> tuple[int, int]:
    """(channels, classes) of the study's images; `note` receives their number, and what was left
    out. Raises ValueError or OSError for data that cannot be read.
    """
    from trainers.data.datasets import DataWarning, load_data
    from trainers.data.describing import describe
    from trainers.data.leaks import require_varied
    from trainers.training.class_balance import check_class_names, missing_classes
    from trainers.training.config import check_training

    size = study.space.pixels[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # `describe` says it
        splits = load_data(study.data, (size, size))
    require_varied(splits.train.pixels.cpu().numpy())
    warned = check_training(study.training, len(splits.train), min(study.space.pixels))
    check_class_names(study.training.class_weights, splits.classes)
    if splits.task == "classification":
        require_every_class(study, missing_classes(splits.validation.labels.cpu(), splits.classes))
    for line in [*describe(splits), *warned]:
        note(line)
    return splits.channels, len(splits.classes)


def require_every_class(study: Study, missing: Sequence[str]) -> None:
    """Raises StudyError where an objective is a mean over classes and classes are `missing` from
    the validation images.
    """
    names = [name for name in study.objectives if name in OVER_CLASSES]
    if names and missing:
        classes = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
        raise StudyError(
            f"the objective {names[0]} is a mean over classes, and the validation images hold none "
            f"of {classes}: each class needs one at least; add images, take more for validation "
            "(data.validation), or choose another objective"
        )
