"""The action of group elements on images and regular fields, checked against brute force."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from searchspace.groups import Element, Group
from trainers import actions
from trainers.actions import act, act_on_fields, gathers, parts, permutation

GRID = Group.parse("D4").elements
IMAGES = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved_by_hand(images, element):
    """Every pixel carried to its new place as a point of the plane (x to the right, y upwards)."""
    size = images.shape[-1]
    centre, out = (size - 1) / 2, torch.empty_like(images)
    for row, column in itertools.product(range(size), repeat=2):
        point = complex(column - centre, centre - row)
        if element.mirror:
            point = complex(-point.real, point.imag)
        point *= 1j**element.quarter_turns
        out[..., round(centre - point.imag), round(point.real + centre)] = images[..., row, column]
    return out


@pytest.mark.parametrize("element", GRID, ids=str)
def test_grid_elements_carry_pixels_as_points_of_the_plane(element):
    assert torch.equal(act(IMAGES, element), moved_by_hand(IMAGES, element))


@pytest.mark.parametrize("size", [(5, 5), (4, 4), (4, 6)])
def test_acting_twice_is_acting_with_the_product(size):
    images = torch.rand(1, 2, *size, dtype=torch.float64)
    for a, b in itertools.product(GRID, GRID):
        assert torch.equal(act(act(images, b), a), act(images, a @ b))


@pytest.mark.parametrize("name", ["C1", "C2", "C4", "C8", "D1", "D2", "D4", "D8"])
def test_fields_follow_the_product_too(name):
    group = Group.parse(name)
    maps = torch.rand(1, 2 * group.order, 4, 4, dtype=torch.float64)
    grid = group.grid.elements
    for a, b in itertools.product(grid, grid):
        assert torch.equal(
            act_on_fields(act_on_fields(maps, b, group), a, group),
            act_on_fields(maps, a @ b, group),
        )


def test_a_value_at_h_moves_to_the_product():
    group = Group.parse("D4")
    for g, h in itertools.product(group.elements, group.elements):
        maps = torch.zeros(1, group.order, 1, 1)
        maps[0, group.index(h)] = 1
        assert (
            act_on_fields(maps, g, group)[0, :, 0, 0].argmax()
            == group.index(g @ h)
            == permutation(group, g)[group.index(h)]
        )


@pytest.mark.parametrize(
    "name,size",
    [
        ("C4", (5, 5)),
        ("D4", (4, 4)),
        ("D2", (4, 6)),
        ("C4", (4, 6)),
        ("C8", (3, 3)),
        ("D1", (6, 4)),
    ],
)
def test_one_gather_moves_fields_and_pixels(name, size):
    group, maps = Group.parse(name), torch.rand(2, 2 * Group.parse(name).order, *size)
    rows = maps.permute(0, 2, 3, 1)
    for element in group.grid.elements:
        moved = rows.flatten(1)[:, gathers(element, group, *maps.shape[1:]).long()]
        assert torch.equal(
            moved, act_on_fields(maps, element, group).permute(0, 2, 3, 1).flatten(1)
        )
        moved = rows.flatten(1, 2)[:, gathers(element, None, *maps.shape[1:]).long()]
        assert torch.equal(moved, act(maps, element).permute(0, 2, 3, 1).flatten(1, 2))


def test_other_angles_rotate_counter_clockwise():
    images = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    images[0, 0, 16, 26:29] = 1  # to the right of the centre
    # 45 degrees: up and to the right
    turned = act(images, Element(Fraction(1, 8)))
    row, column = divmod(int(turned.flatten().argmax()), 33)
    assert 16 - row == pytest.approx(column - 16, abs=1) and column - 16 == pytest.approx(
        11 / 2**0.5, abs=1
    )


@pytest.mark.parametrize("size", [(24, 24), (20, 28)])
def test_interpolated_half_turns_agree_with_exact_ones(size):
    ramp = torch.linspace(0, 1, size[0] * size[1], dtype=torch.float64).reshape(1, 1, *size)
    half = act(act(ramp, Element(Fraction(1, 8))), Element(Fraction(3, 8)))
    inside = (
        ...,
        slice(size[0] // 2 - 4, size[0] // 2 + 4),
        slice(size[1] // 2 - 4, size[1] // 2 + 4),
    )
    assert torch.allclose(half[inside], act(ramp, Element(Fraction(1, 2)))[inside], atol=1e-9)


def test_interpolated_rotation_undoes_itself_with_mirrors():
    ramp = torch.linspace(0, 1, 576, dtype=torch.float64).reshape(1, 1, 24, 24)
    element = Element(Fraction(1, 8), True)
    twice = act(act(ramp, element), element)
    assert torch.allclose(twice[..., 8:16, 8:16], ramp[..., 8:16, 8:16], atol=1e-9)
    assert not torch.allclose(act(ramp, element)[..., 8:16, 8:16], ramp[..., 8:16, 8:16], atol=1e-2)


@pytest.mark.parametrize("name", ["r10", "r100", "mr35", "r45", "mr300", "r190"])
@pytest.mark.parametrize("size", [(12, 12), (11, 11), (10, 14)])
def test_interpolated_angles_and_index_moves_compose_bit_for_bit(name, size):
    """What lets measurements share results between angles that differ by a quarter turn: no pixel
    differs, not even by rounding.
    """
    images, element = torch.rand(3, 2, *size), Element.parse(name)
    for k in GRID:
        if size[0] == size[1] or not k.swaps_axes:
            assert torch.equal(act(images, k @ element), act(act(images, element), k))
            exact, rest = parts(k @ element, size[0] == size[1])
            assert (
                exact @ rest == k @ element
                and exact.on_grid
                and not rest.mirror
                and 0 < rest.turn < (Fraction(1, 4) if size[0] == size[1] else Fraction(1, 2))
            )


def test_interpolation_takes_the_four_pixels_around_each_point():
    images = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    angle = math.radians(130)
    for row, column in itertools.product(range(9), repeat=2):
        point = complex(column - 4, 4 - row) * complex(math.cos(-angle), math.sin(-angle))
        y, x = 4 - point.imag, point.real + 4
        expected = sum(
            images[:, 0, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
            for i in range(9)
            for j in range(9)
            if abs(y - i) < 1 and abs(x - j) < 1
        )
        assert torch.allclose(
            act(images, Element.parse("r130"))[:, 0, row, column],
            torch.as_tensor(expected, dtype=torch.float64).expand(2),
            atol=1e-12,
        )


def test_interpolated_images_can_be_trained_on_after_they_were_measured():
    element = Element.parse("r33")
    with torch.inference_mode():
        act(torch.rand(1, 1, 7, 7), element)
    images = torch.rand(1, 1, 7, 7, requires_grad=True)
    act(images, element).sum().backward()
    assert float(images.grad.abs().sum()) > 0


def test_refuses_strangers():
    with pytest.raises(ValueError, match="not a whole number of fields"):
        act_on_fields(torch.zeros(1, 6, 3, 3), GRID[1], Group.parse("C4"))
    with pytest.raises(ValueError, match="not an element of C4"):
        act_on_fields(torch.zeros(1, 4, 3, 3), Element(Fraction(0), True), Group.parse("C4"))


def test_where_pixels_come_from_does_not_depend_on_the_precision_of_the_first_use():
    """The grid is kept for later calls: of a training in bfloat16 it must not be less precise."""
    images, element = IMAGES.float(), Element(Fraction(1, 7))
    actions._grid.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        first = act(images, element)
    later = act(images, element)
    actions._grid.cache_clear()
    assert torch.equal(later, act(images, element)) and torch.equal(first.float(), later)
