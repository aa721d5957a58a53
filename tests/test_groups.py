"""Groups as data: the lattice, the products and the action on axes, checked against permutations of
real pixels.
"""

import itertools

import numpy as np
import pytest

from searchspace.groups import IDENTITY, Element, Group, isomorphic_name, largest_subgroup

NAMES = ("C1", "C2", "C3", "C4", "C6", "C8", "C16", "D1", "D2", "D3", "D4", "D8")
GROUPS = tuple(map(Group.parse, NAMES))


def pixels_moved(element, image):
    """The definition of the action, on a [height, width] array."""
    image = image[:, ::-1] if element.mirror else image
    return np.rot90(image, element.quarter_turns)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_elements_form_a_group(group):
    elements = set(group.elements)
    assert len(elements) == group.order
    assert {a @ b for a, b in itertools.product(elements, repeat=2)} == elements
    assert all(a @ a.inverse == IDENTITY for a in elements)
    assert [group.index(e) for e in group.elements] == list(range(group.order))


def test_product_is_the_action_of_one_after_the_other():
    image = np.arange(12).reshape(3, 4)
    for a, b in itertools.product(Group.parse("D4").elements, repeat=2):
        assert (pixels_moved(a @ b, image) == pixels_moved(a, pixels_moved(b, image))).all(), (a, b)


@pytest.mark.parametrize("element", Group.parse("D4").elements, ids=str)
def test_reversed_axes_are_those_that_the_action_reads_backwards(element):
    rows, columns = np.meshgrid(np.arange(3), np.arange(5), indexing="ij")
    backwards = []
    for coordinate in (rows, columns):
        moved = pixels_moved(element, coordinate)
        steps = np.diff(moved, axis=0).ravel().tolist() + np.diff(moved, axis=1).ravel().tolist()
        backwards.append(min(steps) < 0)
    assert tuple(backwards) == element.reversed_axes
    assert element.swaps_axes == (pixels_moved(element, rows).shape != rows.shape)


def test_subgroups_are_the_subsets_that_the_order_names():
    for g, h in itertools.product(GROUPS, repeat=2):
        assert (h <= g) == set(g.elements).issuperset(h.elements), (h, g)
        assert (h in g.subgroups()) == (h <= g) or h.rotations > g.rotations
    assert not Group.parse("C4") <= Group.parse("D1") and not Group.parse("D1") <= Group.parse("C4")
    assert not Group.parse("C4") >= Group.parse("D1")


@pytest.mark.parametrize(
    "name,grid",
    [("C8", "C4"), ("D8", "D4"), ("C6", "C2"), ("D3", "D1"), ("C4", "C4"), ("C5", "C1")],
)
def test_grid_subgroup_holds_the_elements_that_permute_pixels(name, grid):
    group = Group.parse(name)
    assert str(group.grid) == grid
    assert set(group.grid.elements) == {e for e in group.elements if e.on_grid}


@pytest.mark.parametrize("text", ["", "C0", "E4", "C", "4", "D-1", "C100", "C4x"])
def test_bad_names_are_refused(text):
    with pytest.raises(ValueError, match="group"):
        Group.parse(text)


def test_names_parse_back():
    for group in GROUPS:
        assert Group.parse(str(group)) == group == Group.parse(str(group).lower())
        assert all(Element.parse(str(e)) == e for e in group.elements)
    with pytest.raises(ValueError, match="element"):
        Element.parse("x90")


def test_largest_subgroup_of_survivors():
    parse = [Element.parse(name) for name in ("e", "mr90")]
    assert (
        largest_subgroup(parse) == tuple(parse) and isomorphic_name(largest_subgroup(parse)) == "D1"
    )
    assert isomorphic_name(largest_subgroup(map(Element.parse, ("e", "r90", "m", "mr90")))) == "D1"
    assert largest_subgroup(map(Element.parse, ("e", "r90"))) == (IDENTITY,)
    assert largest_subgroup(Group.parse("D4").elements) == Group.parse("D4").elements
