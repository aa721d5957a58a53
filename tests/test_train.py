"""Training: stopping anywhere and going on gives the same numbers bit for bit, and what goes wrong
is said.
"""

import errno
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate, Recipe
from trainers.data.datasets import load_data, normalise
from trainers.networks.fold import fold
from trainers.networks.networks import build
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training import checkpoint
from trainers.training import train as training_module
from trainers.training.checkpoint import CHECKPOINT, PREVIOUS
from trainers.training.config import TrainingConfig
from trainers.training.schedule import rate_at
from trainers.training.step import TrainingStep
from trainers.training.train import DivergedError, start_training, train

DIGITS = Data(name="digits", train=300, validation=100)
TEXTS = (
    "12px: 4k3@C4, 4k3 max2/2, 4k3 loss=layerwise:0.5",
    "12px: 4k3@D4, 4k3r, 4k3@C2 avg3/2p1, 4k3 head=none loss=label:0.5",
    "12px: 6k3drop0.3, 6k3fielddrop0.2 max2/2, 6k3 "
    "loss=layerwise:0.5@R4-2-1#1+latent:0.5@C2 loss_weight=adapted augment=learned",
    "12px: 4k3@D4+C4, 4k3@C4b2 max2/2, 3k3@C4|C2|C1, 3k3@C2~0.3 loss=projection:0.1 gamma=dual",
)


def config(epochs=4, text="12px: 4k3", **training):
    """Four epochs on a few digits, with the recipe of a candidate's text."""
    defaults = {
        "epochs": epochs,
        "batch_size": 64,
        "precision": "float32",
        "augment": Augment(rotation="uniform", shift=1),
    }
    return TrainingConfig(
        DIGITS,
        Training(**{**defaults, **training}),
        Symmetry(group="C4"),
        seed=3,
        recipe=Candidate.parse(text).recipe,
    )


def same(a: Path, b: Path) -> bool:
    """True if two checkpoints hold the same weights and optimizer state, bit for bit."""
    first, second = (torch.load(folder / CHECKPOINT, weights_only=True) for folder in (a, b))
    tensors = [(first["network"][key], second["network"][key]) for key in first["network"]]
    beside = first.get("companions", {})
    tensors += [(beside[key], second["companions"][key]) for key in beside]
    tensors += [
        (first["optimizer"]["state"][k][name], second["optimizer"]["state"][k][name])
        for k in first["optimizer"]["state"]
        for name in first["optimizer"]["state"][k]
    ]
    return all(torch.equal(x, y) for x, y in tensors)


@pytest.mark.parametrize("text", TEXTS)
def test_stopping_and_going_on_gives_the_same_numbers_bit_for_bit(tmp_path, text):
    architecture = Architecture.parse(text)
    whole = train(architecture, config(text=text), tmp_path / "whole", 4)
    for until in (1, 3, 3, 4):
        parts = train(architecture, config(text=text), tmp_path / "parts", until)
    assert same(tmp_path / "whole", tmp_path / "parts")
    drop = ("seconds", "latency")
    assert {k: v for k, v in whole.as_dict().items() if k not in drop} == {
        k: v for k, v in parts.as_dict().items() if k not in drop
    }


def test_a_killed_epoch_is_trained_again_from_the_last_checkpoint(tmp_path):
    architecture = Architecture.parse(TEXTS[0])
    train(architecture, config(text=TEXTS[0]), tmp_path / "whole", 3)

    def dies(epoch, row):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(architecture, config(text=TEXTS[0]), tmp_path / "parts", 3, on_epoch=dies)
    train(architecture, config(text=TEXTS[0]), tmp_path / "parts", 3)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_the_loss_and_the_accuracy_are_those_of_the_folded_network(tmp_path):
    architecture = Architecture.parse(TEXTS[0])
    scores, splits = (
        train(architecture, config(text=TEXTS[0]), tmp_path, 1),
        load_data(DIGITS, architecture.size),
    )
    network = fold(start_training(architecture, config(text=TEXTS[0]), tmp_path, splits).network)
    logits = network(normalise(splits.validation.pixels.float() / 255, splits.mean, splits.std))
    assert scores.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, splits.validation.labels).item(), rel=1e-4
    )
    assert scores.accuracy == pytest.approx(
        (logits.argmax(1) == splits.validation.labels).double().mean().item(), abs=0.005
    )
    assert 0 < scores.latency < 1000


def test_a_torn_checkpoint_costs_one_epoch(tmp_path):
    architecture = Architecture.parse(TEXTS[0])
    train(architecture, config(text=TEXTS[0]), tmp_path / "whole", 3)
    train(architecture, config(text=TEXTS[0]), tmp_path / "torn", 2)
    torn = (tmp_path / "torn" / CHECKPOINT).read_bytes()
    (tmp_path / "torn" / CHECKPOINT).write_bytes(torn[: len(torn) // 2])
    assert (tmp_path / "torn" / PREVIOUS).exists()
    epochs = []
    train(
        architecture,
        config(text=TEXTS[0]),
        tmp_path / "torn",
        3,
        on_epoch=lambda epoch, row: epochs.append(epoch),
    )
    assert epochs == [2, 3] and same(tmp_path / "whole", tmp_path / "torn")


def test_a_full_disk_loses_nothing_earlier(tmp_path, monkeypatch):
    architecture = Architecture.parse(TEXTS[0])
    train(architecture, config(text=TEXTS[0]), tmp_path / "full", 2)

    def no_space(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", no_space)
        with pytest.raises(OSError, match="free some space") as error:
            train(architecture, config(text=TEXTS[0]), tmp_path / "full", 3)
    assert "\n" not in str(error.value) and not list((tmp_path / "full").glob("*.part"))
    train(architecture, config(text=TEXTS[0]), tmp_path / "full", 3)
    train(architecture, config(text=TEXTS[0]), tmp_path / "whole", 3)
    assert same(tmp_path / "whole", tmp_path / "full")


def test_a_folder_that_is_gone_is_no_full_disk(tmp_path, monkeypatch):
    def gone(content, file):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(checkpoint.torch, "save", gone)
    with pytest.raises(OSError, match=r"No such file or directory; put the folder back") as error:
        train(Architecture.parse(TEXTS[0]), config(text=TEXTS[0]), tmp_path / "gone", 1)
    assert "space" not in str(error.value)


def test_a_diverged_loss_is_told_with_its_remedy(tmp_path):
    diverging = config(optimizer="sgd", schedule="constant")
    diverging = replace(diverging, recipe=Recipe(learning_rate=1e30))
    with pytest.raises(DivergedError, match="lower learning rate"):
        train(
            Architecture.parse("12px: 4k3, 4k3"),
            diverging,
            tmp_path,
            4,
        )


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    train(Architecture.parse(TEXTS[0]), config(text=TEXTS[0]), tmp_path, 1)
    with pytest.raises(ValueError, match="belongs to another training"):
        train(Architecture.parse(TEXTS[0]), config(text=TEXTS[0], learning_rate=0.5), tmp_path, 2)


def test_seeds_differ_and_repeat(tmp_path):
    architecture = Architecture.parse(TEXTS[2])
    first = train(architecture, config(text=TEXTS[2]), tmp_path / "a", 2)
    second = train(architecture, config(text=TEXTS[2]), tmp_path / "b", 2)
    other = train(
        architecture,
        replace(config(text=TEXTS[2]), seed=4),
        tmp_path / "c",
        2,
    )
    assert first.loss == second.loss != other.loss


def test_half_batches_with_summed_gradients_train_alike(tmp_path):
    """Without norm statistics in the way (they are of the half batch), two halves give the gradient
    of the whole.
    """
    architecture = Architecture.parse("12px: 8k3@C4, 8k3 max2/2, 8k3")
    whole = train(architecture, config(6, augment=Augment(), learning_rate=0.02), tmp_path / "a", 6)
    halves = train(
        architecture,
        replace(config(6, augment=Augment(), learning_rate=0.02), batch_divisor=2),
        tmp_path / "b",
        6,
    )
    assert abs(whole.accuracy - halves.accuracy) < 0.15 and halves.loss < math.log(10)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "step", "constant"])
def test_learning_rates_stay_between_zero_and_the_peak(schedule):
    training = Training(schedule=schedule)
    rates = [rate_at(training, 0.1, step, 100) for step in range(100)]
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates) and max(rates) == pytest.approx(
        0.1, rel=1e-2
    )
    assert rates[-1] < {"onecycle": 1e-3, "cosine": 1e-3, "step": 0.01, "constant": 1}[schedule]


def test_an_exact_network_stays_exact_after_training(tmp_path):
    scores = train(Architecture.parse("12px: 4k3@C4, 4k3 max2/2, 4k3"), config(), tmp_path, 4)
    assert (
        scores.equivariance_error < 1e-5
        and scores.accuracy == scores.symmetry_accuracy == scores.symmetry_accuracy_worst
    )
    broken = train(
        Architecture.parse("13px: 4k3@C4, 4k3 max2/2, 4k3"), config(), tmp_path / "broken", 4
    )
    assert broken.equivariance_error > 1e-3


def test_until_epoch_must_lie_in_the_training(tmp_path):
    with pytest.raises(ValueError, match="epochs 1 to 4"):
        train(Architecture.parse(TEXTS[0]), config(text=TEXTS[0]), tmp_path, 5)


@pytest.mark.parametrize("divisor", [2, 3])
def test_a_batch_computed_in_parts_makes_the_step_of_the_whole_one(tmp_path, monkeypatch, divisor):
    def loss(self, pixels, labels):
        # with statistics that do not depend on the batch
        return torch.nn.functional.cross_entropy(
            self.network.eval()(self.normalise(pixels)), labels
        )

    monkeypatch.setattr(TrainingStep, "batch_loss", loss)
    architecture, settings = (
        Architecture.parse("12px: 4k3@C4, 4k3"),
        config(1, optimizer="sgd", schedule="constant"),
    )
    networks = []
    for parts in (1, divisor):
        run = start_training(
            architecture,
            replace(settings, batch_divisor=parts),
            tmp_path,
            load_data(DIGITS, (12, 12)),
        )
        run.train_epoch()
        networks.append(run.network)
    for one, other in zip(*(network.parameters() for network in networks)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_statistics_are_those_of_images_that_learned_augmentation_moved(tmp_path, monkeypatch):
    text, moved = "12px: 4k3 augment=learned", []
    run = start_training(
        Architecture.parse(text), config(text=text), tmp_path, load_data(DIGITS, (12, 12))
    )
    monkeypatch.setattr(TrainingStep, "deform", lambda step, pixels: moved.append(pixels) or pixels)
    run.progress = replace(run.progress, epoch=1, settled=False)
    run.settle()
    assert sum(map(len, moved)) == 150  # half of the images


def test_statistics_are_taken_when_the_network_is_evaluated_wherever_it_was_stopped(
    tmp_path, monkeypatch
):
    architecture, taken = Architecture.parse(TEXTS[0]), []
    estimate = training_module.estimate_statistics
    monkeypatch.setattr(
        training_module,
        "estimate_statistics",
        lambda network, batches: (taken.append(1), estimate(network, batches)),
    )

    def stop(epoch, row):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(architecture, config(text=TEXTS[0]), tmp_path, 4, on_epoch=stop)
    assert not taken  # nothing was evaluated
    stopped = train(architecture, config(text=TEXTS[0]), tmp_path, 2)
    assert len(taken) == 1
    straight = train(architecture, config(text=TEXTS[0]), tmp_path / "other", 2)
    assert len(taken) == 2 and stopped.loss == pytest.approx(straight.loss, rel=0.05)
    train(architecture, config(text=TEXTS[0]), tmp_path / "other", 4)
    assert len(taken) == 3


@pytest.mark.parametrize(
    "text",
    [
        "8px: 4k3@C4+C1, 4k3 max2/2 loss=layerwise:0.1+label:1 loss_weight=adapted gamma=fixed:0",
        "8px: 4k3@D4|C4|C1 loss=layerwise:1@C8",
        "8px: 4k3@C4b2, 4k3 resize5bicubic loss=label:1@C3 augment=learned",
        "8px: 4k3@C4~0.3 loss=projection:1@D2 orbit=C4",
        "8px: 4k3i0.5drop0.3@C4 & 4k3fielddrop0.2@D1~0.5 coordinates=xy loss=projection:1",
        "8px: 8k3, 8k3 blurmax/2 head=block_max:C4 loss=latent:1",
    ],
)
def test_a_step_in_bfloat16_leaves_nothing_that_one_in_float32_stumbles_over(text):
    """One process trains candidates of every kind after each other."""
    candidate, losses = Candidate.parse(text), []
    pixels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for precision in ("bfloat16", "float32"):
        torch.manual_seed(0)
        network = build(candidate.architecture, channels=1, classes=3)
        chosen = config(text=text, precision=precision)
        step = TrainingStep.of(network, candidate.architecture, chosen, lambda x: x)
        step.generator.manual_seed(0)
        losses.append(float(step(pixels, torch.arange(6) % 3)))
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and 0 < losses[0] < 100
