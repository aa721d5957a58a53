"""What a study was started with: a changed study file, changed data and lost records
are refused.
"""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from studies.config import parse
from studies.errors import ExistsError, StudyError
from studies.journal.definition import DEFINITIONS
from studies.journal.directory import STUDY, VERSIONS, require_place
from studies.journal.origin import DataIdentity
from studies.journal.reader import JOURNAL, read_trials, study_attributes
from studies.results.tables import front_members, open_records, status, status_lines
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from studies.workers.launch import images_of, new_driver, open_driver
from support import trivial

BEFORE = DataIdentity("a", {"train": 100, "validation": 20}, tuple("0123456789"))
AFTER = DataIdentity("b", {"train": 300, "validation": 20}, tuple("0123456789x"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A study of four trials that has ended."""
    path = tmp_path_factory.mktemp("ended") / "study"
    with SearchDriver.create(path, trivial.study(search__trials=4), images=BEFORE) as driver:
        run_in_process(driver, trivial.trainable)
    return path


@pytest.fixture
def path(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "study")


def test_an_edited_study_file_is_refused_with_its_differences(path):
    text = (path / STUDY).read_text()
    (path / STUDY).write_text(text.replace("epochs: 9", "epochs: 12").replace("eta: 3", "eta: 4"))
    before = (path / JOURNAL).read_bytes()
    with pytest.raises(StudyError, match="edited.*training.epochs: 9 -> 12.*search.eta: 3.0 -> 4"):
        SearchDriver.open(path)
    assert (path / JOURNAL).read_bytes() == before
    (path / STUDY).write_text(text.replace("trials: 4", "trials: 6"))
    with SearchDriver.open(path) as driver:
        run_in_process(driver, trivial.trainable)
    assert driver.finished == 6


def without_definition(path):
    """The study as version 0.1.0 left it, which wrote down no definition of symmetry accuracy."""
    kept = [line for line in (path / STUDY).read_text().splitlines(True) if "scored:" not in line]
    (path / STUDY).write_text("".join(kept))
    text = (path / JOURNAL).read_text().replace(',"scored":"others"', "")
    lines = [line for line in text.splitlines(True) if '{"symmetry_accuracy":' not in line]
    (path / JOURNAL).write_text("".join(lines))


def test_symmetry_accuracy_goes_on_as_a_study_began_it_and_the_study_says_so(path):
    assert study_attributes(path)["symmetry_accuracy"] == DEFINITIONS["others"]
    assert status(path)["note"] is None
    without_definition(path)
    with SearchDriver.open(path) as driver:
        assert driver.study.training_config(0).symmetry.scored == "unseen"
    assert study_attributes(path)["symmetry_accuracy"] == DEFINITIONS["unseen"]
    assert DEFINITIONS["unseen"] in status_lines(status(path))[-1]
    # a study file says none: that of the study is taken, not another one
    with SearchDriver.open(path, trivial.study(search__trials=9)) as driver:
        assert driver.study.symmetry.scored == "unseen" and driver.study.search.trials == 9


def test_the_definition_of_symmetry_accuracy_cannot_be_changed(path):
    text = (path / STUDY).read_text()
    (path / STUDY).write_text(text.replace("scored: others", "scored: unseen"))
    with pytest.raises(StudyError, match="symmetry.scored: others -> unseen"):
        SearchDriver.open(path)


def test_values_of_another_definition_do_not_warm_a_study_up(path, tmp_path):
    without_definition(path)
    with SearchDriver.create(tmp_path / "a", trivial.study(), warm_start=path):
        pass  # training saw upright images alone: both definitions give the same values
    (path / STUDY).write_text((path / STUDY).read_text().replace("mirror: false", "mirror: true"))
    with pytest.raises(StudyError, match="symmetry.scored: unseen -> others"):
        SearchDriver.create(tmp_path / "b", trivial.study(), warm_start=path)


def test_a_study_of_an_earlier_version_is_taken_as_it_is(path):
    lines = (path / JOURNAL).read_bytes().splitlines(keepends=True)
    old = [line for line in lines if b'"user_attr":{"study"' not in line]
    old = [line for line in old if b'"user_attr":{"data"' not in line]
    assert len(old) == len(lines) - 2
    (path / JOURNAL).write_bytes(b"".join(old))
    same = DataIdentity("b", {}, tuple("0123456789"))
    SearchDriver.open(path, look=lambda study: same).close()
    # from here on both are known
    with pytest.raises(StudyError, match="data of .* has changed"):
        SearchDriver.open(path, look=lambda study: BEFORE)
    (path / STUDY).write_text((path / STUDY).read_text().replace("epochs: 9", "epochs: 12"))
    with pytest.raises(StudyError, match="edited"):
        SearchDriver.open(path)


def test_changed_data_is_refused_or_begins_the_comparison_anew(path):
    before = (path / JOURNAL).read_bytes()
    with pytest.raises(StudyError, match="train images: 100 -> 300; new classes: x.*--accept-data"):
        SearchDriver.open(path, look=lambda study: AFTER)
    assert (path / JOURNAL).read_bytes() == before
    old = read_trials(path)
    with SearchDriver.open(path, look=lambda study: AFTER, accept_data=True) as driver:
        assert driver.finished == 0 and driver.classes == 11
        run_in_process(driver, trivial.trainable)
    records = read_trials(path)
    assert {r.state for r in records[: len(old)]} <= {"earlier", "refused"}
    assert sum(r.state in ("complete", "pruned") for r in records[len(old) :]) == 4
    assert all(r.number >= len(old) for r in front_members(trivial.study(), records))
    # what is on record now are the new images
    with SearchDriver.open(path, look=lambda study: AFTER) as driver:
        assert driver.finished == 4
    with pytest.raises(StudyError, match="gone: x"):
        SearchDriver.open(path, look=lambda study: BEFORE)


def test_images_that_were_overwritten_are_changed_data_though_all_sizes_are_as_before(path):
    before, after = replace(BEFORE, content="1"), replace(BEFORE, content="2")
    # a study of an earlier version does not know the content: it goes on, and writes it down
    for _ in range(2):
        with SearchDriver.open(path, look=lambda study: before) as driver:
            assert driver.finished == 4
    assert study_attributes(path)["data"] == before.as_dict()
    with pytest.raises(StudyError, match="the content of images.*--accept-data"):
        SearchDriver.open(path, look=lambda study: after)
    with SearchDriver.open(path, look=lambda study: after, accept_data=True) as driver:
        assert driver.finished == 0
    with SearchDriver.open(path, look=lambda study: BEFORE):  # an instrument that looks at less
        assert study_attributes(path)["data"]["fingerprint"] == "a"


def test_a_trial_that_was_training_on_the_old_data_does_not_go_on(tmp_path):
    path = tmp_path / "study"
    with SearchDriver.create(path, trivial.study(), images=BEFORE) as driver:
        begun, lost = driver.next(), driver.next()
        driver.report(begun.number, 1, trivial.scores(begun.architecture, 1))
        driver.finish(lost.number, "lost")  # it waits for another worker
    with SearchDriver.open(path, look=lambda study: AFTER, accept_data=True) as driver:
        assert driver.next().number not in (begun.number, lost.number)
    for number in (begun.number, lost.number):
        record = read_trials(path)[number]
        assert record.state == "earlier" and "data changed" in record.reason


def test_data_that_cannot_be_read_burns_no_trial(path):
    def missing(study):
        raise StudyError("the folder is not there")

    before = (path / JOURNAL).read_bytes()
    with pytest.raises(StudyError, match="not there"):
        SearchDriver.open(path, trivial.study(search__trials=9), look=missing)
    assert (path / JOURNAL).read_bytes() == before
    assert parse((path / STUDY).read_text()).search.trials == 4


@pytest.fixture
def pictures(tmp_path):
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for n in range(6):
            pixels = np.full((8, 8), n, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{n}.png")
    return tmp_path / "images"


def test_a_moved_folder_is_accepted_where_its_images_are_the_same(pictures, tmp_path):
    path = tmp_path / "study"
    study = parse(trivial.TEXT.replace("name: digits", f"folder: {pictures}"))
    SearchDriver.create(path, study, classes=2, images=images_of(study)).close()
    moved = pictures.rename(tmp_path / "moved")
    with pytest.raises(StudyError, match="data cannot be used"):
        open_driver(path, study)
    elsewhere = study.model_copy(update={"data": study.data.model_copy(update={"folder": moved})})
    with open_driver(path, elsewhere) as driver:
        assert driver.study.data.folder == moved
    assert str(moved) in (path / STUDY).read_text()
    open_driver(path, elsewhere).close()
    (moved / "a" / "0.png").unlink()
    with pytest.raises(StudyError, match="has changed"):
        open_driver(path, elsewhere)


def test_a_start_that_ended_early_holds_no_study(tmp_path, monkeypatch):
    path = tmp_path / "study"
    monkeypatch.setattr(
        "studies.search.driver.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        SearchDriver.create(path, trivial.study(), channels=3, classes=5)
    monkeypatch.undo()
    with pytest.raises(StudyError, match="holds no study"):
        SearchDriver.open(path)
    with SearchDriver.create(path, trivial.study(), channels=3, classes=5) as driver:
        assert driver.next().number == 0
    with SearchDriver.open(path) as driver:
        assert (driver.channels, driver.classes) == (3, 5)


def test_trials_without_a_study_file_are_not_overwritten(path):
    (path / STUDY).unlink()
    with pytest.raises(ExistsError, match="holds trials and a journal"):
        SearchDriver.create(path, trivial.study())


@pytest.mark.parametrize("left", [None, b"", b'{"op_code":0,"study_name":"equisearch"}\n'])
def test_a_journal_without_its_first_records_is_refused(path, left):
    (path / JOURNAL).unlink()
    if left is not None:
        (path / JOURNAL).write_bytes(left)
    with pytest.raises(StudyError, match=r"4 folders of trials.*equisearch repair"):
        SearchDriver.open(path)
    assert (path / JOURNAL).exists() == (left is not None)
    shutil.rmtree(path / "trials")
    with pytest.raises(StudyError, match="no trial.*start the study again"):
        SearchDriver.open(path)


def test_damaged_versions_are_a_warning(path):
    for text in ("", "{", "[]", "\x00"):
        (path / VERSIONS).write_text(text)
        with SearchDriver.open(path) as driver:
            assert any("versions.json is damaged" in warning for warning in driver.warnings)


@pytest.mark.parametrize("place", ["s3://bucket/x", "gs://bucket/x", "s3:/bucket", "", "  "])
def test_a_remote_store_and_no_name_are_no_directory(place):
    with pytest.raises(StudyError, match="remote store|no name"):
        require_place(place)


def test_a_front_says_how_many_trials_other_images_have_left_out(path, capsys):
    from studies.cli.search import front

    front(path)
    assert "left out" not in capsys.readouterr().err
    with SearchDriver.open(path, look=lambda study: AFTER, accept_data=True):
        pass
    front(path)
    assert "4 earlier trials (of a warm start, or of images that have changed" in (
        capsys.readouterr().err
    )
    assert "4 earlier" in "\n".join(status_lines(status(path)))


def test_a_start_says_which_widths_cannot_be_met(tmp_path):
    space = {"family": "steerable", "backbone": "1k3 *, 1k3", "group": ["C4"]}
    width = {"match": "params", "to": 100}
    study = parse("data: {name: digits}", overrides={"space": {**space, "width": width}})
    heard = []
    with new_driver(study, tmp_path / "study", note=heard.append):
        pass
    assert any(text.startswith("warning: space.width: networks of C4 at") for text in heard)


@pytest.mark.parametrize(
    "old,new",
    [
        ("  angles: 10", "  angles: 7"),
        ("  train: null", "  train: 1"),
        ("  learning_rate: 0.01", "  learning_rate: 1000.0"),
        ("  memory: null", "  memory: 100.0"),
        ("  batch_size: 128", "  batch_size: 1"),
    ],
)
def test_a_value_that_is_refused_today_hides_no_trial(path, capsys, old, new):
    from studies.cli import search

    before = [show_front(path), status(path)]
    text = (path / STUDY).read_text()
    (path / STUDY).write_text(text.replace(old, new))
    assert text.count(old) and [show_front(path), status(path)] == before
    for command in (search.trials, search.front, search.status, lambda path: search.show(path, 0)):
        command(path)
    assert "0" in capsys.readouterr().out
    with pytest.raises(StudyError, match="(?s)line .*equisearch trials .* start .* --set|edited"):
        SearchDriver.open(path)


def test_a_refused_value_that_may_change_is_changed_in_the_file(path):
    text = (path / STUDY).read_text()
    (path / STUDY).write_text(re.sub("  retries: .*", "  retries: -1", text))
    with pytest.raises(StudyError, match="retries: .*\n.*change it in .*then resume"):
        SearchDriver.open(path)
    (path / STUDY).write_text(text)
    SearchDriver.open(path).close()


def test_a_study_that_began_with_a_refused_value_does_not_go_on_with_another(path):
    journal = (path / JOURNAL).read_text()
    assert '"learning_rate":0.01' in journal
    (path / JOURNAL).write_text(journal.replace('"learning_rate":0.01', '"learning_rate":1e9'))
    with pytest.raises(StudyError, match="edited since .*learning_rate"):
        SearchDriver.open(path)


def show_front(path):
    return [record.number for record in front_members(*open_records(path, reading=True))]


@pytest.mark.parametrize(
    "wrong", ["objectives: [speed]\n", "unknown: 1\n", "search: 7\n", "a: [\n"]
)
def test_a_study_file_that_no_version_accepted_is_an_error(path, wrong):
    (path / STUDY).write_text(f"data: {{name: digits}}\n{wrong}\n")
    with pytest.raises(StudyError):
        open_records(path, reading=True)


def test_a_study_file_that_is_no_text_is_named(path):
    (path / STUDY).write_bytes(b"\xff\xfe" + (path / STUDY).read_bytes())
    for reading in (lambda: SearchDriver.open(path), lambda: open_records(path, reading=True)):
        with pytest.raises(StudyError, match=f"{STUDY} is not a text file in UTF-8"):
            reading()
