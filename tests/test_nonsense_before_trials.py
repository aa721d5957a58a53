"""Every value that was once accepted without a word, or refused only by failing trials, and its
relatives: refused before the first trial in one message that names the key, with nothing written;
or said, where it is possible and surely not meant.
"""

import csv
import io

import pytest

from studies.config import parse
from studies.errors import StudyError, StudyFileError
from studies.search.driver import SearchDriver
from studies.workers import launch
from studies.yaml_loader import write_yaml
from support import trivial
from support.commands import run  # noqa: F401
from support.study_files import KEYS, TINY, nested

REFUSED = [  # key, value, what the message says
    ("search.trials", True, "got true or false"),
    ("search.trials", "1:30", "got '1:30'"),
    ("search.trials", 0, "greater than or equal to 1"),
    ("search.trials", 2.5, "valid integer"),
    ("search.seed", 2**64, "search.seed"),
    ("data.seed", 2**64, "data.seed"),
    ("data.seed", -1, "data.seed"),
    ("objectives", ["params"], "are costs"),
    ("objectives", ["accuracy", "accuracy"], "each may be named once"),
    ("objectives", [], "at least"),
    ("training.learning_rate", 1e9, "at most 100|less than or equal to 100"),
    ("training.learning_rate", 0, "greater than or equal to 0.000000000001"),
    ("training.learning_rate", float("nan"), "finite"),
    ("space.learning_rate", 0, "greater than 0"),
    ("space.learning_rate", -1, "greater than 0"),
    ("space.learning_rate", {"low": -1, "high": 1}, "greater than 0"),
    ("space.learning_rate", {"low": 0.1, "high": float("inf")}, "finite"),
    ("space.equivariance_loss", {"kind": "label", "weight": -1}, "greater than 0"),
    ("space.equivariance_loss", {"kind": "label", "weight": 0}, "greater than 0"),
    ("space.equivariance_loss", {"kind": []}, "at least 1 value"),
    ("space.head", [], "at least 1 value"),
    ("space.restrict", {"after": []}, "at least 1 value"),
    ("space.restrict", {"after": [1], "to": []}, "at least 1 value"),
    ("space.group", [], "at least 1 value"),
    ("space.dropout", {"kind": []}, "at least 1 value"),
    ("symmetry.angles", 7, "do not divide a full turn of 360"),
    ("symmetry.angles", 0, "symmetry.angles"),
    ("data.train", 1, "train"),
    ("data.validation", 1, "validation"),
    ("data.test", 1, "test"),
    ("data.train", 10**6, "train"),
    ("training.batch_size", 10**6, "batch"),
    ("training.batch_size", 1, "batch"),
    ("training.augment", {"shift": 1000}, "shift"),
    ("resources.gpus_per_trial", 2, "one GPU"),
    ("resources.gpus_per_trial", 0.5, "this machine has 0|needs GPUs"),
    ("search.rungs", [0, 1], "greater than or equal to 1"),
    ("training.device", "tpu", "tpu"),
    ("training.device", "meta", "meta"),
    ("training.device", "cuda:7", "cuda:7"),
    ("training.device", "cuda:-1", "cuda:-1"),
    ("space.backbone", "9999999999k3 *", "at most 65536"),
    ("space.backbone", "60000k9, 60000k9 *", "GB|weights"),
    ("space.input_size", {"low": 8, "high": 10**9}, "less than or equal to 16384"),
    ("search.first", ["8px: 4k9p0"], "correct it or leave it out|stage 1"),
    ("search.first", ["8px: 60000k3, 60000k9"], "GB|weights"),
    ("constraints.memory", 100, "memory of a GPU"),
    ("space.width", {"match": "params", "to": 0}, "greater than|at least 1"),
    ("space.width", {"match": "params", "to": 10**12}, "come no closer|GB|fields|weights"),
    ("space.width", {"match": "params", "to": 1}, "no closer to 1 params than 69 times"),
    ("space.width", {"match": "macs", "to": 1}, "no closer to 1 macs than"),
]


@pytest.mark.parametrize("key, value, says", REFUSED)
def test_nonsense_is_refused_before_the_first_trial(tmp_path, monkeypatch, key, value, says):
    monkeypatch.setattr("studies.search.driver.REFUSALS_IN_A_ROW", 3)
    place = tmp_path / "study"
    with pytest.raises((StudyError, ValueError), match=says) as caught:
        study = parse(TINY, overrides={key: value})
        launch.new_driver(study, place, probe=False).close()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900 and " object at 0x" not in message
    assert not place.exists()


# keys whose null is a value: none is meant, or the default that the schema names
NULL = {
    *("data.folder", "data.files", "data.columns.image", "data.columns.label"),
    *("data.columns.split", "data.columns.separator", "data.classes", "data.group_by"),
    *("data.folds", "data.train", "data.validation", "data.test", "data.color"),
    *("space.streams", "space.coordinates", "space.restrict.after", "space.head"),
    *("space.relaxation", "space.dropout.kind", "space.equivariance_loss.kind"),
    *("space.equivariance_loss.stages", "space.augment", "space.learning_rate", "space.width"),
    *("constraints.params", "constraints.macs", "constraints.latency", "constraints.memory"),
    *("search.confidence", "search.least_steps", "search.startup", "search.patience"),
    *("search.timeout", "resources.address", "resources.trial_timeout"),
    *("loggers.mlflow", "loggers.wandb"),
}


@pytest.mark.parametrize("key", [".".join(key) for key in KEYS])
def test_null_is_a_value_only_where_the_schema_says_so(key):
    text = write_yaml(nested({tuple(key.split(".")): None}))
    if key in NULL:
        parse(text)
        return
    with pytest.raises(StudyFileError) as caught:
        parse(text, name="my.yaml")
    assert key.split(".")[-1] in str(caught.value)


def test_fewer_trials_than_there_are_is_said_as_it_is(tmp_path):
    path = tmp_path / "study"
    with SearchDriver.create(path, trivial.study(search__trials=3)) as driver:
        from studies.workers.executors import run_in_process

        run_in_process(driver, trainable=trivial.trainable)
    with pytest.raises(StudyError, match="3 trials|lower|fewer") as caught:
        with SearchDriver.open(path, trivial.study(search__trials=1)) as driver:
            if driver.next() is None:
                raise StudyError(driver.explanation or "")
    assert "of 1" not in str(caught.value)


def test_a_verdict_is_printed_as_csv(run):
    rows = list(csv.reader(io.StringIO(run("check", "8px: 2k3@C4", "--format", "csv").out)))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1
