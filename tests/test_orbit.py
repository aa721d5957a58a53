"""Orbit averages: exactly invariant whatever is averaged, the same in training, folded and
exported, and refused where they would not be exact.
"""

from dataclasses import replace

import numpy
import pytest
import torch
from pydantic import ValidationError
from test_space import Dice
from torch import nn

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.groups import TRIVIAL, Group
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from studies.config import Study
from studies.results.check import check
from studies.samplers.ehvi import FeatureCoding
from studies.samplers.initial_design import candidate_distance, features_of
from studies.samplers.inversion import parameters_of
from trainers.actions import act
from trainers.networks.fold import fold
from trainers.networks.networks import build
from trainers.networks.orbit import orbit_average

TEXT = "10px: 3k3, 3k3 max3/2 orbit=C4"


def images(*size, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("group", ["C2", "C4", "D1", "D4"])
def test_any_module_averaged_is_invariant(group):
    """A module that reads every pixel apart: nothing about it is equivariant by itself."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))
    averaged = orbit_average(module.double(), group)
    x = images(4, 1, 8, 8)
    upright, alone = averaged(x), module(x)
    for element in Group.parse(group).elements[1:]:
        assert (averaged(act(x, element)) - upright).abs().max() < 1e-12
        assert (module(act(x, element)) - alone).abs().max() > 1e-3
    assert orbit_average(module, "C1") is module


def test_orbits_that_are_not_exact_are_refused():
    for text, says in [
        ("28px: 4k3 orbit=C8", "orbit is C8.*interpolate.*choose one of C1, C2, C4"),
        ("28x48px: 4k3 orbit=C4", "orbit is C4.*shape of images of 28x48 px; choose one of C1, C2"),
    ]:
        with pytest.raises(ValueError, match=says):
            Architecture.parse(text)
    with pytest.raises(ValueError, match="orbit is C8"):
        orbit_average(nn.Flatten(), "C8")
    with pytest.raises(ValueError, match="28x48"):
        orbit_average(nn.Flatten(), "C4")(torch.zeros(1, 1, 28, 48))
    assert Architecture.parse("28x48px: 4k3 orbit=D2").orbit == Group.parse("D2")


def test_an_orbit_of_one_is_no_orbit():
    plain, one = (Architecture.parse(t) for t in ("10px: 3k3@C4", "10px: 3k3@C4 orbit=C1"))
    assert str(one) == str(plain) and one == plain
    assert Candidate.parse(TEXT).key != Candidate.parse(TEXT.replace("C4", "C2")).key


def test_verdict_and_cost_of_an_orbit_average():
    architecture = Architecture.parse(TEXT)
    inside = Architecture.parse(TEXT.replace(" orbit=C4", ""))
    assert verdict(architecture).exact and not verdict(inside, Group.parse("C4")).exact
    assert not verdict(architecture, Group.parse("D4")).exact
    assert cost(architecture).macs == 4 * cost(inside).macs
    assert cost(architecture).params == cost(inside).params
    answer = check(architecture).text()
    assert "Exact under C4: the mean over the orbit" in answer and "4 times" in answer


def test_training_evaluation_and_fold_are_one_function():
    network = build(Architecture.parse(TEXT), channels=1, classes=3).double()
    x = images(6, 1, 10, 10)
    trained = network(x)
    assert (network(act(x, Group.parse("C4").elements[1])) - trained).abs().max() < 1e-12
    network.eval()
    logits, maps = network.forward_with_stages(x)
    with_parts, parts = network.forward_with_parts(x, slice(2), slice(2, None))
    assert [len(part) for part in parts[-1]] == [2, 4]
    folded, stages = fold(network).forward_with_stages(x)
    for found in (folded, with_parts):
        assert torch.allclose(found, logits, rtol=0, atol=1e-12)
    assert torch.allclose(maps[-1], stages[-1], rtol=0, atol=1e-12) and len(maps[-1]) == 6
    inside = build(Architecture.parse(TEXT.replace(" orbit=C4", "")), channels=1, classes=3)
    inside = inside.double().eval()
    inside.load_state_dict(network.state_dict())
    assert torch.allclose(orbit_average(inside, "C4")(x), logits, rtol=0, atol=1e-12)


def test_a_space_offers_an_orbit_where_it_changes_the_function():
    space = SearchSpace.model_validate(
        {
            "backbone": "2k3 *, 2k3",
            "group": ["C4"],
            "input_size": [8, 9],
            "orbit": ["C1", "C4", "D4"],
        }
    )
    seen = set()
    for seed in range(60):
        dice = Dice(seed)
        found = space.sample(dice).architecture
        exact = verdict(replace(found, orbit=TRIVIAL), Group.parse("C4")).exact
        built_in = exact and found.family == "steerable"
        assert ("orbit/C1,D4" if built_in else "orbit") in dice.params
        seen.add((built_in, str(found.orbit)))
    assert seen == {(True, o) for o in ("C1", "D4")} | {(False, o) for o in ("C1", "C4", "D4")}
    with pytest.raises(ValidationError, match="orbit is C8"):
        SearchSpace.model_validate({"orbit": ["C8"]})


def test_samplers_know_the_orbit():
    study = Study.model_validate(
        {
            "data": {"name": "digits", "train": 100, "validation": 50},
            "space": {
                "backbone": "2k3 *, 2k3",
                "group": ["C4"],
                "input_size": 8,
                "layout": ["max3/2"],
                "orbit": ["C1", "C4"],
            },
        }
    )
    plain, averaged = (
        Candidate.parse(f"8px: 2k3@C4 max3/2, 2k3{orbit}") for orbit in ("", " orbit=C4")
    )
    found = parameters_of(study, averaged)
    assert found is not None and found["orbit"] == "C4"
    known = [features_of(c, Group.parse("C4")) for c in (plain, averaged)]
    assert candidate_distance(*known, span=1) > abs(known[0].surviving - known[1].surviving)
    coded = FeatureCoding(study, known)
    columns = coded.differences(numpy.array([0]), numpy.array([1]))
    assert columns.shape[0] == len(known[0].choices) + 1 + 4 and columns[-5] == 1.0
    assert [f.surviving for f in known] == [0.25, 1.0]
