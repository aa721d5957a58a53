"""Ray Tune's loggers, switched on in the study file."""

from __future__ import annotations

import json

import pytest

from studies.errors import StudyError
from studies.journal.reader import read_trials
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from studies.workers.ray_executor import run_on_ray
from support import trivial


def test_tensorboard_gets_every_rung_of_every_trial(tmp_path):
    from tensorboardX.proto import event_pb2

    # the reader below is for its format
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    with SearchDriver.create(
        tmp_path / "study", trivial.study(search__trials=3, loggers__tensorboard=True)
    ) as driver:
        run_in_process(driver, trivial.trainable)
    for record in read_trials(tmp_path / "study"):
        (file,) = (tmp_path / "study" / "tensorboard" / f"{record.number:05d}").glob(
            "events.out.tfevents.*"
        )
        found = {}
        content, place = file.read_bytes(), 0
        while place < len(content):  # length, its checksum, the event, its checksum
            length = int.from_bytes(content[place : place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.tag == "ray/tune/accuracy":
                    found[event.step] = value.simple_value
        assert found == {
            epoch: pytest.approx(scores["accuracy"]) for epoch, scores in record.rungs.items()
        }


def rungs_of(directory):
    """Trial -> {epoch: accuracy}, as the journal has it."""
    return {
        f"{record.number:05d}": {
            epoch: scores["accuracy"] for epoch, scores in record.rungs.items()
        }
        for record in read_trials(directory)
    }


def log_records(content):
    """The records of a LevelDB log whose first block is 7 bytes short: parts in blocks of 32 KiB,
    each with checksum, length and kind.
    """
    place, parts = 0, []
    while place + 7 <= len(content):
        left = 32768 - (place + 7) % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_mlflow_gets_every_rung_of_every_trial(tmp_path):
    mlflow = pytest.importorskip(
        "mlflow",
        reason="MLflow is not installed (`uv run --extra loggers pytest tests/test_loggers.py`)",
    )
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with SearchDriver.create(
        tmp_path / "study",
        trivial.study(
            search__trials=3, loggers__mlflow={"tracking_uri": place, "experiment_name": "mine"}
        ),
    ) as driver:
        run_in_process(driver, trivial.trainable)
    client = mlflow.MlflowClient(place)
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    found = {
        run.info.run_name.removeprefix("trial_"): {
            m.step: pytest.approx(m.value)
            for m in client.get_metric_history(run.info.run_id, "accuracy")
        }
        for run in runs
    }
    assert found == rungs_of(tmp_path / "study") and {run.info.status for run in runs} == {
        "FINISHED"
    }
    assert all(run.data.params["architecture"] for run in runs)


@pytest.mark.usefixtures("connected")
def test_wandb_offline_gets_every_rung_of_every_trial(tmp_path):
    pytest.importorskip(
        "wandb",
        reason="W&B is not installed (`uv run --extra loggers pytest tests/test_loggers.py`)",
    )
    from wandb.proto import wandb_internal_pb2

    study = trivial.study(
        search__trials=3,
        loggers__wandb={"project": "mine", "mode": "offline"},
        resources__executor="ray",
    )
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_on_ray(driver, trivial.trainable)
    found = {}
    for file in (tmp_path / "study" / "wandb").glob("*/wandb/offline-run-*/*.wandb"):
        rows, trial = {}, file.parents[2].name
        # after a header of its own, a log as LevelDB has it
        for data in log_records(file.read_bytes()[7:]):
            record = wandb_internal_pb2.Record.FromString(data)
            row = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            if "accuracy" in row:
                rows[row["training_iteration"]] = pytest.approx(row["accuracy"])
        found[trial] = rows
    assert found == rungs_of(tmp_path / "study")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(tmp_path, name):
    try:
        __import__(name)
    except ImportError:
        with SearchDriver.create(
            tmp_path / "study", trivial.study(**{f"loggers__{name}": {}})
        ) as driver:
            with pytest.raises(StudyError, match=f"loggers.{name} needs the package {name}"):
                run_in_process(driver, trivial.trainable)
    else:
        pytest.skip(f"{name} is installed")


class Callback:
    """A logger of Tune's that keeps what it is given."""

    def __init__(self):
        self.calls = []

    def setup(self):
        pass

    def log_trial_start(self, trial):
        self.calls.append(("start", str(trial), trial.evaluated_params["architecture"]))

    def log_trial_result(self, epoch, trial, result):
        self.calls.append(("result", str(trial), epoch, result["training_iteration"]))

    def log_trial_end(self, trial, failed):
        self.calls.append(("end", str(trial), failed))

    def on_experiment_end(self, trials):
        self.calls.append(("over",))


def test_loggers_are_given_starts_results_and_ends_and_which_trials_failed(tmp_path, monkeypatch):
    callback = Callback()
    monkeypatch.setattr("studies.workers.loggers._tensorboard", lambda: callback)

    def second_fails(study, assignment, report):
        if assignment.number == 1:
            raise RuntimeError("no luck")
        trivial.trainable(study, assignment, report)

    study = trivial.study(search__trials=3, search__rungs=[2], loggers__tensorboard=True)
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_in_process(driver, second_fails)
        records = {record.number: record for record in read_trials(tmp_path / "study")}
    ends = [call for call in callback.calls if call[0] == "end"]
    assert ends == [("end", f"trial_{n:05d}", n == 1) for n in (0, 1, 2)]
    assert callback.calls[0] == ("start", "trial_00000", records[0].architecture)
    results = [call for call in callback.calls if call[:2] == ("result", "trial_00000")]
    assert results == [("result", "trial_00000", n, n) for n in records[0].rungs]
    assert callback.calls[-1] == ("over",)
