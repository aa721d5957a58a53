"""Repairing a study directory: cut before the damage, keep a copy, and nothing else."""

import json

import pytest

from studies.errors import LockedError, StudyError
from studies.journal.lock import StudyLock
from studies.journal.reader import JOURNAL, read_trials
from studies.journal.repair import repair


@pytest.fixture
def directory(tmp_path):
    """A study directory with a journal of ten whole records (a study, and trials that wait)."""
    from studies.config import dump, load

    (tmp_path / "study.yaml").write_text(dump(load("quickstart")))
    records = [{"op_code": 0, "study_name": "equisearch", "directions": [2, 2]}]
    records += [{"op_code": 4, "study_id": 0, "datetime_start": None, "state": 4} for _ in range(9)]
    (tmp_path / JOURNAL).write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_a_whole_study_is_left_alone(directory):
    before = (directory / JOURNAL).read_bytes()
    assert repair(directory) == [] and (directory / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("damage", [b'{"op_code": 6, "tri', b"\x00\x00\x00\n", b"[]\n", b"{}\n"])
def test_the_journal_is_cut_before_the_damage(directory, damage):
    lines = (directory / JOURNAL).read_bytes().splitlines(keepends=True)
    (directory / JOURNAL).write_bytes(b"".join(lines[:6]) + damage + b"".join(lines[6:]))
    told = repair(directory)
    assert "before line 7" in told[0] and (directory / JOURNAL).read_bytes() == b"".join(lines[:6])
    assert len(read_trials(directory)) == 5
    copies = list(directory.glob(f"{JOURNAL}.damaged-*"))
    assert len(copies) == 1 and copies[0].read_bytes() == damage + b"".join(lines[6:])


def test_leftovers_are_removed_and_whole_files_are_not(directory):
    trial = directory / "trials" / "00000"
    trial.mkdir(parents=True)
    # .new: what a version before this one left
    for name in ("checkpoint.pt", "checkpoint.pt.1f2e.part", "checkpoint.pt.new"):
        (trial / name).write_bytes(b"x")
    (directory / "report.html.1f2e.part").write_bytes(b"x")
    (directory / f"{JOURNAL}.lock").write_bytes(b"")
    assert len(repair(directory)) == 4 and not list(directory.glob("*.part"))
    assert [path.name for path in trial.iterdir()] == ["checkpoint.pt"] and not (
        directory / f"{JOURNAL}.lock"
    ).exists()


def test_a_driven_study_is_refused(directory):
    lock = StudyLock(directory)
    try:
        with pytest.raises(LockedError, match="pid"):
            repair(directory)
    finally:
        lock.close()


def test_no_study_no_repair(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        repair(tmp_path)
