"""Every instrument sees models that are broken in a known way, beside a twin that is exact: what an
instrument does not see it cannot judge.
"""

import pytest
import torch
from test_layerwise import network
from test_merging import plain_twin, settled, spread
from torch import nn

from searchspace.groups import Element, Group
from support.toy_models import Lifting
from trainers.actions import act
from trainers.instruments.accuracy import (
    accuracy_by_angle,
    consistency,
    effective_invariance,
    summarise,
)
from trainers.instruments.equivariance import equivariance_error
from trainers.instruments.layerwise import layerwise_equivariance, steerability
from trainers.instruments.lie import lie_derivatives
from trainers.instruments.merging import merge_barrier
from trainers.instruments.predictions import invariant_elements, predict_elements

C4, QUARTER = Group.parse("C4"), Element.parse("r90")
IMAGES = torch.rand(120, 1, 16, 16, generator=torch.Generator().manual_seed(0))


class Halves(Lifting):
    """Kernels turned by half turns only, as if the group were C2 twice: quarter turns break."""

    def features(self, images):
        turned = [self.kernel, self.kernel, act(self.kernel, Element.parse("r180"))]
        weight = torch.stack([*turned, turned[2]], 1).flatten(0, 1)
        maps = self.maps(nn.functional.conv2d(images, weight, padding=2).relu())
        return maps.mean((-1, -2)).unflatten(1, (-1, 4)).amax(2)


class Position(nn.Module):
    """Maps that depend on the place in the image, as after an asymmetric padding."""

    def forward(self, maps):
        return maps * torch.linspace(0.9, 1.1, maps.shape[-1])


class Swapped(nn.Module):
    """Maps whose second field has two of its channels exchanged."""

    def forward(self, maps):
        return maps[:, [0, 1, 2, 3, 5, 4, *range(6, maps.shape[1])]]


def with_maps(module):
    model = Lifting("C4")
    model.maps = module
    return model


BROKEN = {
    "a moved subsampling grid": lambda: Lifting("C4", shift=True),
    "half the group": lambda: Halves("C4"),
    "maps that know their place": lambda: with_maps(Position()),
}


def logits_error(model):
    return equivariance_error(model, IMAGES, C4, stages=()).logits.worst


def maps_error(model):
    errors = equivariance_error(model, IMAGES, C4, stages=["maps"], fields={"maps": C4})
    return errors.stages[0].worst


def mismatch(model):
    return 1 - layerwise_equivariance(model, IMAGES, QUARTER, stages=["maps"])[0].correlation


def unsteered(model):
    return steerability(model, IMAGES, QUARTER, stage="maps").residual_of_spread


@pytest.mark.parametrize("instrument", [logits_error, maps_error, mismatch, unsteered])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_far_from_its_exact_twin(instrument, name):
    assert instrument(Lifting("C4")) < 1e-5
    assert instrument(BROKEN[name]()) > 3e-3


@pytest.mark.parametrize("name", BROKEN)
def test_no_prediction_of_a_broken_model_is_shared(name):
    assert set(invariant_elements(Lifting("C4"), IMAGES, C4)) == set(C4.elements)
    assert QUARTER not in invariant_elements(BROKEN[name](), IMAGES, C4)


def test_exchanged_channels_are_seen_in_maps_where_the_logits_hide_them():
    model = with_maps(Swapped())
    assert logits_error(model) < 1e-5 < 0.1 < maps_error(model)


def test_what_half_the_group_keeps_is_told_from_what_it_breaks():
    error = equivariance_error(Halves("C4"), IMAGES, C4, stages=()).logits
    by_element = dict(zip(map(str, error.elements), error.relative))
    assert by_element["r180"] < 1e-5 and min(by_element["r90"], by_element["r270"]) > 0.1


def test_accuracy_by_angle_consistency_and_invariance_see_a_single_angle():
    def blind(images):
        """Exchanges the classes where the lower left corner is bright."""
        value = 50 * (images.mean((1, 2, 3)) - 0.25)
        value = torch.where(images[:, 0, -1, 0] > 0.9, -value, value)
        return torch.stack([value, torch.zeros_like(value)], 1)

    images = IMAGES * 0.5
    images[..., 0, 0] = 1  # a quarter turn brings it to the lower left
    labels = blind(images).argmax(1)
    curve = accuracy_by_angle(blind, images, labels, step=90)
    assert [share.value for share in curve.accuracies] == [1, 0, 1, 1]
    assert curve.worst[0] == 90 and curve.mean == 0.75
    predictions = predict_elements(blind, images, C4.elements)
    assert consistency(predictions).value == pytest.approx(2 / 3)
    assert effective_invariance(predictions) < 2 / 3
    accuracy = summarise(predictions, labels, C4)
    assert accuracy.worst[0] == QUARTER and accuracy.worst[1].value == 0


def test_effective_invariance_sees_confidence_that_consistency_does_not():
    def unsure(images):
        sure = 1.0 + 9.0 * (images[:, :1, 0, 0] > 0.5)  # the corner is bright upright only
        return torch.cat([sure, torch.zeros_like(sure)], 1)

    images = IMAGES * 0.4
    images[..., 0, 0] = 0.9
    predictions = predict_elements(unsure, images, C4.elements)
    assert consistency(predictions).value == 1
    expected = (torch.tensor([10.0, 0]).softmax(0)[0] * torch.tensor([1.0, 0]).softmax(0)[0]).sqrt()
    assert effective_invariance(predictions) == pytest.approx(float(expected), abs=1e-5)


def test_the_lie_derivative_sees_a_reading_of_single_pixels():
    bump = torch.exp(-(((torch.arange(33.0) - 16) / 3) ** 2))
    images = torch.stack([a * (bump[:, None] * bump)[None] for a in (0.5, 0.7, 1.0)]).double()

    def mean(x):
        return torch.stack([x.mean((1, 2, 3)), 2 * x.mean((1, 2, 3))], 1)

    exact, broken = (
        {d.motion: d.relative for d in lie_derivatives(model, images)}
        for model in (mean, lambda x: mean(x[..., :12]))
    )
    assert exact["translation_x"] < 1e-6 < 0.01 < broken["translation_x"]
    assert broken["translation_y"] < 1e-6  # all rows are read


def test_the_merge_barrier_sees_a_layer_that_left_the_group():
    model = spread(settled(network("16px: 4k3@C4 max2/2, 6k3 head=group_mean")))
    plain = plain_twin(model)
    with torch.no_grad():
        filters = plain.convolutions[1].filters
        filters[::4] = filters[::4].flip(-1)  # one kernel of every field is mirrored
    plain = spread(settled(plain))
    barrier = merge_barrier(plain, IMAGES, plain(IMAGES).argmax(1), QUARTER)
    assert barrier.original == 1 and barrier.aligned < 0.9
