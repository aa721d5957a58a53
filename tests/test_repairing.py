"""Repairing a study directory: every whole record is kept, what is lost comes from the folders."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from searchspace.architecture import Architecture
from searchspace.cost import cost
from studies.errors import DamagedError, JournalWarning, LockedError, StudyError
from studies.evidence.intervals import Evidence
from studies.journal.folders import write_given
from studies.journal.lock import StudyLock
from studies.journal.reader import JOURNAL, read_trials
from studies.journal.repair import _data_facts, _fitting, repair
from studies.journal.salvage import read_what_is_whole, salvage
from studies.journal.writer import open_journal
from studies.results import tables
from studies.search.driver import SearchDriver
from studies.search.proposals import describe_text
from studies.workers.executors import run_in_process
from support import trivial


@pytest.fixture
def directory(tmp_path):
    """A study directory with a journal of ten whole records (a study, and trials that wait)."""
    from studies.config import dump, load_study

    (tmp_path / "study.yaml").write_text(dump(load_study("quickstart")))
    records = [{"op_code": 0, "study_name": "equisearch", "directions": [2, 2]}]
    records += [{"op_code": 4, "study_id": 0, "datetime_start": None, "state": 4} for _ in range(9)]
    records += [
        {"op_code": 2, "study_id": 0, "user_attr": {name: value}}
        for name, value in {"channels": 1, "classes": 10}.items()
    ]
    (tmp_path / JOURNAL).write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_a_whole_study_is_left_alone(directory):
    before = (directory / JOURNAL).read_bytes()
    assert repair(directory) == [] and (directory / JOURNAL).read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [b'{"op_code": 6, "tri', b"\x00\x00\x00\n", b"[]\n", b"{}\n", b"\n", b"x", b"\x00", b"\xff\n"],
)
def test_records_before_and_behind_the_damage_are_kept(directory, damage):
    whole = (directory / JOURNAL).read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = b"".join(lines[:6]) + damage + b"".join(lines[6:])
    (directory / JOURNAL).write_bytes(damaged)
    done = repair(directory)
    assert "line 7" in done[0] and len(read_trials(directory)) == 9
    assert (directory / f"{JOURNAL}.damaged").read_bytes() == damaged
    assert repair(directory) == []


@pytest.mark.parametrize("kind", ["whole", "half before", "three times", "copy that went on"])
def test_a_copy_that_was_appended_is_no_second_study(directory, kind):
    """As `cat`, a synchronising program, or a half restored backup leave it: trials would be there
    twice, and those of the copy would train again.
    """
    lines = (directory / JOURNAL).read_bytes().splitlines(keepends=True)
    more = b'{"op_code":2,"study_id":0,"user_attr":{"note":1}}\n'
    doubled = {
        "whole": lines * 2,
        "half before": lines[:5] + lines,
        "three times": lines * 3,
        "copy that went on": [*lines, *lines, more],
    }[kind]
    (directory / JOURNAL).write_bytes(b"".join(doubled))
    with pytest.raises(DamagedError, match=r"begins the journal a second time.*repair"):
        read_trials(directory)
    with pytest.warns(JournalWarning, match="the study stands in it more than once"):
        assert len(read_what_is_whole(directory)) == 9
    assert "more than once" in repair(directory)[0] and len(read_trials(directory)) == 9
    whole = (directory / JOURNAL).read_text()
    assert ("note" in whole) == (kind == "copy that went on") and repair(directory) == []


def scored(study, assignment, report):
    """`trivial.trainable`, with the scores in the folder, as a worker writes them."""

    class Recorded:
        heartbeat = report.heartbeat

        def __call__(self, scores):
            with (Path(assignment.directory) / "scores.jsonl").open("a") as file:
                file.write(json.dumps(scores) + "\n")
            return report(scores)

    trivial.trainable(study, assignment, Recorded())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of 14 trials, and what they came to."""
    path = tmp_path_factory.mktemp("study") / "study"
    with SearchDriver.create(path, trivial.study(search__trials=14), classes=7) as driver:
        run_in_process(driver, scored)
    return path, trivial.ended(path)


def damaged(lines, kind):
    """The journal's lines after a fault, and which trials the fault touched."""
    middle = len(lines) // 2
    if kind == "two on a line":
        lines[middle] = lines[middle][:-1]
    elif kind == "a NUL byte":
        lines[middle] = lines[middle][:20] + b"\x00" + lines[middle][21:]
    elif kind == "a blank line":
        lines.insert(middle, b"\n")
    elif kind == "half a line before another":
        lines.insert(middle, lines[middle][:37])
    elif kind == "a lost page":
        text = b"".join(lines)
        half = len(text) // 2
        return text[:half] + b"\x00" * 4096 + text[half + 4096 :]
    elif kind == "a backup":
        lines = lines[:middle]
    elif kind == "a journal cut within a line":
        lines = [*lines[:middle], lines[middle][:40]]
    elif kind == "without its first records":
        lines = lines[4:]
    elif kind == "an empty journal":
        lines = []
    elif kind == "the creation of a trial lost":
        creations = [n for n, line in enumerate(lines) if line.startswith(b'{"op_code":4')]
        lines[creations[5]] = b"\x00" * len(lines[creations[5]])
    return b"".join(lines)


@pytest.mark.parametrize(
    "kind",
    [
        "two on a line",
        "a NUL byte",
        "a blank line",
        "half a line before another",
        "a lost page",
        "a backup",
        "a journal cut within a line",
        "without its first records",
        "an empty journal",
        "the creation of a trial lost",
    ],
)
def test_a_repaired_study_holds_its_trials_and_goes_on(study, tmp_path, kind):
    source, before = study
    path = tmp_path / "study"
    shutil.copytree(source, path)
    lines = (path / JOURNAL).read_bytes().splitlines(keepends=True)
    (path / JOURNAL).write_bytes(damaged(lines, kind))
    done = repair(path, describe_text)
    assert any("14 now" in line or "13 now" in line for line in done), done
    after = trivial.ended(path)
    for number, (state, values, architecture, rungs) in before.items():
        if state in ("complete", "pruned") and after[number][0] == state:
            assert after[number] == (state, values, architecture, rungs), number
    first = read_trials(source)
    with SearchDriver.open(path, trivial.study(search__trials=18)) as driver:
        assert driver.channels == 1 and driver.classes == 7
        run_in_process(driver, scored)
    count = trivial.audit(path, 18)
    assert (count["lost"], count["doubled"], count["zombies"], count["failed"]) == (0, 0, 0, 0)
    for record in first:  # numbers keep their architectures
        if record.architecture is not None and record.state in ("complete", "pruned"):
            assert trivial.ended(path)[record.number][2] == record.architecture
    assert repair(path, describe_text) == []


def test_channels_and_classes_that_are_lost_come_from_the_images(study, tmp_path):
    path = tmp_path / "study"
    shutil.copytree(study[0], path)
    (path / "data.json").unlink()
    (path / JOURNAL).unlink()
    for scores in path.glob("trials/*/scores.jsonl"):
        scores.unlink()

    def unreadable(study):
        raise ValueError("the folder is not there")

    done = repair(path, describe_text, unreadable)
    assert any("the folder is not there): put the data back, then" in line for line in done)
    repair(path, describe_text, lambda study: (1, 7))
    with SearchDriver.open(path, trivial.study(search__trials=18)) as driver:
        assert (driver.channels, driver.classes) == (1, 7)


def test_architectures_that_were_to_be_tried_first_are_not_forgotten(tmp_path):
    path, first = tmp_path / "study", ["8px: 2k3", "8px: 3k3", "8px: 4k3"]
    opened = trivial.study(search__trials=4, search__first=first[2:])
    with SearchDriver.create(path, opened, classes=7, enqueue=first[:2]) as driver:
        run_in_process(driver, scored)
    _, *later = sorted((path / "trials").iterdir())
    for folder in later:  # as if it had ended behind the first
        shutil.rmtree(folder)
    (path / JOURNAL).unlink()
    done = repair(path, describe_text)
    assert any("2 architectures of --enqueue and search.first" in line for line in done)
    assert repair(path, describe_text) == []
    with SearchDriver.open(path) as driver:
        run_in_process(driver, scored)
    assert [record.architecture for record in read_trials(path)][:3] == first


def test_folders_of_no_trial_are_moved_aside(study, tmp_path):
    path = tmp_path / "study"
    shutil.copytree(study[0], path)
    foreign = path / "trials" / "00003"
    write_given(foreign, {"architecture": "28px: 3k3", "seed": 1})
    (path / "trials" / "00099").mkdir()
    done = repair(path)
    assert any("00003 -> orphaned/00003" in line and "00099" in line for line in done)
    assert not foreign.exists() and (path / "orphaned" / "00003" / "checkpoint").exists()


def test_a_new_trial_never_finds_the_files_of_another(tmp_path):
    path = tmp_path / "study"
    with SearchDriver.create(path, trivial.study()) as driver:
        for number in (0, 1):
            old = path / "trials" / f"{number:05d}"
            old.mkdir()
            (old / "checkpoint").write_text("of another training")
        given = driver.next()
        assert given.directory.endswith("00000")
        assert not (Path(given.directory) / "checkpoint").exists()
        assert (path / "orphaned" / "00000" / "checkpoint").exists()
    # the study goes on, and the folder was exchanged meanwhile
    write_given(Path(given.directory), {"architecture": "28px: 3k3"})
    (Path(given.directory) / "checkpoint").write_text("of another training")
    with SearchDriver.open(path) as driver:
        again = driver.next()
    assert again == given and not (Path(given.directory) / "checkpoint").exists()
    assert (path / "orphaned" / "00000-2" / "checkpoint").exists()


def test_records_of_a_newer_version_and_of_unknown_trials_are_named(directory):
    whole = (directory / JOURNAL).read_bytes()
    strange = (
        b'{"op_code":42,"x":1}\n{"op_code":6,"trial_id":99,"state":2,"values":null,'
        b'"datetime_complete":"2026-11-26T22:00:27+00:00"}\n'
    )
    (directory / JOURNAL).write_bytes(whole + strange)
    with pytest.raises(
        DamagedError, match=f"{JOURNAL}: line 13 is not a record of this .*equisearch repair"
    ):
        read_trials(directory)
    done = repair(directory)
    assert "line 13 is not a record of this version" in done[0]
    assert any("are named by 1 record" in line for line in done)
    assert len(read_trials(directory)) == 9 and repair(directory) == []


def test_a_trial_that_a_newer_version_created_keeps_its_number(directory):
    """What this version cannot read of it is lost; the trials behind it stay who they are."""
    lines = (directory / JOURNAL).read_bytes().splitlines(keepends=True)
    lines.append(b'{"op_code":8,"trial_id":3,"user_attr":{"reason":"mine"}}\n')
    lines[1] = b'{"op_code":4,"study_id":0,"state":9}\n'  # of trial 0
    (directory / JOURNAL).write_bytes(b"".join(lines))
    assert "line 2 is not a record" in repair(directory)[0]
    records = read_trials(directory)
    assert len(records) == 9 and records[3].reason == "mine"


TIME = b'"datetime_complete":"2026-11-26T22:00:27+00:00"'
NO_RECORDS = {
    "a list": b"[1,2]",
    "a number": b"7",
    "code of later": b'{"op_code":42,"trial_id":1}',
    "code as text": b'{"op_code":"8","trial_id":3,"user_attr":{"a":1}}',
    "state of later": b'{"op_code":6,"trial_id":3,"state":9,"values":null,' + TIME + b"}",
    "no end": b'{"op_code":6,"trial_id":3,"state":2,"values":null}',
    "one value of two": b'{"op_code":6,"trial_id":3,"state":1,"values":[0.1],' + TIME + b"}",
    "not finite": b'{"op_code":6,"trial_id":3,"state":1,"values":[NaN,0.1],' + TIME + b"}",
    "trial before all": b'{"op_code":8,"trial_id":-1,"user_attr":{"a":1}}',
    "trial behind all": b'{"op_code":8,"trial_id":77,"user_attr":{"a":1}}',
    "rung of words": b'{"op_code":8,"trial_id":3,"user_attr":{"rung x":5}}',
    "rung without scores": b'{"op_code":8,"trial_id":3,"user_attr":{"rung 2":5}}',
    "architecture of later": b'{"op_code":8,"trial_id":3,"user_attr":{"architecture":{"v":2}}}',
    "attribute of study": b'{"op_code":2,"study_id":0,"user_attr":{"superseded":7}}',
    "parameter": b'{"op_code":5,"trial_id":3,"param_name":"x","param_value_internal":5,'
    b'"distribution":"{}"}',
    "deleted": b'{"op_code":1,"study_id":0}',
    "creation of later": b'{"op_code":4,"study_id":0,"datetime_start":null,"state":7}',
}


@pytest.mark.parametrize("place", ["middle", "end"])
@pytest.mark.parametrize("line", NO_RECORDS.values(), ids=NO_RECORDS)
def test_what_is_no_record_hides_nothing_from_those_who_look(directory, line, place):
    study, before = tables.open_records(directory, reading=True)
    lines = (directory / JOURNAL).read_bytes().splitlines(keepends=True)
    lines.insert(11 if place == "middle" else 12, line + b"\n")
    (directory / JOURNAL).write_bytes(b"".join(lines))
    with pytest.warns(JournalWarning, match="left out here.*equisearch repair"):
        _, records = tables.open_records(directory, parameters=True, reading=True)
        row = tables.rows_of(study, records, Evidence())
    assert [(r.number, r.state) for r in records[:9]] == [(r.number, r.state) for r in before]
    assert len(row[0]) == len(records)
    if not (place == "end" and line in (b"[1,2]", b"7")):  # taken for torn, and kept aside
        with pytest.raises(DamagedError, match="equisearch repair"):
            open_journal(directory, study.objectives)
    assert repair(directory) and repair(directory) == []
    read_trials(directory)
    open_journal(directory, study.objectives)[0].close()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda whole: b"\xef\xbb\xbf" + whole, "line 1 is damaged"),  # an editor's mark
        (lambda whole: whole + b'{"op_code":3,"x":' + b"[" * 100_000 + b"\n", "damaged"),
        (
            lambda whole: whole + whole,
            "more than once, with copies of 9 trials",
        ),  # a backup, appended
    ],
    ids=["mark", "deep", "twice"],
)
def test_what_editors_and_backups_leave_is_mended(directory, spoil, said):
    before = read_trials(directory)
    (directory / JOURNAL).write_bytes(spoil((directory / JOURNAL).read_bytes()))
    assert said in " ".join(repair(directory))
    assert read_trials(directory) == before and repair(directory) == []


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


@pytest.mark.parametrize("channels, classes", [(3, 7), (1, 10), (3, 2), (1, 3)])
def test_channels_and_classes_follow_from_what_a_network_costs(channels, classes):
    architecture = Architecture.parse("12px: 4k3@C4, 4k3 max2/2, 6k3")
    costs = cost(architecture, channels, classes)
    known = {"params": costs.params, "macs": costs.macs}
    assert _fitting(architecture, known) == {(channels, classes)}
    assert _fitting(architecture, {"params": costs.params + 1, "macs": costs.macs}) == set()


def test_channels_and_classes_are_known_where_only_one_pair_fits():
    architecture = Architecture.parse("12px: 4k3@C4, 4k3 max2/2, 6k3")
    costs = cost(architecture, 3, 7)

    def entries(**changes):
        facts = {"architecture": str(architecture), "params": costs.params, "macs": costs.macs}
        created = {"op_code": 4, "study_id": 0, "datetime_start": None, "state": 0}
        lines = [
            {"op_code": 8, "trial_id": 0, "user_attr": {name: value}}
            for name, value in {**facts, **changes}.items()
        ]
        return [{"op_code": 0, "study_name": "equisearch", "directions": [2]}, created, *lines]

    assert _data_facts(entries(), {}) == {"channels": 3, "classes": 7}
    assert _data_facts(entries(params=costs.params + 1), {}) == {}
    assert _data_facts([], {}) == {}


def test_damage_is_named_by_the_line_that_holds_it():
    whole = b'{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [1]}'
    damage = salvage(b"\n".join([whole, b"torn", whole, b'{"op_code": 99}', b"cut"])).damage
    assert [text.split(" is ")[0] for text in damage[:3]] == ["line 2", "line 4", "line 5"]
    assert damage[3:] == ("the last line has no end",)


def test_a_trial_whose_architecture_is_of_a_newer_version_is_shown(directory, monkeypatch, capsys):
    from studies.cli import main as cli

    with (directory / JOURNAL).open("ab") as file:
        given = {"architecture": "28px: 9new9", "seed": 0}
        for name, value in given.items():
            record = {"op_code": 8, "trial_id": 2, "user_attr": {name: value}}
            file.write(json.dumps(record).encode() + b"\n")
    monkeypatch.setattr(sys, "argv", ["equisearch", "show", str(directory), "2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert not ended.value.code and "28px: 9new9" in shown.out
    assert "its exactness cannot be shown" in shown.err
