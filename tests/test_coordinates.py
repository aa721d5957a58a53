"""Coordinate channels: which elements they leave exact, the same in the network, folded and
exported, and what a card says of them.
"""

import pytest
import torch
from test_space import Dice

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import exact_sizes, verdict
from searchspace.groups import IDENTITY, Element, Group
from searchspace.recipe import Candidate
from searchspace.space import SearchSpace
from studies.results.check import check
from support.bundles import bundle, manifest_of, subject  # noqa: F401  (fixtures)
from trainers.actions import act
from trainers.bundles import export as exporting
from trainers.bundles.export import TrainedNetwork, export
from trainers.bundles.formats import BUNDLE_FORMATS, CARD
from trainers.data.datasets import load_data
from trainers.instruments.merging import merge_barrier
from trainers.networks.fold import fold
from trainers.networks.networks import build
from trainers.networks.plain import with_coordinates
from trainers.settings import Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.train import start_training, train

D4 = Group.parse("D4")


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (1, 1), (1, 3), (3, 1), (4, 6), (5, 3)])
@pytest.mark.parametrize("kind", ["x", "y", "xy", "radius"])
def test_the_verdict_keeps_the_elements_that_leave_the_coordinates_as_they_are(kind, size):
    height, width = size
    coordinates = with_coordinates(torch.zeros(1, 0, height, width), kind)
    turned = with_coordinates(torch.zeros(1, 0, width, height), kind)
    assert coordinates.abs().max() <= 1 + 1e-6
    same = {
        e
        for e in D4.elements
        if torch.equal(act(coordinates, e), turned if e.swaps_axes else coordinates)
    }
    architecture = Architecture.parse(f"{height}x{width}px: 2k3@D4 coordinates={kind}")
    assert set(verdict(architecture, D4).surviving) == same


def test_coordinates_are_centred_and_reach_one():
    x, y = with_coordinates(torch.zeros(1, 1, 3, 5), "xy")[0, 1:]
    assert x[0].tolist() == [-1, -0.5, 0, 0.5, 1] and y[:, 0].tolist() == [-1, 0, 1]
    radius = with_coordinates(torch.zeros(2, 1, 3, 3), "radius")[1, 1]
    assert radius[1, 1] == 0 and radius[0, 2] == 1 and radius[0, 1] == pytest.approx(0.5**0.5)


def test_answers_costs_and_texts():
    exact, broken = (
        Architecture.parse(f"28px: 10k3@C4, 10k3 max2/2 coordinates={kind}")
        for kind in ("radius", "xy")
    )
    assert verdict(exact).exact and exact_sizes(exact)
    assert not verdict(broken).exact and verdict(broken).invariant == (IDENTITY,)
    assert not exact_sizes(broken) and not check(broken).repairs
    assert "take coordinates=radius" in check(broken).text()
    plain = Architecture.parse("28px: 10k3@C4, 10k3 max2/2")
    assert cost(broken).params - cost(plain).params == 2 * 10 * 9
    assert Architecture.parse(f"{plain} coordinates=none") == plain
    assert Candidate.parse(str(broken)).architecture == broken
    with pytest.raises(ValueError, match="coordinates is 'z'; choose one of none, x, y, xy"):
        Architecture.parse(f"{plain} coordinates=z")


def test_network_and_fold_agree_also_behind_an_entry():
    architecture = Architecture.parse("9x7px resize6: 2k3@C4, 2k3 max2/2 coordinates=xy")
    network = build(architecture, channels=2, classes=3).double().eval()
    x = torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(fold(network)(x), network(x), rtol=0, atol=1e-12)
    assert network.convolutions[0].channels_in == 4
    without = Architecture.parse("9x7px resize6: 2k3@C4, 2k3 max2/2")
    assert "coordinates" not in str(without) and build(without, channels=2, classes=3)


def test_a_card_says_that_coordinates_break_an_exact_network(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "BUNDLE_FORMATS", {"torch": BUNDLE_FORMATS["torch"]})
    architecture = Architecture.parse("9px: 3k3@C4 max3/2, 3k3 coordinates=xy")
    config = TrainingConfig(
        subject.config.data, Training(epochs=1, batch_size=32), Symmetry(group="C4"), seed=1
    )
    splits = load_data(config.data, architecture.size)
    scores = train(architecture, config, tmp_path / "training", 1, splits=splits)
    network = start_training(architecture, config, tmp_path / "training", splits).network
    trained = TrainedNetwork(network, splits, config, scores.as_dict(), {})
    folder = export(trained, tmp_path / "bundle")
    manifest = manifest_of(folder)
    assert manifest["exactness"]["exact"] is False
    row = next(row for row in manifest["elements"] if row["element"] == "r180")
    assert not row["exact"] and "coordinates" in row["lost"]
    assert row["relative_change"]["torch"] > 1e-2
    assert "the xy coordinates stay where they are" in (folder / CARD).read_text()


def test_a_space_offers_coordinates():
    space = SearchSpace.model_validate(
        {"backbone": "2k3 *, 2k3", "input_size": 8, "coordinates": ["none", "radius"]}
    )
    drawn = {space.sample(Dice(seed)).architecture.coordinates for seed in range(20)}
    assert drawn == {"none", "radius"}


def test_no_barrier_of_a_network_that_sees_coordinates():
    network = build(Architecture.parse("8px: 2k3 coordinates=x"), channels=1, classes=2)
    images = torch.rand(4, 1, 8, 8)
    with pytest.raises(ValueError, match="take coordinates=none"):
        merge_barrier(network, images, torch.zeros(4, dtype=torch.int64), Element.parse("m"))
