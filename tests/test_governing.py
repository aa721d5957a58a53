"""What governs gamma of residual pathways: its text, its steps, and where it ends."""

from functools import cache

import pytest
import torch
from test_train import DIGITS, config

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from searchspace.weights.governor import Governor
from support.relaxing import stir
from trainers.actions import act
from trainers.data.datasets import load_data
from trainers.networks.fold import fold
from trainers.networks.networks import build
from trainers.training.governing import PACE, Governing
from trainers.training.step import TrainingStep
from trainers.training.train import start_training, train

TEXT = "12px: 3k3@C4+C1, 3k3 max2/2, 3k3"


def governed(text, architecture=TEXT, epochs=4):
    network = build(Architecture.parse(architecture), channels=1, classes=3)
    return Governing.of(network, Governor.parse(text) if text else None, epochs), network


@pytest.mark.parametrize(
    "text, gamma, trains",
    [
        ("", 1.0, False),
        ("fixed:0.5", 0.5, False),
        ("prior:1e-6", 1.0, False),
        ("dual", 1.0, True),
        ("resilient:2", 1.0, True),
        ("triangle", 0.0, False),
        ("triangle:0.1", 0.0, False),
    ],
)
def test_gamma_starts_and_trains_as_its_governor_says(text, gamma, trains):
    candidate = Candidate.parse(f"{TEXT} gamma={text}" if text else TEXT)
    assert Candidate.parse(str(candidate)) == candidate
    governing, network = governed(text)
    step = TrainingStep.of(
        network, network.architecture, config(text=str(candidate)), lambda images: images
    )
    optimized = {id(p) for group in step.optimizer.param_groups for p in group["params"]}
    assert len(governing.gammas) == 3
    for value in governing.gammas:
        assert float(value.detach()) == gamma and value.requires_grad == trains
        assert id(value) not in optimized
    assert len(optimized) == len(list(network.parameters())) - 3


def moved(text, gamma, multiplier, gradient, number=5):
    governing, _ = governed(text)
    for pathway in governing.pathways:
        with torch.no_grad():
            pathway.gamma.fill_(gamma)
            pathway.multiplier.fill_(multiplier)
        pathway.gamma.grad = torch.tensor(gradient)
    governing.schedule(number, 400)
    governing.update()
    first = governing.pathways[0]
    return float(first.gamma.detach()), float(first.multiplier)


def test_a_dual_step_follows_the_formula():
    gamma, multiplier = moved("dual", 0.5, 0.2, 0.1)
    assert gamma == pytest.approx(0.5 - PACE / 400 * (0.1 + 0.2 + 2 * 0.5))
    assert multiplier == pytest.approx(0.2 + PACE / 400 * 0.5)
    assert moved("dual", -0.5, 0.0, 0.0)[1] == pytest.approx(-PACE / 400 * 0.5)
    assert moved("dual", 0.5, 0.2, 0.1, 300)[0] == pytest.approx(
        0.5 - PACE / 400 * (0.25 * (0.1 + 0.2) + 2 * 0.5)
    )


def test_the_noise_of_gradients_does_not_stay_in_a_dual_gamma():
    governing, _ = governed("dual")
    draws, gamma = torch.Generator().manual_seed(0), governing.gammas[0]
    for number in range(384):  # 12 epochs of 2,000 images in batches of 64
        governing.schedule(number, 384)
        gamma.grad = -0.1 + 0.4 * torch.randn((), generator=draws)
        governing.update()
    assert abs(float(gamma.detach())) < 0.01
    assert float(governing.pathways[0].multiplier) == pytest.approx(0.1, abs=0.1)


def test_a_resilient_step_follows_the_formula():
    gamma, multiplier = moved("resilient:2", -0.5, 0.2, 0.1)
    assert gamma == pytest.approx(-0.5 - PACE / 400 * (0.1 - 0.2))
    assert multiplier == pytest.approx(0.2 + PACE / 400 * (0.5 - 0.2 / 2))
    assert moved("resilient:2", 0.0, 0.001, 0.0)[1] >= 0
    assert moved("resilient:2", 0.5, 0.2, 30.0) == moved("resilient:2", 0.5, 0.2, 1.0)


@pytest.mark.parametrize("text", ["", "fixed:0.5", "prior:0.1"])
def test_other_governors_leave_gamma_to_itself(text):
    assert moved(text, 0.3, 0.0, 5.0) == pytest.approx((0.3, 0.0))


def test_a_triangle_ends_at_0_and_has_1_in_the_middle():
    governing, _ = governed("triangle")
    values = []
    for number in range(9):
        governing.schedule(number, 9)
        values.append(float(governing.gammas[0].detach()))
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_prior_weighs_phi_and_the_differences_of_banks():
    governing, network = governed("prior:0.5", "12px: 3k3@C4+C1, 3k3@C4b2")
    phi = network.convolutions[0].soft.parts[0].filters
    banks = network.convolutions[1].soft
    with torch.no_grad():
        banks.weights.copy_(torch.tensor([[1.0, 1, 1, 3], [0, 0, 0, 0]]))
    # 3 differs from three others by 2, counted both ways
    assert float(governing.penalty().detach()) == pytest.approx(
        0.5 * (float(phi.detach().square().sum()) + 12)
    )
    assert governed("dual")[0].penalty() is None


def test_a_triangle_with_a_weight_adds_the_sizes_of_its_pathways_and_without_one_nothing():
    governing, network = governed("triangle:0.5")
    sizes = [c.soft.parts[0].filters.detach().norm() for c in network.convolutions]
    assert float(governing.penalty().detach()) == pytest.approx(0.5 * float(sum(sizes)))
    assert governed("triangle")[0].penalty() is None
    assert str(Governor.parse("triangle:0")) == str(Governor.parse("triangle")) == "triangle"
    assert Governor.parse(str(Governor.parse("triangle:0.5"))).value == 0.5


def test_a_triangle_trains_to_a_network_that_is_exact_in_float64(tmp_path):
    text = f"{TEXT} gamma=triangle"
    scores = train(
        Architecture.parse(text), config(text=text, epochs=2), tmp_path, 2, splits=splits()
    )
    run = start_training(Architecture.parse(text), config(text=text, epochs=2), tmp_path, splits())
    folded = fold(run.network.double().eval())
    images = torch.randn(3, 1, 12, 12, dtype=torch.float64)
    for element in run.network.architecture.group.elements:
        assert float((folded(act(images, element)) - folded(images)).abs().max()) < 1e-10
    assert scores.learned["distance stage 2 conv1"] < 1e-6
    assert scores.learned["gamma stage 2 conv1"] == 0
    assert float(run.network.convolutions[0].soft.parts[0].filters.detach().abs().max()) > 0
    half = start_training(
        Architecture.parse(text), config(text=text, epochs=2), tmp_path / "new", splits()
    )
    half.train_epoch()
    assert float(half.network.convolutions[0].soft.gamma.detach()) > 0.8


@cache
def splits():
    return load_data(DIGITS, (12, 12))


def test_what_relaxations_have_become_is_recorded(tmp_path):
    text = "12px: 3k3@D4|C4|C1, 3k3@D1b2 max2/2, 3k3@D1~0.3, 2k3@D1+C1 gamma=resilient:2"
    scores = train(
        Architecture.parse(text), config(text=text, epochs=1), tmp_path, 1, splits=splits()
    )
    learned = scores.learned
    shares = [learned[f"alpha {group} stage 1 conv1"] for group in ("D4", "C4", "C1")]
    assert sum(shares) == pytest.approx(1) and len(set(shares)) == 3
    assert learned["w spread stage 2 conv1"] > 0 and learned["softness stage 3 conv1"] == 0.3
    assert learned["u stage 4 conv1"] == pytest.approx(learned["lambda stage 4 conv1"] / 2)
    assert learned["gamma stage 4 conv1"] != 1 and learned["lambda stage 4 conv1"] > 0
    assert all(0 < learned[f"distance stage {n} conv1"] < 1 for n in (1, 2, 3, 4))


def test_at_gamma_0_training_is_that_of_the_network_without_a_pathway(tmp_path):
    """Bit for bit, weights and logits, though both have filters in the pathway."""
    text = "12px: 8k3@C4, 8k3 max2/2, 8k3"
    pathway = text.replace("@C4", "@C4+C1")
    runs = [
        start_training(Architecture.parse(t), config(text=r, epochs=2), tmp_path / str(n), splits())
        for n, (t, r) in enumerate([(text, text), (pathway, f"{pathway} gamma=fixed:0")])
    ]
    for run in runs:
        run.train_epoch()
    for a, b in zip(*(run.network.weights() for run in runs)):
        assert torch.equal(a, b)
    images = torch.randn(5, 1, 12, 12)
    assert torch.equal(*(fold(run.network)(images) for run in runs))


@pytest.mark.parametrize(
    "text, message",
    [
        ("12px: 3k3@C4 gamma=dual", "governs residual pathways, and no stage has one; give a"),
        ("12px: 3k3@C4b2 gamma=dual", "governs residual pathways, and no stage has one"),
        (f"{TEXT} gamma=dual+triangle", "one thing alone can govern gamma; write one of"),
        (f"{TEXT} gamma=dual gamma=triangle", "option 'gamma' is given twice"),
        (f"{TEXT} gamma=rise", "gamma is 'rise'; write one of fixed:1, prior:1e-6, dual"),
        (f"{TEXT} gamma=dual:1", "gamma is 'dual:1'; write one of"),
        (f"{TEXT} gamma=prior:x", "gamma is 'prior:x'; write one of"),
        (f"{TEXT} gamma=fixed:-1", "a number out of range; it must be from 0 to 100"),
        (f"{TEXT} gamma=resilient:0", "a number out of range; it must be from 1e-06 to 100"),
    ],
)
def test_what_cannot_govern_is_refused_with_one_message(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Candidate.parse(text)
    assert "\n" not in str(caught.value)


def test_a_triangle_of_one_epoch_is_refused_before_training(tmp_path):
    text = f"{TEXT} gamma=triangle"
    with pytest.raises(ValueError, match="needs 2 epochs, and the training has 1; choose more"):
        train(Architecture.parse(text), config(text=text, epochs=1), tmp_path, 1, splits=splits())


def test_a_prior_alone_suits_banks():
    assert Candidate.parse("12px: 3k3@C4b2 gamma=prior:1e-5").recipe.gamma.value == 1e-5
    assert stir(governed("")[1]).convolutions[0].soft.gamma != 1
