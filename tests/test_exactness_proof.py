"""The verdict against measurement: every published network and thousands of random ones, element by element, in float64.

An element survives iff moving the image moves the features of the last stage (the logits: leaves them unchanged) to 1e-10 of
their size, on two dense random images and untrained weights. That an element is lost takes one pair of weights and images that
shows it, so that up to eight draws are made: a pixel that a maximum ignores need not be the largest.
"""

import math
import random
from dataclasses import replace
from typing import Iterator

import pytest
import torch

from architectures import ANY, random_architecture
from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import IDENTITY, Element, Group
from searchspace.published import PUBLISHED
from trainers.actions import act, act_on_fields
from trainers.networks import Network, build
from trainers.normalization import FieldNorm

THRESHOLD = 1e-10
DRAWS = 8
CHANNELS = 2
Survivors = tuple[tuple[Element, ...], tuple[Element, ...]]     # in the features, in the logits


@torch.no_grad()
def network(architecture: Architecture, seed: int) -> Network:
    """An untrained float64 network whose norms have the statistics of random images, and scale and shift every field differently.

    So half of the ReLUs are open: a network whose ReLUs are all open is linear, and one with dead ones is constant.
    """
    made = build(architecture, channels=CHANNELS, classes=3, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)

    def calibrate(norm: FieldNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].unflatten(1, (norm.fields, norm.order)).transpose(0, 1).flatten(1)
        norm.running_mean.copy_(values.mean(1))
        variance = values.var(1)
        norm.running_var.copy_(torch.where(variance < 1e-12, 1.0, variance.clamp_min(1e-4)))    # rounding errors are not contrast
        norm.weight.uniform_(0.5, 2.0, generator=generator)
        norm.bias.uniform_(-0.3, 0.8, generator=generator)

    hooks = [m.register_forward_pre_hook(calibrate) for m in made.modules() if isinstance(m, FieldNorm)]
    made(torch.rand((4, CHANNELS, *architecture.size), generator=generator, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return made


@torch.no_grad()
def errors(architecture: Architecture, seed: int) -> dict[Element, tuple[float, float]]:
    """The relative error of the features and of the logits under every element of the network's group."""
    group, (height, width) = architecture.group, architecture.size
    upright = network(architecture, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    images = torch.rand((2, CHANNELS, height, width), generator=generator, dtype=torch.float64)
    elements = [e for e in group.elements if e != IDENTITY]
    turning = [e for e in elements if height != width and e.on_grid and e.swaps_axes]
    logits, stages = upright.forward_with_stages(images)
    found = {}
    for chosen in (turning, [e for e in elements if e not in turning]):
        if not chosen:
            continue
        taking = upright
        if chosen is turning:       # the same weights on images with exchanged axes
            taking = build(architecture.with_size(width, height), channels=CHANNELS, classes=3).double().eval()
            taking.load_state_dict(upright.state_dict())
        moved_logits, moved_stages = taking.forward_with_stages(torch.cat([act(images, e) for e in chosen]))
        for number, element in enumerate(chosen):
            rows = slice(2 * number, 2 * number + 2)
            expected = act_on_fields(stages[-1], element, group)
            found[element] = difference(moved_stages[-1][rows], expected), difference(moved_logits[rows], logits)
    return found


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    size = max(float(found.abs().max()), float(expected.abs().max()))
    return float((found - expected).abs().max()) / size if size else 0.0        # all ReLUs dead: the next draw decides


def measured(architecture: Architecture, claimed: Survivors) -> Survivors:
    """The elements that survive in features and logits; draws again only while more survive than `claimed`."""
    kept = [set(architecture.group.elements), set(architecture.group.elements)]
    for seed in range(DRAWS):
        for element, pair in errors(architecture, seed).items():
            for survivors, error in zip(kept, pair):
                assert math.isfinite(error)
                if error > THRESHOLD:
                    survivors.discard(element)
        if all(len(survivors) <= len(claims) for survivors, claims in zip(kept, claimed)):
            break
    return tuple(tuple(e for e in architecture.group.elements if e in survivors) for survivors in kept)


def disagreement(architecture: Architecture) -> str:
    """What verdict and measurement say differently, with the architecture; empty if they agree."""
    found = verdict(architecture)
    claimed = found.surviving, found.invariant
    seen = measured(architecture, claimed)
    if sees_one_pixel(architecture) and set(claimed[1]) <= set(seen[1]):
        seen = seen[0], claimed[1]
    return "".join(f"\n  {architecture}\n    {what}: verdict {' '.join(map(str, c))}, measured {' '.join(map(str, m))}"
                   for what, c, m in zip(("features", "logits"), claimed, seen) if c != m)


def sees_one_pixel(architecture: Architecture) -> bool:
    """True if a kernel lies on a map of one pixel or makes one: what it sees may be symmetric by accident, which nothing claims.

    Logits may then be invariant under more elements than the verdict says, never fewer; features are compared in full.
    """
    return any(layer.weights and layer.kernel > 1 and min(layer.size_in + layer.size_out) == 1 for layer in architecture.layers)


def narrow(architecture: Architecture) -> Architecture:
    """The same layout with as few fields as keep different widths different: exactness does not depend on width."""
    widths = sorted({stage.fields for stage in architecture.stages})
    return replace(architecture, stages=tuple(replace(s, fields=1 + widths.index(s.fields)) for s in architecture.stages))


def near(name: str, group: str = "") -> list[Architecture]:
    """A published network at its size and up to two pixels beside it, narrow; C1 can be exchanged for `group`."""
    made = narrow(PUBLISHED[name].architecture)
    if group:
        made = replace(made, stages=tuple(replace(s, group=Group.parse(group)) for s in made.stages))
    return list(_that_fit(made))


def _that_fit(made: Architecture) -> Iterator[Architecture]:
    for step in (-2, -1, 0, 1, 2):
        try:
            yield made.with_size(made.size[0] + step)
        except ValueError:          # the unpadded networks need 28 px
            assert step < 0


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_networks_around_their_size(name):
    plain = PUBLISHED[name].architecture.family == "plain"
    for architecture in near(name, "C4" if plain else ""):      # a plain network has no element to lose: its layout has
        assert not disagreement(architecture)


def sample(seed: int, count: int, **choices) -> str:
    rng = random.Random(seed)
    return "".join(disagreement(random_architecture(rng, **choices)) for _ in range(count))


def test_random_architectures():
    assert not sample(1, 250)


def test_random_architectures_on_images_that_are_not_square():
    assert not sample(2, 100, square=0.0)


def test_random_architectures_with_elements_off_the_grid():
    assert not sample(3, 50, groups=ANY)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 40))
def test_thousands_of_random_architectures(seed):
    assert not sample(seed, 100) + sample(seed + 100, 30, square=0.0) + sample(seed + 200, 20, groups=ANY)


SHIFTS_THAT_DO_NOT_BREAK = [
    "11px crop10: 3k3p0@D4 max3/2, 3k3p0",        # the crop drops a pixel on one side, the pool one on the other
    "6px resize12nearest: 3k1s2@D4",            # every pixel lies there twice, and every other one is read
    "2px: 3k1@D4 max3/2p0:1",                   # one window that covers the whole map wherever it starts
    "3px: 3k3@C4 max5p2:1",
]
MEANS_THAT_DO_NOT_CHANGE = ["8px: 3k3p2:0circular@C4", "7px: 2k3@D4, 3k5p1:3circular",     # the grid moves around a circle
                            "7px: 3k3@C4 avg2/2p1", "7px: 3k1@C4 avg2/2p1 head=none"]    # every pixel counts once, in whichever window


@pytest.mark.parametrize("text", SHIFTS_THAT_DO_NOT_BREAK)
def test_shifts_that_do_not_break(text):
    architecture = Architecture.parse(text)
    assert any(layer.remainder != (0, 0) for layer in architecture.layers) and verdict(architecture).exact
    assert not disagreement(architecture)


@pytest.mark.parametrize("text", MEANS_THAT_DO_NOT_CHANGE)
def test_means_that_do_not_change(text):
    architecture = Architecture.parse(text)
    found = verdict(architecture)
    assert not found.exact and found.invariant == architecture.group.elements
    assert not disagreement(architecture)


@pytest.mark.parametrize("text", [
    f"{size}px: 2k3@D4 {step}, 2k3" for size in (11, 12) for step in (
        "max3/2p1", "max3/2p0:1", "avg3/2p1:0ceil", "max2/3ceil", "avg3/2ceil", "avg4/3p1:2", "conv3/2p0:1", "blur/2", "blur/3", "blurmax/2", "adaptive/5",
        "adaptive5", "adaptivemax5", "adaptivemax/5", "resize7", "resize17bicubic", "resize17", "resize5nearest", "resize24nearest",
        "crop7", "crop8", "crop15", "crop16")] + [
    "11x12px: 2k3s2p1:2reflect@D4", "12px: 2k3s2p2circulard2@D4", "12px: 2k4p1:2replicate@D4", "13px: 2k5s3p4reflectd2@C4 max2/2",
    "12px: 2k3s2r@D4, 3k3s3x2r", "13px: 2k3s2r@D4, 2k3x2r, 3k3", "12px resize13nearest: 2k3@D4", "12px crop13: 2k3@D4 adaptive1",
    "12px: 2k3@D4, 2k3@C4 max3/2, 2k3@C2", "12px: 2k3@C4 max2/2 head=none", "13px: 2k3@C4 max2/2 head=group_mean filters=basis"])
def test_every_kind_of_layer(text):
    assert not disagreement(Architecture.parse(text))


def test_the_measurement_sees_a_broken_network():
    """An instrument that cannot fail proves nothing: one shifted window shows in features and logits, far above the threshold."""
    broken = Architecture.parse("29px: 2k3@C4 max2/2, 2k3")
    assert all(min(pair) > 1e-4 for pair in errors(broken, 0).values())
    assert all(max(pair) < 1e-12 for pair in errors(broken.with_size(28), 0).values())
