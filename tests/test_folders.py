import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.data.datasets import load_data
from trainers.data.decoding import decode
from trainers.data.pools import file_pool
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(shape=(12, 10, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def fill(folder, classes=("cat", "dog"), count=10, shape=(12, 10, 3), suffix=".png"):
    """One folder per class with `count` images; their first pixel is the class's number times 50
    plus the image's.
    """
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = noise(shape, 100 * number + i)
            pixels[0, 0] = 50 * number + i
            Image.fromarray(pixels).save(folder / name / f"{i:03d}{suffix}")
    return folder


def first_pixels(images):
    return images.pixels[:, 0, 0, 0].tolist()


def test_one_folder_is_split_by_seed_into_three_disjoint_stratified_parts(tmp_path):
    splits = load_data(Data(folder=fill(tmp_path / "pets", count=25)))
    test = splits.test()
    assert (len(splits.train), len(splits.validation), len(test)) == (32, 8, 10)
    assert splits.counts == {
        "cat": (16, 4),
        "dog": (16, 4),
    } and test.labels.bincount().tolist() == [5, 5]
    seen = first_pixels(splits.train) + first_pixels(splits.validation) + first_pixels(test)
    assert sorted(seen) == [*range(25), *range(50, 75)]
    for part in (splits.train, splits.validation, test):
        assert [pixel // 50 for pixel in first_pixels(part)] == part.labels.tolist()


def test_split_depends_on_the_seed_only(tmp_path):
    folder = fill(tmp_path / "pets", count=25)
    first = load_data(Data(folder=folder), size=(12, 10))
    for size, same in (((12, 10), True), ((9, 9), False)):
        again = load_data(Data(folder=folder), size=size)
        assert torch.equal(again.train.labels, first.train.labels)
        assert torch.equal(again.train.pixels, first.train.pixels) if same else again.size == (9, 9)
    other = load_data(Data(folder=folder, seed=1), size=(12, 10))
    assert set(first_pixels(other.validation)) != set(first_pixels(first.validation))


def test_a_larger_training_set_hardly_changes_the_validation_set(tmp_path):
    folder = fill(tmp_path / "pets", count=25)
    small, large = (
        load_data(Data(folder=folder, train=train, validation=8, test=10)) for train in (10, 20)
    )
    assert first_pixels(small.validation) == first_pixels(large.validation)
    assert set(first_pixels(small.train)) < set(first_pixels(large.train))


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_folders_that_are_already_split_are_kept(tmp_path, name):
    fill(tmp_path / "pets" / "train", count=10)
    fill(tmp_path / "pets" / name, count=4)
    fill(tmp_path / "pets" / "test", count=3)
    splits = load_data(Data(folder=tmp_path / "pets"))
    assert (len(splits.train), len(splits.validation), len(splits.test())) == (20, 8, 6)
    assert len(load_data(Data(folder=tmp_path / "pets", train=7, validation=5)).train) == 7


def test_validation_is_taken_from_train_where_there_is_no_folder_for_it_and_test_is_none(tmp_path):
    fill(tmp_path / "pets" / "train", count=10)
    splits = load_data(Data(folder=tmp_path / "pets"))
    assert (len(splits.train), len(splits.validation), splits.has_test, splits.test()) == (
        16,
        4,
        False,
        None,
    )


def test_a_class_may_be_called_train(tmp_path):
    splits = load_data(Data(folder=fill(tmp_path / "vehicles", classes=("bus", "train"))))
    assert splits.classes == ("bus", "train")


def test_test_images_are_not_decoded_before_they_are_asked_for(tmp_path):
    fill(tmp_path / "pets" / "train", count=10)
    fill(tmp_path / "pets" / "test", count=3)
    for path in (tmp_path / "pets" / "test").rglob("*.png"):
        path.write_bytes(b"nothing that can be decoded")
    splits = load_data(Data(folder=tmp_path / "pets"))
    with pytest.raises(ValueError, match="6 of 6 images cannot be read"):
        splits.test()


@pytest.mark.parametrize(
    "mode,channels",
    [("L", 1), ("1", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)],
)
def test_grey_or_colour_is_detected_and_can_be_forced(tmp_path, mode, channels):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.fromarray(noise(seed=i))
            image = (
                Image.fromarray(noise((12, 10), i).astype(np.uint16) * 257)
                if mode == "I;16"
                else image.convert(mode)
            )
            image.save(tmp_path / "set" / name / f"{i}.{'tif' if mode == 'CMYK' else 'png'}")
    assert load_data(Data(folder=tmp_path / "set")).channels == channels
    assert load_data(Data(folder=tmp_path / "set", color=True)).channels == 3
    assert load_data(Data(folder=tmp_path / "set", color=False)).channels == 1


def test_a_palette_of_greys_is_grey(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(noise((12, 10), i)).convert("P").save(
                tmp_path / "set" / name / f"{i}.png"
            )
    assert load_data(Data(folder=tmp_path / "set")).channels == 1


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 1).tolist() == [[[0, 100, 255]]]
    assert decode(tmp_path / "a.png", 3).shape == (3, 1, 3)


def test_floating_point_grey_is_scaled_and_refused_outside_its_range(tmp_path):
    Image.fromarray(np.array([[0, 0.2, 1]], dtype=np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 0.2, 300]], dtype=np.float32)).save(tmp_path / "b.tif")
    assert decode(tmp_path / "a.tif", 1).tolist() == [[[0, 51, 255]]]
    with pytest.raises(ValueError, match=r"0\.\.300 are outside 0\.\.1"):
        decode(tmp_path / "b.tif", 1)


def test_transparent_pixels_are_black(tmp_path):
    Image.fromarray(np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    assert decode(tmp_path / "a.png", 3)[:, 0].T.tolist() == [[200, 100, 50], [0, 0, 0]]


def test_exif_orientation_is_applied_before_the_size_is_chosen(tmp_path):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255  # upper left as stored
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6  # to be turned clockwise by a quarter
    exif = image.getexif()
    image.save(tmp_path / "a.png", exif=exif)
    upright = decode(tmp_path / "a.png", 3)
    assert upright.shape == (3, 6, 4) and upright[0, 0, 3] == 255
    assert file_pool([tmp_path / "a.png"], [0]).size == (6, 4)


def test_unequal_sizes_go_to_the_most_common_one_else_to_the_median(tmp_path):
    shapes = [(12, 10, 3)] * 3 + [(20, 30, 3), (8, 8, 3)]
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i, shape in enumerate(shapes):
            Image.fromarray(noise(shape)).save(tmp_path / "set" / name / f"{i}.png")
    assert load_data(Data(folder=tmp_path / "set")).size == (12, 10)
    for name in ("a", "b"):
        for i in range(2):
            Image.fromarray(noise((15 + i, 40, 3))).save(tmp_path / "set" / name / f"{i}.png")
    assert load_data(Data(folder=tmp_path / "set")).size == (15, 30)
    assert load_data(Data(folder=tmp_path / "set"), size=(7, 5)).train.pixels.shape[1:] == (3, 7, 5)


def test_corrupt_images_are_named_and_counted_and_loading_goes_on(tmp_path):
    folder = fill(tmp_path / "pets", count=100, shape=(4, 4, 3))
    whole = load_data(Data(folder=folder))
    (folder / "cat" / "007.png").write_bytes((folder / "cat" / "007.png").read_bytes()[:60])
    parts = 0
    with pytest.warns(UserWarning, match="1 of .* images cannot be read") as caught:
        splits = load_data(Data(folder=folder))
        test = splits.test()
    names = [*splits.skipped, *test.skipped]
    assert (
        len(names) == 1
        and names[0].startswith(str(folder / "cat" / "007.png"))
        and "007.png" in str(caught[0].message)
    )
    for part, before in (
        (splits.train, whole.train),
        (splits.validation, whole.validation),
        (test, whole.test()),
    ):
        keep = [
            i
            for i, (pixel, label) in enumerate(zip(first_pixels(before), before.labels.tolist()))
            if (pixel, label) != (7, 0)
        ]
        assert torch.equal(part.pixels, before.pixels[keep]) and torch.equal(
            part.labels, before.labels[keep]
        )
        parts += len(part)
    assert parts == 199
    with pytest.warns(UserWarning, match="007.png"):  # from the cache, the warning comes again
        load_data(Data(folder=folder)).test()


def test_more_than_one_percent_corrupt_is_an_error_that_names_them(tmp_path):
    folder = fill(tmp_path / "pets", count=20)
    for i in range(4):
        (folder / "cat" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"of 32 images cannot be read, more than 1%; the first are: .*pets/cat/00\d.png",
    ):
        load_data(Data(folder=folder))


def test_a_changed_image_is_decoded_again(tmp_path):
    folder = fill(tmp_path / "pets")
    before = load_data(Data(folder=folder))
    for path in folder.rglob("*.png"):
        Image.fromarray(np.full((12, 10, 3), 77, dtype=np.uint8)).save(path)
    assert (load_data(Data(folder=folder)).train.pixels == 77).all() and not (
        before.train.pixels == 77
    ).all()


def small(folder):
    fill(folder)
    for i in range(9):
        (folder / "dog" / f"{i:03d}.png").unlink()
    return Data(folder=folder)


def differing(folder):
    fill(folder / "train", classes=("cat", "dog", "owl"))
    fill(folder / "validation", classes=("cat", "dog", "rat"))
    return Data(folder=folder)


def empty_class(folder):
    fill(folder / "train")
    fill(folder / "validation")
    (folder / "train" / "owl").mkdir()
    (folder / "validation" / "owl").mkdir()
    return Data(folder=folder)


def without_classes(folder):
    folder.mkdir()
    Image.fromarray(noise()).save(folder / "a.png")
    return Data(folder=folder)


def without_images(folder):
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "a" / "notes.txt").write_text("no image")
    return Data(folder=folder)


@pytest.mark.parametrize(
    "make,message",
    [
        (
            lambda folder: Data(folder=folder),
            r"data folder .*/pets does not exist; it must hold one sub-folder of images per "
            r"class",
        ),
        (lambda folder: (folder.write_text(""), Data(folder=folder))[1], "is not a folder"),
        (
            without_classes,
            r"holds 0 sub-folders, besides 1 image beside class folders \(a.png\); it must hold",
        ),
        (
            without_images,
            r"holds no image in its 2 sub-folders \(looked for .*\.jpg .*besides 1 \.txt file "
            r"\(a/notes.*at least two classes",
        ),
        (
            small,
            r"class 'dog' \(1\) in .*/pets has fewer than 3 images; every class must be in "
            r"training, validation and test images; add images or remove",
        ),
        (
            lambda folder: Data(folder=fill(folder), train=17),
            "asks for 17 training and 3 validation images, but only 16 .*after the test",
        ),
        (
            lambda folder: Data(folder=fill(folder), validation=40),
            "asks for some training and 40 validation images, but only 16",
        ),
        (
            lambda folder: Data(folder=fill(folder), test=40),
            "asks for 40 test images, but of 20 images in 2 classes at most 16",
        ),
        (
            lambda folder: Data(folder=fill(folder / "train").parent, train=17),
            "asks for 17 training and 4 validation images, but only 20",
        ),
        (
            differing,
            r"different classes: owl only in train/; rat only in validation/; give both the same",
        ),
        (empty_class, r"class 'owl' \(0\) in .*train has fewer than 1 image"),
    ],
)
def test_bad_folders_are_refused_with_one_clear_message(tmp_path, make, message):
    data = make(tmp_path / "pets")
    with pytest.raises(ValueError, match=message):
        load_data(data)


def test_too_many_of_a_folder_of_its_own(tmp_path):
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "validation", count=3)
    with pytest.raises(
        ValueError,
        match="asks for 7 images of the validation split, which has 6; lower `validation:`",
    ):
        load_data(Data(folder=tmp_path / "pets", validation=7))


def test_small_classes_have_an_image_in_every_part(tmp_path):
    folder = fill(tmp_path / "pets", classes=("cat",), count=60)
    (folder / "dog").mkdir()
    for i in range(4):
        Image.fromarray(noise(seed=i)).save(folder / "dog" / f"{i}.png")
    splits = load_data(Data(folder=folder))
    assert (
        splits.counts["dog"][0] >= 1
        and splits.counts["dog"][1] >= 1
        and (splits.test().labels == 1).sum() >= 1
    )


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    folder = fill(tmp_path / "pets")
    (folder / ".git").mkdir()
    (folder / "cat" / "._000.png").write_bytes(b"resource fork")
    (folder / "cat" / "labels.csv").write_text("a,b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_data(Data(folder=folder))
    assert (
        splits.classes == ("cat", "dog")
        and len(splits.train) + len(splits.validation) + len(splits.test()) == 20
    )
