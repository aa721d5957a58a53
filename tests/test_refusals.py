"""What `start`, `train`, `record`, `retrain`, `export` and figures refuse: before they read images
or train, and without a file left behind.
"""

import errno
import os
import re
import tempfile
from pathlib import Path

import pytest
from test_cli import run  # noqa: F401  # a fixture

from searchspace.architecture import Architecture
from searchspace.cost import cost
from studies.cli import main
from studies.config import load_study, parse
from studies.errors import StudyError
from studies.journal.directory import require_writable_place
from studies.replays.record import require_table_file
from studies.results import reproduce
from studies.results.measure_trial import measure_subject
from studies.results.train_one import train_one
from studies.search.assignments import Assignment
from studies.workers import launch
from studies.workers.jobs import JobDriver, run_assignments
from support.study_files import TINY
from trainers.figures import require_figure
from trainers.files import require_writable

REFUSED = {
    "constraints.params: 1": {"constraints.params": 1},
    "constraints.macs: 1": {"constraints.macs": 1},
    "constraints under ehvi": {"constraints.params": 1, "space.input_size": [8, 9, 10, 11]},
    "no folder": {"data": {"folder": "nothere"}},
    "too many images": {"data.train": 10**6},
    "another device": {"training.device": "cuda:7"},
    "a batch above the images": {"training.batch_size": 10**6},
    "shifts beyond the image": {"training.augment": {"shift": 100}},
    "first does not fit": {"search.first": ["8px: 4k9p0"]},
    "first breaks a limit": {"search.first": ["8px: 90k3, 9k3"], "constraints.params": 600},
    "more cores than there are": {"resources.workers": 10**6},
    "a card that is not here": {"resources.gpus_per_trial": 1},
    "weights without classes": {"training.class_weights": {"no such class": 2.0}},
    "another task": {"data.task": "regression"},
    "a name of no data": {"data.name": "mnist", "data.root": "/nothere"},
    "more pixels than memory": {"space.input_size": [8, 10**7]},
}


@pytest.fixture(autouse=True)
def few_proposals(monkeypatch):
    monkeypatch.setattr("studies.search.driver.REFUSALS_IN_A_ROW", 3)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_no_directory(case, tmp_path):
    place, heard = tmp_path / "new" / "study", []
    with pytest.raises((StudyError, ValueError, OSError)) as caught:
        study = parse(TINY, overrides=REFUSED[case], beside=tmp_path)
        launch.new_driver(study, place, note=heard.append).close()
    assert 0 < len(str(caught.value)) < 1000
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, says",
    [
        ("8px: 2k3@C4+D1, 2k3", "not a proper subgroup of C4"),
        ("8px: 2k3@C4b0, 2k3", "has 0 banks"),
        ("8px: 2k3@C4~1.5, 2k3", "softness is 1.5"),
        ("8x10px: 2k3 orbit=C4", "do not keep the shape of images of 8x10 px"),
        ("8px: 2k3@C4 &", "joins nothing"),
        ("8px: 2k3@C4+C1, 2k3 gamma=dual+triangle", "one thing alone can govern gamma"),
        ("8px: 2k3@C4+C1, 2k3 gamma=triangle", "needs 2 epochs, and the training has 1"),
    ],
)
def test_soft_choices_that_cannot_be_are_one_message_of_every_command(text, says, tmp_path, run):
    study = tmp_path / "study.yaml"
    study.write_text(TINY.replace("epochs: 2", "epochs: 1"))
    place = tmp_path / "new"
    first = f"search.first={[text]}"
    commands = [("start", study, place, "--dry-run", "--set", first), ("train", study, text)]
    if "epochs" not in says:  # which an architecture alone does not have
        commands.append(("check", text))
    for words in commands:
        refused = run(*words)
        (line,) = [line for line in refused.err.splitlines() if line.startswith("error: ")]
        assert refused.status == 1 and says in line and "Traceback" not in refused.err
        assert "epoch 1 of" not in refused.err and not place.exists()


@pytest.mark.parametrize("optimizer, count", [("adam", 7), ("sgd", 5)])
def test_a_network_that_no_memory_holds_is_refused_before_it_is_built(
    tmp_path, monkeypatch, optimizer, count
):
    settings = {"training.optimizer": optimizer, "search.first": ["8px: 30k3, 30k3"]}
    study = parse(TINY, overrides=settings)
    params = cost(Architecture.parse("8px: 30k3, 30k3"), 1, 10).params
    monkeypatch.setattr("studies.search.proposals.machine_memory", lambda: 4 * count * params - 1)
    with pytest.raises(StudyError, match=f"{params:,} parameters take .* and this machine has"):
        launch.new_driver(study, tmp_path / "study", probe=False)
    monkeypatch.setattr("studies.search.proposals.machine_memory", lambda: 4 * count * params)
    launch.new_driver(study, tmp_path / "study", probe=False).close()
    monkeypatch.setattr("studies.search.proposals.machine_memory", lambda: 9)
    with pytest.raises(StudyError, match="no architecture of the space can be trained; .* GB or"):
        launch.new_driver(parse(TINY), tmp_path / "other", probe=False)


def test_a_space_in_which_nothing_fits_says_what_to_change(tmp_path):
    study = parse(TINY, overrides={"constraints.params": 1})
    with pytest.raises(StudyError, match="params exceed the limit of 1; change `space` or"):
        launch.prepare(study, tmp_path / "study", probe=False)


def test_a_space_in_which_few_networks_fit_begins(tmp_path, monkeypatch):
    """Where no draft fits, the sampler itself is asked."""
    monkeypatch.setattr(launch, "MOST_DRAFTS", 0)
    with launch.new_driver(parse(TINY), tmp_path / "study", probe=False) as driver:
        assert driver.next() is not None
    assert sorted(os.listdir(tmp_path)) == ["study"]


def impossible(tmp_path):
    """Places where no folder can be made."""
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    return {
        tmp_path / "file": "is a file",
        tmp_path / "file" / "below": "Not a directory",
        tmp_path / "dangling": "Not a directory",
        tmp_path / ("a" * 300): "File name too long",
        Path("/dev/null/x"): "Not a directory",
        Path("/proc/no/such"): "No such file or directory",
    }


def test_a_place_where_nothing_can_be_written_is_refused_before_images_are_read(
    tmp_path, monkeypatch
):
    def read(*_: object, **__: object) -> None:
        pytest.fail("images were read")

    monkeypatch.setattr(launch, "_with_task", read)
    monkeypatch.setattr("studies.results.train_one.with_task", read)
    study = parse(TINY)
    for place, why in impossible(tmp_path).items():
        with pytest.raises(StudyError, match=why):
            launch.prepare(study, place)
        with pytest.raises(StudyError, match=why):
            train_one(study, None, out=place)  # before it looks at the architecture
    for place in ("/dev/null/x.json.gz", "/proc/x.json.gz", tmp_path):
        with pytest.raises(StudyError, match="cannot be written|is not a folder|is a folder"):
            require_table_file(Path(place))
    for place in ("/dev/null/x.png", tmp_path / "file" / "x.png", "/proc/x.svg"):
        with pytest.raises(OSError, match="figure cannot be written.*give another place"):
            measure_subject("none:0", figure=Path(place))


def test_looking_whether_a_place_can_be_written_leaves_nothing(tmp_path):
    require_writable(tmp_path / "a" / "b" / "c")
    require_writable_place(tmp_path)
    require_figure(tmp_path / "new" / "x.png")
    assert not any(tmp_path.iterdir())
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        require_figure(tmp_path / "x.png")


def test_a_folder_of_another_account_is_refused(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # no mode forbids root anything
    with pytest.raises(StudyError, match="Permission denied.*this account may write"):
        require_writable_place(tmp_path / "study")


@pytest.mark.parametrize("rungs, epochs", [("[2, 999999]", 18), ("[1, 3]", 2), ("[5]", 2)])
def test_rungs_beyond_the_epochs_are_refused(rungs, epochs, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"data: {{name: digits}}\ntraining: {{epochs: {epochs}}}\n")
    with pytest.raises(StudyError, match=f"a training has {epochs}; leave out what is beyond"):
        load_study(path, {"search.rungs": eval(rungs)})
    path.write_text(path.read_text() + f"search: {{rungs: {rungs}}}\n")
    with pytest.raises(StudyError, match=f"rungs are at epochs {re.escape(rungs.strip('[]'))}"):
        load_study(path)


def test_rungs_beyond_shortened_epochs_are_left_out_aloud(tmp_path):
    path, heard = tmp_path / "s.yaml", []
    path.write_text(TINY.replace("epochs: 2", "epochs: 9").replace("[1]", "[1, 3, 9]"))
    study = load_study(path, {"training.epochs": 2})
    launch.new_driver(study, tmp_path / "study", note=heard.append).close()
    assert "search.rungs: left out, since a training has 2 epochs: 3, 9" in heard
    again = load_study(tmp_path / "study" / "study.yaml")
    assert again.search.rungs == (1,) and again.rungs == (1, 2)


def test_a_reproduction_without_its_images_leaves_no_folder(tmp_path):
    study = reproduce.study_of("upright", root=str(tmp_path / "none"), epochs=1, test=None)
    with pytest.raises(StudyError, match="mnist_t10k is not in"):
        reproduce.shift_folder("upright", tmp_path / "new", study)
    assert not any(tmp_path.iterdir())


def test_a_folder_in_place_of_a_study_file_says_which_file_is_meant(tmp_path):
    with pytest.raises(StudyError, match="is a folder, .*`equisearch presets folder` prints one"):
        load_study(tmp_path)
    (tmp_path / "study.yaml").write_text(TINY)
    with pytest.raises(StudyError, match=r"study's directory; its study file is .*/study\.yaml"):
        load_study(tmp_path)


def test_trainings_without_memory_say_so(tmp_path):
    """As `retrain` runs them, where memory is short twice."""

    def without_memory(study, assignment, report):
        raise MemoryError

    jobs = [Assignment(0, "8px: 2k3", None, 1, 2, str(tmp_path / "job"))]
    driver = JobDriver(parse(TINY), tmp_path, jobs, on_done=lambda number: None)
    with pytest.raises(StudyError) as caught:
        run_assignments(driver, without_memory, lambda number: "trial 3, seed 1")
    assert str(caught.value).startswith(
        "trial 3, seed 1: out of memory even with half the batch: MemoryError; end other programs"
    )


def nested_in_words_of_ours():
    try:
        raise OSError(errno.EFBIG, "File too large", "model.pt")
    except OSError as error:
        raise ValueError("the bundle could not be written") from error


def with_too_many_files():
    raise OSError(errno.EMFILE, "Too many open files", "some.py")


@pytest.mark.parametrize(
    "fault, said",
    [
        (nested_in_words_of_ours, "error: no space is left for model.pt (File too large): free"),
        (with_too_many_files, "error: Too many open files (at some.py): raise the limit on open"),
    ],
)
def test_what_a_system_lacks_is_said_once_with_its_remedy(fault, said, monkeypatch, capsys):
    monkeypatch.setattr(main, "application", lambda words: lambda **options: fault())
    assert main._status(debug=False) == 1
    assert capsys.readouterr().err.startswith(said)
