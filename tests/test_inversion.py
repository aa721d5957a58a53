"""Parameters of given candidates: samplers learn from architectures that did not come from them."""

from __future__ import annotations

import numpy
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.search_space import intersection_search_space

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import load_study
from studies.journal.reader import read_trials
from studies.samplers.evolution import SubgroupEvolution
from studies.samplers.inversion import parameters_of
from studies.samplers.planned import Draft
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

STUDIES = {
    "trivial": trivial.study(),
    "restricted": trivial.study(
        space__group=["C4", "D4"],
        space__restrict={"after": ["none", 1, 3], "to": ["C1", "C2"]},
        space__head=["group_max", "group_mean"],
        space__learning_rate={"low": 0.001, "high": 0.1, "log": True},
        space__backbone=["4k3, 4k3 *, 4k3, 4k3", "4k3 *, 4k3 *, 4k3, 4k3"],
        space__size_by="pixels",
    ),
    "dropout": trivial.study(
        space__backbone=["4k3drop0.5, 4k3 *, 4k3", "4k3, 4k3 *, 4k3drop0.5, 4k3"],
        space__dropout={"kind": ["none", "values", "fields"], "rate": {"low": 0.1, "high": 0.5}},
    ),
    "relaxed": trivial.study(
        space__group=["C2", "D4"],
        space__restrict={"after": ["none", 2], "to": ["C1", "C2"]},
        space__relaxation=["none", "+C1", "|C4|C1", "b2", "~0.3"],
        space__gamma=["fixed:1", "dual", "triangle"],
    ),
    "quickstart": load_study("quickstart"),
}


def sampled(study, trial):
    return study.space.sample(trial, declared=Group.parse(study.symmetry.group))


@pytest.mark.parametrize("name", STUDIES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_parameters_of_a_sampled_candidate_give_it_again(name, seed):
    study = STUDIES[name]
    candidate = sampled(study, Draft({}, numpy.random.default_rng(seed)))
    parameters = parameters_of(study, candidate)
    assert parameters is not None
    again = Draft(parameters, numpy.random.default_rng(seed + 1))
    assert sampled(study, again) == candidate and again.params == parameters


@pytest.mark.parametrize(
    "text",
    [
        "28px: 9k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3",  # another width
        "28px: 10k3@C8, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3",  # another group
        "34px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3",  # another size
        "29px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3 loss=latent:0.1",
        "29px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3 loss=layerwise:0.12345",
    ],
)
def test_what_lies_outside_the_space_has_no_parameters(text):
    assert parameters_of(trivial.study(), Candidate.parse(text)) is None


def test_a_candidate_without_the_loss_that_its_space_always_has_lies_outside():
    """Its weight was asked for: a KeyError before the first trial."""
    loss = {"kind": ["layerwise"], "weight": {"low": 0.01, "high": 10, "log": True}}
    study = trivial.study(space__equivariance_loss=loss, space__input_size=29)
    text = "29px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3"
    assert parameters_of(study, Candidate.parse(text)) is None
    assert parameters_of(study, Candidate.parse(f"{text} loss=layerwise:0.1")) is not None


def test_a_size_between_the_steps_lies_outside_the_space():
    study = trivial.study(space__input_size={"low": 25, "high": 33, "step": 4})
    inside = {
        size: parameters_of(study, Candidate.parse(f"{size}px: 10k3, 10k3 max2/2" + 5 * ", 10k3"))
        for size in range(23, 38)
    }
    assert [size for size, found in inside.items() if found is not None] == [25, 29, 33]


FIRST = [
    "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k3",
    "29px: 10k3, 10k3 max3/2, 10k3, 10k3, 10k3, 10k3, 10k3",
]


def test_samplers_learn_from_what_a_study_tries_first(tmp_path):
    """`search.first` is tried first whoever starts the study, and its trials have parameters: they
    leave a search space to Optuna's relative samplers, and are parents of evolution.
    """
    study = trivial.study(search__first=FIRST, search__trials=2, search__rungs=[])
    with SearchDriver.create(tmp_path / "study", study) as driver:
        run_in_process(driver, trivial.trainable)
    records = read_trials(tmp_path / "study", parameters=True)
    assert [record.architecture for record in records] == FIRST
    assert records[0].parameters["group"] == "C4" and records[1].parameters["layout"] == "max3/2"
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study" / "optuna.journal"))
    )
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert set(intersection_search_space(trials)) >= {"family", "layout"}
    child = SubgroupEvolution(study).plan(trials[:1], numpy.random.default_rng(0))
    assert set(child) == set(trials[0].params)


@pytest.mark.parametrize("preset", ["quickstart", "mnist", "folder"])
def test_what_presets_try_first_lies_in_their_spaces(preset):
    study = load_study(preset, {"data.folder": "."} if preset == "folder" else {})
    assert study.search.first
    for text in study.search.first:
        assert parameters_of(study, Candidate.parse(text)) is not None, text
