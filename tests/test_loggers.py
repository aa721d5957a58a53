"""Ray Tune's loggers, switched on in the study file."""

from __future__ import annotations

import pytest
import trivial

from studies.driver import SearchDriver
from studies.errors import StudyError
from studies.executors import run_in_process
from studies.journal import read_trials


def test_tensorboard_gets_every_rung_of_every_trial(tmp_path):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the reader below is for its format

    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=3, loggers__tensorboard=True)) as driver:
        run_in_process(driver, trivial.trainable)
    for record in read_trials(tmp_path / "study"):
        file, = (tmp_path / "study" / "tensorboard" / f"{record.number:05d}").glob("events.out.tfevents.*")
        found = {}
        content, place = file.read_bytes(), 0
        while place < len(content):         # length, its checksum, the event, its checksum
            length = int.from_bytes(content[place:place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12:place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.tag == "ray/tune/accuracy":
                    found[event.step] = value.simple_value
        assert found == {epoch: pytest.approx(scores["accuracy"]) for epoch, scores in record.rungs.items()}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(tmp_path, name):
    try:
        __import__(name)
    except ImportError:
        with SearchDriver.create(tmp_path / "study", trivial.study(**{f"loggers__{name}": {}})) as driver:
            with pytest.raises(StudyError, match=f"loggers.{name} needs the package {name}"):
                run_in_process(driver, trivial.trainable)
    else:
        pytest.skip(f"{name} is installed")
