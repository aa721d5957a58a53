"""One training of `retrain`, as a worker does it: train, test once, and leave the result.

Nothing else reads the test split. A training's folder holds its checkpoint, and `result.json` as
its commit point: what ends before that is continued by the next call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from searchspace.groups import IDENTITY
from searchspace.recipe import Candidate
from searchspace.weights.softened import Softened
from studies.config import Study
from studies.errors import LockedError, StudyError
from studies.journal.lock import StudyLock
from studies.search.assignments import Assignment, Report
from trainers.files import parse_json, read_whole, write_whole
from trainers.settings import Corners

if TYPE_CHECKING:
    from trainers.data.datasets import Images, Splits
    from trainers.networks.networks import Network
    from trainers.training.config import TrainingConfig

RESULT = "result.json"
TRAIN, MERGED = "train", "train+validation"  # what a network was trained on
WORKER_PATIENCE = 10.0  # seconds until the worker of a run that was killed has ended


@dataclass(frozen=True)
class Job:
    """One training of one architecture and its test; or the test of the mean of several."""

    name: str  # of what is compared, such as "trial 17" or "P4 28 px"
    architecture: str
    seed: int  # 0 for a mean
    learning_rate: float | None  # None: the study's
    directory: str
    merge: bool = False  # trains on the validation images too
    # the folders of the trainings whose mean is tested; empty: this is a training
    members: tuple[str, ...] = ()
    # what the trained network becomes (`searchspace.weights.softened`); empty: it stays
    softened: str = ""

    @property
    def label(self) -> str:
        """The job in a few words."""
        what = f"mean of {len(self.members)}" if self.members else f"seed {self.seed}"
        return f"{self.name}, {what}"

    def candidate(self) -> Candidate:
        """The architecture with the recipe that the search trained it with."""
        return Candidate.parse(self.architecture).with_learning_rate(self.learning_rate)

    def becomes(self, network: Network, splits: Splits, corners: Corners) -> Network:
        """What is tested: the trained network, or what it becomes without training."""
        from trainers.training.softened import soften_trained

        if not self.softened:
            return network
        return soften_trained(network, Softened.parse(self.softened), splits, corners)

    def tested(self) -> str:
        """The text of what is tested."""
        if not self.softened:
            return self.architecture
        trained = self.candidate()
        architecture = Softened.parse(self.softened).architecture(trained.architecture)
        return str(trained.recipe.onto(architecture).with_learning_rate(None))

    def config(self, study: Study, *, batch_divisor: int = 1) -> TrainingConfig:
        """How the study trains it."""
        from dataclasses import replace

        config = study.training_config(self.seed, self.candidate().recipe, batch_divisor)
        return replace(config, merge_validation=self.merge)


def run_assigned(jobs: Sequence[Job], study: Study, assignment: Assignment, report: Report) -> None:
    """Does the job of that number: what a worker carries out (`functools.partial` with the jobs).

    Raises StudyError for data without a test split, LockedError while another process trains in
    the job's folder.
    """
    from trainers.devices import limit_memory
    from trainers.process import tune_process

    tune_process(int(study.resources.cpus_per_trial))
    limit_memory(study.resources.gpu_share)
    run_job(
        jobs[assignment.number],
        study,
        batch_divisor=assignment.batch_divisor,
        on_epoch=report.heartbeat,
    )


def run_job(
    job: Job,
    study: Study,
    *,
    batch_divisor: int = 1,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> dict[str, Any]:
    """The result of one job on the test split: scores, accuracy per declared element and by angle;
    what its folder holds is not done again. Raises LockedError while another process trains there.
    """
    directory = Path(job.directory)
    if (directory / RESULT).exists():
        return parse_json(read_whole(directory / RESULT))
    directory.mkdir(parents=True, exist_ok=True)
    with closing(_locked(directory)):
        work = _mean_tested if job.members else _trained_and_tested
        result = work(job, study, job.config(study, batch_divisor=batch_divisor), on_epoch)
        write_whole(directory / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _locked(directory: Path) -> StudyLock:
    deadline = time.monotonic() + WORKER_PATIENCE
    while True:
        try:
            return StudyLock(directory)
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _test_images(splits: Splits, study: Study) -> Images:
    test = splits.test()
    if test is None:
        raise StudyError(
            f"{study.data.called} has no test split; give the folder a test/ "
            "with the same classes, or one "
            "folder of classes without train/, of which a fifth is kept for testing"
        )
    return test


def _trained_and_tested(
    job: Job, study: Study, config: TrainingConfig, on_epoch: Callable[[int], None]
) -> dict[str, Any]:
    from trainers.data.datasets import load_data
    from trainers.training.train import advance

    architecture = job.candidate().architecture
    splits = load_data(study.data, architecture.size)
    test = _test_images(splits, study)
    run = advance(
        architecture,
        config,
        Path(job.directory),
        study.training.epochs,
        splits=load_data(study.data, architecture.size, merge=job.merge),
        on_epoch=lambda epoch, row: on_epoch(epoch),
    )
    run.settle()
    learned, network = run.step.learned or None, job.becomes(run.network, splits, config.corners)
    return {
        **_about(job, study, splits, test),
        **_held_out(network, splits, config, learned),
        **_tested([network], splits, test, config, study, learned),
    }


def _held_out(
    network: Network, splits: Splits, config: TrainingConfig, learned: Mapping[str, float] | None
) -> dict[str, Any]:
    """The scores on validation images where training has not seen them, else how well they are
    fitted, by which an export recognises the network.
    """
    from trainers.data.datasets import normaliser
    from trainers.networks.fold import scoring
    from trainers.training.evaluate import evaluate

    if not config.merge_validation:
        scores = evaluate(network, splits, config, epoch=_epochs(config), learned=learned)
        return {"validation": scores.as_dict()}
    from trainers.instruments.predictions import predict_elements
    from trainers.instruments.tasks.scoring import main_score

    validation = splits.validation
    device = next(network.parameters()).device
    normal = normaliser(splits.mean, splits.std, device, corners=config.corners)
    predicted = predict_elements(scoring(network), validation.pixels, [IDENTITY], normalise=normal)
    assert predicted.upright is not None, "the identity was predicted"
    fitted = main_score(splits.task, predicted.upright, validation.labels)
    return {"fitted": {"accuracy": fitted, "images": len(validation)}}


def _mean_tested(
    job: Job, study: Study, config: TrainingConfig, on_epoch: Callable[[int], None]
) -> dict[str, Any]:
    from trainers.data.datasets import load_data

    splits = load_data(study.data, job.candidate().architecture.size)
    test = _test_images(splits, study)
    networks = [network_of(Path(member), job, study, splits) for member in job.members]
    return {
        **_about(job, study, splits, test),
        "members": len(networks),
        **_tested(networks, splits, test, config, study, _learned(job.members)),
    }


def _learned(folders: Sequence[str]) -> dict[str, float] | None:
    """What was trained beside several networks, on average; None: nothing."""
    results = [parse_json(read_whole(Path(f) / RESULT)) for f in folders]
    values = [result["test"].get("learned") or {} for result in results]
    return {name: mean(one[name] for one in values) for name in values[0]} or None


def network_of(
    folder: Path, job: Job, study: Study, splits: Splits, *, device: str | None = None
) -> Network:
    """The trained network in a folder of `retrain`, from its checkpoint. Raises StudyError where
    there is none, or one of another training.
    """
    from dataclasses import replace

    from trainers.training.train import start_training

    seed = parse_json(read_whole(folder / RESULT))["seed"]
    config = replace(job.config(study), seed=seed)
    if device is not None:
        training = config.training.model_copy(update={"device": device})
        config = replace(config, training=training)
    try:
        run = start_training(job.candidate().architecture, config, folder, splits)
    except (ValueError, RuntimeError) as error:
        raise StudyError(f"the network in {folder} cannot be loaded: {error}") from error
    if run.epoch != study.training.epochs:
        raise StudyError(
            f"the checkpoint in {folder} is of epoch {run.epoch} of {study.training.epochs}, "
            f"though {RESULT} is there; delete {RESULT}, and `equisearch retrain` trains it again"
        )
    run.settle()
    return job.becomes(run.network, splits, config.corners)


def _epochs(config: TrainingConfig) -> int:
    return config.training.epochs


def _about(job: Job, study: Study, splits: Splits, test: Images) -> dict[str, Any]:
    return {
        "name": job.name,
        "architecture": job.tested(),
        "seed": job.seed if not job.members else None,
        "epochs": study.training.epochs,
        "trained_on": MERGED if job.merge else TRAIN,
        "num_test": len(test),
        "num_validation": len(splits.validation),
    }


def _tested(
    networks: Sequence[Network],
    splits: Splits,
    test: Images,
    config: TrainingConfig,
    study: Study,
    learned: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Scores, accuracy under quarter turns and by angle on the test images, of one network or the
    mean of several.
    """
    from searchspace.groups import Group
    from trainers.data.datasets import normalise
    from trainers.instruments.accuracy import accuracy_by_angle, summarise
    from trainers.instruments.predictions import predict_elements
    from trainers.networks.fold import mean_network, scoring
    from trainers.training.evaluate import evaluate

    tested = evaluate(networks, splits, config, epoch=_epochs(config), images=test, learned=learned)
    scored = mean_network(map(scoring, networks), splits.task)
    normal = partial(normalise, mean=splits.mean, std=splits.std, corners=config.corners)
    turns = Group.parse("C4")
    turned = predict_elements(
        scored, test.pixels, turns.elements, normalise=normal, keep_logits=True
    )
    quarters = summarise(turned, test.labels, turns, task=splits.task)
    curve = accuracy_by_angle(
        scored,
        test.pixels,
        test.labels,
        step=study.symmetry.angles,
        normalise=normal,
        corners=config.corners,
        task=splits.task,
    )
    return {
        "test": tested.as_dict(),
        "quarter_turns": {
            f"{e.degrees:g}": a.value for e, a in zip(quarters.elements, quarters.accuracies)
        },
        "accuracy_by_angle": {f"{d:g}": a.value for d, a in zip(curve.degrees, curve.accuracies)},
    }
