"""Training and scoring on a GPU, on a mock: nothing is forgotten on the CPU, and
steps wait for nothing.
"""

import tempfile
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from searchspace.architecture import Architecture
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.results.retrain_job import Job, run_job
from studies.search.assignments import Assignment, LeaveError
from studies.workers.worker import run_trial
from support import trivial
from support.mock_gpu import device, mocked, process_with_mock
from trainers.instruments import measure as measurement_module
from trainers.instruments.measure import measure
from trainers.networks.networks import build
from trainers.settings import Augment, Data, Normal, Symmetry, Training
from trainers.training import train as training_module
from trainers.training.config import TrainingConfig
from trainers.training.cuda_graph import GraphedStep
from trainers.training.train import train

DIGITS = Data(name="digits", train=120, validation=60)
FREE = "12px: 4k3@C4, 4k3r max2/2, 4k3"


def trained_as(text, settings, folder, epochs):
    """The scores of the candidate of `text`, trained under its own recipe."""
    candidate = Candidate.parse(text)
    return train(candidate.architecture, replace(settings, recipe=candidate.recipe), folder, epochs)


def config(augment=Augment(), group="D4", **training):
    defaults = {
        "epochs": 2,
        "batch_size": 50,
        "precision": "float32",
        "augment": augment,
        "cuda_graphs": False,
    }
    return TrainingConfig(
        DIGITS, Training(**{**defaults, **training}), Symmetry(group=group), seed=3
    )


@pytest.fixture(scope="module")
def process():
    with process_with_mock() as process:
        yield process


def trained(text, settings, folder):
    """Scores of a training on the mock device, as a dict, and what passed to and from it."""
    with pytest.MonkeyPatch.context() as patched, mocked() as crossings:
        patched.setattr(training_module, "pick_device", lambda name: device())
        return asdict(trained_as(text, settings, folder, settings.training.epochs)), crossings


@pytest.mark.parametrize(
    "text, group, augment",
    [
        (FREE, "D4", Augment(rotation="group", shift=1)),
        (
            "12px: 4k3@D4, 4k3 conv3/2p1, 4k3@C2 filters=basis loss=latent:1",
            "D4",
            Augment(rotation="uniform", mirror=True),
        ),
        (
            "12px: 8k3, 8k3 blur/2, 8k5 loss=layerwise:1 head=none",
            "C8",
            Augment(rotation=Normal(normal=(45, 20))),
        ),
        (
            "12px: 2k3@C8, 2k3 avg2/2, 2k3 filters=basis loss=label:1 head=group_mean",
            "C8",
            Augment(rotation="group"),
        ),
    ],
)
def test_training_on_a_gpu_gives_the_scores_of_the_cpu(tmp_path, process, text, group, augment):
    settings = config(augment, group)
    expected = trained_as(text, settings, tmp_path / "cpu", 2)
    scores, _ = process.submit(trained, text, settings, tmp_path / "gpu").result()
    for name, value in asdict(expected).items():
        if name not in ("seconds", "latency") and value is not None:
            assert scores[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def retrained(text, settings, folder, on_gpu):
    """What a retraining reports, on the mock device or the CPU."""
    study = Study(data=settings.data, training=settings.training, symmetry=settings.symmetry)
    with pytest.MonkeyPatch.context() as patched, mocked() if on_gpu else nullcontext():
        patched.setattr(
            training_module,
            "pick_device",
            lambda name: device() if on_gpu else torch.device("cpu"),
        )
        return run_job(Job("trial 1", text, 1, None, str(folder)), study)


def test_a_retraining_on_a_gpu_tests_there_too(tmp_path, process):
    here = retrained(FREE, config(), tmp_path / "cpu", False)
    there = process.submit(retrained, FREE, config(), tmp_path / "gpu", True).result()
    assert (
        there["accuracy_by_angle"] == pytest.approx(here["accuracy_by_angle"], abs=0.02)
        and there["num_test"] == here["num_test"]
    )
    assert (
        there["test"]["accuracy"] == pytest.approx(here["test"]["accuracy"], abs=0.02)
        and there["test"]["latency"] > 0
    )


def measured(text, group, on_gpu):
    """Instruments on an untrained network and images that lie on the CPU; not the Lie derivative,
    whose duals the mock device cannot hold.
    """
    with pytest.MonkeyPatch.context() as patched, mocked() if on_gpu else nullcontext():
        patched.setattr(measurement_module, "lie_derivatives", lambda *arguments, **options: ())
        network = build(Architecture.parse(text), channels=1, classes=10, seed=1).eval()
        images = torch.randint(
            256, (40, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
        network = network.to(device()) if on_gpu else network
        return measure(
            network,
            images,
            torch.arange(40) % 10,
            Group.parse(group),
            normalise=lambda pixels: (pixels - 0.5) * 4,
            step=45,
        ).as_dict()


@pytest.mark.parametrize(
    "text, group",
    [(FREE, "D4"), ("12px: 6k3, 6k3 max2/2, 6k3", "D4"), ("12px: 2k3@C8, 2k3 max2/2", "C8")],
)
def test_a_network_on_a_gpu_is_measured_as_one_on_the_cpu(process, text, group):
    here, there = measured(text, group, False), process.submit(measured, text, group, True).result()
    for name in ("symmetry_accuracy", "accuracy_by_angle", "notes"):
        assert there[name] == here[name], name
    for barriers in (here["merge_barrier"], there["merge_barrier"]):
        for barrier in barriers or ():  # between logits of an untrained network: rounding decides
            del barrier["aligned"], barrier["reset"]
    for name in ("equivariance_error", "layerwise", "steerability", "merge_barrier"):
        ours, theirs = (tree_leaves(found[name]) for found in (here, there))
        assert len(ours) == len(theirs) and all(
            a == pytest.approx(b, rel=1e-3, abs=1e-5) if isinstance(a, float) else a == b
            for a, b in zip(ours, theirs)
        ), name


def crossings_of_steps(text, settings, group):
    """What passes to and from the device in the third and fourth step of an epoch."""
    with (
        pytest.MonkeyPatch.context() as patched,
        mocked() as crossings,
        tempfile.TemporaryDirectory() as folder,
    ):
        patched.setattr(training_module, "pick_device", lambda name: device())
        at, steps = [], GraphedStep.__call__
        patched.setattr(
            GraphedStep,
            "__call__",
            lambda self, *arguments: (
                at.append((len(crossings), len(crossings.waits))),
                steps(self, *arguments),
            )[1],
        )
        trained_as(text, settings, Path(folder), 1)
        return crossings[at[2][0] : at[4][0]], crossings.waits[at[2][1] : at[4][1]]


@pytest.mark.parametrize("loss", ["none", "layerwise:1", "latent:1", "label:1"])
def test_a_step_waits_for_nothing(process, loss):
    settings = config(Augment(rotation="uniform", shift=1), batch_size=20)
    crossed, waits = process.submit(
        crossings_of_steps, f"{FREE} loss={loss}", settings, "D4"
    ).result()
    assert crossed and not waits
    # what the next batch draws: angles and shifts
    assert all("from cpu" in what for what in crossed)


def test_the_mock_gpu_refuses_and_reports_as_a_real_one(process):
    assert process.submit(_misused).result() == (
        ["mixed"],
        ["[2] made from Python values", "_local_scalar_dense of []", "[2] from mock to cpu"],
    )


def _misused():
    refused = []
    with mocked() as crossings:
        there = torch.tensor([1.0, 2.0], device=device())
        try:
            there + torch.ones(2)
        except RuntimeError:
            refused.append("mixed")
        there.sum().item(), there.cpu()
    return refused, crossings.waits


@pytest.mark.parametrize(
    "share, limits", [(0.25, [0.25 - 600 / 8192]), (0.05, [0.025]), (0, []), (1, [])]
)
def test_a_worker_keeps_to_its_share_of_a_card(tmp_path, monkeypatch, share, limits):
    set_to = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=8192 << 20)
    )
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, number: set_to.append(fraction),
    )
    monkeypatch.setattr(
        "studies.workers.worker.train_folds",
        lambda *arguments, **options: (_ for _ in ()).throw(LeaveError),
    )
    with pytest.raises(LeaveError):
        run_trial(
            trivial.study(resources__gpus_per_trial=share),
            Assignment(0, FREE, None, 0, 1, str(tmp_path)),
            None,
        )
    assert set_to == pytest.approx(limits)
