"""`corners: circle`: every image is black outside its inscribed circle, upright ones too, in
training, for scores, in the instruments and inside every exported file.
"""

import copy
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from searchspace.groups import Element, Group
from studies.config import parse
from studies.journal.definition import corners_note
from studies.results import measure_trial
from studies.results.measure_trial import Subject, find_subject
from support.bundles import manifest_of, write_manifest
from support.corners import TEXT, bundle, config_of, subject, trained  # noqa: F401
from trainers.actions import act
from trainers.bundles.formats import BUNDLE_FORMATS, CARD, logits, onnx_runner, runner
from trainers.bundles.model import _circle
from trainers.bundles.pixel_graph import pixel_runner
from trainers.bundles.predict import load_predictor
from trainers.bundles.verify import verify
from trainers.data.augment import rotate
from trainers.data.borders import inscribed_circle, see
from trainers.data.datasets import load_data, normalise
from trainers.settings import Corners
from trainers.training.augmentation import LearnedAugmentation

CORNERS: Corners = "circle"
SIZES = [(n, n) for n in (1, 2, 3, 8, 9, 12, 15, 28, 33)]


def outside(size=(12, 12)):
    return ~inscribed_circle(*size)


def with_other_corners(images, seed=5, where=None):
    """The uint8 images with noise outside their inscribed circle, or `where` is true."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)
    return torch.where(outside(images.shape[-2:]) if where is None else where, noise, images)


@pytest.mark.parametrize("size", [*SIZES, (8, 13), (9, 6)])
def test_flips_and_quarter_turns_keep_the_circle(size):
    circle = inscribed_circle(*size)[None, None]
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    for element in Group.parse("D4").elements:
        assert torch.equal(
            act(circle, element), inscribed_circle(*act(circle, element).shape[2:])[None, None]
        )
        assert torch.equal(
            see(act(images, element, "circle"), "circle"), act(see(images, "circle"), element)
        )
    height, width = size
    assert torch.equal(circle[0, 0].float(), _circle(*size))
    assert circle[..., height // 2, width // 2].all()
    assert min(size) < 4 or not circle[..., 0, 0].any()


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 13), (28, 28)])
@pytest.mark.parametrize("degrees", [7, 45, 80])
def test_all_angles_show_the_same_content(size, degrees):
    """A white image is the same white disc at every angle, whatever turns it."""
    white = torch.ones(1, 1, *size, dtype=torch.float64)
    disc = see(white, "circle")
    moved = act(white, Element(Fraction(degrees, 360)), "circle")
    assert (see(moved, "circle") - disc).abs().max() < 1e-12
    moved = rotate(white, torch.tensor([float(degrees)]), "circle")
    assert (see(moved, "circle") - disc).abs().max() < 1e-12
    learned = LearnedAugmentation(0.0, "circle")(white, torch.Generator().manual_seed(degrees))
    assert (see(learned, "circle") - disc).abs().max() < 1e-6


@pytest.fixture(scope="module")
def splits():
    """Digits resized; their corners get content, so that they could be read."""
    found = load_data(config_of(CORNERS).data, (12, 12))
    train, validation = (
        replace(part, pixels=with_other_corners(part.pixels))
        for part in (found.train, found.validation)
    )
    return replace(found, train=train, validation=validation)


@pytest.mark.parametrize("corners,same", [("circle", True), ("black", False)])
def test_nothing_outside_the_circle_reaches_training_or_scores(splits, tmp_path, corners, same):
    """Augmentation, loss, batch norm and every score: with other pixels there they are the same.
    The rim of a turned image is interpolated with pixels that lie a little outside; not with these.
    """
    far = torch.zeros(12, 12, dtype=torch.bool)
    far[::11, ::11] = True
    train, validation = (
        replace(part, pixels=with_other_corners(part.pixels, seed=9, where=far))
        for part in (splits.train, splits.validation)
    )
    other = replace(splits, train=train, validation=validation)
    one, two = (trained(s, tmp_path / str(n), corners) for n, s in enumerate((splits, other)))
    states = one.network.state_dict(), two.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]) is same
    errors = [found.scores["equivariance_error"] for found in (one, two)]
    assert (errors[0] == errors[1]) is same


def test_every_exported_file_blackens_the_corners_itself(subject, bundle):
    images = subject.splits.validation.pixels
    splits = subject.splits
    values = normalise(images.float() / 255, splits.mean, splits.std, "circle")
    expected = copy.deepcopy(subject.network).eval()(values).detach()
    changed = with_other_corners(images, seed=11)
    assert set(manifest_of(bundle)["formats"]) == set(BUNDLE_FORMATS)
    runs = {name: runner(bundle, name) for name in BUNDLE_FORMATS}
    for name, run in runs.items():
        assert (logits(run, images) - expected).abs().max() < 1e-5, name
        assert torch.equal(logits(run, images), logits(run, changed)), name
    small = onnx_runner(bundle, manifest_of(bundle)["int8"]["file"])
    assert torch.equal(logits(small, images), logits(small, changed))
    shares = pixel_runner(bundle)
    assert (shares(images) - expected.softmax(1)).abs().max() < 1e-5
    assert torch.equal(shares(images), shares(changed))
    for runtime in ("torch", "onnx"):
        predictor = load_predictor(bundle, runtime=runtime, orbit=True)
        found = predictor.probabilities(images), predictor.probabilities(changed)
        assert torch.equal(*found)


def test_verify_and_card_know_the_circle(subject, bundle, tmp_path):
    assert verify(bundle).good and verify(bundle, run_code=True).good
    text = (bundle / CARD).read_text()
    assert "black outside their inscribed circle" in text
    assert "made black outside the inscribed circle, then normalised" in text
    manifest = manifest_of(bundle)
    assert manifest["training"]["corners"] == manifest["content"]["corners"] == "circle"
    assert all(r["exact"] for r in manifest["elements"] if r["element"] in ("r90", "r180", "r270"))
    for corners in ("black", "reflect"):
        manifest["training"]["corners"] = corners
        (tmp_path / corners).mkdir()
        for file in bundle.iterdir():
            (tmp_path / corners / file.name).write_bytes(file.read_bytes())
        write_manifest(tmp_path / corners, manifest)
        assert not verify(tmp_path / corners).good


@pytest.mark.parametrize("run_code", [False, True])
def test_a_bundle_is_measured_as_it_was_trained(bundle, splits, run_code):
    found = find_subject(str(bundle), run_code=run_code)
    assert found.normalise is not None
    images = splits.validation.pixels
    values = [found.normalise(i.float() / 255) for i in (images, with_other_corners(images, 12))]
    assert found.corners == "circle" and torch.equal(*values)


def test_a_model_of_the_user_sees_the_circle_of_the_study(splits, monkeypatch):
    """`measure module:function --data STUDY`: the model itself does not blacken anything."""
    shown = []

    class Watching(torch.nn.Module):
        def forward(self, images):
            shown.append(images)
            return images.flatten(1)[:, :10] * 0 + images.sum((1, 2, 3))[:, None]

    study = parse(
        "data: {name: digits}", overrides={"symmetry": {"group": "C8", "corners": "circle"}}
    )
    images = splits.validation
    measure_trial._measure(
        Subject(Watching().eval(), (12, 12), None, None),
        images.pixels,
        images.labels,
        study,
        Group.parse("C8"),
        None,
    )
    assert shown and all((i[..., outside()] == 0).all() for i in shown)


@pytest.mark.parametrize("group", ["C4", "C8"])
def test_reports_say_that_upright_images_differ_too(group):
    study = parse(
        "data: {name: digits}", overrides={"symmetry": {"group": group, "corners": "circle"}}
    )
    assert "upright ones too, are black outside the inscribed circle" in str(corners_note(study))


def test_a_wrong_word_names_the_choices():
    with pytest.raises(ValueError, match="'black', 'reflect', 'replicate', 'circle' or 'crop'"):
        parse("data: {name: digits}", overrides={"symmetry.corners": "square"})
