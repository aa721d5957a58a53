"""The verdict against measurement: every published network and thousands of random ones, element by
element, in float64.

An element survives in a stage iff moving the image moves the stage's maps to 1e-10 of their size,
and it leaves the logits invariant iff they stay to 1e-10, on three dense random images and
untrained weights. That an element is lost takes one pair of weights and images that shows it, so
that several draws are made: a pixel that a maximum ignores need not be the largest; in every
other draw the pixels of an image are alike, so that all can lie below a constant. The later ones
bend every activation (softplus in place of ReLU): units that are open, or shut, on all images hide
what they see. Claims and measurements are equal for every quarter turn and flip, also those that
the network is not built with (logits only: features have no action of them). Of other elements
nothing is claimed, and most networks lose them.

`--proof-seeds 40:80` asks new random networks, 250 for each seed.
"""

import math
import random
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.function.coordinates import COORDINATES
from searchspace.groups import IDENTITY, TRIVIAL, Element, Group
from searchspace.published import PUBLISHED
from support.architectures import ANY, ODD, odd_architecture, random_architecture
from support.relaxing import random_relaxed, stir
from trainers.actions import act, act_on_fields
from trainers.networks.networks import Network, build
from trainers.networks.normalization import FieldNorm

THRESHOLD = 1e-10
DRAWS = 48
CHANNELS = 2
IMAGES = 3
MORE_IMAGES = 16  # in every other draw
GRID = Group.parse("D4")


class Survivors(NamedTuple):
    """The elements that survive in the maps after each stage, and those that leave the logits as
    they are.
    """

    stages: tuple[AbstractSet[Element], ...]
    logits: AbstractSet[Element]


@torch.no_grad()
def network(architecture: Architecture, seed: int) -> Network:
    """An untrained float64 network whose norms have the statistics of random images, and scale and
    shift every field differently.

    So half of the ReLUs are open: a network whose ReLUs are all open is linear, and one with dead
    ones is constant.
    """
    made = build(architecture, channels=CHANNELS, classes=3, seed=seed).double().eval()
    stir(made, seed)
    generator = torch.Generator().manual_seed(seed)

    def calibrate(norm: FieldNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].unflatten(1, (norm.fields, norm.order)).transpose(0, 1).flatten(1)
        norm.running_mean.copy_(values.mean(1))
        variance = values.var(1)
        # rounding errors are not contrast
        norm.running_var.copy_(torch.where(variance < 1e-12, 1.0, variance.clamp_min(1e-2)))
        norm.weight.uniform_(0.5, 2.0, generator=generator)
        norm.bias.uniform_(-0.3, 0.8, generator=generator)

    hooks = [
        m.register_forward_pre_hook(calibrate) for m in made.modules() if isinstance(m, FieldNorm)
    ]
    made(torch.randn((4, CHANNELS, *architecture.size), generator=generator, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return made


def asked(architecture: Architecture) -> list[Element]:
    """All elements of the network's first group, and all quarter turns and flips, but
    the identity.
    """
    own = architecture.stages[0].group
    off_grid = () if own.on_grid or sees_its_centre_alone(architecture) else own.elements
    return [
        e for e in dict.fromkeys((*own.grid.elements, *off_grid, *GRID.elements)) if e != IDENTITY
    ]


@torch.no_grad()
def sees_its_centre_alone(architecture: Architecture) -> bool:
    """True if no pixel but the one about which images turn reaches the last maps: they survive
    every rotation by accident.
    """
    made = network(architecture, 0)
    images = torch.randn((IMAGES, CHANNELS, *architecture.size), dtype=torch.float64)
    centre = torch.zeros(architecture.size, dtype=torch.bool)
    if all(n % 2 for n in architecture.size):
        centre[architecture.size[0] // 2, architecture.size[1] // 2] = True
    others = torch.where(centre, images, torch.randn_like(images))
    return torch.equal(*(made.forward_with_stages(x)[1][-1] for x in (images, others)))


@torch.no_grad()
def errors(
    architecture: Architecture, elements: list[Element], seed: int
) -> dict[Element, tuple[list[float], float]]:
    """The relative errors of the maps after each stage (0 where its group lacks the element), and
    of the logits.
    """
    height, width = architecture.size
    upright = network(architecture, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    shape = (MORE_IMAGES if seed % 2 else IMAGES, CHANNELS, height, width)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    if seed % 2:  # pixels alike in each image, so that all windows can lie below a constant
        images = (
            torch.randn(shape[:2], generator=generator, dtype=torch.float64)[..., None, None]
            + 0.3 * images
        )
    turning = [e for e in elements if height != width and e.on_grid and e.swaps_axes]
    logits, stages = upright.forward_with_stages(images)
    found = {}
    for chosen in (turning, [e for e in elements if e not in turning]):
        if not chosen:
            continue
        taking = upright
        if chosen is turning:  # the same weights on images with exchanged axes
            taking = (
                build(architecture.with_size(width, height), channels=CHANNELS, classes=3)
                .double()
                .eval()
            )
            taking.load_state_dict(upright.state_dict())
        moved_logits, moved_stages = taking.forward_with_stages(
            torch.cat([act(images, e) for e in chosen])
        )
        for number, element in enumerate(chosen):
            rows = slice(shape[0] * number, shape[0] * (number + 1))
            of_stages = [
                difference(after[rows], act_on_fields(before, element, stage.group))
                if element in stage.group
                else 0.0
                for before, after, stage in zip(stages, moved_stages, architecture.stages)
            ]
            found[element] = of_stages, difference(moved_logits[rows], logits)
    return found


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    # the norms' outputs have size 1; less is little but rounding
    size = max(float(found.abs().max()), float(expected.abs().max()), 0.01)
    return float((found - expected).abs().max()) / size


def claimed(architecture: Architecture, elements: list[Element]) -> Survivors:
    """What the verdict says of `elements`, asked under D4 and under the network's own
    first group.
    """
    found = [verdict(architecture, group) for group in (GRID, architecture.stages[0].group)]
    for one in found:
        stages = zip(one.after_stages[1:], architecture.stages)
        of_streams = [set(left) for left, stage in stages if stage in architecture.lasts]
        features = set.intersection(*of_streams)
        expected = set(one.invariant) if architecture.orbit != TRIVIAL else features
        assert set(one.surviving) == expected, str(architecture)
        assert [e for e, breaks in one.losses if not breaks] == list(one.surviving), str(
            architecture
        )
    stages = tuple(
        frozenset(elements).union(more)
        for elements, more in zip(*(one.after_stages[1:] for one in found))
    )
    known = {IDENTITY, *elements}
    return Survivors(
        tuple(stage & known for stage in stages), known & {*found[0].invariant, *found[1].invariant}
    )


def bent(values: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.softplus(values)


def measured(architecture: Architecture, elements: list[Element], claims: Survivors) -> Survivors:
    """The elements that survive; draws again only while more survive than `claims` has."""
    kept = [{e for e in (IDENTITY, *elements) if e in stage.group} for stage in architecture.stages]
    invariant = {IDENTITY, *elements}
    for seed in range(DRAWS):
        with nullcontext() if seed < DRAWS // 2 else mock.patch.multiple(F, relu=bent, relu_=bent):
            found = errors(architecture, elements, seed)
        for element, (of_stages, of_logits) in found.items():
            assert all(map(math.isfinite, (*of_stages, of_logits)))
            if of_logits > THRESHOLD:
                invariant.discard(element)
            for survivors, error in zip(kept, of_stages):
                if error > THRESHOLD:
                    survivors.discard(element)
        if invariant <= claims.logits and all(
            survivors <= claim for survivors, claim in zip(kept, claims.stages)
        ):
            break
    return Survivors(tuple(kept), invariant)


def disagreement(architecture: Architecture) -> str:
    """What verdict and measurement say differently, with the architecture; empty if they agree."""
    elements = asked(architecture)
    claims = claimed(architecture, elements)
    seen = measured(architecture, elements, claims)
    names = [f"stage {n}" for n in range(1, len(seen.stages) + 1)] + ["logits"]
    pairs = zip(names, (*claims.stages, claims.logits), (*seen.stages, seen.logits))
    return "".join(
        f"\n  {architecture}\n    {what}: verdict {_text(claim)}, measured {_text(survivors)}"
        for what, claim, survivors in pairs
        if claim != survivors
    )


def _text(elements: AbstractSet[Element]) -> str:
    return " ".join(str(e) for e in sorted(elements, key=lambda e: (e.mirror, e.turn)))


def narrow(architecture: Architecture) -> Architecture:
    """The same layout with as few fields as keep different widths different: exactness does not
    depend on width.
    """
    widths = sorted({stage.fields for stage in architecture.stages})
    return replace(
        architecture,
        stages=tuple(replace(s, fields=1 + widths.index(s.fields)) for s in architecture.stages),
    )


def near(name: str, group: str = "") -> list[Architecture]:
    """A published network at its size and up to two pixels beside it, narrow; C1 can be exchanged
    for `group`.
    """
    made = narrow(PUBLISHED[name].architecture)
    if group:
        made = replace(
            made, stages=tuple(replace(s, group=Group.parse(group)) for s in made.stages)
        )
    return list(_that_fit(made))


def _that_fit(made: Architecture) -> Iterator[Architecture]:
    for step in (-2, -1, 0, 1, 2):
        try:
            yield made.with_size(made.size[0] + step)
        except ValueError:  # the unpadded networks need 28 px
            assert step < 0


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_networks_around_their_size(name):
    plain = PUBLISHED[name].architecture.family == "plain"
    # a plain network has no element to lose: its layout has
    for architecture in near(name, "C4" if plain else ""):
        assert not disagreement(architecture)


def sample(make, seed: int, count: int, **choices) -> str:
    rng = random.Random(seed)
    return "".join(disagreement(make(rng, **choices)) for _ in range(count))


def test_random_architectures():
    assert not sample(random_architecture, 1, 150)


def test_random_architectures_on_images_that_are_not_square():
    assert not sample(random_architecture, 2, 60, square=0.0)


def test_random_architectures_with_elements_off_the_grid():
    assert not sample(random_architecture, 3, 40, groups=ANY)


def averaged_architecture(rng: random.Random, **choices) -> Architecture:
    """A random architecture averaged over an orbit that keeps its images' shape."""
    made = random_architecture(rng, **choices)
    names = ("C2", "D1", "D2", "C4", "D4") if made.size[0] == made.size[1] else ("C2", "D1", "D2")
    return replace(made, orbit=Group.parse(rng.choice(names)))


def test_random_architectures_averaged_over_an_orbit():
    assert not sample(averaged_architecture, 5, 20)
    assert not sample(averaged_architecture, 6, 8, square=0.0)


def relaxed(make):
    return lambda rng, **choices: random_relaxed(rng, make(rng, **choices))


def test_random_relaxed_architectures():
    """Whatever the relaxations have become: the verdict claims what holds, and no more holds."""
    assert not sample(relaxed(random_architecture), 5, 20)
    assert not sample(relaxed(random_architecture), 6, 5, square=0.0)


def test_odd_relaxed_architectures():
    assert not sample(relaxed(odd_architecture), 7, 15)


def coordinated_architecture(rng: random.Random, **choices) -> Architecture:
    """A random architecture that sees coordinates, averaged over an orbit in a quarter of cases."""
    average = rng.random() < 0.25
    made = (averaged_architecture if average else random_architecture)(rng, **choices)
    return replace(made, coordinates=rng.choice(COORDINATES[1:]))


def test_random_architectures_with_coordinates():
    assert not sample(coordinated_architecture, 7, 25)
    assert not sample(coordinated_architecture, 8, 8, square=0.0)


def shared_architecture(rng: random.Random, odd: bool = False, **choices) -> Architecture:
    """A random architecture with an invariant share in most stages."""
    made = (odd_architecture if odd else random_architecture)(rng, **choices)
    shares = (0.0, 0.5, 0.5, 1.0)
    return replace(
        made, stages=tuple(replace(s, invariant=rng.choice(shares)) for s in made.stages)
    )


def test_random_architectures_with_invariant_shares():
    assert not sample(shared_architecture, 9, 20)
    assert not sample(shared_architecture, 10, 6, square=0.0)
    assert not sample(shared_architecture, 11, 8, odd=True)


def streamed_architecture(rng: random.Random, **choices) -> Architecture:
    """Random stages in two streams on the same image; averaged in a quarter of the cases."""
    average = rng.random() < 0.25
    while True:
        made = (averaged_architecture if average else random_architecture)(rng, **choices)
        other = random_architecture(rng, **choices)
        beside = replace(other.stages[0], stream=True), *other.stages[1:]
        try:
            return replace(made, stages=(*made.stages, *beside))
        except ValueError:  # it does not fit the image
            continue


def test_random_architectures_with_streams():
    assert not sample(streamed_architecture, 12, 20)
    assert not sample(streamed_architecture, 13, 6, square=0.0)


def test_odd_architectures():
    assert not sample(odd_architecture, 4, 150, groups=ODD)


@pytest.mark.slow
def test_thousands_of_random_architectures(proof_seed):
    found = sample(random_architecture, proof_seed, 100) + sample(
        random_architecture, proof_seed, 30, square=0.0
    )
    found += sample(random_architecture, proof_seed, 20, groups=ANY)
    found += sample(averaged_architecture, proof_seed, 30)
    found += sample(coordinated_architecture, proof_seed, 40)
    found += sample(streamed_architecture, proof_seed, 30)
    found += sample(shared_architecture, proof_seed, 40)
    found += sample(shared_architecture, proof_seed, 40, odd=True)
    found += sample(coordinated_architecture, proof_seed, 15, square=0.0)
    found += sample(averaged_architecture, proof_seed, 10, square=0.0)
    found += sample(relaxed(random_architecture), proof_seed, 40)
    found += sample(relaxed(odd_architecture), proof_seed, 40)
    found += sample(odd_architecture, proof_seed, 60) + sample(
        odd_architecture, proof_seed, 40, groups=ODD
    )
    assert not found


SHIFTS_THAT_DO_NOT_BREAK = [
    # the crop drops a pixel on one side, the pool one on the other
    "11px crop10: 3k3p0@D4 max3/2, 3k3p0",
    # every pixel lies there twice, and every other one is read
    "6px resize12nearest: 3k1s2@D4",
    # one window that covers the whole map wherever it starts
    "2px: 3k1@D4 max3/2p0:1",
    "3px: 3k3@C4 max5p2:1",
]
# the grid moves around a circle
MEANS_THAT_DO_NOT_CHANGE = [
    "8px: 3k3p2:0circular@C4",
    "7px: 2k3@D4, 3k5p1:3circular",
    # every pixel counts once, in whichever window
    "7px: 3k3@C4 avg2/2p1",
    "7px: 3k1@C4 avg2/2p1 head=none",
]


# more is exact than windows alone show
EQUAL_VALUES = [
    # the last stage sees padding alone, so that no relaxation matters
    "6x1px: 2k5s3d2@D2b2 lp2/7p0:1, 3k3p1circularx3@D2+C2, 3k1s3p1:0 head=group_mean",
    # pooled channels show the same values, in exchanged places
    "5x7px: 1k2s5p3:0circulard5i0.5@C2 blur/7 head=none",
    "1px resize1bicubic: 2k1p0reflectd5i0.5@D1, 1k2s3p0:2d2i0.5 blur/2, 3k1s3p0@C1 blurmax/2",
    # a maximum over channels of maxima over windows
    "9px: 1k3s3x2ri0.5@D4 blurmax/2, 3k3s3p2i1@D2 blurmax/2, 2k1p0reflecti0.5 lp4/3p2",
    # shifted windows, whose pooled channels are exact all the same
    "3px: 2k1s2p1:0i1@D2, 3k2s3p0:1i1",
    # seen as broken only where all pixels lie below a constant
    "2px: 1k6d3i1@C4 max4/1p2:0, 1k1p0i0.5 resize20nearest head=none",
]


@pytest.mark.parametrize("text", EQUAL_VALUES)
def test_equal_values_behind_different_windows(text):
    assert not disagreement(Architecture.parse(text))


@pytest.mark.parametrize("text", EQUAL_VALUES)
def test_what_survives_is_what_is_left_after_the_last_stage(text):
    found = verdict(Architecture.parse(text))
    assert found.surviving == found.after_stages[-1]


@pytest.mark.parametrize("text", SHIFTS_THAT_DO_NOT_BREAK)
def test_shifts_that_do_not_break(text):
    architecture = Architecture.parse(text)
    assert (
        any(layer.remainder != (0, 0) for layer in architecture.layers)
        and verdict(architecture).exact
    )
    assert not disagreement(architecture)


@pytest.mark.parametrize("text", MEANS_THAT_DO_NOT_CHANGE)
def test_means_that_do_not_change(text):
    architecture = Architecture.parse(text)
    found = verdict(architecture)
    assert not found.exact and found.invariant == architecture.group.elements
    assert not disagreement(architecture)


@pytest.mark.parametrize(
    "text",
    [
        f"{size}px: 2k3@D4 {step}, 2k3"
        for size in (11, 12)
        for step in (
            "max3/2p1",
            "max3/2p0:1",
            "avg3/2p1:0ceil",
            "max2/3ceil",
            "avg3/2ceil",
            "avg4/3p1:2",
            "lp3/2p1",
            "lp2/2",
            "lp4/3p1:2",
            "conv3/2p0:1",
            "blur/2",
            "blur/3",
            "blurmax/2",
            "adaptive/5",
            "adaptive5",
            "adaptivemax5",
            "adaptivemax/5",
            "resize7",
            "resize17bicubic",
            "resize17",
            "resize5nearest",
            "resize24nearest",
            "crop7",
            "crop8",
            "crop15",
            "crop16",
        )
    ]
    + [
        "11x12px: 2k3s2p1:2reflect@D4",
        "12px: 2k3s2p2circulard2@D4",
        "12px: 2k4p1:2replicate@D4",
        "13px: 2k5s3p4reflectd2@C4 max2/2",
        "12px: 2k3s2r@D4, 3k3s3x2r",
        "13px: 2k3s2r@D4, 2k3x2r, 3k3",
        "12px resize13nearest: 2k3@D4",
        "12px crop13: 2k3@D4 adaptive1",
        "12px: 2k3@D4, 2k3@C4 max3/2, 2k3@C2",
        "12px: 2k3@C4 max2/2 head=none",
        "7px: 3k3@C4 lp2/2p1",
        "7px: 3k1@C4 lp2/2p1 head=none",
        "11px: 2k3@D4 lp1/2, 2k3p0 lp9/1p4, 2k1 lp3/2p0:1",
        "13px: 2k3@C4 max2/2 head=group_mean filters=basis",
        # averaged, each stream is invariant under all of D4
        "7x9px: 1k2p0:2@D4 blur/2 & 3k4@C4 avg5/1p1 head=group_mean orbit=D2",
    ],
)
def test_every_kind_of_layer(text):
    assert not disagreement(Architecture.parse(text))


def test_the_measurement_sees_a_broken_network():
    """An instrument that cannot fail proves nothing: one shifted window shows in features and
    logits, far above the threshold.
    """
    broken = Architecture.parse("29px: 2k3@C4 max2/2, 2k3")
    assert all(
        min(*of_stages[1:], of_logits) > 1e-4
        for element, (of_stages, of_logits) in errors(broken, asked(broken), 0).items()
        if not element.mirror
    )
    assert all(
        max(*of_stages, of_logits) < 1e-12
        for element, (of_stages, of_logits) in errors(
            broken.with_size(28), asked(broken), 0
        ).items()
        if not element.mirror
    )


@pytest.mark.parametrize(
    "text",
    [
        # the broken windows see padding alone
        "15x13px: 3k1@D4 resize5, 2k2p2x2 conv3/2p1:0 head=group_mean",
        # no window sees a pixel, on one axis
        "1x3px: 2k1s2p1:0x3@D4 max5/1p0:2ceil, 3k3p3 head=none",
        "15x20px: 2k3s3@D8 blurmax/2, 2k3s2p0circular, 2k1s3p1 head=group_mean",  # a constant
        # transposing changes nothing, mirroring does
        "2px: 3k1s2x3@D4 crop3, 1k5p2circularx3 head=none",
        "29px: 1k1s3p1:0d5@C2, 3k3s5d5r, 2k7 conv1/1, 3k3p2:0circular head=none",
        "1px: 2k1@D2 resize20nearest, 1k2p0d3, 2k1s5 head=none",
        "1px: 2k2p0:1@D4",
        "8px: 2k1@C4 adaptive1, 3k2p1:0",
        "2px: 2k3p1circular@D4 head=none",
        "1x8px: 2k3@D4 head=none",
        "8px: 2k1 head=none",
        # reflected windows do not see that kernels are mirrored
        "6px: 3k5s3p2:0reflect@C4, 3k1s3p0circularr",
        # every position shows the same pixel
        "3x2px: 3k1@D1, 1k1 avg2/7p1, 1k1p1circularx2, 1k3s2p1circularr head=none",
        # the last window is the first one again
        "22x16px: 3k1s3@C4, 1k4s3p2circular max3/3p1:0 head=group_mean",
        # weights that decimal rounding tears apart
        "4px: 3k1@D2 resize11bicubic",
        "3x1px: 1k1p0:1circular@D4, 2k3p1circular@D1",
        # what lies once around, on one side more than on the other
        "15px: 3k4p2circular@D4+D2",
        # a crop that pads, behind pooled channels of a residual block
        "7x22px: 2k1s2ri1@C4 crop16 head=group_mean",
        # convolutions in a row without a skip connection, then blocks
        "10x15px: 2k4p3x2@C2, 1k3d2x2r max3/1, 1k3s3p1circularx2ri0.5 adaptive2 head=none",
        # pooled channels that are one value each, under one weight
        "3px: 3k6p6replicated2@D4 avg1/2, 1k4p0:2x2i1 avg2/1p1:0ceil head=group_mean",
        # relaxed layers whose padding alone is seen
        "2px: 1k1p0reflect@D1+C1 crop20, 2k5s3p2reflectx3@C1 resize20 head=none",
        # the only window shows one pixel, which transposing leaves in its place
        "4px: 1k2s5p1 head=none",
        # channels whose means are others, in any order
        "6px: 2k1p0replicatex3r lp3/1p1, 2k4p7:0d2, 3k3p6:0circulard3 avg6/7p3ceil",
        "1px: 2k3@C8 head=none",
        "9px: 2k1@C8 crop1",
        # one corner is all that is seen, where coordinates stay as they are; then the centre
        "11x9px: 3k2@D1, 3k1s2p0 conv1/3, 2k2s3d2 max1/3 head=none coordinates=x",
        "9px crop7: 2k1s3@D4, 2k1p0s2 conv1/3, 2k3 coordinates=xy",
        "7px: 2k1@C4 crop1 coordinates=x",
    ],
)
def test_edges_where_axes_cannot_be_looked_at_alone_or_no_pixel_is_seen(text):
    assert not disagreement(Architecture.parse(text))
