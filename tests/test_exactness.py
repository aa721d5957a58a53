"""Verdicts on layouts whose exactness is published or measured elsewhere, and where each element is
lost.
"""

import itertools

import pytest

from searchspace.architecture import Architecture
from searchspace.exactness import exact_sizes, verdict
from searchspace.groups import Element, Group
from searchspace.published import PUBLISHED

P4 = "{}px: 10k3@C4, 10k3 {}, 10k3, 10k3, 10k3, 10k3, 10k4p0"


@pytest.mark.parametrize(
    "size,layout,exact",
    [
        (28, "max2/2", True),
        (29, "max2/2", False),
        (27, "max2/2", False),
        (28, "max3/2", False),
        (29, "max3/2", True),
        (29, "avg3/2p1", True),
        (28, "conv3/2p1", False),
        (29, "blur/2", True),
        (28, "blur/2", False),
        (28, "adaptive14", True),
        (29, "adaptive/2", True),
    ],
)
def test_published_layouts(size, layout, exact):
    assert verdict(Architecture.parse(P4.format(size, layout))).exact == exact


@pytest.mark.parametrize(
    "name,exact",
    [
        ("p4cnn", True),
        ("p4cnn-valid", True),
        ("equinas", False),
        ("resnet18-p4", False),
        ("resnet44-p4m", False),
        ("all-cnn-p4", False),
        ("wrn28-10-c4", False),
    ],
)
def test_published_networks_at_their_usual_size(name, exact):
    found = verdict(PUBLISHED[name].architecture)
    assert found.exact == exact
    sizes = exact_sizes(PUBLISHED[name].architecture)
    assert sizes and (PUBLISHED[name].architecture.size in sizes) == exact
    assert all(verdict(PUBLISHED[name].architecture.with_size(*size)).exact for size in sizes)


@pytest.mark.parametrize("size, most", [("13", 2), ("14", 99), ("11x14", 2), ("9x8", 99)])
def test_exact_sizes_are_the_nearest_at_which_no_window_is_shifted(size, most):
    architecture = Architecture.parse(f"{size}px: 2k3p1@D4 max2/2, 2k3p1s2")
    height, width = architecture.size

    def unshifted(pair):
        layers = architecture.with_size(*pair).layers
        return all(layer.remainder == (0, 0) for layer in layers)

    def far(pair):
        return abs(pair[0] - height) + abs(pair[1] - width)

    around = itertools.product(range(height - 5, height + 6), range(width - 5, width + 6))
    found = exact_sizes(architecture, within=5, most=most)
    if height == width:
        fit = [pair for pair in around if pair[0] == pair[1] and unshifted(pair)]
        below = [pair for pair in fit if pair < (height, width)][::-1][:most]
        nearest = below + [pair for pair in fit if pair > (height, width)][:most]
        nearest += [pair for pair in fit if pair == (height, width)]
    else:
        nearest = sorted(filter(unshifted, around), key=lambda s: (far(s), s))[: 2 * most]
    assert len(nearest) > 1 and set(found) == set(nearest)
    assert [far(pair) for pair in found] == sorted(map(far, found))


def test_exact_sizes_of_deep_networks():
    assert {s for s, _ in exact_sizes(PUBLISHED["equinas"].architecture)} >= {25, 33}
    assert {s for s, _ in exact_sizes(PUBLISHED["wrn28-10-d4"].architecture)} >= {29, 33, 37}
    torchvision = Architecture.parse(
        PUBLISHED["resnet18-torchvision"].text.replace("64k7s2", "64k7s2@C4")
    )
    assert {s for s, _ in exact_sizes(torchvision)} >= {193, 225, 257}
    assert {s for s, _ in exact_sizes(PUBLISHED["e2sfcnn"].architecture)} >= {
        24,
        28,
        32,
    } and not verdict(PUBLISHED["e2sfcnn"].architecture).exact
    assert (
        verdict(PUBLISHED["e2sfcnn"].architecture).grid_exact
        and verdict(PUBLISHED["e2sfcnn"].architecture).surviving_group == "C4"
    )


def test_a_broken_square_layout_keeps_the_transposition():
    found = verdict(Architecture.parse("29px: 10k3@D4, 10k3 max2/2"))
    assert [str(e) for e in found.surviving] == ["e", "mr90"] and found.surviving_group == "D1"
    breaks = found.breaks(Element.parse("r180"))
    assert {(b.stage, b.layer, b.axis, b.remainder) for b in breaks} == {
        (2, "max2/2", "height", 1),
        (2, "max2/2", "width", 1),
    }


def test_axes_are_told_apart():
    """A mirror needs its own axis only; a quarter turn of a non-square image reads one axis
    backwards.
    """
    assert (
        verdict(Architecture.parse("29x28px: 4k3@D1 max2/2")).exact
        and not verdict(Architecture.parse("28x29px: 4k3@D1 max2/2")).exact
    )
    found = verdict(Architecture.parse("30x33px: 4k3s2@D4"))
    assert [str(e) for e in found.surviving] == ["e", "r90", "m", "mr90"]


def test_off_grid_elements_are_never_claimed():
    found = verdict(Architecture.parse("28px: 4k3@C8 max2/2"))
    assert not found.exact and found.grid_exact and found.surviving_group == "C4"
    assert found.breaks(Element.parse("r45"))[0].reason == "grid"


def test_a_declared_group_names_where_it_is_given_up():
    found = verdict(Architecture.parse("28px: 4k3@D4, 4k3@C4 max2/2, 4k3@C2"), Group.parse("D4"))
    assert found.surviving_group == "C2"
    assert (
        found.breaks(Element.parse("m"))[0].stage == 2
        and found.breaks(Element.parse("r90"))[0].stage == 3
    )
    assert found.breaks(Element.parse("m"))[0].reason == "group"


def test_features_and_logits_are_told_apart():
    pooled, apart = (
        verdict(Architecture.parse(f"28px: 4k3@C4 max2/2 head={head}"))
        for head in ("group_max", "none")
    )
    assert pooled.exact and apart.exact
    assert len(pooled.invariant) == 4 and [str(e) for e in apart.invariant] == ["e"]


def test_logits_of_elements_that_are_not_built_in_stay_only_where_kernels_may_have_one_pixel():
    d4 = Group.parse("D4")
    assert len(verdict(Architecture.parse("8px: 2k1 head=none"), d4).invariant) == 8
    assert [str(e) for e in verdict(Architecture.parse("8px: 2k3"), d4).invariant] == ["e"]
    assert [str(e) for e in verdict(Architecture.parse("8px: 2k3@C4"), d4).invariant] == [
        "e",
        "r90",
        "r180",
        "r270",
    ]


def test_a_shift_that_is_undone_is_no_place_where_anything_is_lost():
    """The crop drops a pixel on one side and the pool one on the other; the second pool is what
    breaks.
    """
    found = verdict(Architecture.parse("11px crop10: 3k3p0@D4 max3/2, 3k3 max2/2"))
    stages = {b.stage for element in found.group.elements for b in found.breaks(element)}
    assert not found.exact and 0 not in stages and 1 not in stages


def test_a_network_that_sees_no_pixel_is_invariant_under_all_elements_of_its_group():
    """The convolution reads its padding alone, on images that are not square too: off the grid, and
    where height and width are exchanged.
    """
    for size in ("3", "2x3"):
        found = verdict(Architecture.parse(f"{size}px: 2k1s9p1@C8"))
        assert found.invariant[::2] == found.group.elements[::2] and len(found.invariant) == 8


def test_images_that_are_too_large_and_stages_that_are_too_deep_are_refused():
    with pytest.raises(ValueError, match="at most 16384"):
        Architecture.parse("99999999px: 4k3@C4 max2/2")
    with pytest.raises(ValueError, match="at most 1000"):
        Architecture.parse("28px: 4k3x9999@C4")
    with pytest.raises(ValueError, match="resize29 and crop27, but one step"):
        Architecture.parse("28px resize29 crop27: 4k3@C4")
    assert Architecture.parse("28 px: 4k3@C4") == Architecture.parse("28px: 4k3@C4")


@pytest.mark.parametrize(
    "text, group, says",
    [
        ("28px: 4k3@D4, 4k3@C4", "D4", "not built in from stage 2 on: never guaranteed"),
        ("28px: 4k3@C8, 4k3", "C8", "off the pixel grid: never exact"),
        ("28px: 4k3@C4, 4k3 coordinates=xy", "C4", "the xy coordinates stay where they are"),
    ],
)
def test_where_an_element_is_lost_is_said_in_words(text, group, says):
    found = verdict(Architecture.parse(text), Group.parse(group))
    assert any(str(places[0]).startswith(says) for _, places in found.losses if places)
