"""Steps replayed from a CUDA graph, with a stand-in for the graph on a mock GPU: the same
training, or none of it.
"""

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from support.mock_gpu import device, mocked, process_with_mock
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training import train as training_module
from trainers.training.checkpoint import CHECKPOINT
from trainers.training.config import TrainingConfig
from trainers.training.cuda_graph import WARM_UP_STEPS, CudaGraph, GraphedStep
from trainers.training.train import start_training, train

DIGITS = Data(name="digits", train=110, validation=40)  # 5 full batches of 20 and one of 10
TEXT = "12px: 4k3@C4, 4k3r max2/2, 4k3 loss={}"


class StandIn:
    """What a CUDA graph does, by running the function again on its own arguments; like one, it
    bears nothing that passes to or from the CPU.
    """

    replays = 0

    def __init__(self, crossings, function, *arguments, generators=()):
        self.crossings, self.function, self.own = (
            crossings,
            function,
            tuple(argument.clone() for argument in arguments),
        )
        self.optimizer = function.optimizer
        self.rate = self.optimizer.param_groups[0]["lr"]
        assert isinstance(self.rate, torch.Tensor) and self.optimizer.param_groups[0].get(
            "capturable", True
        )

    def __call__(self, *arguments):
        for own, given in zip(self.own, arguments, strict=True):
            own.copy_(given)
        StandIn.replays += 1
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rate)
        before = len(self.crossings)
        result = self.function(*self.own)
        if self.crossings[before:]:
            raise RuntimeError(
                f"not permitted when a stream is capturing: {self.crossings[before:]}"
            )
        return result


class Wrong(StandIn):
    def __call__(self, *arguments):
        self.rate = self.rate * 1.2
        return super().__call__(*arguments)


class Slow(StandIn):
    def __call__(self, *arguments):
        time.sleep(0.5)
        return super().__call__(*arguments)


def trained_as(text, settings, folder, epochs):
    """The scores of the candidate of `text`, trained under its own recipe."""
    candidate = Candidate.parse(text)
    return train(candidate.architecture, replace(settings, recipe=candidate.recipe), folder, epochs)


def config(**training):
    defaults = {
        "epochs": 2,
        "batch_size": 20,
        "precision": "float32",
        "augment": Augment(shift=1),
        "equivariance_batch": 0.4,
    }
    return TrainingConfig(
        DIGITS, Training(**{**defaults, **training}), Symmetry(group="C4"), seed=3
    )


def trained(text, settings, kind=None):
    """(the weights after a training on the mock device, how often the stand-in was replayed,
    whether its log warned).
    """
    StandIn.replays = 0
    messages = []
    with (
        pytest.MonkeyPatch.context() as patched,
        mocked() as crossings,
        tempfile.TemporaryDirectory() as folder,
    ):
        patched.setattr(training_module, "pick_device", lambda name: device())
        patched.setattr(
            "trainers.training.cuda_graph.log.warning",
            lambda message, *values: messages.append(message % values),
        )
        if kind in (StandIn, Wrong):  # which take as long as the step that they repeat
            patched.setattr("trainers.training.cuda_graph.FASTER", 1e9)
        if kind is not None:
            patched.setattr(
                training_module, "GraphedStep", partial(GraphedStep, make=partial(kind, crossings))
            )
        trained_as(text, settings, Path(folder), settings.training.epochs)
        saved = torch.load(Path(folder) / CHECKPOINT, weights_only=True)
        for group in saved["optimizer"]["param_groups"]:
            assert isinstance(group["lr"], float) and not group.get("capturable", False)
        return (
            {name: value.detach() for name, value in saved["network"].items()},
            StandIn.replays,
            messages,
        )


@pytest.fixture(scope="module")
def process():
    with process_with_mock() as process:
        yield process


@pytest.fixture(scope="module")
def plain(process):
    """The weights after a training whose steps are made one operation at a time."""
    return process.submit(trained, TEXT.format("none"), config(cuda_graphs=False)).result()[0]


def same(first, second):
    return all(torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6) for name in first)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_replayed_steps_train_as_others_do(process, optimizer):
    text = TEXT.format("none")
    expected, none, _ = process.submit(
        trained, text, config(cuda_graphs=False, optimizer=optimizer)
    ).result()
    weights, replays, messages = process.submit(
        trained, text, config(optimizer=optimizer), StandIn
    ).result()
    assert same(weights, expected) and not messages
    # two that prove it; then every full batch of both epochs
    assert none == 0 and replays == 2 + 2 * 5 - WARM_UP_STEPS


def test_replays_go_on_with_the_masks_of_dropout(process):
    """The two steps that prove a graph leave no draw behind."""
    text = "12px: 4k3drop0.3@C4, 4k3fielddrop0.2r max2/2, 4k3"
    expected = process.submit(trained, text, config(cuda_graphs=False)).result()[0]
    weights, replays, messages = process.submit(trained, text, config(), StandIn).result()
    assert same(weights, expected) and not messages and replays > 2


@pytest.mark.parametrize("loss", ["layerwise:1", "latent:1", "label:1"])
def test_a_step_with_an_equivariance_loss_can_be_captured(process, loss):
    _, replays, messages = process.submit(trained, TEXT.format(loss), config(), StandIn).result()
    assert replays > 2 and not messages


def test_no_graph_is_made_where_an_element_would_never_be_drawn(process):
    # 2 images, 3 elements
    assert (
        process.submit(
            trained, TEXT.format("label:1"), config(equivariance_batch=0.1), StandIn
        ).result()[1]
        == 0
    )


@pytest.mark.parametrize("kind, reason", [(Wrong, "differs from a step"), (Slow, None), (None, "")])
def test_a_graph_that_is_wrong_or_slow_or_refused_changes_nothing(process, plain, kind, reason):
    # None: CUDA's own, refused here
    weights, replays, messages = process.submit(
        trained, TEXT.format("none"), config(), kind
    ).result()
    assert same(weights, plain) and replays == (0 if kind is None else 2)
    assert len(messages) == (reason is not None) and all(reason in message for message in messages)


def test_on_the_cpu_nothing_is_captured(tmp_path):
    architecture = Architecture.parse(TEXT.format("none"))
    splits = training_module.load_data(DIGITS, (12, 12))
    run = start_training(architecture, config(device="cpu"), tmp_path, splits)
    run.train_epoch()
    assert not run.graphed.replays


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_trains_as_single_kernels_do(tmp_path):
    architecture, folders = (
        Architecture.parse("12px: 4k3drop0.3@C4, 4k3r max2/2, 4k3"),
        (tmp_path / "graph", tmp_path / "single"),
    )
    for folder, graphs in zip(folders, (True, False)):
        train(architecture, config(device="cuda", cuda_graphs=graphs), folder, 2)
    first, second = (
        torch.load(folder / CHECKPOINT, weights_only=True)["network"] for folder in folders
    )
    assert all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-4) for name in first)
    graph = CudaGraph(lambda values: values * 2, torch.ones(3, device="cuda"))
    assert graph(torch.full((3,), 4.0, device="cuda")).tolist() == [8, 8, 8]
