"""What a training step lowers: several losses in one forward pass, their groups and stages, adapted
weights, learned augmentation.
"""

from dataclasses import replace

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.groups import IDENTITY, Element, Group
from searchspace.recipe import Candidate
from searchspace.training.losses import Blocks, parse_losses
from trainers.networks.networks import build
from trainers.training.augmentation import GENERATORS, START, LearnedAugmentation
from trainers.training.losses import maxima_of
from trainers.training.objective import TrainingObjective
from trainers.training.weighting import AdaptedWeights

C4 = Group.parse("C4")
PIXELS = torch.rand(12, 1, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 5


def network(text="12px: 8k3, 8k3 max2/2, 8k3"):
    return build(Architecture.parse(text), channels=1, classes=5).double().eval()


def terms(losses, declared=C4):
    objective = TrainingObjective.of(parse_losses(losses), declared, (12, 12))
    generator = torch.Generator().manual_seed(1)
    found = objective.terms(network(), PIXELS.double(), LABELS, 8, lambda x: x, generator)
    return [term.item() for term in found]


def test_losses_together_are_what_each_is_alone():
    alone = [terms(f"{kind}:1")[1] for kind in ("layerwise", "latent", "label")]
    together = terms("layerwise:1+latent:1+label:1")
    assert together[1:] == pytest.approx(alone, rel=1e-6)
    assert together[0] == pytest.approx(terms("none")[0]) and len(set(alone)) == 3


def test_each_loss_has_the_elements_of_its_own_group():
    objective = TrainingObjective.of(
        parse_losses("label:1@C2+layerwise:1@R8-4-2-1+latent:1"), C4, (12, 12)
    )
    assert objective.elements == {
        Group.parse("C2"): (Element.parse("r180"),),
        Group.parse("C8"): tuple(e for e in Group.parse("C8").elements if e != IDENTITY),
        C4: tuple(e for e in C4.elements if e != IDENTITY),
    }
    assert objective.most_elements == 7
    # of C2 there is one element to draw: the loss has one value
    half_turned = network()(PIXELS.double()[:8].flip(-1, -2))
    expected = torch.nn.functional.cross_entropy(half_turned, LABELS[:8])
    assert terms("label:1@C2")[1] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["layerwise", "latent"])
@pytest.mark.parametrize("fields, group", [("C4", "C2"), ("D4", "D1"), ("D4", "D2"), ("C8", "C4")])
def test_an_exact_network_has_no_loss_under_a_subgroup(kind, fields, group):
    exact = build(Architecture.parse(f"9px: 1k3@{fields}, 2k3"), channels=1, classes=5).eval()
    objective = TrainingObjective.of(parse_losses(f"{kind}:1@{group}"), C4, (9, 9))
    draws = torch.Generator().manual_seed(1)
    terms = objective.terms(exact, PIXELS[..., :9, :9], LABELS, 12, lambda x: x, draws)
    assert terms[1] < 1e-10


def test_under_a_larger_group_an_element_that_a_stage_keeps_adds_nothing():
    """C2's channels are read as fields of C4 on which the half turn acts as it does on C2's."""
    kept = build(Architecture.parse("9px: 4k3@C2, 4k3"), channels=1, classes=5).eval()
    objective = TrainingObjective.of(parse_losses("latent:1@C4"), C4, (9, 9))
    half = replace(objective, elements={C4: (Element.parse("r180"),)})
    for one, least, most in ((objective, 1e-6, 10), (half, 0, 1e-10)):
        draws = torch.Generator().manual_seed(1)
        term = one.terms(kept, PIXELS[..., :9, :9], LABELS, 12, lambda x: x, draws)[1]
        assert least <= term <= most


def test_a_loss_reads_its_stages_alone():
    each = [terms(f"layerwise:1#{number}")[1] for number in (1, 2, 3)]
    assert sum(each) == pytest.approx(terms("layerwise:1")[1], rel=1e-6)
    assert each[0] + each[2] == pytest.approx(terms("layerwise:1#1,3")[1], rel=1e-6)
    assert terms("latent:1#3") == terms("latent:1")
    assert terms("latent:1#2")[1] != pytest.approx(terms("latent:1")[1])


def test_the_projection_loss_reads_the_weights_of_its_stages_alone():
    each = [terms(f"projection:1#{number}")[1] for number in (1, 2, 3)]
    assert min(each) > 0 and sum(each) == pytest.approx(terms("projection:1")[1], rel=1e-6)


def test_weights_adapt_beside_a_term_that_is_nothing_here():
    weights = AdaptedWeights([1.0, 0.5])
    shared = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    total = weights([shared.square().sum(), torch.zeros(())], [shared])
    assert total.item() == 2 and bool(weights.weights.isfinite().all())


def test_heterogeneous_maxima_are_those_of_the_parts_of_the_channels():
    maps = torch.randn(2, 22, 3, 3)  # 16 in blocks of 4, 4 of 2, 2 of 1
    expected = torch.cat(
        [
            maps[:, :16].unflatten(1, (4, 4)).amax(2),
            maps[:, 16:20].unflatten(1, (2, 2)).amax(2),
            maps[:, 20:],
        ],
        1,
    )
    assert torch.equal(maxima_of(maps, Blocks((4, 2, 1))), expected)


def test_adapted_weights_keep_their_sum_and_raise_what_is_lowered_least():
    weights = AdaptedWeights([1.0, 0.5])
    shared = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    for step in range(20):
        # the same gradients; the second term stays where it began, the first one falls
        falling = shared[0] - 1 + 0.9**step
        total = weights([falling, shared[1]], [shared])
        assert weights.weights.sum().item() == pytest.approx(1.5)
    assert weights.weights[1] > weights.weights[0] > 0
    assert total.requires_grad


def test_equal_progress_equals_the_gradients_of_the_terms():
    weights = AdaptedWeights([1.0, 1.0])
    shared = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    for _ in range(300):  # gradients of norms 1 and 3
        weights([shared[0], 3 * shared[1]], [shared])
    assert weights.weights.tolist() == pytest.approx([1.5, 0.5], abs=0.1)


def drawn(augmentation, images=PIXELS):
    return augmentation(images, torch.Generator().manual_seed(2))


@torch.no_grad()
def test_learned_maps_are_the_affine_maps_of_their_generators():
    augmentation = LearnedAugmentation(0.01)
    assert augmentation.widths.tolist() == pytest.approx([START] * 6)
    augmentation.raw.fill_(-30)  # widths of 0
    assert torch.allclose(drawn(augmentation), PIXELS, atol=1e-5)
    generators = augmentation.generators
    turn = torch.linalg.matrix_exp(torch.pi / 2 * generators[list(GENERATORS).index("rotation")])
    grid = torch.nn.functional.affine_grid(turn[None, :2], [1, 1, 12, 12], align_corners=False)
    turned = torch.nn.functional.grid_sample(PIXELS[:1], grid, align_corners=False)
    assert torch.allclose(turned, PIXELS[:1].rot90(1, (-2, -1)), atol=1e-4) or torch.allclose(
        turned, PIXELS[:1].rot90(-1, (-2, -1)), atol=1e-4
    )


def test_every_width_has_a_gradient_and_the_penalty_stops():
    augmentation = LearnedAugmentation(0.5)
    (drawn(augmentation) * torch.linspace(0, 1, 12)).square().sum().backward()
    assert bool((augmentation.raw.grad.abs() > 0).all())
    expected = -0.5 * augmentation.widths.norm()
    assert augmentation.penalty().item() == pytest.approx(expected.item())
    with torch.no_grad():
        augmentation.raw.fill_(11)
    assert augmentation.penalty().item() == 0


def bars(turned):
    """Images of a bar or a disc; with `turned` by any angle, else the bar stands or lies, and that
    is the class.
    """
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, 16)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    labels = torch.randint(2, (256,), generator=generator)
    if turned:
        angles = torch.rand(256, generator=generator) * torch.pi
        across = torch.cos(angles)[:, None, None] * x - torch.sin(angles)[:, None, None] * y
        bar, disc = across.abs() < 0.2, (x**2 + y**2 < 0.25).expand(256, -1, -1)
        images = torch.where(labels[:, None, None] == 0, bar & (x**2 + y**2 < 1), disc)
    else:
        angles = labels * torch.pi / 2 + (torch.rand(256, generator=generator) - 0.5) * 0.2
        across = torch.cos(angles)[:, None, None] * x - torch.sin(angles)[:, None, None] * y
        images = (across.abs() < 0.2) & (x**2 + y**2 < 1)
    return images.float()[:, None], labels


def learned_turn(turned, steps=100):
    """The width of the rotation after some steps on these images."""
    images, labels = bars(turned)
    model = build(Architecture.parse("16px: 8k5s2, 8k3s2"), channels=1, classes=2)
    augmentation, generator = LearnedAugmentation(0.3), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*model.parameters(), *augmentation.parameters()], 0.05)
    for step in range(steps):
        chosen = torch.arange(32) + step % 8 * 32
        logits = model(augmentation(images[chosen], generator))
        loss = torch.nn.functional.cross_entropy(logits, labels[chosen]) + augmentation.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return augmentation.widths[list(GENERATORS).index("rotation")].item()


def test_the_width_of_the_rotation_grows_where_labels_allow_it_and_stays_small_where_not():
    free, forbidden = learned_turn(True), learned_turn(False)
    assert free > 1.0 > forbidden, (free, forbidden)


def test_a_candidate_keeps_its_recipe_whatever_its_learning_rate():
    candidate = Candidate.parse("12px: 4k3 loss=label:1 augment=group learning_rate=0.1")
    rate = candidate.with_learning_rate(None)
    assert rate.recipe == replace(candidate.recipe, learning_rate=None)
