"""What is found in image folders of odd layouts and contents, and what the user is told."""

import os
import shutil
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.datasets import DataWarning, load_data
from trainers.data.decoding import extensions
from trainers.data.describing import describe
from trainers.data.folders import list_folder
from trainers.settings import Data

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def fill(folder, classes=("cat", "dog"), count=5):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((5, 6, 3), 20 * label + i, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


# layouts


@pytest.mark.parametrize(
    "train,validation,test",
    [
        ("Train", None, "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("training", None, "testing"),
        ("Training", "Validation", "Testing"),
        ("train", "eval", None),
        ("train", "evaluation", "test"),
        ("train", "Dev", None),
        ("train", "valid", None),
        ("train_set", "val_set", "test_set"),
        ("train-images", None, "TestData"),
    ],
)
def test_splits_are_recognised_by_their_usual_names(tmp_path, train, validation, test):
    fill(tmp_path / "pets" / train)
    for name, count in ((validation, 2), (test, 3)):
        if name is not None:
            fill(tmp_path / "pets" / name, count=count)
    folder = list_folder(tmp_path / "pets")
    assert folder.train.classes == ("cat", "dog") and folder.split
    assert (folder.validation is not None) == (validation is not None)
    assert (folder.test is not None) == (test is not None)
    assert not folder.warnings


@pytest.mark.parametrize("names", [("Train", "training"), ("train", "val", "dev")])
def test_two_folders_for_one_split_are_refused(tmp_path, names):
    for name in names:
        fill(tmp_path / "pets" / name)
    with pytest.raises(ValueError, match="holds both .*/ and .*/; keep one of them"):
        list_folder(tmp_path / "pets")


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("test", "val"), ("train1", "train2")])
def test_classes_that_hold_the_same_sub_folders_are_doubted(tmp_path, names):
    for name in names:
        fill(tmp_path / "pets" / name)
    with pytest.warns(DataWarning, match=r"hold the same sub-folders \(cat, dog\); .* train/"):
        splits = load_data(Data(folder=tmp_path / "pets"))
    assert splits.classes == tuple(sorted(names))


def test_folders_beside_the_splits_are_said_not_to_be_used(tmp_path):
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "extra")
    [warning] = list_folder(tmp_path / "pets").warnings
    assert "extra/ beside it is not used" in warning


def test_class_names_and_counts_are_always_said(tmp_path):
    fill(tmp_path / "pets", classes=("a\x1b[31m", "dog"))
    splits = load_data(Data(folder=tmp_path / "pets"))
    assert describe(splits)[-1] == (
        "classes, training + validation images: a\\x1b[31m 3 + 1, dog 3 + 1"
    )


@pytest.mark.parametrize(
    "spoil,said",
    [
        (lambda test: [path.unlink() for path in test.rglob("*.png")], "holds no image"),
        (lambda test: shutil.rmtree(test / "dog"), "holds 1 sub-folder"),
        (lambda test: [shutil.rmtree(path) for path in test.iterdir()], "holds 0 sub-folders"),
        (lambda test: (test / "dog").rename(test / "wolf"), "dog only in train/; wolf only in"),
        (lambda test: fill(test.parent / "testing"), "holds both test/ and testing/"),
    ],
)
def test_a_bad_test_folder_stops_nothing_but_the_test(tmp_path, spoil, said):
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "test")
    spoil(tmp_path / "pets" / "test")
    with pytest.warns(DataWarning, match=f"the test images cannot be used.*{said}"):
        splits = load_data(Data(folder=tmp_path / "pets"))
    assert len(splits.train) == 8 and splits.has_test
    with pytest.raises(ValueError, match=said):
        splits.test()


def test_a_test_folder_with_an_empty_class_is_refused_when_it_is_needed(tmp_path):
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "test")
    for path in (tmp_path / "pets" / "test" / "dog").iterdir():
        path.unlink()
    splits = load_data(Data(folder=tmp_path / "pets"))
    with pytest.raises(ValueError, match="the test split, 5 images of 1 of the 2 classes"):
        splits.test()


@posix
def test_a_class_whose_name_is_not_utf8_is_refused(tmp_path):
    fill(tmp_path / "pets")
    os.mkdir(os.fsencode(tmp_path / "pets") + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"b'caf\\xe9' .* not UTF-8.*; rename it"):
        list_folder(tmp_path / "pets")


@posix
def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    fill(tmp_path / "pets")
    os.rename(tmp_path / "pets/cat/0.png", os.fsencode(tmp_path / "pets/cat") + b"/\xe9.png")
    assert sum(map(len, list_folder(tmp_path / "pets").train.files)) == 10
    assert len(load_data(Data(folder=tmp_path / "pets")).train) == 6


# what is left out


def said_of(folder):
    """The warnings and the number of images of each class."""
    listed = list_folder(folder)
    return "; ".join(listed.warnings), listed.train.counts


@pytest.mark.parametrize(
    "suffix,form",
    [
        (".avif", "AVIF"),
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".jp2", "JPEG2000"),
        (".pnm", "PPM"),
        (".JPEG", "JPEG"),
        (".tga", "TGA"),
        (".pcx", "PCX"),
    ],
)
def test_every_ending_that_pillow_decodes_is_read(tmp_path, suffix, form):
    if suffix.lower() not in extensions():
        pytest.skip(f"this Pillow decodes no {suffix}")
    fill(tmp_path / "pets")
    Image.new("RGB", (6, 5)).save(tmp_path / "pets" / "cat" / f"new{suffix}", form)
    warning, counts = said_of(tmp_path / "pets")
    assert counts == {"cat": 6, "dog": 5} and not warning
    assert len(load_data(Data(folder=tmp_path / "pets")).train) == 7


def test_files_that_pillow_does_not_decode_are_named_and_counted(tmp_path):
    fill(tmp_path / "pets")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/c.npy", "dog/d", "dog/e.pdf", "f.png"):
        (tmp_path / "pets" / name).write_bytes(b"")
    (tmp_path / "pets" / "cat" / "labels.csv").write_text("")
    warning, counts = said_of(tmp_path / "pets")
    assert counts == {"cat": 5, "dog": 5}
    assert "2 .heic files, which Pillow does not decode (cat/a.heic, cat/b.HEIC)" in warning
    assert "1 .npy file" in warning and "1 file without an ending" in warning
    assert "1 .pdf file" in warning and "1 image beside class folders (f.png)" in warning
    assert ".csv" not in warning and "1 .csv file" in list_folder(tmp_path / "pets").notes[0]


@posix
@pytest.mark.parametrize(
    "make,reason",
    [
        (lambda cat: (cat / "x.png").symlink_to("gone.png"), "1 dangling link (cat/x.png)"),
        (lambda cat: (cat / "deep").symlink_to("gone"), "1 dangling link"),
        (lambda cat: (cat / "x.png").symlink_to("x.png"), "1 link that cannot be followed"),
        (lambda cat: (cat / "deep").symlink_to("."), "link to folders that are read already"),
        (lambda cat: (cat / "deep").symlink_to(".."), "link to folders that are read already"),
        (lambda cat: (cat / "deep").symlink_to("/"), "link to folders that are read already"),
        (lambda cat: (cat / "deep").symlink_to("../dog"), "link to folders that are read already"),
        (lambda cat: (cat.parent / "loop").symlink_to("."), "1 link to folders that are read"),
        (lambda cat: (cat.parent / "kitty").symlink_to("cat"), "1 link to folders that are read"),
        (lambda cat: (cat.parent / "owl").symlink_to("gone"), "1 dangling link (owl)"),
        (lambda cat: os.mkfifo(cat / "x.png"), "1 special file such as pipes (cat/x.png)"),
        (lambda cat: (cat / "x.png").symlink_to("/dev/zero"), "1 special file such as pipes"),
    ],
)
def test_links_and_pipes_are_skipped_and_counted(tmp_path, make, reason):
    make(fill(tmp_path / "pets") / "cat")
    warning, counts = said_of(tmp_path / "pets")
    assert counts == {"cat": 5, "dog": 5} and reason in warning


@posix
def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    cat = fill(tmp_path / "pets") / "cat"
    for i in range(12):
        (cat / str(i)).mkdir()
    for i in range(12):
        for j in range(12):
            (cat / str(i) / str(j)).symlink_to(cat / str(j))
    shutil.copy(cat / "0.png", cat / "3" / "new.png")
    assert said_of(tmp_path / "pets")[1]["cat"] == 6


@posix
def test_a_socket_is_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "pets") / "dog")  # such a path may have 107 bytes only
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.png")
        assert "1 special file such as pipes (dog/s.png)" in said_of(tmp_path / "pets")[0]


@posix
def test_a_linked_folder_of_images_is_read(tmp_path):
    fill(tmp_path / "elsewhere")
    (tmp_path / "pets").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "pets" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "dog" / "0.png")
    assert said_of(tmp_path / "pets") == ("", {"cat": 6, "dog": 5})


@posix
def test_what_is_left_out_is_warned_of_once_from_the_cache_too(tmp_path):
    ((fill(tmp_path / "pets") / "cat") / "x.png").symlink_to("gone.png")
    for _ in range(2):
        with pytest.warns(DataWarning, match="1 dangling link") as caught:
            load_data(Data(folder=tmp_path / "pets"))
        assert len(caught) == 1


def test_a_folder_that_disappears_while_it_is_read_is_one_clear_message(tmp_path, monkeypatch):
    fill(tmp_path / "pets")

    def gone(folder: Path):
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr("trainers.data.folders.sub_folders", gone)
    with pytest.raises(ValueError, match="data folder .*pets cannot be read .*make all of it"):
        load_data(Data(folder=tmp_path / "pets"))


def test_ordinary_folders_warn_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(Data(folder=fill(tmp_path / "pets")))


# what files are beside their pixels


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_files_of_several_images_are_said(tmp_path, suffix):
    folder = fill(tmp_path / "pets")
    pages = [Image.fromarray(np.full((8, 8), 40 * i, dtype=np.uint8)) for i in range(3)]
    [path, *_] = sorted((folder / "cat").iterdir())
    pages[0].save(path.with_suffix(suffix), save_all=True, append_images=pages[1:])
    if suffix != path.suffix:
        path.unlink()
    with pytest.warns(DataWarning, match="1 of the files looked at hold several images, such as"):
        load_data(Data(folder=folder))


@pytest.mark.parametrize("colored", [True, False])
def test_classes_that_colour_tells_apart_are_said(tmp_path, colored):
    folder = fill(tmp_path / "pets")  # of three channels that are equal
    for i, path in enumerate(sorted((folder / "dog").iterdir())):
        pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels if colored else pixels[..., 0]).save(path)
    if colored:
        for path in (folder / "cat").iterdir():
            Image.open(path).convert("L").save(path)
        with pytest.warns(DataWarning, match="all images of 'dog' hold colour and all of 'cat' ar"):
            load_data(Data(folder=folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        load_data(Data(folder=folder, color=False if colored else None))


@pytest.mark.parametrize("inside", ["cat", "train/cat"])
def test_a_folder_above_the_one_that_is_meant_is_recognised(tmp_path, inside):
    for name in (inside, inside.replace("cat", "dog"), "test/cat"):
        fill(tmp_path / "pets" / "data" / name, classes=("",))
    if inside == "cat":
        shutil.rmtree(tmp_path / "pets" / "data" / "test")
    with pytest.raises(ValueError, match="holds 1 sub-folder.*; perhaps .*/data is meant"):
        load_data(Data(folder=tmp_path / "pets"))
