"""Intervals, ties and what a study can see, from records alone."""

import pytest
import torch

from studies.evidence.intervals import Evidence, intervals, over_seeds, resolution_text
from studies.journal.trial import TrialRecord
from studies.results import tables
from studies.search.driver import SearchDriver
from support import trivial
from trainers.instruments import correctness
from trainers.instruments.proportions import proportion


def record(number, accuracy, symmetry, *, key=None, seed=0, images=400, **attributes):
    scores = {"epoch": 9, "accuracy": accuracy, "symmetry_accuracy": symmetry, "num_images": images}
    return TrialRecord(
        number,
        "complete",
        (accuracy, symmetry),
        {
            "rung 9": {"scores": scores, "decision": "continue"},
            "canonical": key or str(number),
            "seed": seed,
            "architecture": "12px: 4k3@C4",
            **attributes,
        },
    )


def keep(directory, number, correct):
    """Stores which images a trial classified correctly, the same under e and r90."""
    folder = directory / "trials" / f"{number:05d}"
    folder.mkdir(parents=True)
    both = torch.stack([correct, correct])
    labels = torch.zeros(len(correct))
    correctness.write_correctness(
        correctness.packed(9, both, labels, ("e", "r90"), ("r90",)), folder
    )


def test_a_symmetry_accuracy_has_the_interval_of_its_images():
    found = intervals(record(0, 0.9, 0.8).scores, None)
    share = proportion(0.8, 400)
    assert found["symmetry_accuracy"] == {"low": share.low, "high": share.high}
    assert intervals({"accuracy": 0.9}, None) == {} and intervals({"accuracy": 0.9}, 50)


def test_members_that_differ_by_less_than_their_images_show_are_tied(tmp_path):
    study = trivial.study()
    close, far = record(0, 0.90, 0.88), record(1, 0.89, 0.90)
    better = record(2, 0.70, 0.99)
    ties = Evidence().ties(study, [close, far, better])
    assert ties == {0: [1], 1: [0], 2: []}
    # paired, the same two percent are certain: the second is right wherever the first is
    first, second = torch.arange(400) < 340, torch.arange(400) < 352
    for number, correct in ((0, first), (1, second)):
        keep(tmp_path, number, correct)
    a, b = (record(n, c.float().mean().item(), 0.88) for n, c in ((0, first), (1, second)))
    assert Evidence().tied(study.objectives, a, b)
    assert not Evidence(tmp_path).tied(study.objectives, a, b)
    assert Evidence(tmp_path).difference(a, b, "accuracy").over == "images"


def test_known_costs_tell_members_apart():
    a, b = record(0, 0.9, 0.9), record(1, 0.9, 0.9)
    objectives = ("accuracy", "params")
    values = [TrialRecord(r.number, r.state, (0.9, p), r.attributes) for r, p in ((a, 5), (b, 6))]
    assert not Evidence().tied(objectives, *values)
    assert Evidence().tied(objectives, values[0], values[0])


def test_scores_of_another_epoch_are_not_paired_with(tmp_path):
    keep(tmp_path, 0, torch.arange(400) < 300)
    stopped = TrialRecord(
        0, "pruned", None, {"rung 3": {"scores": {"epoch": 3}, "decision": "stop"}}
    )
    assert Evidence(tmp_path).correctness(stopped) is None
    assert Evidence(tmp_path).correctness(record(0, 0.75, 0.75)) is not None


def test_a_point_is_worth_its_images():
    found = Evidence(images=2000).resolution([])
    text = resolution_text(found)
    assert "one percentage point is 20 of 2,000 validation images" in text
    assert "below about 1.9 points between accuracies near 90% cannot be told apart" in text
    assert Evidence().resolution([]) is None


def test_what_images_tell_apart_says_whether_they_were_compared_one_by_one(tmp_path):
    records = [record(n, 0.75, 0.75) for n in (0, 1)]
    for number, correct in enumerate((torch.arange(400) < 300, torch.arange(400) >= 100)):
        keep(tmp_path, number, correct)
    paired = resolution_text(Evidence(tmp_path).resolution(records))
    assert "compared image by image" in paired and "accuracies near" not in paired
    counted = resolution_text(Evidence(images=400).resolution(records))
    assert "between accuracies near 75%" in counted


def test_trainings_with_other_seeds_have_an_interval_over_seeds():
    records = [record(n, 0.8 + 0.02 * n, 0.5, key="a", seed=n) for n in range(3)]
    found = over_seeds([*records, record(3, 0.9, 0.9)])
    assert found.keys() == {"a"} and found["a"]["accuracy"]["n"] == 3
    mean = found["a"]["accuracy"]
    assert mean["mean"] == pytest.approx(0.82)
    assert mean["high"] - mean["mean"] == pytest.approx(4.302653 * 0.02 / 3**0.5)


def test_tables_carry_intervals_and_ties(tmp_path, monkeypatch):
    study = trivial.study()
    with SearchDriver.create(tmp_path / "s", study):
        pass
    for read in ("read_trials", "read_what_is_whole"):
        monkeypatch.setattr(
            tables, read, lambda *_, **__: [record(0, 0.9, 0.8), record(1, 0.8, 0.9)]
        )
    rows, columns, cells = tables.front_rows(*tables.open_records(tmp_path / "s"))
    assert rows[0]["intervals"]["accuracy"]["low"] < 0.9 and rows[0]["ties"] == []
    assert cells[0][1].startswith("90.00 [86.7") and columns[-2].title == "tied with"
    lines = tables.status_lines(tables.status(tmp_path / "s"))
    assert any("4 of 400 validation images" in line for line in lines)
