"""Filter parametrisations: the constraint they promise, by brute force, and what they
may express.
"""

import itertools

import pytest
import torch

from searchspace.cost import basis_size
from searchspace.groups import Group
from trainers.actions import act, act_on_fields, permutation
from trainers.networks.filters import Parametrisation, arrange, expand, restricted_order

GRID = ["C1", "C2", "C4", "D1", "D2", "D4"]


def expanded(parametrisation, pairs=3, seed=0):
    parameters = torch.randn(
        pairs,
        parametrisation.size,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    constants = parametrisation.constants()
    return expand(
        parameters,
        parametrisation,
        constants if parametrisation.filters == "free" else constants.double(),
    )


@pytest.mark.parametrize(
    "filters,name,kernel,lifting",
    [
        *itertools.product(["free"], GRID, [1, 2, 3, 4], [True, False]),
        *itertools.product(["basis"], ["C4", "C8", "D4", "D8", "C3"], [3, 4], [True, False]),
    ],
)
def test_filters_obey_the_constraint(filters, name, kernel, lifting):
    """weight[g @ o, g @ h] is weight[o, h] moved by g: bit for bit, for every element
    of the grid.
    """
    group = Group.parse(name)
    weight = expanded(Parametrisation(filters, group, kernel, lifting))
    for g in group.grid.elements:
        moved = act(weight.flatten(0, 1), g).view_as(weight)
        where = list(permutation(group, g))
        result = torch.empty_like(weight)
        for o in range(group.order):
            if lifting:
                result[:, where[o]] = moved[:, o]
            else:
                result[:, where[o]] = torch.empty_like(moved[:, o]).index_copy(
                    1, torch.tensor(where), moved[:, o]
                )
        assert torch.equal(result, weight)


@pytest.mark.parametrize("name", GRID)
def test_free_filters_are_unconstrained(name):
    """The identity's row is the parameter itself, so every filter is possible; and every parameter
    is used |G| times.
    """
    group = Group.parse(name)
    for lifting in (True, False):
        parametrisation = Parametrisation("free", group, 3, lifting)
        assert parametrisation.size == 9 * (1 if lifting else group.order)
        parameters = torch.randn(2, parametrisation.size)
        assert torch.equal(
            expand(parameters, parametrisation, parametrisation.constants())[:, 0].flatten(1),
            parameters,
        )
        counts = torch.bincount(parametrisation.constants()[0])
        assert len(counts) == parametrisation.size and (counts == group.order).all()


def test_gradient_of_free_filters_is_that_of_the_gather():
    parametrisation = Parametrisation("free", Group.parse("D4"), 3, False)
    constants = parametrisation.constants()
    parameters = torch.randn(2, parametrisation.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: expand(p, parametrisation, constants).square(), parameters
    )
    grad = torch.randn(2, *parametrisation.expanded_shape, dtype=torch.float64)
    (mine,) = torch.autograd.grad(expand(parameters, parametrisation, constants), parameters, grad)
    (theirs,) = torch.autograd.grad(
        parameters.index_select(1, constants[0]), parameters, grad.flatten(1)
    )
    assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("name", ["C1", "C4", "D1", "D4", "C8", "D8", "C3"])
def test_basis_has_the_promised_size(name):
    group = Group.parse(name)
    for kernel in (1, 3, 4, 5):
        assert Parametrisation("basis", group, kernel, True).size == basis_size(kernel)
        assert (
            Parametrisation("basis", group, kernel, False).size == basis_size(kernel) * group.order
        )


@pytest.mark.parametrize("name", GRID)
def test_free_filters_contain_the_band_limited_ones(name):
    """So that a network over the basis can be rewritten as a free one: each basis kernel is some
    free filter.
    """
    group = Group.parse(name)
    basis, free = (Parametrisation(filters, group, 3, False) for filters in ("basis", "free"))
    filters = expanded(basis)
    assert torch.equal(expand(filters[:, 0].flatten(1), free, free.constants()), filters)


def test_the_eighth_turn_is_approximate():
    """C8's eighth turn maps the basis onto itself only as far as pixels allow; were it broken, the
    correlation would be none.
    """
    group = Group.parse("C8")
    weight = expanded(Parametrisation("basis", group, 5, True))
    eighth = group.elements[1]
    moved = torch.nn.functional.pad(weight.flatten(0, 1), (4, 4, 4, 4))
    moved = act(moved, eighth).view(3, 8, 1, 13, 13)[..., 4:-4, 4:-4]
    target = weight[:, list(permutation(group, eighth))]
    wrong = weight[:, list(permutation(group, eighth.inverse))]
    similarity = [
        torch.nn.functional.cosine_similarity(moved.flatten(), t.flatten(), dim=0)
        for t in (target, wrong)
    ]
    assert similarity[0] > 0.6 and similarity[1] < 0.4


@pytest.mark.parametrize(
    "name,subgroup",
    [
        ("D4", "C4"),
        ("D4", "D2"),
        ("D4", "D1"),
        ("C4", "C2"),
        ("D8", "D4"),
        ("C8", "C4"),
        ("D4", "C1"),
    ],
)
def test_a_field_falls_into_fields_of_the_subgroup(name, subgroup):
    """Moved by an element of the subgroup, the reordered channels move as its regular fields."""
    group, subgroup = Group.parse(name), Group.parse(subgroup)
    order = list(restricted_order(group, subgroup))
    assert sorted(order) == list(range(group.order))
    maps = torch.rand(1, group.order, 3, 3)
    for element in subgroup.elements:
        if element.on_grid:
            assert torch.equal(
                act_on_fields(maps, element, group)[:, order],
                act_on_fields(maps[:, order], element, subgroup),
            )


@pytest.mark.parametrize("filters", ["free", "basis"])
def test_initialisation_keeps_the_scale(filters):
    """Maps keep the order of their mean square through convolution and ReLU, whatever group and
    number of fields (He).
    """
    for name, fields in itertools.product(["C1", "C4", "D4"], [4, 16]):
        parametrisation = Parametrisation(filters, Group.parse(name), 5, False)
        generator = torch.Generator().manual_seed(0)
        parameters = torch.randn(
            16 * fields, parametrisation.size, generator=generator
        ) * parametrisation.deviations(fields)
        weight = arrange(expand(parameters, parametrisation, parametrisation.constants()), 16)
        maps = torch.randn(64, fields * parametrisation.incoming, 9, 9, generator=generator).relu()
        out = torch.nn.functional.conv2d(maps, weight).relu()
        ratio = (out.square().mean() / maps.square().mean()).item()
        assert (0.15 if filters == "basis" else 0.5) < ratio < 2, (name, fields, ratio)
