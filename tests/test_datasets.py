import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainers import cache, cached_arrays
from trainers.data import pools
from trainers.data.datasets import batch, load_data, normalise
from trainers.data.fitting import fit_images
from trainers.data.splitting import take
from trainers.settings import Data

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
mnist = pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="MNIST is not in ../shared/data")
cifar_small = pytest.mark.skipif(
    not (SHARED / "cifar10_small").is_dir(), reason="cifar10_small is not in ../shared/data"
)
DIGITS = Data(name="digits")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# digits, splits and what training reads of them


def test_digits_are_all_there_once_and_stratified():
    splits = load_data(DIGITS)
    parts = (splits.train, splits.validation, splits.test())
    assert [len(part) for part in parts] == [1150, 288, 359]
    assert splits.size == (8, 8) and splits.channels == 1 and splits.classes == tuple("0123456789")
    assert splits.train.pixels.dtype == torch.uint8 and splits.train.pixels.max() == 255
    from sklearn.datasets import load_digits

    everything = torch.cat([part.pixels for part in parts]).flatten(1)
    expected = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, expected))
    for part in parts:
        share = part.labels.bincount() / len(part)
        assert (share - torch.tensor(load_digits().target).bincount() / 1797).abs().max() < 0.004


def test_asked_numbers_are_kept():
    splits = load_data(Data(name="digits", train=300, validation=77, test=50))
    assert (len(splits.train), len(splits.validation), len(splits.test())) == (300, 77, 50)


def test_mean_and_std_are_of_the_training_pixels_only():
    splits = load_data(DIGITS, size=(11, 9))
    pixels = splits.train.pixels.double() / 255
    assert splits.mean == pytest.approx([pixels.mean().item()], abs=1e-12)
    assert splits.std == pytest.approx([pixels.std(correction=0).item()], abs=1e-12)


def test_batch_and_normalise_give_zero_mean_and_unit_deviation():
    splits = load_data(DIGITS)
    pixels, labels = batch(splits.train, torch.arange(len(splits.train)))
    assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() == 1
    normal = normalise(pixels, splits.mean, splits.std)
    assert abs(normal.mean()) < 1e-5 and abs(normal.std() - 1) < 1e-3
    assert torch.equal(
        normalise(pixels.rot90(1, (2, 3)), splits.mean, splits.std), normal.rot90(1, (2, 3))
    )
    assert torch.equal(labels, splits.train.labels)


def test_splits_can_be_sent_to_another_process():
    splits = pickle.loads(pickle.dumps(load_data(DIGITS)))
    assert len(splits.test()) == 359


@pytest.mark.parametrize("total", [10, 37, 100, 199])
def test_stratified_samples_have_the_asked_size_and_every_class(total):
    labels = np.repeat(np.arange(10), [100, 30, 20, 10, 9, 8, 8, 5, 5, 5])
    chosen = take(labels, total, (0,))
    counts = np.bincount(labels[chosen], minlength=10)
    assert len(set(chosen.tolist())) == total and counts.min() >= 1
    assert (np.diff(labels[chosen]) < 0).any()  # not class by class
    # the rare classes' minimum of one is paid by the first
    assert np.abs(counts - total * np.bincount(labels) / 200).max() < 7


def test_stratified_samples_leave_what_is_to_be_kept():
    labels = np.repeat([0, 1], [50, 3])
    assert np.bincount(labels[take(labels, 49, (0,), keep=2)]).tolist() == [48, 1]


# sizes


def test_resize_is_antialiased_and_commutes_with_turns_and_mirrors():
    images = torch.from_numpy(noise(20, 3, 32, 28))
    small = fit_images(images, (13, 12), "resize")
    expected = torch.nn.functional.interpolate(
        images.double(), size=(13, 12), mode="bilinear", antialias=True
    )
    assert small.dtype == torch.uint8 and (small.double() - expected).abs().max() <= 0.5 + 1e-3
    assert (
        small.double().std()
        < 0.6
        * torch.nn.functional.interpolate(images.double(), size=(13, 12), mode="bilinear").std()
    )
    for move in (lambda x: x.rot90(1, (2, 3)), lambda x: x.flip(-1)):
        size = tuple(move(small).shape[-2:])
        # rounding of ties
        assert (fit_images(move(images), size, "resize").int() - move(small).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(28, 28), (30, 32), (20, 24), (20, 30)])
def test_pad_and_crop_keep_the_centre_exactly_where_the_difference_is_even(size):
    images = torch.from_numpy(noise(2, 1, 28, 28))
    fitted = fit_images(images, size, "pad")
    assert fitted.shape[-2:] == size
    assert torch.equal(fit_images(images.flip(-1, -2), size, "pad"), fitted.flip(-1, -2))
    common = fit_images(fitted, (min(28, size[0]), min(28, size[1])), "pad")
    assert torch.equal(common, fit_images(images, tuple(common.shape[-2:]), "pad"))


def test_odd_padding_puts_the_extra_row_after_and_odd_cropping_takes_it_from_there():
    images = torch.from_numpy(noise(2, 1, 4, 4))
    assert torch.equal(fit_images(images, (5, 5), "pad")[..., :4, :4], images)
    assert torch.equal(fit_images(images, (3, 3), "pad"), images[..., :3, :3])


def test_the_study_decides_between_resize_and_pad():
    assert (load_data(Data(name="digits", fit="pad"), (10, 10)).train.pixels[..., 0, :] == 0).all()
    assert (load_data(Data(name="digits"), (10, 10)).train.pixels[..., 0, :] != 0).any()


# the cache


def count_renders(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "trainers.data.datasets.render",
        lambda *arguments: calls.append(1) or pools.render(*arguments),
    )
    return calls


def test_the_second_load_decodes_nothing_and_gives_the_same(monkeypatch):
    calls = count_renders(monkeypatch)
    first = load_data(DIGITS, (9, 9))
    decoded = len(calls)
    again = load_data(DIGITS, (9, 9))
    assert decoded > 0 and len(calls) == decoded
    assert (
        torch.equal(first.train.pixels, again.train.pixels)
        and first.mean == again.mean
        and first.counts == again.counts
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 5000),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"?" * 9000),
    ],
)
def test_a_torn_or_deleted_cache_file_is_built_again(damage, monkeypatch):
    first = load_data(DIGITS)
    expected = first.train.pixels.clone()
    del first
    [path] = cache.directory().glob("*.npy")
    calls = count_renders(monkeypatch)
    damage(path)
    assert torch.equal(load_data(DIGITS).train.pixels, expected) and calls
    assert np.load(path).shape[0] == 1150 + 288  # an ordinary .npy file


def test_writing_to_loaded_images_changes_nothing_for_others():
    load_data(DIGITS).train.pixels.zero_()
    assert load_data(DIGITS).train.pixels.any()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train": 100},
        {"validation": 100},
        {"fit": "pad"},
        {"color": True},
        {"test": 10},
    ],
)
def test_every_setting_that_matters_has_its_own_cache_file(change):
    before = load_data(DIGITS, (9, 9))
    after = load_data(Data(name="digits", **change), (9, 9))
    assert before.train.pixels.shape != after.train.pixels.shape or not torch.equal(
        before.train.pixels, after.train.pixels
    )


def test_an_unwritable_cache_is_a_warning_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="EQUISEARCH_CACHE"):
        assert len(load_data(DIGITS).train) == 1150


def test_a_full_disk_is_a_warning_only(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert len(load_data(DIGITS).train) == 1150
    assert not [path for path in cache.directory().iterdir() if path.suffix != ".lock"]


def test_beyond_the_limit_what_was_unused_for_longest_is_deleted(monkeypatch):
    # two arrays of 12 pixels take 415 kB
    monkeypatch.setenv("EQUISEARCH_CACHE_GB", "0.0003")
    hour, paths = 3600, []
    for number, age in enumerate((0, 40 * hour, 30 * hour)):
        load_data(Data(name="digits", seed=number), (12, 12))
        [path] = set(cache.directory().glob("*.npy")) - set(paths)
        paths.append(path)
        os.utime(path, (time.time() - age,) * 2)
    left = cache.directory() / "left.part"
    left.write_text("")
    os.utime(left, (0, 0))
    cached_arrays.prune()
    assert [path.exists() for path in paths] == [True, False, False] and not left.exists()
    # beyond the limit again, but both are in use
    load_data(Data(name="digits", seed=1), (12, 12))
    assert len(list(cache.directory().glob("*.npy"))) == 2


def test_reading_counts_as_use():
    load_data(DIGITS)
    [path] = cache.directory().glob("*.npy")
    os.utime(path, (0, 0))
    load_data(DIGITS)
    assert path.stat().st_mtime > time.time() - 60


def test_a_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE_GB", "much")
    with pytest.raises(
        ValueError, match="EQUISEARCH_CACHE_GB is 'much'; it must be a number of GB above 0"
    ):
        load_data(DIGITS)


def build_slowly(log):
    def build(allocate):
        with open(log, "a") as file:
            file.write("built\n")
        pixels = allocate((50, 7))
        pixels[:] = np.arange(350, dtype=np.uint8).reshape(50, 7)
        return np.arange(1, 50), {"about": "all"}

    pixels, content = cached_arrays.cached("array", build)
    assert pixels.shape == (49, 7) and pixels[0, 0] == 7 and content == {"about": "all"}


def test_workers_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build_slowly, args=(tmp_path / "log",)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert (tmp_path / "log").read_text() == "built\n"
    assert {path.suffix for path in cache.directory().iterdir()} == {".npy", ".lock"}


def test_an_error_while_building_leaves_no_file():
    def build(allocate):
        allocate((5, 5))
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        cached_arrays.cached("array", build)
    assert {path.suffix for path in cache.directory().iterdir()} <= {".lock"}


# sets by name: MNIST and what is made from it


@mnist
def test_mnist_splits():
    splits = load_data(Data(name="mnist", root=SHARED, train=800, validation=200))
    assert (len(splits.train), len(splits.validation), len(splits.test())) == (800, 200, 10000)
    assert splits.mean[0] == pytest.approx(0.1307, abs=0.005) and splits.std[0] == pytest.approx(
        0.3081, abs=0.005
    )
    exchanged = load_data(Data(name="mnist_t10k", root=SHARED))
    assert (len(exchanged.train), len(exchanged.validation)) == (8000, 2000)
    in_test = set(map(bytes, splits.test().pixels.flatten(1).numpy()))
    assert set(map(bytes, exchanged.train.pixels.flatten(1).numpy())) <= in_test
    assert len(exchanged.test()) == 60000


@mnist
def test_rotated_mnist_is_mnist_turned_by_uniform_angles():
    splits = load_data(Data(name="rotated_mnist", root=SHARED))
    assert (len(splits.train), len(splits.validation), len(splits.test())) == (10000, 2000, 50000)

    # Upright ones are taller than wide; turned uniformly they are as wide as tall on average.
    def elongation(part):
        pixels = part.pixels[part.labels == 1].float()
        grid = torch.arange(28.0) - 13.5
        spread = [(pixels.sum(axis) * grid**2).sum() for axis in ((0, 1, 3), (0, 1, 2))]
        return (spread[0] / spread[1]).item()

    upright = load_data(Data(name="mnist", root=SHARED, train=10000))
    assert elongation(upright.train) > 2.5 and elongation(splits.train) == pytest.approx(1, abs=0.1)
    assert torch.equal(
        load_data(Data(name="rotated_mnist", root=SHARED)).test().pixels[:100],
        splits.test().pixels[:100],
    )


@mnist
@pytest.mark.parametrize(
    "name,undo", [("mnist6_180", lambda x: x.flip(-1, -2)), ("mnist6_m", lambda x: x.flip(-1))]
)
def test_moved_sixes_are_sixes_of_mnist_each_in_one_class(name, undo):
    splits = load_data(Data(name=name, root=SHARED))
    sixes = load_data(Data(name="mnist", root=SHARED)).test()
    sixes = sixes.pixels[sixes.labels == 6]
    test = splits.test()
    assert len(test) == len(sixes) == 958 and test.labels.bincount().tolist() == [479, 479]
    undone = torch.where(test.labels.view(-1, 1, 1, 1) == 1, undo(test.pixels), test.pixels)
    assert sorted(map(bytes, undone.flatten(1).numpy())) == sorted(
        map(bytes, sixes.flatten(1).numpy())
    )
    assert splits.counts == {"6": (2367, 592), splits.classes[1]: (2367, 592)}


@cifar_small
def test_a_real_folder():
    splits = load_data(Data(folder=SHARED / "cifar10_small"))
    assert (len(splits.train), len(splits.validation), len(splits.test())) == (2400, 600, 1000)
    assert splits.channels == 3 and splits.size == (32, 32) and "airplane" in splits.classes
    path = min((SHARED / "cifar10_small" / "test" / "airplane").iterdir())
    assert any(
        np.array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1), pixels)
        for pixels in splits.test().pixels.numpy()
    )


@mnist
def test_more_images_than_there_are():
    with pytest.raises(
        ValueError,
        match="asks for 59000 training and 2000 validation images, but only 60000 .*lower `train:`",
    ):
        load_data(Data(name="mnist", root=SHARED, train=59000, validation=2000))
    with pytest.raises(
        ValueError, match="asks for 10,001 images of the test split, which has 10,000"
    ):
        load_data(Data(name="mnist", root=SHARED, test=10001)).test()
