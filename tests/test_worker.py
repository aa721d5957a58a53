"""What a worker trains, scores and reports, and what is refused before the first trial."""

import contextlib
import errno

import pytest

from studies.config import parse
from studies.errors import StudyError
from studies.search.assignments import Assignment, LeaveError
from studies.workers.executors import Failure
from studies.workers.launch import new_driver, read_dimensions
from studies.workers.worker import SCORES_FILE, run_trial
from trainers.training import train as training_module

STUDY = """
data: {name: digits, train: 100, validation: 40}
training: {epochs: 4, batch_size: 50, precision: float32}
search: {rungs: [1, 2]}
resources: {gpus_per_trial: 0}
"""


class Report:
    """Stops the trial at a rung, or leaves after an epoch."""

    def __init__(self, stop=None, leave=None):
        self.stop, self.leave, self.epochs, self.rungs = stop, leave, [], []

    def __call__(self, scores):
        self.rungs.append(scores["epoch"])
        return "stop" if scores["epoch"] == self.stop else "continue"

    def heartbeat(self, epoch):
        self.epochs.append(epoch)
        if epoch == self.leave:
            raise LeaveError


@pytest.fixture
def scored(monkeypatch):
    """The epochs that networks were scored at."""
    epochs, evaluate = [], training_module.evaluate

    def counting(network, splits, config, *, epoch, **rest):
        epochs.append(epoch)
        return evaluate(network, splits, config, epoch=epoch, **rest)

    monkeypatch.setattr(training_module, "evaluate", counting)
    return epochs


@pytest.mark.parametrize(
    "before, scored_after, reported_after",
    [
        (Report(stop=2), [4], [2, 4]),  # a trial that was stopped at a rung and is promoted
        (Report(leave=2), [2, 4], [2, 4]),  # left before it was scored
        (Report(leave=3), [4], [4]),  # left between rungs
        (Report(), [], [4]),  # complete, and its end was lost
    ],
)
def test_no_rung_behind_a_checkpoint_is_scored_again(
    tmp_path, scored, before, scored_after, reported_after
):
    study = parse(STUDY)
    assignment = Assignment(0, "8px: 2k3, 2k3", None, 1, 4, str(tmp_path))
    with contextlib.suppress(LeaveError):
        run_trial(study, assignment, before)
    scored.clear()
    after = Report()
    run_trial(study, assignment, after)
    assert scored == scored_after and after.rungs == reported_after
    assert before.epochs + after.epochs == [1, 2, 3, 4]
    lines = (tmp_path / SCORES_FILE).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ['{"epoch": 1', '{"epoch": 2', '{"epoch": 4']


def test_a_damaged_record_is_scored_again(tmp_path, scored):
    study = parse(STUDY)
    assignment = Assignment(0, "8px: 2k3, 2k3", None, 1, 4, str(tmp_path))
    run_trial(study, assignment, Report(stop=2))
    (tmp_path / SCORES_FILE).write_bytes(
        (tmp_path / SCORES_FILE).read_bytes()[:-9] + b"\xff\n[]\n7\n"
    )
    scored.clear()
    run_trial(study, assignment, Report())
    assert scored == [2, 4]


@pytest.mark.parametrize("batch_size, warned", [(100, False), (101, True)])
def test_a_batch_of_more_images_than_there_are_is_said_before_the_first_trial(batch_size, warned):
    notes = []
    read_dimensions(parse(STUDY, overrides={"training.batch_size": batch_size}), notes.append)
    assert any("each epoch is one step on all of them" in note for note in notes) == warned


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"training.augment.shift": 8}, "shift is 8 pixels, and inputs have 8.*at most 7"),
        ({"training.device": "cuda:7"}, "cuda:7 is not there: this machine shows 0 GPUs"),
        ({"training.device": "mps"}, "device mps cannot be used"),
        ({"resources.gpus_per_trial": 0.5}, "gpus_per_trial=0.5.*this machine has 0"),
        ({"training.device": "cuda:1", "resources.executor": "ray"}, "a trial sees 1 of the GPUs"),
    ],
)
def test_what_cannot_train_is_refused_before_the_first_trial(
    tmp_path, monkeypatch, values, complaint
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    overrides = {"space.input_size": [8], "resources.executor": "in_process", **values}
    study = parse(STUDY, overrides=overrides)
    with pytest.raises((StudyError, ValueError), match=complaint):
        new_driver(study, tmp_path / "study")
    assert not (tmp_path / "study" / "study.yaml").exists()


@pytest.mark.parametrize(
    "error, kind",
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "out_of_memory"),
        (MemoryError("not enough memory for a convolution"), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "no_space"),
        (RuntimeError("shapes do not fit"), "failed"),
    ],
)
def test_an_allocator_without_memory_is_not_a_failure_of_the_trial(error, kind):
    assert Failure.of(error).kind == kind
