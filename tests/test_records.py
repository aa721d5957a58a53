"""Which lines of a journal are records."""

import json

import pytest

from studies.journal.reader import JOURNAL, read_trials
from studies.journal.records import is_record
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

RUNG = {"scores": {"epoch": 2, "accuracy": 0.5}, "decision": "continue"}


def attribute(name, value, trial=0):
    return {"op_code": 8, "worker_id": "w", "trial_id": trial, "user_attr": {name: value}}


@pytest.mark.parametrize(
    "trial, whole",
    [(0, True), (3, True), (-1, False), (True, False), (1.0, False), ("1", False), (None, False)],
)
def test_a_record_of_a_trial_names_one(trial, whole):
    assert is_record(attribute("reason", "no matter", trial)) is whole


@pytest.mark.parametrize(
    "changes, whole",
    [
        ({}, True),
        ({"decision": 3}, False),
        ({"decision": None}, False),
        ({"scores": None}, False),
        ({"scores": {"accuracy": "0.5"}}, False),
        ({"scores": {"accuracy": None}}, True),
    ],
)
def test_a_rung_has_scores_and_a_decision(changes, whole):
    assert is_record(attribute("rung 2", {**RUNG, **changes})) is whole


def test_trials_that_another_program_adds_whole_are_read_in_their_order(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=3)) as driver:
        run_in_process(driver, trivial.trainable)
    path = tmp_path / "study" / JOURNAL
    created = {
        "op_code": 4,
        "worker_id": "other",
        "study_id": 0,
        "state": 1,
        "values": [0.5, 0.25],
        "datetime_start": "2026-01-01T00:00:00",
        "datetime_complete": "2026-01-01T00:00:01",
        "params": {"loss_weight": 0.75, "input_size": 27.0},
        "distributions": {
            "loss_weight": json.dumps(
                {
                    "name": "FloatDistribution",
                    "attributes": {"low": 0.0, "high": 1.0, "step": None, "log": False},
                }
            ),
            "input_size": json.dumps(
                {
                    "name": "IntDistribution",
                    "attributes": {"low": 25, "high": 33, "step": 1, "log": False},
                }
            ),
        },
        "user_attrs": {"note": "from elsewhere"},
        "system_attrs": {},
        "intermediate_values": {},
    }
    before = read_trials(tmp_path / "study")
    with path.open("a") as file:
        file.write(json.dumps(created) + "\n")
    *others, added = read_trials(tmp_path / "study", parameters=True)
    assert [r.order for r in others] == [r.order for r in before]
    assert (added.state, added.values, added.order) == ("complete", (0.5, 0.25), 3)
    assert added.attributes["note"] == "from elsewhere"
    assert added.parameters == {"loss_weight": 0.75, "input_size": 27}


def test_attributes_that_two_trials_are_given_in_turn_are_each_their_own(tmp_path):
    """As two workers' reports come in."""
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=2)) as driver:
        numbers = [driver.next().number for _ in range(2)]
    with (tmp_path / "study" / JOURNAL).open("a") as file:
        for number in (*numbers, *numbers):
            line = attribute("reason", f"of {number}", number)
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    assert [r.reason for r in read_trials(tmp_path / "study")] == [f"of {n}" for n in numbers]
