"""Study directories that a damage, another program or somebody else has put odd files into: nothing
is read without end, nothing is written through a link, no trial is lost.
"""

import gzip
import io
import json
import os
import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from studies.config import parse
from studies.errors import DamagedError, StudyError
from studies.journal.directory import read_study
from studies.journal.folders import TRIALS, read_folder
from studies.journal.reader import JOURNAL, read_trials
from studies.journal.repair import repair
from studies.search.assignments import Assignment, note_epoch, noted_epoch, with_folder
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from studies.workers.worker import run_trial
from support import trivial
from support.commands import run  # noqa: F401
from trainers.training.checkpoint import CHECKPOINT, PREVIOUS

TINY = """
data: {name: digits, train: 40, validation: 20}
training: {epochs: 1, batch_size: 20, precision: float32}
search: {rungs: []}
resources: {gpus_per_trial: 0}
"""
TEXT = "8px: 2k3, 2k3 max2/2"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A study of three trials that has ended."""
    path = tmp_path_factory.mktemp("ended") / "study"
    with SearchDriver.create(path, trivial.study(search__trials=3)) as driver:
        run_in_process(driver, trainable=trivial.trainable)
    return path


@pytest.fixture
def study(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "study")


def without(path, name, trial=None):
    """Takes the records of an attribute out of a journal; of one trial, or of all."""
    lines = [json.loads(line) for line in (path / JOURNAL).read_text().splitlines()]
    kept = [
        line
        for line in lines
        if name not in line.get("user_attr", {})
        or (trial, line.get("trial_id")) not in ((trial, trial), (None, line.get("trial_id")))
    ]
    (path / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in kept))


@pytest.mark.parametrize("name", ["seed", "architecture"])
def test_an_ended_trial_of_which_something_is_lost_stops_no_study(study, name):
    without(study, name)
    with SearchDriver.open(study, trivial.study(search__trials=5)) as driver:
        run_in_process(driver, trainable=trivial.trainable)
    assert sum(record.state in ("complete", "pruned") for record in read_trials(study)) == 5


def test_a_running_trial_without_its_seed_is_rebuilt_from_its_folder(tmp_path):
    path = tmp_path / "study"
    with SearchDriver.create(path, trivial.study()) as driver:
        assignment = driver.next()
    without(path, "seed", 0)
    with pytest.raises(DamagedError, match="lost the seed of trial 0.*equisearch repair"):
        SearchDriver.open(path)
    assert repair(path, lambda *_, **__: {"canonical": "x", "seed": assignment.seed})
    with SearchDriver.open(path) as driver:
        assert driver.next().seed == assignment.seed


@pytest.mark.parametrize("content", [None, "", " \n", "\0" * 9, "\ud800", "data: [", "folder"])
def test_a_lost_study_file_comes_back_from_the_journal(study, content):
    file = study / "study.yaml"
    before = read_study(study)
    file.unlink()
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
    if content in (None, "", "folder"):
        with pytest.raises(StudyError, match="holds a journal, but study.yaml is .*repair"):
            read_study(study)
    assert "study.yaml is written back as the journal holds it" in repair(study)
    assert read_study(study) == before and repair(study) == []
    assert (study / "study.yaml.damaged").exists() == (content is not None)


def test_an_edited_study_file_is_not_replaced(study):
    text = (study / "study.yaml").read_text().replace("epochs: 9", "epochs: 8")
    (study / "study.yaml").write_text(text)
    assert repair(study) == [] and (study / "study.yaml").read_text() == text


def test_deep_nesting_is_damage(study):
    deep = "[" * 100_000
    folder = study / TRIALS / "00000"
    for name in ("scores.jsonl", "trial.json"):
        (folder / name).write_text(deep)
    (study / "versions.json").write_text(deep)
    assert read_folder(folder).scores == {}
    with SearchDriver.open(study) as driver:
        assert any("versions.json is damaged" in warning for warning in driver.warnings)


def test_pipes_and_devices_in_a_trials_folder_are_not_read_nor_copied(study):
    before = study / TRIALS / "00001"
    for name, place in (("checkpoint.pt", None), ("scores.jsonl", "/dev/zero"), ("x", "x")):
        (before / name).unlink(missing_ok=True)
        os.mkfifo(before / name) if place is None else (before / name).symlink_to(place)
    record = read_trials(study)[1]
    folder = study / TRIALS / "00003"
    text = str(record.architecture)
    with_folder(Assignment(3, text, None, record.seed, 9, str(folder), continues=1), new=True)
    assert (folder / "checkpoint").exists()  # what is a file is copied
    assert not {"checkpoint.pt", "scores.jsonl", "x"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["epoch", "architecture.txt", "trial.json"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "study" / TRIALS / "00000"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(precious)
    assignment = Assignment(0, TEXT, None, 0, 1, str(folder))
    with suppress(OSError):  # or the folder, which seems to be another's, is moved aside
        note_epoch(with_folder(assignment), 3)
    assert precious.read_text() == "mine"


def test_a_pipe_in_place_of_a_note_is_named(tmp_path):
    assignment = Assignment(0, TEXT, None, 0, 1, str(tmp_path))
    os.mkfifo(tmp_path / "epoch")
    with pytest.raises(OSError, match="epoch"):
        note_epoch(assignment, 3)
    assert noted_epoch(assignment) == 0


class Report:
    def __init__(self):
        self.rungs = []

    def __call__(self, scores):
        self.rungs.append(scores["epoch"])
        return "continue"

    def heartbeat(self, epoch):
        pass


def of(content):
    whole = io.BytesIO()
    torch.save(content, whole)
    return whole.getvalue()


def test_a_checkpoint_of_another_kind_costs_no_trial(tmp_path):
    """What is no checkpoint counts as a torn one; one of another training is kept aside."""
    study = parse(TINY)
    assignment = Assignment(0, TEXT, None, 0, 1, str(tmp_path))
    run_trial(study, assignment, Report())
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    odd = [[1], {}, {**saved, "epoch": None}, {**saved, "history": None}]
    odd += [{name: value for name, value in saved.items() if name != "network"}]
    for content in odd:
        (tmp_path / CHECKPOINT).write_bytes(of(content))
        report = Report()
        run_trial(study, assignment, report)
        assert report.rungs == [1]
    (tmp_path / CHECKPOINT).write_bytes(of({**saved, "fingerprint": "another"}))
    with pytest.warns(UserWarning, match="trial 0 is of another training: it is kept"):
        run_trial(study, assignment, Report())
    assert (tmp_path / "checkpoint.foreign.pt").exists()
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    "key, value",
    [
        ("training.learning_rate", 1e-300),
        ("space.learning_rate", {"low": 1e-320, "high": 0.1}),
        ("space.equivariance_loss", {"kind": [0.5]}),
        ("space.equivariance_loss", {"kind": "10"}),
        ("data.root", "a\0b"),
    ],
)
def test_values_that_do_nothing_or_name_nothing_are_refused(key, value):
    with pytest.raises(StudyError, match=key.replace(".", r"\.")):
        trivial.study(**{key.replace(".", "__"): value})


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("name", [JOURNAL, "lock", "data.json", "versions.json", "study.yaml"])
def test_what_stands_in_the_place_of_a_file_is_moved_aside_by_repair(study, run, name, kind):
    before = trivial.ended(study)
    (study / name).unlink(missing_ok=True)
    (study / name).mkdir() if kind == "folder" else os.mkfifo(study / name)
    for words in (("status", study), ("resume", study), ("rederive", study), ("show", study, 0)):
        status, _, err = run(*words)
        if status:
            assert status == 1 and err.count("error: ") == 1 and str(study) in err
    assert run("repair", study).status == 0
    assert (study / f"{name}.damaged").exists() and (study / f"{name}.damaged").is_file() is False
    with SearchDriver.open(study, trivial.study(search__trials=5)) as driver:
        run_in_process(driver, trainable=trivial.trainable)
    after = trivial.ended(study)
    assert len(after) == 5 and (name == JOURNAL or {n: after[n] for n in before} == before)


@pytest.mark.parametrize("name", [CHECKPOINT, PREVIOUS, "scores.jsonl", "epoch", "trial.json"])
def test_a_folder_in_the_place_of_a_trials_file_costs_no_trial(tmp_path, name):
    study = parse(TINY)
    folder = tmp_path / TRIALS / "00000"
    (folder / name / "x").mkdir(parents=True)
    (folder / "correct.bits").mkdir()
    report = Report()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_trial(study, with_folder(Assignment(0, TEXT, None, 0, 1, str(folder))), report)
    assert report.rungs == [1] and (folder / CHECKPOINT).is_file()
    assert (folder / f"{name}.damaged" / "x").is_dir()
    assert "correct.bits.damaged was in the place of a file" in str(said[-1].message)


@pytest.mark.parametrize("name", ["9" * 23, "100000", "00099", "1", "000001", "\u0663"])
def test_a_folder_that_no_trial_can_have_had_makes_no_trials(study, name):
    before = trivial.ended(study)
    (study / TRIALS / name).mkdir()
    (study / TRIALS / "00001" / "epoch").write_text("9" * 5000)
    if name != "00099":  # that is empty
        (study / TRIALS / name / "trial.json").write_bytes(
            (study / TRIALS / "00001" / "trial.json").read_bytes()
        )
    repair(study, lambda *_, **__: {"canonical": "x"})
    assert trivial.ended(study) == before


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_what_is_in_the_place_of_the_trials_is_moved_aside(study, kind):
    shutil.rmtree(study / TRIALS)
    (study / TRIALS).write_text("") if kind == "file" else (study / TRIALS).symlink_to(TRIALS)
    assert "trials.damaged" in repair(study)[0]
    with SearchDriver.open(study, trivial.study(search__trials=5)) as driver:
        run_in_process(driver, trainable=trivial.trainable)
    assert len(trivial.ended(study)) == 5


def test_repair_names_what_it_moved_aside_in_the_folder_of_a_trial(study):
    (study / TRIALS / "00001" / CHECKPOINT).mkdir()
    (done,) = repair(study)
    assert done == f"what was in the place of a file is now {TRIALS}/00001/{CHECKPOINT}.damaged"
    assert not repair(study)


NOTHING_LEFT = ("compressed", "emptied", "another encoding")


def spoiled(content: bytes, how: str) -> bytes:
    """A journal as other programs and people leave it."""
    lines = content.splitlines(keepends=True)
    added = {
        "study deleted": b'{"op_code":1,"worker_id":"x","study_id":0}\n',
        "trial of none": b'{"op_code":8,"worker_id":"x","trial_id":99,"user_attr":{"a":1}}\n',
    }
    return {
        **{name: content + line for name, line in added.items()},
        "first line lost": b"".join(lines[1:]),
        "begins later": b"".join([*lines[1:3], lines[0], *lines[3:]]),
        "laid out": b"".join(json.dumps(json.loads(x), indent=1).encode() + b"\n" for x in lines),
        "a list": json.dumps([json.loads(line) for line in lines]).encode(),
        "compressed": gzip.compress(content),
        "emptied": b"",
        "another encoding": content.decode().encode("utf-16"),
        "no dates": re.sub(rb'"datetime_complete":"[^"]*"', b'"datetime_complete":null', content),
        "no number": content.replace(b'"params":', b'"params":"<b>","x":'),
    }[how]


@pytest.mark.filterwarnings("ignore::studies.errors.JournalWarning")
@pytest.mark.parametrize(
    "how",
    [
        *("study deleted", "trial of none", "first line lost", "begins later", "laid out"),
        *("a list", "compressed", "emptied", "another encoding", "no dates", "no number"),
    ],
)
def test_a_spoiled_journal_is_one_message_and_repair_brings_all_trials_back(study, run, how):
    before, journal = trivial.ended(study), study / JOURNAL
    journal.write_bytes(spoiled(journal.read_bytes(), how))
    for words in (("status", study), ("front", study), ("rederive", study), ("show", study, 0)):
        status, out, err = run(*words)
        assert "fault of the program" not in err + out
        assert status == 0 or (status == 1 and err.count("error: ") == 1 and "repair" in err)
        assert status or how not in NOTHING_LEFT  # not "0 of 3 trials", as where none was run
    with pytest.raises(StudyError, match="repair"):
        SearchDriver.open(study)
    assert run("repair", study).status == 0
    after = trivial.ended(study)
    assert len(after) == 3
    if how not in (*NOTHING_LEFT, "laid out", "no dates"):
        assert [row[0] for row in after.values()] == [row[0] for row in before.values()]
    with SearchDriver.open(study, trivial.study(search__trials=5)) as driver:
        run_in_process(driver, trainable=trivial.trainable)
    assert len(trivial.ended(study)) == 5 and not repair(study)


def test_a_report_is_written_whatever_version_and_encoding(study, run, tmp_path):
    journal = study / JOURNAL
    text = str(read_trials(study)[0].architecture)
    journal.write_text(journal.read_text().replace(json.dumps(text), json.dumps("9px: 9new9")))
    place = os.fsencode(tmp_path) + b"/n\xff"
    os.rename(study, place)
    status, _, err = run("report", os.fsdecode(place))
    assert status == 0, err
    page = Path(os.fsdecode(place), "report.html").read_text()
    assert "this version does not read its architecture" in page and "\\udcff" in page


@pytest.mark.parametrize("left", [None, b""])
def test_the_dashboard_makes_no_journal_where_it_is_lost(study, run, left):
    (study / JOURNAL).unlink()
    if left is not None:
        (study / JOURNAL).write_bytes(left)
    status, _, err = run("dashboard", study)
    assert status == 1 and "3 folders of trials" in err and "equisearch repair" in err
    assert (study / JOURNAL).exists() == (left is not None)


def test_a_class_folder_that_is_not_utf_8_is_refused_before_anything_trains(tmp_path, run):
    for name in (b"a", b"b\xff"):
        folder = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(folder)
        for number in range(10):
            with open(os.path.join(folder, b"%d.png" % number), "wb") as file:
                Image.new("L", (8, 8), 20 * number).save(file, "PNG")
    text = TINY.replace(
        "{name: digits, train: 40, validation: 20}", f"{{folder: {tmp_path}/images}}"
    )
    (tmp_path / "study.yaml").write_text(text + 'space: {backbone: "2k3, 2k3 *"}\n')
    status, _, err = run("start", tmp_path / "study.yaml", tmp_path / "run", "--no-probe")
    assert status == 1 and "is not UTF-8" in err and not (tmp_path / "run").exists()
