"""Proposals are exact (or broken) as they claim, by the verdict and by the windows themselves, and
say what they cost.
"""

import pytest

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.published import PUBLISHED
from searchspace.repairs import breakings, repair_layouts, repair_sizes
from searchspace.subsampling import Subsampling

P4 = Architecture.parse("29px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0")
BROKEN = [name for name, p in PUBLISHED.items() if not verdict(p.architecture).grid_exact]


def steerable(name: str) -> Architecture:
    return PUBLISHED[name].architecture


def test_both_remedies_of_the_published_experiment_are_found():
    """29 px with max2/2 is repaired by 28 px, and by max3/2 at the same size."""
    sizes = repair_sizes(P4)
    assert {p.architecture.size[0] for p in sizes if p.kind == "size"} == {28, 30, 26, 32}
    assert any(str(p.architecture.entry) == "resize28" for p in sizes)
    layouts = repair_layouts(P4)
    assert "stage 2: 10k3 max2/2 -> 10k3 max3/2" in [c for p in layouts for c in p.changes]
    assert {str(p.architecture.stages[1].subsampling) for p in layouts} & {
        "adaptivemax/2",
        "max3/2p1",
    }


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_published_network_can_be_repaired(name):
    architecture = steerable(name)
    sizes, layouts = repair_sizes(architecture), repair_layouts(architecture)
    assert sizes and layouts
    for proposal in sizes + layouts:
        assert verdict(proposal.architecture).grid_exact and proposal.gained and not proposal.freed
        assert all(layer.remainder == (0, 0) for layer in proposal.architecture.layers)
        before, after = cost(architecture).macs, cost(proposal.architecture).macs
        assert proposal.macs == after and proposal.macs_change == pytest.approx(after / before - 1)
    assert all(p.architecture.size == architecture.size for p in layouts)
    order = [(round(4 * abs(p.macs_change)), len(p.changes)) for p in layouts]
    assert order == sorted(order)


def test_a_residual_network_is_repaired_by_pools_that_take_over_the_strides():
    best = repair_layouts(steerable("wrn28-10-d4"))[0]
    assert best.architecture.sizes[-1] in ((8, 8), (7, 7)) and all(
        stage.stride == 1 for stage in best.architecture.stages
    )
    assert abs(best.macs_change) < 0.25


def test_the_cheapest_layout_comes_first():
    layouts = repair_layouts(Architecture.parse("18px: 3k2s2p0@D1, 1k5s3x2r"))
    work = [round(p.macs_change, 2) for p in layouts]
    assert work == sorted(work) and work[0] == 0 < work[-1]


def test_what_takes_several_changes_is_found_behind_a_first_change_that_costs_more():
    """Of the first stage's alternatives, the one of nearly the same MACs leads nowhere."""
    text = "24px: 1k4s3p1replicate@C2, 1k2, 3k1s2p0replicated2 max3/3 head=group_mean"
    layouts = repair_layouts(Architecture.parse(text))
    assert layouts and all(len(p.changes) > 1 for p in layouts)


def test_breakings_that_leave_more_and_cost_less_come_first():
    exact = Architecture.parse("28px: 4k3@D4, 4k3 max2/2, 4k3")
    layouts = [p for p in breakings(exact) if p.kind == "layout"]
    order = [(-len(p.surviving), len(p.changes), abs(p.macs_change)) for p in layouts]
    assert order == sorted(order) and order[0] < order[-1]


def test_what_fits_behind_its_entry_alone_is_repaired_with_an_entry():
    proposals = repair_sizes(Architecture.parse("4px resize12: 3k3@C4 avg9/2p1"))
    assert all(verdict(p.architecture).grid_exact for p in proposals)
    assert any(p.kind == "entry" for p in proposals)


def test_torchvisions_resnet_can_be_repaired_at_its_size():
    c4 = Architecture.parse(PUBLISHED["resnet18-torchvision"].text.replace("64k7s2", "8k7s2@C4"))
    assert {193, 225} <= {p.architecture.size[0] for p in repair_sizes(c4) if p.kind == "size"}
    layouts = repair_layouts(c4)
    assert layouts and all(verdict(p.architecture).exact for p in layouts)


def test_nothing_is_proposed_where_nothing_is_shifted():
    exact = P4.with_size(28)
    assert repair_sizes(exact) == repair_layouts(exact) == ()
    # the mirror is not built in: no layout brings it back
    assert repair_layouts(exact, Group.parse("D4")) == ()


def test_a_declared_group_asks_for_its_axes_only():
    # the width is exact, the height is shifted
    mirrored = Architecture.parse("29x28px: 4k3@D4 max2/2")
    assert repair_layouts(mirrored, Group.parse("D1")) == ()
    assert repair_layouts(mirrored, Group.parse("C4"))


def test_an_exact_network_can_be_broken_on_purpose():
    exact = Architecture.parse("28px: 4k3@D4, 4k3 max2/2, 4k3")
    found = breakings(exact)
    assert {p.kind for p in found} == {"size", "layout"}
    for proposal in found:
        assert proposal.freed == tuple(
            e for e in exact.group.elements if e not in verdict(proposal.architecture).surviving
        )
    assert ["e", "mr90"] in [[str(e) for e in p.surviving] for p in found]


def test_only_layouts_that_somebody_would_use_are_proposed():
    """No pool of one pixel, no window smaller than its stride, and no image that is squeezed for no
    group's sake.
    """
    for text in (
        "28px: 4k3@D4, 4k3 max2/2, 4k3s2",
        "28px: 4k3@C4, 4k3 avg3/2p1, 4k3 conv3/2p1",
        "27px: 4k3s3@D4, 4k3 max3/3",
    ):
        architecture = Architecture.parse(text)
        for proposal in (*breakings(architecture, most=20), *repair_layouts(architecture, most=20)):
            assert proposal.architecture.size[0] == proposal.architecture.size[1]
            for stage in proposal.architecture.stages:
                step = stage.subsampling
                assert (
                    step is None
                    or step.kind not in ("max", "avg", "conv")
                    or step.kernel >= max(step.stride, 2)
                )
                assert stage.kernel >= stage.stride


def test_one_axis_is_broken_where_a_mirror_is_left():
    found = {
        p.architecture.size: p for p in breakings(Architecture.parse("28px: 4k3@D2, 4k3 max2/2"))
    }
    assert list(found)[:4] == [(29, 29), (27, 27), (28, 29), (29, 28)]
    assert [str(e) for e in found[28, 29].surviving] == ["e", "mr180"] and [
        str(e) for e in found[28, 29].freed
    ] == ["r180", "m"]


def test_residual_strides_are_replaced_at_nearly_the_same_work():
    best = repair_layouts(steerable("resnet18-p4m"))[0]
    assert (
        abs(best.macs_change) < 0.05
        and best.changes[-1] == "stage 5: 184k3s2x2r -> 184k3x2r"
        and len(best.changes) == 4
    )


@pytest.mark.parametrize(
    "text, others",
    [
        # one pixel less and more of kernel, with both paddings that keep the size, and of padding
        (
            "28px: 4k3s2@C4",
            "4k2s2, 4k2s2p0, 4k4s2, 4k4s2p1, 4k3 avg2/2, 4k3 max2/2, 4k3 adaptive/2",
        ),
        ("28px: 4k3s3@C4", "4k3s3p0, 4k3s3p2, 4k4s3, 4k4s3p1, 4k3 avg3/3, 4k3 max3/3"),
        # a dilated kernel keeps its size with as much more padding
        (
            "28px: 4k3s3d2@C4",
            "4k3s3p1d2, 4k3s3p3d2, 4k4s3d2, 4k4s3p2d2, 4k3d2 avg3/3, 4k3d2 max3/3",
        ),
        ("29px: 4k4s2@C4", "4k3s2, 4k5s2, 4k4 avg2/2, 4k4 max2/2, 4k4 adaptive/2"),
        # what does not fit the image, or the stages behind, is not proposed
        ("5px: 4k2s2@C4, 4k3p0", "4k3s2, 4k2 avg2/2, 4k2 max2/2, 4k2 adaptive/2"),
        # windows that lie on padding alone are not proposed
        ("30px: 4k3s3p2@C4", "4k4s3, 4k3p2 adaptive/3"),
    ],
)
def test_what_a_stride_can_be_instead(text, others):
    architecture = Architecture.parse(text)
    propose = breakings if verdict(architecture).exact else repair_layouts
    layouts = [p for p in propose(architecture, most=100) if p.kind == "layout"]
    assert sorted(p.changes[0].split(" -> ")[1] for p in layouts) == sorted(others.split(", "))


def test_a_stride_moves_into_a_pool_in_front_of_it():
    layouts = repair_layouts(Architecture.parse("28px: 4k4s2p1@C4, 4k3s2"), most=100)
    assert ("stage 1: 4k4s2p1 -> 4k4s2p1 avg2/2", "stage 2: 4k3s2 -> 4k3") in [
        p.changes for p in layouts
    ]


def test_in_front_of_an_even_stride_odd_windows_are_offered_for_odd_maps():
    layouts = repair_layouts(Architecture.parse("28px: 4k4@C4, 4k4s2p1"), most=100)
    assert ("stage 1: 4k4 -> 4k4 avg3/2p1", "stage 2: 4k4s2p1 -> 4k4p1") in [
        p.changes for p in layouts
    ]


def test_a_plain_network_has_nothing_to_break():
    assert breakings(steerable("z2cnn")) == ()


def test_text_says_what_changes_and_what_it_costs():
    text = str(repair_sizes(P4)[0])
    assert "29 px -> 28 px" in text and "MACs -" in text and "C4" in text


def test_a_window_as_wide_as_the_stride_or_one_wider_is_near():
    """A pool of 7 by 3 has pools of 3 and 4 pixels near it: without overlap, or with one pixel."""
    step = Subsampling("max", 7, 3)
    kernels = {near.kernel for near in step.rules.neighbours(step) if near.kind == "max"}
    assert kernels == {3, 4, 6, 7, 8}
