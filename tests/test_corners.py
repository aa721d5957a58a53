"""What fills the corners of images turned by an angle off the pixel grid: the same in training and
for every score, chosen once by the images.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from scipy.ndimage import map_coordinates

from searchspace.architecture import Architecture
from searchspace.groups import Element, Group
from searchspace.recipe import Candidate
from studies.config import dump, parse
from studies.journal.directory import read_study
from studies.search.driver import SearchDriver
from studies.workers.corners import turns_off_grid, with_corners
from studies.workers.launch import new_driver
from trainers.actions import act
from trainers.data.augment import rotate, transform_images
from trainers.data.borders import choose_corners
from trainers.data.datasets import load_data
from trainers.instruments.accuracy import symmetry_accuracy
from trainers.instruments.measure import measure
from trainers.settings import Augment, Data, Symmetry, Training
from trainers.training import checkpoint
from trainers.training.config import TrainingConfig
from trainers.training.train import train

CHOICES = ("black", "reflect", "replicate")
C8 = Group.parse("C8")
FOLDER = """
data: {{folder: {folder}, validation: 8}}
training: {{epochs: 1, batch_size: 8}}
symmetry: {{group: {group}}}
space: {{backbone: "4k3, 4k3", input_size: 8}}
search: {{trials: 1, sampler: random, rungs: []}}
resources: {{workers: 1}}
"""


def noise(count=40, channels=1, height=16, width=16, seed=0):
    """Images that fill their frame."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator)


def by_scipy(image, degrees, mode):
    """The image [H, W] turned counter-clockwise about its centre by scipy."""
    height, width = image.shape
    down, right = np.mgrid[:height, :width].astype(float)
    down, right = down - (height - 1) / 2, right - (width - 1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    sources = [
        sin * right + cos * down + (height - 1) / 2,
        cos * right - sin * down + (width - 1) / 2,
    ]
    return map_coordinates(image, sources, order=1, mode=mode)


@pytest.mark.parametrize("degrees", [10, 45, 80])
@pytest.mark.parametrize("size", [(9, 9), (16, 16), (10, 25)])
@pytest.mark.parametrize("corners,mode", [("reflect", "reflect"), ("replicate", "nearest")])
def test_corners_are_those_of_scipy(corners, mode, size, degrees):
    images = noise(1, 1, *size).double()
    expected = torch.from_numpy(by_scipy(images[0, 0].numpy(), degrees, mode))
    element = Element(Fraction(degrees, 360))
    assert (act(images, element, corners)[0, 0] - expected).abs().max() < 1e-12
    turned = rotate(images, torch.tensor([float(degrees)]), corners)
    assert (turned[0, 0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("corners", CHOICES)
def test_quarter_turns_and_flips_are_the_same_bits_whatever_fills_corners(corners):
    images, turned = noise(3), Element.parse("r45")
    for element in Group.parse("D4").elements:
        assert torch.equal(act(images, element, corners), act(images, element))
        assert torch.equal(
            act(images, element @ turned, corners), act(act(images, turned, corners), element)
        )


@pytest.mark.parametrize("augment", [Augment(rotation="group"), Augment(rotation="uniform")])
def test_augmentation_fills_corners_as_asked(augment):
    def seen(corners):
        return transform_images(noise(), augment, C8, torch.Generator().manual_seed(1), corners)

    disc = torch.zeros(16, 16, dtype=torch.bool)
    disc[5:11, 5:11] = True
    black, reflect = seen("black"), seen("reflect")
    assert torch.equal(black[..., disc], reflect[..., disc])
    assert (black == 0).any() and not (reflect == 0).any() and reflect.max() <= 1


@pytest.mark.parametrize("corners,least,most", [("black", 0, 0.6), ("reflect", 0.99, 1)])
def test_a_mean_over_pixels_is_right_at_every_angle_unless_corners_are_black(corners, least, most):
    images = noise(200)
    labels = torch.arange(200) % 2
    images[labels == 1] = 0.8 * images[labels == 1]

    def by_brightness(batch):
        mean = batch.mean((1, 2, 3))
        return torch.stack([mean, 0.9 - mean], 1)

    found = symmetry_accuracy(by_brightness, images, labels, C8, corners=corners)
    assert found.accuracy.value == 1
    assert least <= found.interpolated.value <= most


def test_borders_decide():
    blot = torch.zeros(20, 3, 16, 16)
    blot[..., 4:12, 4:12] = 1
    photos = noise(20, 3)
    choices = [
        choose_corners((255 * images).to(torch.uint8)).corners
        for images in (blot, 1 - blot, 0.02 * photos + 0.3, photos)
    ]
    assert choices == ["black", "replicate", "replicate", "reflect"]
    assert choose_corners(load_data(Data(name="digits")).train.pixels).corners == "black"


@pytest.fixture
def folder(tmp_path):
    """Two classes of images that fill their frame."""
    for index, pixels in enumerate((255 * noise(48, 1, 8, 8)).to(torch.uint8).numpy()):
        path = tmp_path / "images" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)
    return tmp_path / "images"


def started(text, directory):
    """What a start says of the corners, and the study that it writes."""
    notes = []
    new_driver(parse(text), directory, probe=False, note=notes.append).close()
    return [note for note in notes if note.startswith("corners")], read_study(directory)


def test_a_start_chooses_once_and_writes_it_down(tmp_path, folder):
    notes, study = started(FOLDER.format(folder=folder, group="C8"), tmp_path / "study")
    assert notes == ["corners: reflect, since the images fill their frame"]
    assert study.symmetry.corners == "reflect"
    assert "corners: reflect" in (tmp_path / "study" / "study.yaml").read_text()
    # a file that leaves it open goes on with what was chosen
    for group in ("C8", "C8, corners: auto"):
        again = parse(FOLDER.format(folder=folder, group=group))
        with SearchDriver.open(tmp_path / "study", again) as driver:
            assert driver.study.symmetry.corners == "reflect"
    given = FOLDER.format(folder=folder, group="C8, corners: replicate")
    assert started(given, tmp_path / "given")[1].symmetry.corners == "replicate"


def test_a_start_says_nothing_where_no_angle_is_off_the_grid(tmp_path, folder):
    notes, study = started(FOLDER.format(folder=folder, group="D4"), tmp_path / "study")
    assert notes == [] and study.symmetry.corners == "black"


@pytest.mark.parametrize(
    "overrides",
    [
        {"training.augment.rotation": "uniform"},
        {"training.augment.rotation": {"normal": [0, 30]}},
        {"symmetry.group": "D8"},
        {"space.augment": ["none", "learned"]},
        {"space.equivariance_loss": {"kind": ["label"], "group": ["C8"]}},
        {"space.equivariance_loss": {"kind": ["layerwise@R8-4-2-1"]}},
        {"search.first": ["8px: 4k3 augment=normal:20"]},
    ],
)
def test_angles_off_the_grid_are_found_wherever_they_stand(overrides):
    assert turns_off_grid(parse("data: {name: digits}", overrides=overrides))
    chosen = with_corners(parse("data: {name: digits}", overrides=overrides))
    assert chosen.symmetry.corners == "black"


def test_a_study_without_the_key_has_black_corners(tmp_path, folder):
    directory = tmp_path / "study"
    started(FOLDER.format(folder=folder, group="C8, corners: black"), directory)
    path = directory / "study.yaml"
    text = dump(parse(path.read_text()))
    assert "  corners: black\n" in text
    path.write_text(text.replace("  corners: black\n", ""))
    assert read_study(directory).symmetry.corners == "black"
    with SearchDriver.open(directory) as driver:
        assert driver.study.training_config(0).corners == "black"


def padding_modes(monkeypatch, side):
    """The set that collects with which modes images of that side are interpolated from now on."""
    modes, sample = set(), functional.grid_sample

    def watched(images, grid, **given):
        if images.shape[-1] == side:
            modes.add(given["padding_mode"])
        return sample(images, grid, **given)

    monkeypatch.setattr(functional, "grid_sample", watched)
    return modes


def config_of(corners, recipe):
    return TrainingConfig(
        Data(name="digits", train=40, validation=20),
        Training(epochs=1, batch_size=20, precision="float32"),
        Symmetry(group="C8", corners=corners),
        recipe=Candidate.parse(f"12px: 2k3p0, 2k3p0 {recipe}").recipe,
    )


@pytest.mark.parametrize(
    "recipe", ["augment=uniform loss=label:1", "augment=learned", "augment=group"]
)
@pytest.mark.parametrize("corners,mode", [("reflect", "reflection"), ("auto", "zeros")])
def test_training_and_scores_use_the_same_corners(tmp_path, monkeypatch, corners, mode, recipe):
    modes = padding_modes(monkeypatch, 12)  # maps behind a convolution are smaller
    train(Architecture.parse("12px: 2k3p0, 2k3p0"), config_of(corners, recipe), tmp_path, 1)
    assert modes == {mode}


def test_instruments_use_the_corners_and_say_so(monkeypatch):
    modes = padding_modes(monkeypatch, 16)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    ).eval()
    found = measure(model, noise(), torch.zeros(40, dtype=torch.int64), C8, corners="replicate")
    assert modes == {"border"}
    assert found.text().startswith("Symmetry under C8 on 40 images, corners replicate")
    assert found.as_dict()["corners"] == "replicate"


def test_a_checkpoint_goes_on_with_its_corners_only():
    architecture = Architecture.parse("12px: 2k3p0, 2k3p0")
    owners = {
        c: checkpoint.training_fingerprint(architecture, config_of(c, ""))
        for c in (*CHOICES, "auto")
    }
    assert owners["auto"] == owners["black"] and "corners" not in owners["black"]
    assert len(set(owners.values())) == 3
