"""A key that a study file gives and that changes nothing is said before the first trial; values of
YAML that no study can hold are refused.
"""

import pytest

from studies.config import parse, presets
from studies.errors import StudyFileError
from studies.search.driver import SearchDriver
from studies.unused import unused_keys
from studies.workers import launch

TINY = """
data: {name: digits, train: 40, validation: 20}
training: {epochs: 2, batch_size: 20, precision: float32, device: cpu}
space: {backbone: "2k3 *, 2k3", input_size: 8, group: [C4], family: [steerable]}
search: {trials: 4, rungs: [1]}
resources: {workers: 1, gpus_per_trial: 0}
"""
NOTHING = {  # key: a value that does something, what else is given, why it then does nothing
    "space.dropout.rate": (0.4, {}, "space.dropout.kind is none"),
    "space.equivariance_loss.weight": (0.1, {}, "equivariance_loss.kind is none"),
    "space.equivariance_loss.stages": ("1", {}, "equivariance_loss.kind is none"),
    "space.equivariance_loss.group": ("C2", {}, "equivariance_loss.kind is none"),
    "space.restrict.to": ("C2", {}, "space.restrict.after is none"),
    "training.momentum": (0.5, {}, "training.optimizer is adam, and sgd has it"),
    "training.equivariance_batch": (0.5, {}, "equivariance_loss.kind is none"),
    "training.cuda_graphs": (True, {}, "training.device is cpu"),
    "search.eta": (3, {"search.rungs": []}, "search.rungs is empty"),
    "search.confidence": (0.5, {"search.rungs": []}, "search.rungs is empty"),
    "search.second_chances": (True, {"search.rungs": []}, "search.rungs is empty"),
    "search.patience": (9, {}, "it is 9, and search.trials 4"),
    "search.startup": (5, {}, "the sampler never learns"),
    "resources.custom": ({"gadget": 1}, {}, "say `resources: {executor: ray}`"),
    "resources.runtime_env": ({"pip": []}, {}, "say `resources: {executor: ray}`"),
    "data.root": ("/data", {}, "digits comes with a package"),
    "data.download": (True, {}, "digits comes with a package"),
}
USED = {
    "space.dropout.rate": {"space.dropout.kind": ["none", "values"]},
    "space.equivariance_loss.weight": {"space.equivariance_loss.kind": ["none", "label"]},
    "space.restrict.to": {"space.restrict.after": ["none", 1]},
    "training.momentum": {"training.optimizer": "sgd"},
    "training.equivariance_batch": {"space.equivariance_loss.kind": "label"},
    "search.eta": {"search.rungs": [1]},
    "search.patience": {"search.trials": 10},
    "search.startup": {"search.trials": 10},
}


def said(**options):
    return unused_keys(parse(TINY, overrides=options), on_ray=False)


@pytest.mark.parametrize("key", NOTHING)
def test_a_key_without_effect_is_said(key):
    value, others, why = NOTHING[key]
    (line,) = said(**others, **{key: value})
    assert line.startswith(key) and "has no effect" in line and why in line
    if key in USED:
        assert said(**{key: value, **USED[key]}) == []


def test_groups_have_no_effect_where_every_network_has_streams():
    lines = said(**{"space.streams": ["C4 & D1"]})
    assert [line.split()[0] for line in lines] == ["space.family", "space.group"]
    assert said(**{"space.streams": ["none", "C4 & D1"]}) == []


def test_what_has_an_effect_is_silent():
    assert said() == []
    study = parse(TINY, overrides={"resources.custom": {"gadget": 1}})
    assert unused_keys(study, on_ray=True) == []
    for path in presets().values():
        study = parse(path.read_text().replace("FOLDER", "x"))
        assert unused_keys(study, on_ray=True) == [], path


def test_start_says_it(tmp_path):
    heard: list[str] = []
    study = parse(TINY, overrides={"space.dropout.rate": 0.4})
    launch.new_driver(study, tmp_path / "study", probe=False, note=heard.append).close()
    assert any(line.startswith("warning: space.dropout.rate has no effect") for line in heard)
    with SearchDriver.open(tmp_path / "study") as driver:  # and it is no reason to refuse it
        assert driver.study.space.dropout.kind == ("none",)


@pytest.mark.parametrize(
    "value, kind",
    [
        ("!!binary ZGlnaXRz", "binary"),
        ("!!set {digits}", "set"),
        ("!!omap [a: 1]", "omap"),
        ("!!pairs [a: 1]", "pairs"),
        ("!!timestamp 2020-01-01", "timestamp"),
    ],
)
@pytest.mark.parametrize("place", ["name: {}", "root: {}"])
def test_values_that_no_journal_holds_are_refused(value, kind, place):
    text = "data:\n  " + place.format(value)
    with pytest.raises(StudyFileError, match=f"line 2.*a value is marked !!{kind}; write text"):
        parse(text)


def test_a_date_is_text():
    study = parse(TINY + "loggers: {mlflow: {experiment_name: 2020-01-01}}")
    assert study.loggers.mlflow == {"experiment_name": "2020-01-01"}


@pytest.mark.parametrize("value", ["１２", "1２", "٣", "1.٣", "2e٣"])
def test_digits_of_other_scripts_are_no_numbers(value):
    with pytest.raises(StudyFileError, match="search.trials"):
        parse(TINY.replace("trials: 4", f"trials: {value}"))
    with pytest.raises(StudyFileError, match="ASCII"):
        parse(TINY.replace("trials: 4", f'first: ["8px: {value}k3"]'))
