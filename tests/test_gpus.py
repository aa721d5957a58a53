"""How trials share GPUs: as many trials as cores can feed, each given its share, and none where
the study says so.
"""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from studies.errors import StudyError
from studies.journal.reader import read_trials
from studies.search.driver import SearchDriver
from studies.workers.executors import RunEnding, run_in_process
from studies.workers.forecast import default_workers
from studies.workers.gpu_share import gpus_of_trial
from studies.workers.local_ray import local_ray
from studies.workers.ray_executor import run_on_ray
from support import trivial
from trainers import devices

ONE_OF_16 = {"CPU": 16.0, "GPU": 1.0}


@pytest.mark.parametrize(
    "nodes, overrides, expected",
    [
        ([{"CPU": 2.0}], {}, 0),
        # eight, though there are cores for sixteen
        ([ONE_OF_16], {}, 0.125),
        ([{"CPU": 4.0, "GPU": 1.0}], {}, 0.25),
        ([{"CPU": 16.0, "GPU": 3.0}], {}, 0.1875),
        ([{"CPU": 3.0, "GPU": 1.0}], {}, 0.3333),  # three of which fit on one
        ([{"CPU": 4.0, "GPU": 8.0}], {}, 1),
        ([ONE_OF_16, {"CPU": 64.0}, {"CPU": 2.0, "GPU": 1.0}], {}, 0.125),
        ([ONE_OF_16], {"resources__cpus_per_trial": 8}, 0.5),
        ([ONE_OF_16], {"resources__cpus_per_trial": 0}, 0.125),
        ([ONE_OF_16], {"training__device": "cpu"}, 0),
        ([ONE_OF_16], {"resources__gpus_per_trial": 0}, 0),
        ([ONE_OF_16], {"resources__gpus_per_trial": 0.7}, 0.7),
        # which no node has, as is said then
        ([{"CPU": 2.0}], {"resources__gpus_per_trial": 1}, 1),
    ],
)
def test_the_share_of_a_gpu(nodes, overrides, expected):
    assert gpus_of_trial(trivial.study(**overrides), nodes) == expected


@pytest.mark.parametrize(
    "value, why",
    [
        (2, "a trial trains on one GPU: the others would stand idle"),
        (1.5, "give a share of one GPU, up to 1, and more workers"),
        ("lots", "it must be auto, 0, or a share"),
        (-1, "it must be auto, 0"),
        (True, "it must be a number or text"),
    ],
)
def test_what_is_no_share_of_a_gpu_is_refused(value, why):
    with pytest.raises((ValidationError, StudyError), match=why):
        trivial.study(resources__gpus_per_trial=value)


@pytest.mark.parametrize(
    "overrides, device",
    [
        ({}, "auto"),
        ({"resources__gpus_per_trial": 0}, "cpu"),
        ({"resources__gpus_per_trial": 0.5}, "auto"),
        ({"resources__gpus_per_trial": 0, "training__device": "cuda"}, "cuda"),
    ],
)
def test_without_a_gpu_trials_train_on_the_cpu(overrides, device):
    assert trivial.study(**overrides).trial_training.device == device


def notes_gpus(study, assignment, report):
    (Path(assignment.directory) / "gpus").write_text(
        f"{study.resources.gpus_per_trial} {os.environ.get('CUDA_VISIBLE_DEVICES')}"
    )
    trivial.trainable(study, assignment, report)


@pytest.fixture
def with_a_gpu():
    """Ray on a machine of four cores that it believes to have a GPU."""
    with local_ray(num_cpus=4, num_gpus=1):
        yield


def test_workers_share_the_gpu_that_is_there(tmp_path, with_a_gpu, monkeypatch):
    monkeypatch.setattr("studies.workers.ray_executor.PATIENCE_FOR_NODES", 0)
    study = trivial.study(resources__workers="auto", search__trials=4)
    with SearchDriver.create(tmp_path / "study", study) as driver:
        assert run_on_ray(driver, notes_gpus) == RunEnding("trials")
        done = read_trials(driver.directory)
    assert {
        (tmp_path / "study" / "trials" / f"{record.number:05d}" / "gpus").read_text()
        for record in done
    } == {"0.25 0"}
    with SearchDriver.create(
        tmp_path / "other",
        trivial.study(resources__gpus_per_trial=1, resources__cpus_per_trial=5, search__trials=1),
    ) as driver:
        with pytest.raises(StudyError, match="a trial needs 5 CPU, 1 GPU, and no node has that"):
            run_on_ray(driver, notes_gpus)


def test_a_trial_in_this_process_has_all_gpus(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study(search__trials=1)) as driver:
        run_in_process(driver, notes_gpus)
    assert (tmp_path / "study" / "trials" / "00000" / "gpus").read_text().startswith("auto ")


@pytest.mark.parametrize(
    "gpus, overrides, expected",
    [
        (0, {}, 64),
        (2, {}, 16),
        (16, {}, 64),
        (2, {"resources__cpus_per_trial": 8}, 8),
        (2, {"resources__gpus_per_trial": 0}, 64),
        (2, {"training__device": "cpu"}, 64),
    ],
)
def test_trainings_outside_a_search_share_gpus_as_well(monkeypatch, gpus, overrides, expected):
    monkeypatch.setattr("studies.workers.forecast.available_cores", lambda: 64)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: gpus)
    assert default_workers(trivial.study(**overrides)) == expected
