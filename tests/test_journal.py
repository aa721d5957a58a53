"""Reading a journal without optuna: fast at 10,000 trials, and as robust as it must be."""

from __future__ import annotations

import json
import os
import time

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from studies.errors import DamagedError, StudyError
from studies.journal.reader import JOURNAL, drop_torn_line, read_journal, read_trials
from studies.journal.repair import repair
from studies.journal.storage import SingleWriterJournal, open_optuna_study
from studies.journal.trial import JournalAttributes, TrialRecord
from studies.search.driver import SearchDriver
from studies.workers.executors import RunEnding, run_in_process
from support import trivial


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "study"
    with SearchDriver.create(path, trivial.study(search__trials=50)) as driver:
        run_in_process(driver, trivial.trainable)
    return path


def test_ten_thousand_trials_are_read_whole(study, tmp_path):
    lines = (study / JOURNAL).read_text().splitlines()
    with (tmp_path / JOURNAL).open("w") as file:
        for copy in range(200):
            for line in (
                lines if copy == 0 else (line for line in lines if '"op_code":0,' not in line)
            ):
                entry = json.loads(line)
                if "trial_id" in entry:
                    entry["trial_id"] += 50 * copy
                file.write(json.dumps(entry, separators=(",", ":")) + "\n")
    records = read_trials(tmp_path)
    assert len(records) == 10_000 and records[9_999].architecture == records[49].architecture
    assert [
        r.order for r in sorted((r for r in records if r.order is not None), key=lambda r: r.order)
    ] == list(range(10_000))


def test_parameters_only_if_asked_for(study):
    assert all(not r.parameters for r in read_trials(study))
    assert {"family", "layout"} <= set(read_trials(study, parameters=True)[0].parameters)
    assert read_journal(study)[0]["objectives"] == ["accuracy", "symmetry_accuracy"]


def test_a_torn_tail_is_passed_over_when_only_looking(study, tmp_path):
    (tmp_path / JOURNAL).write_bytes((study / JOURNAL).read_bytes() + b'{"op_code":4,"wor')
    assert read_trials(tmp_path) == read_trials(study)
    assert (tmp_path / JOURNAL).read_bytes().endswith(b"wor")


def test_nothing_torn_changes_nothing(study, tmp_path):
    before = (study / JOURNAL).read_bytes()
    assert drop_torn_line(study) is None and (study / JOURNAL).read_bytes() == before
    assert drop_torn_line(tmp_path) is None
    (tmp_path / JOURNAL).touch()
    assert drop_torn_line(tmp_path) is None and read_trials(tmp_path) == []


@pytest.mark.parametrize("age, stays", [(30, True), (90, False)])
def test_a_lock_that_another_optuna_process_left_is_removed_after_a_minute(tmp_path, age, stays):
    lock = tmp_path / f"{JOURNAL}.lock"
    lock.symlink_to(tmp_path / JOURNAL)
    os.utime(lock, (time.time() - age,) * 2, follow_symlinks=False)
    _, _, backend = open_optuna_study(tmp_path / JOURNAL, ["accuracy"])
    backend.close()
    assert lock.is_symlink() == stays


def test_records_of_others_are_seen_and_kept(tmp_path):
    """optuna-dashboard writes its notes into the same file."""
    ours = SingleWriterJournal(tmp_path / "j")
    ours.append_logs([{"op_code": 8, "n": 1}])
    with (tmp_path / "j").open("a") as file:
        file.write('{"op_code":8,"worker_id":"x","trial_id":0,"user_attr":{},"n":2}\n')
    with ours.transaction():
        ours.append_logs([{"op_code": 8, "n": 3}])
        assert sorted(log["n"] for log in ours.read_logs(0)) == [1, 2, 3]
        assert len((tmp_path / "j").read_text().splitlines()) == 2  # held back
    assert [log["n"] for log in ours.read_logs(3)] == []
    ours.close()
    assert [json.loads(line)["n"] for line in (tmp_path / "j").open()] == [1, 2, 3]


def beside(path, act, at=3):
    """(the ending of a study in `path`, whose driver meets `act(journal, trial)` at its third
    report).
    """
    reports = []

    def trainable(study, assignment, report):
        class Report:
            def __call__(self, scores):
                reports.append(1)
                if len(reports) == at:
                    act(path / JOURNAL, assignment.number)
                return report(scores)

            def heartbeat(self, epoch):
                report.heartbeat(epoch)

        trivial.trainable(study, assignment, Report())

    with SearchDriver.create(path, trivial.study(search__trials=6)) as driver:
        return run_in_process(driver, trainable)


def _notes(journal, trial):
    storage = JournalStorage(JournalFileBackend(str(journal)))
    (study,) = storage.get_all_studies()
    for number in range(400):
        storage.set_study_system_attr(study._study_id, f"dashboard:note:{number}", "looks good")
    storage.set_trial_system_attr(trial, "dashboard:note", "of a trial that runs")


def _appended(text):
    def append(journal, trial):
        with journal.open("ab") as file:
            file.write(text)

    return append


@pytest.mark.parametrize(
    "act, damaged",
    [
        (_notes, False),
        (_appended(b'{"op_code":3,"worker_id":"other","study_id":0,"syst'), True),  # killed in it
        (_appended(b'{"op_code":77,"worker_id":"other"}\n[1]\n{"op_code":8}\n\n'), True),
    ],
    ids=["notes", "half a line", "no records"],
)
def test_another_writer_beside_the_driver_does_not_end_it(tmp_path, act, damaged):
    assert beside(tmp_path / "study", act) == RunEnding("trials")
    if damaged:
        with pytest.raises(DamagedError):
            read_trials(tmp_path / "study")
        assert repair(tmp_path / "study")
    records = read_trials(tmp_path / "study")
    assert len(records) == 6 and {record.state for record in records} <= {"complete", "pruned"}
    with SearchDriver.open(tmp_path / "study", trivial.study(search__trials=7)) as driver:
        assert run_in_process(driver, trivial.trainable) == RunEnding("trials")


def test_what_is_appended_after_another_program_has_its_number_after_it(tmp_path):
    """Trials are numbered by their order in the file."""
    place = tmp_path / JOURNAL
    ours = JournalStorage(backend := SingleWriterJournal(place))
    study = ours.create_new_study([StudyDirection.MAXIMIZE], "equisearch")
    theirs = JournalStorage(JournalFileBackend(str(place)))
    theirs.create_new_trial(study)
    assert ours.get_trial_number_from_id(ours.create_new_trial(study)) == 1
    backend.close()


def test_another_program_that_ends_a_trial_gets_a_sentence(tmp_path):
    def end(journal, trial):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        storage.set_trial_state_values(trial, TrialState.FAIL)

    with pytest.raises(StudyError, match="another program ended a trial .*`equisearch repair"):
        beside(tmp_path / "study", end)


def test_a_line_damaged_inside_an_attribute_is_named_when_its_trial_is_asked(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=3)) as driver:
        run_in_process(driver, trivial.trainable)
    journal = tmp_path / "study" / JOURNAL
    content = journal.read_bytes()
    begin = content.index(b'"params":', content.index(b'"trial_id":1,"user_attr"'))
    journal.write_bytes(content[:begin] + b"\x00" * 8 + content[begin + 8 :])
    records = read_trials(tmp_path / "study")
    assert records[0].attributes["params"] > 0 and [record.state for record in records]
    with pytest.raises(
        DamagedError, match="what the journal says of trial 1 is damaged.*equisearch repair"
    ):
        _ = records[1].attributes["params"]
    with pytest.raises(DamagedError, match="trial 1"):
        SearchDriver.open(tmp_path / "study")
    assert repair(tmp_path / "study")
    with SearchDriver.open(tmp_path / "study") as driver:
        run_in_process(driver, trivial.trainable)
    assert trivial.audit(tmp_path / "study", 3)["lost"] == 0


@pytest.mark.parametrize(
    ("constraints", "feasible"),
    [
        (None, True),
        ({}, True),
        ({"params": 0.0}, True),  # at the limit
        ({"params": -0.5, "macs": -0.1}, True),
        ({"params": -0.5, "macs": 0.1}, False),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_trial_is_infeasible_wherever_its_lines_say_so(constraints, feasible, place):
    attributes = [{"params": 5}, {"seed": 3}]
    if constraints is not None:
        attributes.insert(place, {"constraints": constraints})
    lines = [json.dumps({"op_code": 8, "user_attr": entry}).encode() for entry in attributes]
    assert TrialRecord(0, "complete", (1.0,), JournalAttributes(0, lines)).feasible is feasible


def test_a_trial_without_constraints_is_feasible_without_parsing_its_attributes():
    torn = JournalAttributes(0, [b'{"op_code":8,"user_attr":{"params'])
    assert TrialRecord(0, "complete", (1.0,), torn).feasible
    with pytest.raises(DamagedError):
        _ = torn["params"]
