"""Image folders of odd content: what would be read wrongly is said, and what nothing can be learned
from is refused before the first trial.
"""

import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from studies.config import parse
from studies.workers import launch
from trainers.data.datasets import load_data
from trainers.data.describing import describe
from trainers.settings import Data

STUDY = """
data: {folder: FOLDER}
training: {epochs: 1, batch_size: 4, precision: float32}
space: {backbone: "2k3 *, 2k3", input_size: 6, group: [C4], family: [steerable]}
search: {trials: 1, rungs: []}
resources: {workers: 1, gpus_per_trial: 0}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 6, 3)).astype(np.uint8)


def fill(folder, draw=noise, classes=("a", "b"), count=8, suffix=".png"):
    """`count` images of each class, the pixels of `draw(number)`."""
    for number in range(count * len(classes)):
        place = folder / classes[number // count]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(number)).save(place / f"{number}{suffix}")
    return folder


def said(folder):
    """What `start` says of the folder; it raises what refuses the study."""
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = STUDY.replace("FOLDER", str(folder))
        launch.read_dimensions(parse(text), lines.append)
    return "\n".join(lines)


def drawn_on_transparent_ground(number):
    pixels = np.zeros((6, 6, 4), np.uint8)
    pixels[..., 3] = noise(number, 6, 6) // 128 * 255
    return pixels


@pytest.mark.parametrize(
    "draw, why",
    [
        (lambda number: np.zeros((6, 6, 3), np.uint8), "0 everywhere, .*transparent pixels"),
        (drawn_on_transparent_ground, "0 everywhere, .*save what is drawn in black on another"),
        (lambda number: np.full((6, 6), 255, np.uint8), "255 everywhere, .*that are meant"),
        (lambda number: noise(0), "pixels at 6x6, so nothing can be learned"),
    ],
)
def test_images_that_are_all_equal_are_refused_before_the_first_trial(tmp_path, draw, why):
    with pytest.raises(ValueError, match=f"all [0-9]+ training images have the same.*{why}"):
        said(fill(tmp_path / "set", draw))


def test_equal_images_in_two_classes_are_said(tmp_path):
    text = said(fill(tmp_path / "set", lambda number: noise(number % 8)))
    assert "have the same pixels as one of another class" in text and "contradict" in text
    assert "of 'a' and " in text and "of 'b')" in text
    assert "another class" not in said(fill(tmp_path / "other"))


def test_a_class_of_equal_images_is_said(tmp_path):
    text = said(fill(tmp_path / "set", lambda number: noise(max(number, 7))))
    assert (
        "training images of the class 'a' have the same pixels" in text and "'b' have" not in text
    )


@pytest.mark.parametrize("fit, traces", [("resize", "how sharp they are"), ("pad", "a border")])
def test_classes_with_a_size_of_their_own_are_said(tmp_path, fit, traces):
    folder = fill(
        tmp_path / "set", lambda number: noise(number, *((6, 6, 3), (9, 9, 3))[number > 7])
    )
    with pytest.warns(UserWarning, match="one size of its own"):
        lines = "\n".join(describe(load_data(Data(folder=folder, fit=fit))))
    assert "('a' 6x6, 'b' 9x9)" in lines and traces in lines
    Image.fromarray(noise(99, 9, 9, 3)).save(folder / "a" / "99.png")
    assert "one size" not in "\n".join(describe(load_data(Data(folder=folder))))


@pytest.mark.parametrize(
    "names",
    [
        ("Cat", "cat"),
        ("a", "a "),
        ("é", unicodedata.normalize("NFD", "é")),
        ("a", "a\u200b"),
        ("ﬁsh", "fish"),
        ("1", "01"),
    ],
)
def test_classes_that_people_read_as_one_are_said(tmp_path, names):
    text = said(fill(tmp_path / "set", classes=names))
    assert "are different classes" in text and f"{names[0]!a}" in text
    folder = tmp_path / "split"
    fill(folder / "train", classes=(names[0], "z"))
    fill(folder / "validation", lambda number: noise(100 + number), (names[1], "z"), 4)
    with pytest.raises(ValueError, match="different classes: .*differ by their spelling alone"):
        load_data(Data(folder=folder))


def test_other_names_are_not_doubted(tmp_path):
    text = said(fill(tmp_path / "set", classes=("1", "10", "a", "b", "résumé", "resume")))
    assert "different classes" not in text


def test_a_class_of_spaces_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has a name of spaces alone, ' '; rename it"):
        load_data(Data(folder=fill(tmp_path / "set", classes=(" ", "b"))))


@pytest.mark.parametrize(
    "values, why",
    [
        (lambda n: noise(n, 6, 6).astype(np.float32), "floating point grey goes from 0 to 1"),
        (lambda n: (noise(n, 6, 6) / 128 - 1).astype(np.float32), "goes from 0 to 1, so divide"),
        (lambda n: np.full((6, 6), np.nan, np.float32), "it holds NaN or infinite values"),
        (lambda n: noise(n, 6, 6).astype(np.int32) * 9 - 999, "scale all alike, from 0"),
    ],
)
def test_values_that_have_no_scale_are_refused_with_what_to_do(tmp_path, values, why):
    with pytest.raises(ValueError, match=why):
        said(fill(tmp_path / "set", values, suffix=".tif"))


def test_an_image_that_pillow_takes_for_a_bomb_is_too_large_in_our_words(tmp_path):
    folder = fill(tmp_path / "set")
    Image.new("1", (20_000, 20_000)).save(folder / "a" / "huge.png")
    with pytest.raises(ValueError, match="at most 89,478,485 pixels, so make it smaller"):
        said(folder)
