"""Selecting trials by conditions and objectives, and two trials side by side."""

from pathlib import Path

import pytest
import torch

from studies.errors import StudyError
from studies.evidence import selection
from studies.evidence.conditions import ConditionError
from studies.results import compare as comparing
from studies.results import tables
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial
from trainers.instruments import correctness


def classifies(study, assignment, report):
    """Trains nothing; keeps which of 200 images are classified correctly, as its scores say."""

    def reported(scores):
        share = scores["symmetry_accuracy"], scores["accuracy"]
        rows = torch.stack([torch.arange(200) < round(200 * s) for s in (share[1], share[0])])
        labels = torch.zeros(200)
        kept = correctness.packed(scores["epoch"], rows, labels, ("e", "r90"), ("r90",))
        correctness.write_correctness(kept, Path(assignment.directory))
        return report({**scores, "num_images": 200})

    reported.heartbeat = report.heartbeat
    trivial.trainable(study, assignment, reported)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("compare") / "study"
    study = trivial.study(controls="auto", search__trials=10)
    with SearchDriver.create(directory, study) as driver:
        run_in_process(driver, classifies)
    return directory


def test_every_column_of_a_condition_is_known_for_a_trial(directory):
    records = tables.open_records(directory)[1]
    row = selection.columns(records[0])
    assert set(row) == set(selection.COLUMNS)
    assert row["group"] and row["input_size"] > 20 and row["equivariance_loss"]
    complete = selection.filtered(records, "state == complete and kind == search")
    assert complete and all(r.state == "complete" for r in complete)
    assert {r.kind for r in selection.filtered(records, "kind != search")} == {"control"}
    with pytest.raises(ConditionError, match="no column 'parms'"):
        selection.filtered(records, "parms < 5")


def test_the_front_among_the_trials_that_meet_a_condition(directory):
    study, records = tables.open_records(directory)
    chosen = selection.filtered(records, "params < 1M and not exact")
    rows, _, cells = tables.front_rows(study, chosen)
    assert rows and not any(row["exact"] for row in rows)
    for objective in ("accuracy", "symmetry_accuracy"):
        number = selection.number_of(study, chosen, False, objective)
        best = max(rows, key=lambda row: row["values"][objective])
        assert number == best["trial"]
        assert [r["trial"] for r in selection.picked(rows, cells, number)[0]] == [number]
    assert selection.number_of(study, chosen, True, None) == next(
        row["trial"] for row in rows if row["knee"]
    )
    with pytest.raises(StudyError, match="choose one of accuracy"):
        selection.number_of(study, chosen, False, "beauty")
    with pytest.raises(StudyError, match="no complete trial"):
        selection.number_of(study, [], True, None)


def test_two_trials_side_by_side(directory):
    records = tables.open_records(directory)[1]
    a, b = [r for r in records if r.state == "complete"][:2]
    value = comparing.compare(directory, a.number, b.number)
    accuracy = value["scores"]["accuracy"]
    assert accuracy["difference"]["over"] == "images" and accuracy["difference"]["n"] == 200
    assert accuracy["difference"]["value"] == pytest.approx(
        round(200 * a.scores["accuracy"]) / 200 - round(200 * b.scores["accuracy"]) / 200
    )
    assert accuracy["difference"]["p"] is not None
    assert value["choices"] and all(x != y for x, y in value["choices"].values())
    assert any("paired" in line for line in comparing.compare_lines(value))
    _, cells = comparing.compare_cells(value)
    assert any("McNemar" in row[3] for row in cells)
    with pytest.raises(StudyError, match="there is no trial 999"):
        comparing.compare(directory, 0, 999)


def test_the_table_of_controls_says_what_the_winner_beats(directory):
    opened = tables.open_records(directory)
    said, _, cells = comparing.control_rows(*opened, comparing.Evidence.of(directory))
    assert said["winner"] is not None and len(cells) == len(said["controls"]) > 2
    for row in said["controls"]:
        intervals = row["differences"].values()
        better, worse = (
            any(d["low"] > 0 for d in intervals),
            any(d["high"] < 0 for d in intervals),
        )
        expected = {(True, False): "beaten", (False, True): "better", (False, False): "tied"}
        assert row["outcome"] == expected.get((better, worse), "trade-off")
    beaten = sum(row["outcome"] == "beaten" for row in said["controls"])
    assert f"beats {beaten} of {len(cells)} controls" in comparing.control_text(said)
