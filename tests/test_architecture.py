"""The central value: its text form, its derived facts, and what it refuses."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchspace.architecture import Architecture
from searchspace.cost import basis_size, cost
from searchspace.published import PUBLISHED
from searchspace.recipe import Candidate, Loss, Recipe
from support.architectures import ANY, random_architecture, random_candidate

P4CNN = "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0"


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_text_form_parses_back(seed):
    architecture = random_architecture(random.Random(seed), ANY)
    again = Architecture.parse(str(architecture))
    assert (
        again == architecture
        and hash(again) == hash(architecture)
        and str(again) == str(architecture)
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_canonical_form_is_stable_and_costs_the_same(seed):
    architecture = random_architecture(random.Random(seed), ANY)
    simple = architecture.canonical()
    assert simple.canonical() == simple
    assert simple.layers[-1].size_out == architecture.layers[-1].size_out
    if architecture.head != "none" or simple.head == "none":
        assert cost(simple) == cost(architecture)


@pytest.mark.parametrize(
    "one,other",
    [
        ("28px: 4k3x3 max2/2", "28px: 4k3, 4k3, 4k3 max2/2"),
        ("28px: 4k3, 4k3s2x3r", "28px: 4k3, 4k3s2r, 4k3r, 4k3r"),
        ("28px: 4k3@C4 adaptive/2", "28px: 4k3@C4 avg2/2"),
        ("28px: 4k3 head=group_max", "28px: 4k3 head=none"),
        ("28px resize28: 4k1d2", "28px: 4k1"),
        ("28px: 4k3 max2/2ceil", "28px: 4k3 max2/2"),
        ("28px: 4k3 lp1/2, 4k3 lp1/1", "28px: 4k3 max1/2, 4k3"),
        ("28px: 4k3 lp2", "28px: 4k3 lp2/1"),
        ("28px: 4k3p0reflect", "28px: 4k3p0"),
        ("28px: 10k3p1 max2/2p0", "28px: 10k3 max2/2"),
    ],
)
def test_equal_architectures_are_recognised(one, other):
    assert Architecture.parse(one).canonical() == Architecture.parse(other).canonical()
    assert (
        Candidate.parse(f"{one} loss=latent:2").key == Candidate.parse(f"{other} loss=latent:2").key
    )


def test_different_architectures_stay_different():
    texts = [
        "28px: 4k3@C4",
        "28px: 4k3@C2",
        "29px: 4k3@C4",
        "28px: 4k3@C4 head=none",
        "28px: 4k3@C4 filters=basis",
        "28px: 4k3@C4 max2/2",
        "28px: 4k3@C4 avg2/2",
        "29px: 4k3@C4 max2/2ceil",
        "29px: 4k3@C4 max2/2",
    ]
    assert len({Architecture.parse(text).canonical() for text in texts}) == len(texts)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_text_form_of_a_candidate_parses_back(seed):
    candidate = random_candidate(random.Random(seed), ANY)
    again = Candidate.parse(str(candidate))
    assert again == candidate and again.key == candidate.key
    assert Architecture.parse(str(candidate)) == candidate.architecture


def test_a_recipe_stands_behind_the_architecture_where_it_differs_from_the_default():
    texts = {
        "28px: 4k3@C4 loss=0.1 head=none": "28px: 4k3@C4 head=none loss=layerwise:0.1",
        "28px: 4k3 learning_rate=1e-2 loss=label:2": "28px: 4k3 loss=label:2.0 learning_rate=0.01",
        "28px: 4k3 loss=layerwise:0": "28px: 4k3",
        "28px: 4k3 loss=none family=plain": "28px: 4k3",
    }
    assert {text: str(Candidate.parse(text)) for text in texts} == texts
    assert Candidate.parse("28px: 4k3 loss=0.1 learning_rate=0.3").recipe == Recipe(
        (Loss("layerwise", 0.1),), 0.3
    )


def test_candidates_that_train_differently_have_different_keys():
    texts = [
        "28px: 4k3x2",
        "28px: 4k3x2 loss=1",  # a layerwise loss is a mean over stages
        "28px: 4k3, 4k3 loss=1",
        "28px: 4k3x2 loss=2",
        "28px: 4k3x2 loss=label:1",
        "28px: 4k3x2 learning_rate=0.01",
        "28px: 4k3x2 learning_rate=0.02",
        "28px: 4k3x2 loss=1 learning_rate=0.02",
    ]
    assert len({Candidate.parse(text).key for text in texts}) == len(texts)
    # what studies of version 0.1.0 wrote down
    assert (
        Candidate.parse("29px: 2k3x2 loss=latent:0.5 learning_rate=0.0123").key
        == "29px: 2k3, 2k3 head=none loss=latent:0.5 learning_rate=0.0123"
    )


def test_the_published_example():
    architecture = Architecture.parse(P4CNN)
    assert (
        str(architecture) == P4CNN
        and architecture.family == "steerable"
        and str(architecture.group) == "C4"
    )
    assert [size[0] for size in architecture.sizes] == [28, 14, 14, 14, 14, 14, 11]
    # 24,990 in the paper: three input channels (+180) and a bias in each convolution (+70), which
    # batch norm makes idle.
    assert cost(architecture).params + 180 + 70 == 24_990


def test_residual_stage_has_two_convolutions_a_block_and_one_projection():
    architecture = Architecture.parse("33px: 16k3, 32k3s2x3r")
    names = [layer.name for layer in architecture.layers if layer.stage == 2]
    assert names == ["skip1", "conv1", "conv2", "conv3", "conv4", "conv5", "conv6"]
    weights = [32 * 16] + [9 * 32 * 16] + [9 * 32 * 32] * 5
    assert cost(architecture, classes=10).params == 9 * 16 + 32 + sum(weights) + 7 * 64 + 330
    assert architecture.sizes == ((33, 33), (17, 17))


def test_options_and_their_defaults():
    architecture = Architecture.parse("29px: 16k5@D4 max3/2p1, 32k5 max3/2p1, 64k3@C4")
    assert architecture.head == "group_max" and architecture.filters == "free"
    assert [str(stage.group) for stage in architecture.stages] == ["D4", "D4", "C4"]
    assert Architecture.parse("28px: 4k3@C8").filters == "basis"
    assert Architecture.parse("28px: 20k3 family=plain").family == "plain"


def test_text_is_forgiving_about_spaces_and_the_order_of_modifiers():
    assert Architecture.parse("28px:4k3s2p0@C4  max2/2,8k3") == Architecture.parse(
        " 28x28px: 4k3@C4p0s2 max2/2 ,  8k3 "
    )


@pytest.mark.parametrize(
    "text,says",
    [
        ("28: 3k3", "input size"),
        ("", "input size"),
        ("28px:", "not a stage"),
        ("28px: 3k3q", "'q'"),
        ("28px: 3x3", "not a stage"),
        ("28px: 10k3@C4, 10k3@D4", "not a subgroup of stage 1's C4"),
        ("28px: 10k3@E4", "no group"),
        ("0px: 3k3", "height"),
        ("28px: 10k3@C8 filters=free", "filters=basis"),
        ("8px: 10k3p0 max2/2, 10k5p0", "larger input"),
        ("28px: 10k3@C4 family=plain", "family"),
        ("28px: 10k3 family=steerable", "family"),
        ("28px: 10k3 max9/2p5", "half of the kernel"),
        ("28px: 10k4r", "odd kernel"),
        ("28px: 10k3 learning_rate=fast", "a number above 0"),
        ("28px: 10k3 learning_rate=0", "finite number above 0"),
        ("28px: 10k3 learning_rate=inf", "finite number above 0"),
        ("28px: 10k3 loss=foo:1", "layerwise"),
        ("28px: 10k3 loss=layerwise:nan", "finite"),
        ("28px: 10k3 loss=-1", "finite"),
        ("28px: 10k3 foo=1", "options are"),
        ("28px: 10k3 head=max", "group_max"),
        ("28px: 10k3 max2/2 avg2/2", "more than one subsampling \\(max2/2, avg2/2\\)"),
        ("28px: 2k2@C4 filters=basis", "empty"),
        ("28px: 0k3", "at least 1"),
        ("28px: 3k0", "at least 1"),
        ("28px: 3k3s0", "at least 1"),
        ("28px: 3k3x0", "number of repeats is 0; it must be a whole number of at least 1"),
        ("28px: 3k3 adaptive0", "output size of adaptive is 0; it must be a whole number"),
        ("28px resize0: 3k3", "output size of resize is 0; it must be a whole number"),
        ("28px: 3k3s2s2", "say it once"),
        ("28px: 3k3 foo2", "subsampling"),
        ("28px: 3k3 lp3/2ceil", "only max, avg can"),
        ("28px lp2/2: 3k3", "resize or crop"),
        ("28px: 10k3p9999999", "padding is 9999999; it must be at most 1024"),
        ("28px: 10k9999999p5000000", "kernel is 9999999; it must be at most 1024"),
        ("28px: 10k3s1000000", "stride is 1000000; it must be at most 1024"),
        ("28px: 10k3d1000000", "dilation is 1000000; it must be at most 1024"),
        ("28px: 10k3 resize999999", "output size of resize is 999999; it must be at most 16384"),
        ("28px crop999999: 10k3", "output size of crop is 999999; it must be at most 16384"),
        ("28px: 10k3 avg99999/2p40000", "kernel of avg is 99999; it must be at most 1024"),
        ("16384px: 10k3p1000", "at most 16384 on an axis"),
        ("28px: 99999999k3", "number of fields is 99999999; it must be at most 65536"),
        ("28px: 65536k3, 65536k3", "3.9e\\+10 weights"),
        ("28px: 3k3 resize", "resize29"),
        ("4px: 3k9p4reflect", "reflect"),
        ("28px max2/2: 3k3", "resize or crop"),
        ("7px: 3k3 adaptive9", "fewer"),
        ("28px: 3k3 head=none head=none", "twice"),
        ("28px: 3k3p1:-2", "not a modifier"),
    ],
)
def test_bad_text_gets_one_clear_message(text, says):
    with pytest.raises(ValueError, match=says) as error:
        Architecture.parse(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 320


def test_basis_sizes_are_those_of_escnn():
    # escnn 1.0.11, any group
    assert [basis_size(k) for k in (1, 2, 3, 4, 5, 6, 7, 9)] == [1, 0, 6, 5, 11, 12, 18, 31]


def test_macs_of_a_single_convolution_by_hand():
    price = cost(Architecture.parse("9x7px: 2k3p0@C4"), channels=3, classes=5)
    assert (
        price.macs == 8 * 3 * 9 * 7 * 5 + 2 * 5
        and price.params == 2 * 27 + 4 + 15
        and price.expanded_params == 8 * 27 + 8 + 15
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_parse_and_print_as_written(name):
    network = PUBLISHED[name]
    assert str(network.architecture) == network.text
    # of MNIST, CIFAR-10 or ImageNet
    images = network.architecture.size[0], network.channels, network.classes
    assert images in ((28, 1, 10), (32, 3, 10), (224, 3, 1000))


@pytest.mark.parametrize(
    "name,millions",
    [
        ("resnet44-z2", 2.64),
        ("all-cnn", 1.37),
        ("all-cnn-p4", 1.37),
        ("all-cnn-p4m", 1.22),
        ("resnet26-z2", 7.24),
        ("resnet26-p4m", 7.17),
        ("equinas", 0.89),
        ("resnet18-z2", 11.17),
        ("resnet18-torchvision", 11.69),
        ("wrn28-10-c4", 36.5),
        ("wrn28-10-d4", 36.5),
    ],
)
def test_published_widths_give_the_published_parameters(name, millions):
    network = PUBLISHED[name]
    params = cost(network.architecture, network.channels, network.classes).params
    assert params == pytest.approx(1e6 * millions, rel=0.03), params


def test_padding_modes_are_printed_as_written():
    text = "28px: 4k3p1reflect, 4k5p1circular, 4k3p2:1circular, 4k3"
    architecture = Architecture.parse(text)
    modes = [stage.padding_mode for stage in architecture.stages]
    assert modes == ["reflect", "circular", "circular", "zeros"] and str(architecture) == text


@pytest.mark.parametrize("text", ["28px: " + ", ".join(["4k1p0"] * 20_000), "9px: 4k3x1000, " * 30])
def test_more_convolutions_than_anything_is_made_of_are_refused_at_once(text):
    with pytest.raises(ValueError, match="must have at most 2,000 together|is not a stage"):
        Architecture.parse(text.rstrip(", ").replace(", 9px: ", ", "))
