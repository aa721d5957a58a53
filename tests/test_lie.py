import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from searchspace.groups import Group
from support.toy_models import Lifting, constant
from trainers.instruments.lie import MOTIONS, lie_derivative, lie_derivatives, moving, velocity

GENERATOR = torch.Generator().manual_seed(0)
COARSE = torch.rand(6, 1, 7, 7, generator=GENERATOR, dtype=torch.float64)
IMAGES = nn.functional.interpolate(COARSE, size=(20, 20), mode="bicubic", align_corners=False)


def plain():
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
        .double()
        .eval()
    )


def move(images, motion, amount):
    """T_t by an independent resampler: scipy's cubic B-spline, mirrored at the border. Moves the
    exact flow, backwards.
    """
    _down, _right = (v.numpy() for v in velocity(motion, images.shape[-2:], images))
    height, width = images.shape[-2:]
    y, x = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    turned = {
        "rotation": (
            y * math.cos(amount) + x * math.sin(amount),
            x * math.cos(amount) - y * math.sin(amount),
        ),
        "translation_x": (y, x - amount),
        "translation_y": (y - amount, x),
        "scale": (y * math.exp(-amount), x * math.exp(-amount)),
        "shear": (y, x - amount * y),
    }[motion]
    places = np.stack([turned[0] + (height - 1) / 2, turned[1] + (width - 1) / 2])
    return torch.from_numpy(
        np.stack([map_coordinates(i[0].numpy(), places, order=3, mode="mirror") for i in images])[
            :, None
        ]
    )


@pytest.mark.parametrize("motion", MOTIONS)
def test_it_agrees_with_central_differences_of_an_independent_resampler(motion):
    model, step = plain(), 1e-6
    with torch.no_grad():
        differences = (model(move(IMAGES, motion, step)) - model(move(IMAGES, motion, -step))) / (
            2 * step
        )
    derivative = lie_derivative(model, IMAGES, motion)
    assert float((derivative - differences).norm() / differences.norm()) < 0.01
    assert float(derivative.norm()) > 1e-3


def test_rotation_is_counter_clockwise_and_translations_go_right_and_down():
    from searchspace.groups import Element
    from trainers.actions import act

    few = Element.parse("r2")
    small = (act(IMAGES, few) - act(IMAGES, few.inverse)) / (2 * math.radians(2))
    inner = (slice(None), slice(None), slice(4, 16), slice(4, 16))
    assert (
        torch.corrcoef(
            torch.stack([small[inner].flatten(), moving(IMAGES, "rotation")[inner].flatten()])
        )[0, 1]
        > 0.95
    )
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 4] = 1
    assert moving(dot, "translation_x")[0, 0, 4, 5] > 0 > moving(dot, "translation_x")[0, 0, 4, 3]
    assert moving(dot, "translation_y")[0, 0, 5, 4] > 0


def test_a_constant_image_does_not_move_and_a_constant_model_is_refused():
    flat = torch.full((4, 1, 12, 12), 0.7)
    for motion in MOTIONS:
        assert float(lie_derivative(plain().float(), flat, motion).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="do not vary"):
        lie_derivatives(constant, IMAGES)


def test_an_exact_network_of_quarter_turns_is_not_exact_under_small_rotations():
    found = {d.motion: d for d in lie_derivatives(Lifting("C4").double(), IMAGES)}
    assert found["rotation"].relative > 0.05


def test_a_global_mean_is_invariant_to_translation_but_not_to_scale():
    bump = torch.exp(-(((torch.arange(33.0) - 16) / 3) ** 2))
    images = torch.stack([a * (bump[:, None] * bump)[None] for a in (0.5, 0.7, 1.0)]).double()
    found = {
        d.motion: d
        for d in lie_derivatives(
            lambda x: torch.stack([x.mean((1, 2, 3)), 2 * x.mean((1, 2, 3))], 1), images
        )
    }
    assert all(
        found[m].relative < 1e-6 for m in ("translation_x", "translation_y", "rotation", "shear")
    )
    # The integral over the plane grows by e^2t; the difference between different images here is
    # sqrt(2) standard deviations.
    means = images.mean((1, 2, 3))
    assert found["scale"].relative == pytest.approx(
        float(2 * means.square().mean().sqrt() / (2**0.5 * means.std())), rel=1e-3
    )


class Slopes(nn.Module):
    """Directional derivatives of the image in N directions: one exact regular field of C_N, also
    under small rotations.
    """

    def __init__(self, count, stride=1):
        super().__init__()
        offset = torch.arange(-8.0, 9.0)
        y, x = torch.meshgrid(offset, offset, indexing="ij")
        bell = torch.exp(-(x**2 + y**2) / 8)
        angles = 2 * math.pi * torch.arange(count) / count
        kernels = torch.stack([bell * (x * a.cos() - y * a.sin()) for a in angles])
        self.conv = nn.Conv2d(1, count, 17, padding=8, stride=stride, bias=False).double()
        self.conv.weight.data = kernels[:, None].double()

    def forward(self, images):
        return self.conv(images).square().mean((-1, -2))


def centred_images(size=41):
    position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    spots = [(3, -2, 1.0), (-4, 1, 0.5), (1, 5, 0.8)]
    return torch.stack(
        [
            sum(
                a * torch.exp(-((position[:, None] - y * f) ** 2 + (position[None] - x) ** 2) / 12)
                for y, x, a in spots
            )[None]
            for f in (1, -1, 0.3, -0.6)
        ]
    )


def test_maps_of_an_equivariant_stage_stay_equivariant_and_their_fields_turn():
    found = {
        d.motion: d
        for d in lie_derivatives(
            Slopes(8), centred_images(), stages=["conv"], fields={"conv": Group.parse("C8")}
        )
        if d.stage == "conv"
    }
    assert all(d.relative < 0.01 for d in found.values() if d.motion not in ("scale", "shear"))
    ignored = [
        d
        for d in lie_derivatives(Slopes(8), centred_images(), motions=["rotation"], stages=["conv"])
        if d.stage == "conv"
    ]
    assert ignored[0].relative > 0.3, "fields that do not turn are no equivariant ones"


def test_a_strided_stage_moves_by_less_and_is_still_equivariant():
    found = lie_derivatives(
        Slopes(1, stride=2), centred_images(), motions=["translation_x"], stages=["conv"]
    )
    assert found[1].relative < 0.02 < 0.1 < float(_norm(Slopes(1, stride=2), centred_images()))


def _norm(model, images):
    """What the derivative of the maps would be without moving them back."""
    maps = model.conv(images).detach()
    return moving(maps, "translation_x").square().mean().sqrt() / maps.std()


def test_coordinates_as_features_do_not_move_with_the_image():
    where = torch.linspace(0, 1, 20, dtype=torch.float64)
    broken = lambda x: (
        (x[:, 0] * where).sum((1, 2))[:, None] * torch.ones(1, 3, dtype=torch.float64)
    )
    assert (
        next(d for d in lie_derivatives(broken, IMAGES) if d.motion == "translation_x").relative
        > 0.05
    )


def test_per_pixel_compares_motions():
    rows = {d.motion: d for d in lie_derivatives(plain(), IMAGES)}
    assert rows["translation_x"].per_pixel == pytest.approx(rows["translation_x"].relative)
    assert rows["rotation"].per_pixel == pytest.approx(
        rows["rotation"].relative / math.sqrt((20**2 - 1) / 6)
    )


def test_the_softmax_value_is_the_mean_change_of_the_probabilities():
    model, step = plain(), 1e-6
    change = (
        model(move(IMAGES, "scale", step)).softmax(1)
        - model(move(IMAGES, "scale", -step)).softmax(1)
    ) / (2 * step)
    row = lie_derivatives(model, IMAGES, motions=["scale"])[0]
    assert row.softmax == pytest.approx(float(change.detach().abs().mean()), rel=0.01)


def test_it_works_on_our_networks():
    from searchspace.architecture import Architecture
    from trainers.networks.fold import fold
    from trainers.networks.networks import build

    network = build(Architecture.parse("20px: 4k3@C4 max2/2, 4k3"), channels=1, classes=5).double()
    found = lie_derivatives(network, IMAGES, motions=["rotation", "scale"], stages=None)
    assert [d.stage for d in found] == ["logits", "stage 1", "stage 2"] * 2
    folded = lie_derivatives(fold(network), IMAGES, motions=["rotation"])
    assert folded[0].relative == pytest.approx(found[0].relative, rel=1e-5)


def test_the_derivative_of_halving_is_that_of_max_pooling_also_where_pixels_are_equal():
    from trainers.networks.plain import Subsample

    step = Subsample({"kind": "max", "kernel": 2, "stride": 2, "padding": [0, 0], "ceil": False})
    images = (IMAGES * 4).round() / 4  # many equal neighbours
    for motion in MOTIONS:
        pooled = [
            lie_derivative(lambda x, pool=pool: pool(x).flatten(1), images, motion)
            for pool in (step, lambda x: nn.functional.max_pool2d(x, 2))
        ]
        assert torch.equal(*pooled) and float(pooled[0].abs().max()) > 0.01


def test_sums_and_products_of_dual_numbers_follow_the_rules():
    weight = torch.rand(400, 3, dtype=torch.float64)
    functions = {
        "affine": lambda x: ((x - 0.3) / weight[0, 0] + 2 * x).flatten(1) @ weight,
        "difference": lambda x: (x - x.square()).flatten(1),
        "product": lambda x: (x * (x + 1)).flatten(1),
        "linear": lambda x: nn.functional.linear(x.flatten(1), weight.T, weight[0]),
        "quotient": lambda x: (x / (x + 1)).flatten(1),
        "from": lambda x: (1 - x).flatten(1),
        "half": lambda x: (0.5 * x + weight[1, 0]).flatten(1),
    }
    for name, function in functions.items():
        step = 1e-6 * moving(IMAGES, "shear")
        expected = (function(IMAGES + step) - function(IMAGES - step)) / 2e-6
        assert torch.allclose(
            lie_derivative(function, IMAGES, "shear"), expected, rtol=1e-5, atol=1e-8
        ), name


def test_folded_networks_are_differentiated_without_importing_a_compiler():
    code = (
        "import sys, torch\nfrom searchspace.architecture import Architecture\nfrom "
        "trainers.networks.fold import fold\nfrom trainers.instruments.lie import lie_derivatives\n"
        "from trainers.networks.networks import build\n"
        "lie_derivatives(fold(build(Architecture.parse('16px: 4k3 max2/2, 4k3r'), channels=1, "
        "classes=3)), torch.rand(4, 1, 16, 16), normalise=lambda x: (x - 0.1) / 0.3)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
        ).stdout.strip()
        == "False"
    )


def test_an_unknown_motion_is_named():
    with pytest.raises(ValueError, match="no motion 'twist'; choose one of rotation"):
        lie_derivatives(plain(), IMAGES, motions=["twist"])
