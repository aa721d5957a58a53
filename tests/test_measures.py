import json

import pytest
import torch
from test_layerwise import network
from test_merging import spread
from torch import nn

from searchspace.architecture import Architecture
from searchspace.groups import IDENTITY, Element, Group
from support.toy_models import Lifting, constant, corner, pixel_mean
from trainers.actions import act
from trainers.instruments.accuracy import (
    accuracy_by_angle,
    consistency,
    effective_invariance,
    summarise,
    symmetry_accuracy,
)
from trainers.instruments.predictions import angle_elements, invariant_elements, predict_elements
from trainers.instruments.proportions import proportion
from trainers.networks.fold import fold
from trainers.process import thread_pool

C4, C8, D4 = Group.parse("C4"), Group.parse("C8"), Group.parse("D4")
IMAGES = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def labels_of(model, element=IDENTITY):
    return model(act(IMAGES, element)).argmax(1)


def test_a_model_is_right_exactly_where_its_labels_were_made():
    labels = labels_of(corner)
    scores = symmetry_accuracy(corner, IMAGES, labels, D4)
    assert (
        scores.accuracy.value == 1
        and scores.mean.value < 0.5
        and scores.worst[1].value <= scores.mean.value
    )
    assert scores.mean.value == pytest.approx(
        sum(
            float((corner(act(IMAGES, e)).argmax(1) == labels).float().mean())
            for e in D4.elements[1:]
        )
        / 7,
        abs=1e-6,
    )
    assert scores.mean_all.value == pytest.approx((1 + 7 * scores.mean.value) / 8)


def test_the_worst_element_is_the_one_that_is_wrong():
    turned = Element.parse("r180")
    scores = symmetry_accuracy(
        lambda x: corner(act(x, turned)), IMAGES, labels_of(corner), C4, seen=[turned]
    )
    assert scores.mean_seen.value == 1 and turned not in scores.unseen and scores.worst[0] != turned
    assert scores.mean_unseen.value < scores.mean.value < 1
    assert scores.unseen == tuple(e for e in C4.elements if e != turned)


def test_an_exact_model_has_one_accuracy_on_all_quarter_turns():
    model = Lifting("C4")
    labels = torch.where(torch.arange(60) % 3 == 0, 0, labels_of(model))
    scores = symmetry_accuracy(model, IMAGES, labels, C4, share_exact=False)
    assert len({a.value for a in scores.accuracies}) == 1 and scores.mean == scores.accuracy


def test_exact_and_interpolated_elements_are_kept_apart():
    model = Lifting("C4")
    scores = symmetry_accuracy(model, IMAGES, labels_of(model), C8)
    assert scores.exact.value == 1 and scores.interpolated.value < 1
    assert scores.mean.value == pytest.approx(
        (3 * scores.exact.value + 4 * scores.interpolated.value) / 7
    )
    assert symmetry_accuracy(model, IMAGES, labels_of(model), C4).interpolated is None


@pytest.mark.parametrize("seen", [(IDENTITY,), C4.elements, C4.elements[1:]])
def test_symmetry_accuracy_is_the_same_whatever_training_has_seen(seen):
    upright = symmetry_accuracy(corner, IMAGES, labels_of(corner), C4)
    scores = symmetry_accuracy(corner, IMAGES, labels_of(corner), C4, seen=seen)
    assert (scores.mean, scores.worst, scores.exact) == (upright.mean, upright.worst, upright.exact)
    assert scores.worst[0] != IDENTITY and scores.mean.value < 1


def test_what_training_has_not_seen_is_a_second_figure():
    labels, turned = labels_of(corner), C4.elements[1:]
    all_seen = symmetry_accuracy(corner, IMAGES, labels, C4, seen=C4.elements)
    assert all_seen.unseen == () and all_seen.mean_unseen is None
    only_upright_unseen = symmetry_accuracy(corner, IMAGES, labels, C4, seen=turned)
    assert only_upright_unseen.mean_unseen.value == 1 and only_upright_unseen.mean.value < 1


def test_the_definition_of_the_first_version_is_kept_for_its_studies():
    predictions = predict_elements(corner, IMAGES, C4.elements)
    labels = labels_of(corner)
    seen_all = summarise(predictions, labels, C4, C4.elements, over="unseen")
    assert seen_all.mean == seen_all.mean_all == seen_all.mean_seen
    seen_turned = summarise(predictions, labels, C4, C4.elements[1:], over="unseen")
    assert seen_turned.mean.value == 1


def test_sharing_saves_forwards_and_changes_nothing():
    model = Lifting("C4")
    shared = predict_elements(model, IMAGES, C8.elements, share_exact=True)
    each = predict_elements(model, IMAGES, C8.elements, share_exact=False)
    assert (shared.num_forwards, each.num_forwards) == (2, 8)
    assert torch.equal(shared.classes, each.classes) and torch.allclose(
        shared.confidences, each.confidences, atol=1e-5
    )
    mirrored = Group.parse("D8")
    shared, each = (
        predict_elements(Lifting("D4"), IMAGES, mirrored.elements, share_exact=share)
        for share in (True, False)
    )
    assert shared.num_forwards == 2 and torch.equal(shared.classes, each.classes)


def test_sharing_over_angles_takes_the_right_images():
    model = Lifting("C2", seed=3)
    shared, each = (
        predict_elements(model, IMAGES, angle_elements(30), share_exact=share)
        for share in (True, False)
    )
    assert shared.num_forwards == 6 and torch.allclose(
        shared.confidences, each.confidences, atol=1e-5
    )


@pytest.mark.parametrize(
    "model,surviving",
    [
        (Lifting("C4"), C4.elements),
        (Lifting("D4"), D4.elements),
        (corner, (IDENTITY,)),
        (Lifting("C4", shift=True), (IDENTITY,)),
        (pixel_mean, D4.elements),
        (constant, D4.elements),
    ],
    ids=["C4", "D4", "corner", "shifted", "mean", "constant"],
)
def test_sharing_is_only_done_where_exactness_was_measured(model, surviving):
    assert invariant_elements(model, IMAGES[:16], D4) == surviving


@pytest.mark.parametrize(
    "text,forwards",
    [
        ("28px: 3k3@C4 max2/2, 3k3", 9),
        ("27px: 3k3@C4 max2/2, 3k3", 36),
        ("28px: 3k3@C2 max2/2, 3k3", 18),
        ("28px: 6k3 max2/2, 6k3", 36),
        ("28px: 3k3@D4 max2/2, 3k3", 9),
    ],
)
def test_networks_share_angles_only_where_their_layout_keeps_them(text, forwards):
    """27 pixels and max2/2 break a C4 network: nothing of it may be shared, though its weights are
    those of the exact one.
    """
    # noise of single pixels hardly changes the logits
    coarse = torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    images = nn.functional.interpolate(
        coarse, size=Architecture.parse(text).size, mode="bicubic"
    ).clamp(0, 1)
    # few random features vary little, beside rounding
    images, model = images.double(), fold(spread(network(text), images).double())
    elements = angle_elements(10)
    shared, each = (
        predict_elements(model, images, elements, share_exact=share) for share in (True, False)
    )
    assert (shared.num_forwards, each.num_forwards) == (forwards, 36)
    assert torch.equal(shared.classes, each.classes) and torch.allclose(
        shared.confidences, each.confidences, atol=1e-5
    )
    if forwards == 36:
        assert (
            torch.equal(shared.confidences, each.confidences)
            and float((each.confidences[9] - each.confidences[0]).abs().max()) > 1e-3
        )


def test_the_upright_logits_come_along_in_the_order_of_the_images():
    model = fold(spread(network("16px: 3k3@C4 max2/2, 3k3")))
    with thread_pool(2) as pool:
        found = predict_elements(model, IMAGES, C8.elements, batch_size=16, executor=pool)
    assert torch.allclose(found.upright, model(IMAGES), atol=1e-5)
    assert predict_elements(model, IMAGES, C8.elements[1:2]).upright is None


def test_a_thread_pool_predicts_the_same():
    model = fold(spread(network("16px: 3k3@C4 max2/2, 3k3")))
    alone = predict_elements(model, IMAGES, C8.elements, batch_size=16)
    with thread_pool(3) as pool:
        together = predict_elements(model, IMAGES, C8.elements, batch_size=16, executor=pool)
    assert torch.equal(alone.classes, together.classes) and torch.equal(
        alone.confidences, together.confidences
    )
    with thread_pool(2) as pool, pytest.raises(ValueError, match="not all finite"):
        predict_elements(
            lambda x: corner(x) * float("nan"),
            IMAGES,
            C8.elements,
            executor=pool,
            share_exact=False,
        )


def test_a_nearly_invariant_model_is_not_shared():
    def nearly(images):
        return pixel_mean(images) + 1e-3 * corner(images)[:, :4]

    assert predict_elements(nearly, IMAGES, C4.elements).num_forwards == 4


def test_non_square_images_share_half_turns_by_flips_only():
    images = torch.rand(20, 1, 12, 16, generator=torch.Generator().manual_seed(1))
    assert {str(e) for e in invariant_elements(Lifting("D4"), images, D4)} == {
        "e",
        "r180",
        "m",
        "mr180",
    }
    assert predict_elements(Lifting("D4"), images, C4.elements).num_forwards == 4


def test_pixels_are_moved_before_they_are_normalised():
    seen = []
    predict_elements(
        lambda x: seen.append(x) or corner(x),
        (IMAGES * 255).byte(),
        [Element.parse("r45")],
        normalise=lambda x: (x - 0.5) / 0.25,
        share_exact=False,
    )
    assert torch.allclose(seen[0][:, :, 0, 0], torch.tensor(-2.0)) and float(seen[0].max()) <= 2


def test_batches_do_not_change_the_result():
    model = Lifting("C4")
    assert torch.equal(
        predict_elements(model, IMAGES, C8.elements, batch_size=7).classes,
        predict_elements(model, IMAGES, C8.elements, batch_size=128).classes,
    )


def test_consistency_and_effective_invariance_of_an_exact_model_are_one_and_its_confidence():
    predictions = predict_elements(Lifting("D4"), IMAGES, D4.elements, share_exact=False)
    assert consistency(predictions).value == 1
    assert effective_invariance(predictions) == pytest.approx(
        float(predictions.confidences[0].mean()), abs=1e-5
    )


def test_consistency_and_effective_invariance_see_a_broken_model():
    predictions = predict_elements(corner, IMAGES, D4.elements)
    agreement = (
        sum(
            float((corner(act(IMAGES, e)).argmax(1) == corner(IMAGES).argmax(1)).float().mean())
            for e in D4.elements[1:]
        )
        / 7
    )
    assert consistency(predictions).value == pytest.approx(agreement, abs=1e-6) and agreement < 0.5
    exact = predict_elements(Lifting("D4"), IMAGES, D4.elements)
    assert effective_invariance(predictions) < 0.5 * effective_invariance(exact)


def test_a_constant_model_is_consistent_but_not_accurate():
    predictions = predict_elements(constant, IMAGES, D4.elements)
    labels = torch.arange(60) % 4
    assert (
        consistency(predictions).value == 1
        and summarise(predictions, labels, D4).mean.value == 0.25
    )


def test_consistency_over_some_elements_needs_one_besides_the_identity():
    predictions = predict_elements(corner, IMAGES, D4.elements)
    assert consistency(predictions, [Element.parse("m")]).value < 1
    with pytest.raises(ValueError, match="identity only"):
        consistency(predict_elements(corner, IMAGES, [IDENTITY]))


def test_the_angle_curve_has_its_maximum_where_the_labels_were_made():
    model, turned = Lifting("C1", seed=2), Element.parse("r90")
    curve = accuracy_by_angle(model, IMAGES, labels_of(model, turned), step=30)
    assert curve.degrees == tuple(range(0, 360, 30)) and curve.accuracies[3].value == 1
    assert curve.worst[1].value == min(a.value for a in curve.accuracies) < curve.mean < 1
    with pytest.raises(ValueError, match="1 to 180"):
        accuracy_by_angle(model, IMAGES, labels_of(model), step=0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = torch.distributions.Binomial(200, torch.tensor(0.95)).sample((2000,))
    torch.manual_seed(0)
    shares = [proportion(float(k) / 200, 200) for k in draws]
    covered = sum(share.low <= 0.95 <= share.high for share in shares) / len(shares)
    assert 0.93 < covered < 0.98
    assert proportion(1.0, 50).high == 1 and proportion(1.0, 50).low == pytest.approx(
        0.9287, abs=1e-4
    )
    assert (
        proportion(0.0, 50).low == 0 and proportion(0.5, 100, 0.99).low < proportion(0.5, 100).low
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one for each"):
        symmetry_accuracy(corner, IMAGES, torch.zeros(3), C4)
    with pytest.raises(ValueError, match="logits"):
        predict_elements(lambda x: x, IMAGES, C4.elements)
    with pytest.raises(ValueError, match="not all finite"):
        predict_elements(lambda x: corner(x) * float("nan"), IMAGES, C4.elements)
    with pytest.raises(ValueError, match="batch, channel"):
        predict_elements(corner, IMAGES[0], C4.elements)


def test_as_dict_is_plain():
    scores = symmetry_accuracy(corner, IMAGES, labels_of(corner), C8)
    curve = accuracy_by_angle(corner, IMAGES, labels_of(corner), step=90)
    for values in (scores.as_dict(), curve.as_dict()):
        assert json.loads(json.dumps(values)) == values
    assert list(scores.as_dict()["elements"]) == [str(e) for e in C8.elements]
