"""Children by relaxation: they begin with their parents' weights, pay for what they train, are
proposed alike after a kill, and the journal says from whom they inherit.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_cli import run  # noqa: F401  # a fixture

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from studies.config import parse
from studies.errors import StudyError, StudyFileError
from studies.journal.reader import read_trials
from studies.results.measure_trial import _control
from studies.search.driver import SearchDriver
from studies.search.inheritance import taken_up
from studies.workers.executors import run_in_process
from support import trivial
from trainers.networks.relaxing import require_relaxation

SEARCH = {
    "search__sampler": "evolution",
    "search__startup": 4,
    "search__trials": 24,
    "space__head": "group_mean",
}
DIGITS = """
data: {name: digits, train: 120, validation: 60}
training: {epochs: 3, batch_size: 40, device: cpu}
symmetry: {group: C4}
space: {backbone: "4k3, 4k3 *", layout: max2/2, input_size: 12, group: C4, head: group_mean}
search: {trials: 1, rungs: [1], first: "12px: 4k3@C4, 4k3 max2/2 head=group_mean"}
resources: {workers: 1}
"""


class Report:
    """What a worker of these tests reports to; it dies after `dies` heartbeats."""

    def __init__(self, driver, number, dies=None):
        self._driver, self._number, self._dies = driver, number, dies

    def __call__(self, scores):
        self.decision = self._driver.report(self._number, scores["epoch"], scores)
        return self.decision

    def heartbeat(self, epoch):
        self._driver.heartbeat(self._number, epoch)
        if self._dies is not None and epoch >= self._dies:
            raise KeyboardInterrupt


def search(path, *, killed=False, **options):
    """The records of a trivial study that inherits; `killed`: its driver dies in every third trial
    and is opened again.
    """
    study = trivial.study(**SEARCH, search__inherit=True, **options)
    driver, given = SearchDriver.create(path, study), 0
    while (assignment := driver.next()) is not None:
        given += 1
        report = Report(driver, assignment.number, dies=7 if killed and given % 3 == 0 else None)
        try:
            trivial.trainable(study, assignment, report)
        except KeyboardInterrupt:
            driver.close()
            driver = SearchDriver.open(path)
            continue
        driver.finish(assignment.number, "pruned" if report.decision == "stop" else "complete")
    driver.close()
    return read_trials(path, parameters=True)


def test_evolution_makes_children_that_relax_a_parent_and_train_the_last_third(tmp_path):
    records = search(tmp_path / "study")
    children = [r for r in records if r.inherited_from is not None and r.state != "refused"]
    assert len(children) >= 5
    for child in children:
        parent = records[child.inherited_from]
        assert parent.number < child.number and parent.state == "complete"
        before, after = (Architecture.parse(r.architecture) for r in (parent, child))
        assert before != after
        require_relaxation(before, after)
        assert (
            Candidate.parse(child.architecture).recipe
            == Candidate.parse(parent.architecture).recipe
        )
        folder = tmp_path / "study" / "trials" / f"{child.number:05d}"
        assert (folder / "epochs.txt").read_text().split() == ["7", "8", "9"]
        assert json.loads((folder / "trial.json").read_text())["inherited_from"] == parent.number
        assert list(child.rungs) == [9] and child.key.endswith(f"inherited_from={parent.number}")
    assert len({child.key for child in children}) == len(children)


def test_children_get_the_pathways_and_the_governors_of_the_space(tmp_path):
    soft = {"space__relaxation": ["none", "+C1"], "space__gamma": ["dual", "triangle"]}
    records = search(tmp_path / "study", killed=True, **soft)
    children = [r for r in records if r.inherited_from is not None and r.state == "complete"]
    given = []
    for child in children:
        before = Candidate.parse(records[child.inherited_from].architecture)
        after = Candidate.parse(child.architecture)
        require_relaxation(before.architecture, after.architecture)
        assert not before.architecture.softened
        given += [after] if after.architecture.softened else []
        folder = tmp_path / "study" / "trials" / f"{child.number:05d}"
        assert (folder / "epochs.txt").read_text().split() == ["7", "8", "9"]
    assert given and all(str(c.recipe.gamma) == "dual" for c in given)
    assert any(c.architecture.stages[0].relaxation is None for c in given)  # from a later stage on


def test_a_study_that_is_killed_again_and_again_makes_the_same_children(tmp_path):
    whole, killed = search(tmp_path / "whole"), search(tmp_path / "killed", killed=True)
    assert [(r.architecture, r.inherited_from, r.parameters, r.values) for r in whole] == [
        (r.architecture, r.inherited_from, r.parameters, r.values) for r in killed
    ]


def test_without_inherit_nothing_is_inherited_and_proposals_are_as_before(tmp_path):
    study = trivial.study(**SEARCH)
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_in_process(driver, trivial.trainable)
    assert not any("inherited_from" in r.attributes for r in read_trials(tmp_path / "study"))


def test_a_child_whose_parents_are_gone_is_not_proposed(tmp_path):
    study = trivial.study(**SEARCH, search__inherit=True)
    with SearchDriver.create(tmp_path / "study", study) as driver:

        def forgetting(study, assignment, report):
            trivial.trainable(study, assignment, report)
            Path(assignment.directory, "checkpoint.pt").unlink()

        run_in_process(driver, forgetting)
    assert not any("inherited_from" in r.attributes for r in read_trials(tmp_path / "study"))


@pytest.mark.parametrize("epochs,first", [(None, 6), (1, 8), (9, 0)])
def test_the_epochs_of_a_child(epochs, first):
    assert taken_up(trivial.study(), epochs) == first


def test_inherit_needs_a_sampler_with_parents():
    with pytest.raises(StudyFileError, match="only evolution has parents"):
        trivial.study(search__inherit=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study with one trained trial."""
    path = tmp_path_factory.mktemp("inheriting") / "study"
    with SearchDriver.create(path, parse(DIGITS)) as driver:
        run_in_process(driver)
    return path


def test_a_trial_is_relaxed_trained_and_said_by_every_table(tmp_path, trained, run):
    path = tmp_path / "study"
    shutil.copytree(trained, path)
    made = run("relax", path, 0, "--stage", 2, "--to", "C2", "--epochs", 1, "--format", "json")
    assert made.status == 0 and made.json == {
        "trial": 1,
        "architecture": "12px: 4k3@C4, 8k3@C2 max2/2 head=group_mean",
        "inherited_from": 0,
        "inherited_epoch": 2,
        "epochs": 1,
    }
    assert run("resume", path, "--trials", 2, "--quiet").status == 0
    parent, child = read_trials(path)
    assert child.state == "complete" and child.scores["epoch"] == 3
    assert child.scores["params"] > parent.scores["params"]
    folder = path / "trials" / "00001"
    history = torch.load(folder / "checkpoint.pt", weights_only=True)["history"]
    assert [row["epoch"] for row in history] == [3]  # the only one that it pays
    assert child.parameters == {} and child.attributes["in_space"] is False
    assert "[inherits trial 0]" in run("trials", path).out
    shown = run("show", path, 1)
    assert "began with the weights of trial 0, relaxed, after epoch 2 of the schedule" in shown.out
    row = run("trials", path, "--format", "json").json[1]
    assert (row["inherited_from"], row["inherited_epoch"]) == (0, 2)
    beside = run("relax", path, 0, "--stage", 1, "--to", "C2", "--pathway", "--format", "json")
    text = "12px: 4k3@C4+C2, 4k3 max2/2 head=group_mean"
    assert beside.json["architecture"] == text
    assert run("trials", path, "--format", "json").json[2]["architecture"] == text
    assert f"trial 2: waiting\n  {text}, not begun\n  began" in run("show", path, 2).out
    grandchild = run("relax", path, 1, "--stage", 1, "--to", "C1")
    assert "trial 3 waits: 12px: 16k3, 16k3 max2/2" in grandchild.out
    assert "weights of trial 1 and trains the last 1 epoch of the schedule" in grandchild.out


@pytest.mark.parametrize(
    "words,message",
    [
        ((0, "--stage", 2, "--to", "D1"), "D1 is not a proper subgroup of C4"),
        ((0, "--stage", 3, "--to", "C1"), "stages 1 to 2"),
        ((0, "--stage", 2, "--to", "C3"), "not a proper subgroup"),
        ((0, "--stage", 2, "--to", "X"), "there is no group 'X'"),
        ((0, "--stage", 2, "--to", "C1", "--epochs", 4), "choose 1 to 3"),
        ((7, "--stage", 2, "--to", "C1"), "there is no trial 7"),
    ],
)
def test_what_cannot_be_inherited_is_one_message(trained, run, words, message):
    done = run("relax", trained, *words)
    assert (
        done.status == (2 if words[-1] == "X" else 1)
        and message in done.err
        and "Traceback" not in done.err
    )
    assert len(read_trials(trained)) == 1


def test_a_trial_without_weights_or_of_other_channels_is_refused(tmp_path, trained, run):
    path = tmp_path / "study"
    shutil.copytree(trained, path)
    file = path / "trials" / "00000" / "checkpoint.pt"
    content = torch.load(file, weights_only=True)
    content["network"]["stages.0.0.convolutions.0.filters"] = torch.zeros(12, 9)
    torch.save(content, file)
    done = run("relax", path, 0, "--stage", 2, "--to", "C1")
    assert done.status == 1 and "trial 0 cannot be loaded" in done.err
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        file.with_name(name).unlink()
    done = run("relax", path, 0, "--stage", 2, "--to", "C1")
    assert done.status == 1 and "trial 0 has no checkpoint" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("relax", "{}", 0, "--stage", 2, "--to", "C1"),
        ("soften", "{}", 0),
        ("measure", "{}:0"),
        ("export", "{}", 0),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("torn, epoch", [("checkpoint*.pt", 0), ("checkpoint.pt", 2)])
def test_a_network_whose_checkpoints_are_torn_is_not_taken_for_a_trained_one(
    tmp_path, trained, run, words, torn, epoch
):
    path = tmp_path / "study"
    shutil.copytree(trained, path)
    for file in (path / "trials" / "00000").glob(torn):
        file.write_bytes(file.read_bytes()[:100])
    done = run(*(str(word).format(path) for word in words))
    assert done.status == 1 and "trial 0 cannot be loaded" in done.err
    assert f"is of epoch {epoch}, its scores are of epoch 3 (torn" in done.err


def test_a_child_whose_parent_was_lost_fails_with_the_reason(tmp_path, trained, run):
    path = tmp_path / "study"
    shutil.copytree(trained, path)
    assert run("relax", path, 0, "--stage", 2, "--to", "C1").status == 0
    shutil.rmtree(path / "trials" / "00000")
    run("resume", path, "--trials", 2, "--quiet")
    child = read_trials(path)[1]
    assert child.state == "failed" and "whose weights are inherited" in child.reason


def test_the_control_of_the_merge_barrier_is_another_training_of_the_architecture(trained):
    assert _control(f"{trained}:0", None) is None  # inherited weights are not independent
    named = _control(f"{trained}:0", f"{trained}:0")
    assert str(named.architecture) == read_trials(trained)[0].architecture
    with pytest.raises(StudyError, match="'elsewhere' is not a trial"):
        _control(f"{trained}:0", "elsewhere")
