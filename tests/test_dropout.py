"""Dropout: a modifier of the text form that acts in training alone and leaves no trace in what is
scored and exported.
"""

import copy
import pickle
import random

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Element
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from searchspace.training.dropout import NO_DROPOUT, Dropout
from studies.results.check import check
from trainers.actions import act, act_on_fields
from trainers.networks.dropout import DropoutLayer as Layer
from trainers.networks.dropout import dropouts
from trainers.networks.fold import fold
from trainers.networks.networks import build
from trainers.networks.normalization import estimate_statistics

TEXT = "12px: 4k3drop0.3@C4, 4k3fielddrop0.25 max2/2, 4k3"
PLAIN = "12px: 4k3@C4, 4k3 max2/2, 4k3"


def images(batch=5, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, size, size, generator=generator)


def network(text, seed=3):
    """A network of one channel whose dropouts draw from a generator of their own."""
    made = build(Architecture.parse(text), channels=1, classes=3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in dropouts(made):
        layer.generator = generator
    return made


@pytest.mark.parametrize(
    "text, stages",
    [
        (TEXT, [Dropout("values", 0.3), Dropout("fields", 0.25), NO_DROPOUT]),
        ("9px: 4k3@C4drop0.5 max2/2, 4k3d2drop1e-05x2", [Dropout("values", 0.5)]),
        ("9px: 4k3rdrop0.125x2", [Dropout("values", 0.125)]),
    ],
)
def test_the_text_form_parses_back(text, stages):
    architecture = Architecture.parse(text)
    assert [stage.dropout for stage in architecture.stages][: len(stages)] == stages
    assert Architecture.parse(str(architecture)) == architecture
    assert Candidate.parse(Candidate(architecture).key).architecture == architecture.canonical()


@pytest.mark.parametrize("modifier", ["drop0", "drop0.0", "fielddrop0"])
def test_a_rate_of_zero_is_no_dropout(modifier):
    assert Architecture.parse(f"9px: 4k3{modifier}@C4") == Architecture.parse("9px: 4k3@C4")


def test_keys_tell_dropouts_apart_and_repeats_drop_once():
    keys = {Candidate.parse(f"9px: 4k3{m}").key for m in ("", "drop0.1", "drop0.2", "fielddrop0.1")}
    assert len(keys) == 4
    repeated = Candidate.parse("9px: 4k3drop0.1x2")
    assert repeated.key == Candidate.parse("9px: 4k3, 4k3drop0.1").key


@pytest.mark.parametrize(
    "modifier", ["drop1", "fielddrop1.5", "drop", "drop-0.1", "drop.", "dropx"]
)
def test_other_rates_are_refused_with_the_rule(modifier):
    with pytest.raises(ValueError, match="below 1|fielddropR"):
        Architecture.parse(f"9px: 4k3{modifier}")


def test_one_dropout_for_each_stage():
    with pytest.raises(ValueError, match="say it once"):
        Architecture.parse("9px: 4k3drop0.1fielddrop0.1")


def test_evaluation_statistics_and_the_folded_network_know_nothing_of_it():
    with_dropout, without = network(TEXT), network(PLAIN)
    for made in (with_dropout, without):
        estimate_statistics(made, [images(seed=1), images(seed=2)])
    assert with_dropout.state_dict().keys() == without.state_dict().keys()
    first, second = (made.eval()(images()) for made in (with_dropout, without))
    assert torch.equal(first, second)
    assert torch.equal(fold(with_dropout)(images()), fold(without)(images()))


def test_a_verdict_is_that_of_the_network_without_dropout_and_says_so():
    found = verdict(Architecture.parse(TEXT))
    assert found.surviving == verdict(Architecture.parse(PLAIN)).surviving
    assert found.exact
    assert "evaluation" in check(TEXT).text() and "evaluation" not in check(PLAIN).text()


def test_training_drops_the_share_and_keeps_the_mean():
    layer = Layer(Dropout("values", 0.3), 4)
    layer.generator = torch.Generator().manual_seed(1)
    dropped = layer(torch.ones(16, 8, 32, 32))
    zeros = (dropped == 0).double().mean()
    assert abs(zeros - 0.3) < 0.005 and abs(dropped.mean() - 1) < 0.01
    assert dropped.unique().numel() == 2


@pytest.mark.parametrize("rate", [1e-9, 0.9999999999])
def test_rates_at_the_ends_train(rate):
    dropped = Layer(Dropout("values", rate), 1)(torch.ones(2, 4, 8, 8))
    assert torch.isfinite(dropped).all() and (rate > 0.5 or bool((dropped == 1).all()))


def test_whole_fields_share_one_draw_for_all_elements_and_pixels():
    layer = Layer(Dropout("fields", 0.4), 4)
    layer.generator = torch.Generator().manual_seed(1)
    dropped = layer(torch.ones(64, 20, 3, 5)).view(64, 5, 4 * 15)
    assert torch.equal(dropped.amin(2), dropped.amax(2))
    assert 0.3 < (dropped[..., 0] == 0).double().mean() < 0.5


def test_masks_do_not_depend_on_the_layout_of_the_maps_and_gradients_follow_them():
    layer = Layer(Dropout("values", 0.3), 1)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer.generator = torch.Generator().manual_seed(1)
        maps = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
        maps = maps.contiguous(memory_format=layout).requires_grad_()
        dropped = layer(maps)
        assert dropped.is_contiguous(memory_format=layout)
        dropped.sum().backward()
        assert torch.equal(maps.grad == 0, dropped == 0)
        results.append((dropped.detach(), maps.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results))


@pytest.mark.parametrize("step", ["", " max2/2", " avg2/2", " conv3/2p1"])
def test_with_masks_of_whole_fields_training_is_equivariant_too(step):
    """The same masks on the image and on the turned one: as the network without dropout."""
    size = 13 if "conv" in step else 12
    text = f"{size}px: 4k3fielddrop0.3@C4, 4k3fielddrop0.4{step}"
    made, element = network(text).double(), Element.parse("r90")
    outputs = []
    for batch in (images(size=size).double(), act(images(size=size).double(), element)):
        for layer in dropouts(made):
            layer.generator.manual_seed(7)
        outputs.append(made.forward_with_stages(batch))
    (logits, stages), (turned, moved) = outputs
    group = made.architecture.group
    assert torch.allclose(act_on_fields(stages[-1], element, group), moved[-1], atol=1e-10)
    assert torch.allclose(logits, turned, atol=1e-10)


def test_copies_and_pickles_train_on():
    made = network(TEXT)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.train()(images()).shape == (5, 3)
        assert all(layer.generator is None for layer in dropouts(other))


SPACE = SearchSpace.model_validate(
    {
        "backbone": "4k3drop0.5, 4k3 *, 4k3",
        "family": "steerable",
        "group": ["C4", "D4"],
        "dropout": {"kind": ["none", "values", "fields"], "rate": [0.1, 0.3]},
    }
)


class Dice:
    def __init__(self, seed):
        self.random, self.params = random.Random(seed), {}

    def suggest_categorical(self, name, choices):
        self.params[name] = self.random.choice(choices)
        return self.params[name]


def test_a_space_samples_kind_and_rate_where_they_apply():
    seen = set()
    for seed in range(40):
        trial = Dice(seed)
        own, *others = (stage.dropout for stage in SPACE.sample(trial).architecture.stages)
        assert own == Dropout("values", 0.5) and len(set(others)) == 1
        assert ("dropout_rate" in trial.params) == (trial.params["dropout"] != "none")
        seen.add(others[0])
    assert seen == {NO_DROPOUT, *(Dropout(k, r) for k in ("values", "fields") for r in (0.1, 0.3))}


@pytest.mark.parametrize(
    "dropout, rule",
    [
        ({"rate": 1.0}, "below 1"),
        ({"rate": [0.1, 1.5]}, "below 1"),
        ({"rate": {"low": 0.1, "high": 1}}, "below 1"),
        ({"rate": -0.1}, "at least 0"),
        ({"rate": []}, "at least 1 item"),
        ({"rate": True}, "valid number"),
        ({"kind": "half"}, "'none', 'values' or 'fields'"),
    ],
)
def test_a_space_refuses_other_dropouts(dropout, rule):
    with pytest.raises(ValueError, match=rule):
        SearchSpace.model_validate({"dropout": dropout})
