"""`corners: crop`: a network sees the centre of every image, upright ones too, which no corner of a
turned image reaches, in training, for scores, in the instruments and inside every exported file.
"""

import copy
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Element, Group
from studies.config import parse
from studies.journal.definition import corners_note
from studies.results.measure_trial import find_subject
from support.bundles import manifest_of, write_manifest
from support.corners import TEXT, bundle, config_of, subject, trained  # noqa: F401
from trainers.actions import act
from trainers.bundles.formats import BUNDLE_FORMATS, CARD, logits, onnx_runner, runner
from trainers.bundles.model import _centre
from trainers.bundles.pixel_graph import pixel_runner
from trainers.bundles.predict import load_predictor
from trainers.bundles.verify import verify
from trainers.data.augment import rotate
from trainers.data.borders import kept_centre, see
from trainers.data.datasets import load_data, normalise
from trainers.instruments.audit.audit import audit
from trainers.networks.networks import build
from trainers.settings import Corners

CORNERS: Corners = "crop"
SIZES = [*((n, n) for n in (1, 2, 3, 8, 9, 12, 15, 28, 29, 33)), (8, 13), (9, 6)]


def outside(size=(12, 12)):
    """True at the pixels that are left out."""
    left_out = torch.ones(size, dtype=torch.bool)
    rows, columns = _centre(*size)
    left_out[rows, columns] = False
    return left_out


def with_other_borders(images, seed):
    """The uint8 images with noise at the pixels that are left out."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)
    return torch.where(outside(images.shape[-2:]), noise, images)


@pytest.mark.parametrize("size", SIZES)
def test_the_centre_is_kept_by_flips_and_quarter_turns(size):
    kept = ~outside(size)[None, None]
    rows, columns = kept_centre(*size)
    assert kept.any(3).sum() == rows and kept.any(2).sum() == columns
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    for element in Group.parse("D4").elements:
        moved = act(images, element, "crop")
        assert torch.equal(act(kept, element), ~outside(tuple(moved.shape[2:]))[None, None])
        assert torch.allclose(see(moved, "crop"), act(see(images, "crop"), element), atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 13), (28, 28), (29, 29)])
@pytest.mark.parametrize("degrees", [7, 30, 45, 80])
def test_no_angle_brings_in_anything_from_outside(size, degrees):
    """The same whatever fills the corners, and not so for a rectangle of two more pixels."""
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)).double() + 1
    element = Element(Fraction(degrees, 360))
    fillings: tuple[Corners, ...] = ("black", "reflect", "replicate")
    seen = [see(act(image, element, corners), "crop") for corners in fillings]
    turned = [rotate(image, torch.tensor([float(degrees)]), corners) for corners in fillings]
    for found in (seen, [see(t, "crop") for t in turned]):
        assert all(torch.allclose(found[0], other, atol=1e-12) for other in found[1:])
    height, width = kept_centre(*size)
    white = act(torch.ones(1, 1, *size).double(), Element(Fraction(1, 8)), "black")[0, 0]
    top, left = (size[0] - height) // 2 - 1, (size[1] - width) // 2 - 1
    assert white[top : top + height + 2, left : left + width + 2].min() < 1 - 1e-9


@pytest.fixture(scope="module")
def splits():
    return load_data(config_of(CORNERS).data, (12, 12))


@pytest.mark.parametrize("corners,same", [("crop", True), ("reflect", False)])
def test_the_corner_pixel_reaches_neither_training_nor_scores(splits, tmp_path, corners, same):
    """No angle carries it into the centre."""
    parts = {}
    for name in ("train", "validation"):
        pixels = getattr(splits, name).pixels.clone()
        pixels[..., ::11, ::11] = 255
        parts[name] = replace(getattr(splits, name), pixels=pixels)
    other = replace(splits, **parts)
    one, two = (trained(s, tmp_path / str(n), corners) for n, s in enumerate((splits, other)))
    states = one.network.state_dict(), two.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]) is same
    errors = [found.scores["equivariance_error"] for found in (one, two)]
    assert (errors[0] == errors[1]) is same


def test_every_exported_file_crops_by_itself(subject, bundle):
    images, splits = subject.splits.validation.pixels, subject.splits
    values = normalise(images.float() / 255, splits.mean, splits.std, "crop")
    expected = copy.deepcopy(subject.network).eval()(values).detach()
    changed = with_other_borders(images, seed=11)
    assert set(manifest_of(bundle)["formats"]) == set(BUNDLE_FORMATS)
    for name in BUNDLE_FORMATS:
        run = runner(bundle, name)
        assert (logits(run, images) - expected).abs().max() < 1e-5, name
        assert torch.equal(logits(run, images), logits(run, changed)), name
    small = onnx_runner(bundle, manifest_of(bundle)["int8"]["file"])
    assert torch.equal(logits(small, images), logits(small, changed))
    shares = pixel_runner(bundle)
    assert (shares(images) - expected.softmax(1)).abs().max() < 1e-5
    for runtime in ("torch", "onnx"):
        predictor = load_predictor(bundle, runtime=runtime, orbit=True)
        assert torch.equal(predictor.probabilities(images), predictor.probabilities(changed))


def test_verify_and_card_know_the_crop(bundle, tmp_path):
    assert verify(bundle).good and verify(bundle, run_code=True).good
    text = (bundle / CARD).read_text()
    assert "sees the centre of every image" in text
    assert "cut to the centre that no corner reaches, enlarged" in text
    manifest = manifest_of(bundle)
    assert manifest["training"]["corners"] == manifest["content"]["corners"] == "crop"
    assert all(r["exact"] for r in manifest["elements"] if r["element"] in ("r90", "r180", "r270"))
    manifest["training"]["corners"] = "circle"
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_manifest(tmp_path, manifest)
    assert not verify(tmp_path).good


@pytest.mark.parametrize("run_code", [False, True])
def test_a_bundle_is_measured_as_it_was_trained(bundle, splits, run_code):
    found = find_subject(str(bundle), run_code=run_code)
    assert found.normalise is not None and found.corners == "crop"
    images = splits.validation.pixels
    values = [found.normalise(i.float() / 255) for i in (images, with_other_borders(images, 12))]
    assert torch.equal(*values)


class Seen(torch.nn.Module):
    """A network behind the crop."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(see(images, "crop"))


@pytest.mark.parametrize("size", [8, 9, 12, 13, 28, 29])
def test_the_verdict_holds_behind_the_crop(size):
    """The network sees its own input size: what is exact there is exact behind the crop."""
    architecture = Architecture.parse(f"{size}px: 2k3@C4, 2k3 max2/2, 2k3")
    exact = verdict(architecture, Group.parse("C4")).exact
    network = Seen(build(architecture, channels=1, classes=3, seed=0)).double().eval()
    images = torch.rand(4, 1, size, size, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        change = (network(act(images, Element(Fraction(1, 4)))) - network(images)).abs().max()
    assert bool(change < 1e-9) is exact is (size % 2 == 0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, stride=2, padding=1))
    pooled = torch.nn.Sequential(plain, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    assert audit(Seen(pooled), size, "C4", 1).exact is (size % 2 == 1)


@pytest.mark.parametrize("group", ["C4", "C8"])
def test_reports_say_that_upright_images_differ_too(group):
    study = parse(
        "data: {name: digits}", overrides={"symmetry": {"group": group, "corners": "crop"}}
    )
    assert "upright ones too, are cut to the centre" in str(corners_note(study))
