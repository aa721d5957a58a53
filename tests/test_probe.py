import json
from pathlib import Path

import pytest
import torch

from searchspace.groups import Group
from trainers.data.datasets import load_data
from trainers.instruments import twosample
from trainers.instruments.probe import probe, probe_images
from trainers.instruments.proportions import wilson
from trainers.settings import Data

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
mnist = pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="MNIST is not in ../shared/data")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twosample, "STEPS", 80)  # two thirds of the usual time
        patch.setenv("EQUISEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits(own_cache):
    splits = load_data(Data(name="digits"))
    return splits.train.pixels.float() / 255, splits.train.labels


def of(result):
    return {element.element: element for element in result.elements}


def test_upright_digits_are_distinct_under_every_element_and_keep_their_labels():
    result = probe(Data(name="digits"), Group.parse("C4"))
    assert list(of(result)) == ["r90", "r180", "r270"]
    assert all(e.inputs == "distinct" and e.labels != "collide" for e in result.elements)
    assert result.symmetric == "C1" and result.declare == "C4" and result.accuracy.value > 0.8
    assert all(e.accuracy_unseen.value < 0.7 for e in result.elements)
    assert "not symmetries of the inputs, but labels survive" in result.text().lower()
    # inverse elements share a classifier
    assert of(result)["r90"].apart == of(result)["r270"].apart


def test_randomly_turned_digits_are_symmetric_inputs_with_labels_kept(digits):
    pixels, labels = digits
    quarter = torch.randint(4, (len(labels),), generator=torch.Generator().manual_seed(0))
    turned = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(pixels, quarter)])
    result = probe_images(turned, labels, tuple("0123456789"), Group.parse("C4"))
    assert [(e.inputs, e.labels) for e in result.elements] == [("symmetric", "kept")] * 3
    assert result.symmetric == result.declare == "C4"
    assert "Exact equivariance under C4 costs no accuracy" in result.text()


def test_a_nine_that_is_a_turned_six_collides_with_it_under_half_a_turn_only(digits):
    pixels, labels = digits
    sixes, threes = pixels[labels == 6], pixels[labels == 3].clone()
    # a class that half a turn maps onto itself
    threes[::2] = threes[::2].flip(-1, -2)
    half = len(sixes) // 2
    planted = torch.cat([sixes[:half], sixes[half:].flip(-1, -2), threes])
    named = torch.tensor([0] * half + [1] * (len(sixes) - half) + [2] * len(threes))
    result = probe_images(planted, named, ("6", "9", "3"), Group.parse("C4"))
    assert [e.labels for e in result.elements] == ["kept", "collide", "kept"]
    assert {(pair.moved, pair.like) for pair in of(result)["r180"].likenesses} == {
        ("6", "9"),
        ("9", "6"),
    }
    assert [e.alike for e in result.elements] == [(), ("3",), ()]
    assert result.declare == "C1"  # C2 and C4 both hold the half turn
    assert "do not declare" in result.text()


def test_a_mirror_image_class_collides_under_the_mirror_alone(digits):
    pixels, labels = digits
    threes = pixels[labels == 2]
    half = len(threes) // 2
    planted = torch.cat([threes[:half], threes[half:].flip(-1)])
    named = (torch.arange(len(threes)) >= half).long()
    result = probe_images(planted, named, ("left", "right"), Group.parse("D2"))
    assert {e.element: (e.inputs, e.labels) for e in result.elements}["m"][1] == "collide"
    assert of(result)["r180"].labels == "kept" and result.declare == "C2"


def test_classes_that_are_hard_upright_do_not_collide(digits):
    pixels, _ = digits
    # labels without meaning
    labels = torch.randint(2, (len(pixels),), generator=torch.Generator().manual_seed(0))
    result = probe_images(pixels, labels, ("a", "b"), Group.parse("C2"))
    assert of(result)["r180"].labels == "kept" and result.accuracy.low < 0.6


def test_noise_is_symmetric_at_angles_that_need_interpolation():
    """Interpolation itself must not give the angle away: white noise shows its traces most."""
    noise = torch.rand(1000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    result = probe_images(noise, torch.arange(1000) % 2, ("a", "b"), Group.parse("C5"))
    assert {e.inputs for e in result.elements} == {"symmetric"}


def test_upright_images_are_told_from_images_turned_by_an_angle_off_the_grid(digits):
    pixels, labels = digits
    result = probe_images(pixels, labels, tuple("0123456789"), Group.parse("C3"))
    assert of(result)["r120"].inputs == "distinct" and of(result)["r240"].inputs == "distinct"


def test_few_images_do_not_decide():
    noise = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = probe_images(noise, torch.arange(24) % 2, ("a", "b"), Group.parse("D1"))
    assert of(result)["m"].inputs == "undecided" and "Too few images" in result.text()


def test_the_answer_is_the_same_again_leaves_the_global_generator_alone_and_is_json(digits):
    pixels, labels = digits
    state = torch.random.get_rng_state()
    first, again = (
        probe_images(pixels[:300], labels[:300], tuple("0123456789"), Group.parse("D1"))
        for _ in range(2)
    )
    assert first == again and torch.equal(torch.random.get_rng_state(), state)
    values = json.loads(json.dumps(first.as_dict()))
    assert (
        values["elements"][0]["element"] == "m" and 0 <= values["elements"][0]["apart"]["low"] <= 1
    )


def test_the_trivial_group_and_non_square_images_are_refused(digits):
    pixels, labels = digits
    with pytest.raises(
        ValueError, match="C1 has no element but the identity.*symmetry: {group: D4}"
    ):
        probe_images(pixels, labels, tuple("0123456789"), Group.parse("C1"))
    with pytest.raises(ValueError, match="8 x 6 pixels; crop"):
        probe_images(pixels[..., :6], labels, tuple("0123456789"), Group.parse("D1"))


def test_wilson_interval_of_known_cases():
    share = wilson(50, 100)
    assert (share.low, share.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert (wilson(0, 10).low, wilson(0, 10).high, wilson(10, 10).high) == pytest.approx(
        (0, 0.2775, 1), abs=1e-4
    )


@mnist
@pytest.mark.parametrize(
    "name,group,element", [("mnist6_180", "C2", "r180"), ("mnist6_m", "D1", "m")]
)
def test_the_toys_are_symmetric_inputs_with_colliding_labels(name, group, element):
    result = probe(Data(name=name, root=SHARED), Group.parse(group), images=1000)
    assert (of(result)[element].inputs, of(result)[element].labels, result.declare) == (
        "symmetric",
        "collide",
        "C1",
    )
    assert of(result)[element].accuracy_blind.value < 0.6 < 0.95 < result.accuracy.value


@mnist
def test_real_sixes_and_nines_resemble_each_other_under_half_a_turn():
    result = probe(Data(name="mnist", root=SHARED), Group.parse("C2"))
    half_turn = of(result)["r180"]
    assert half_turn.labels == "resemble"
    # the closest pair
    assert {half_turn.likenesses[0].moved, half_turn.likenesses[0].like} == {"6", "9"}
    assert ("6", "9") in {(a, b) for a, b, _ in half_turn.called}


@mnist
@pytest.mark.slow
def test_uniformly_rotated_mnist_is_symmetric_under_eighths_of_a_turn():
    result = probe(Data(name="rotated_mnist", root=SHARED), Group.parse("C8"))
    assert result.symmetric == "C8" and all(e.labels == "kept" for e in result.elements)
