"""Splits hold every class, or are refused in one message."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from trainers.data.datasets import load_data
from trainers.data.formats.storing import store_arrays
from trainers.data.grouping import named_groups
from trainers.data.pools import Source, file_pool
from trainers.data.splitting import draw_split, draw_test, evenly_spaced
from trainers.settings import Data

DATA = Data(name="digits")


def pool(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return file_pool([str(i) for i in range(len(labels))], labels)


def source(*counts, **options):
    classes = tuple(f"class {i}" for i in range(len(counts)))
    return Source(classes, pool(*counts), **options)


@pytest.mark.parametrize(
    "counts", [(402, 3), (60, 4), (4,) * 30, (3, 3), (1000, 3, 900, 5), (3,) * 7 + (100,)]
)
def test_every_class_is_in_every_part(counts):
    held_out = source(*counts, holds_out_test=True)
    labels = held_out.train.labels
    parts = [*draw_split(held_out, DATA), draw_test(held_out, DATA, labels)]
    assert sum(map(len, parts)) == len({i for part in parts for i in part}) == sum(counts)
    for part in parts:
        assert set(labels[part]) == set(range(len(counts)))


@pytest.mark.parametrize(
    "made,data,part",
    [
        (source(402, 2, holds_out_test=True), DATA, "test"),
        (source(50, 50, holds_out_test=True), DATA.model_copy(update={"test": 1}), "test"),
        (source(50, 50), DATA.model_copy(update={"validation": 1}), "validation"),
        (source(50, 50), DATA.model_copy(update={"train": 1}), "train"),
        (source(50, 50, validation=pool(7)), DATA, "validation"),
        (
            source(50, 50, validation=pool(9, 9)),
            DATA.model_copy(update={"validation": 1}),
            "validation",
        ),
    ],
)
def test_a_split_in_which_a_class_is_missing_is_refused(made, data, part):
    message = (
        f"the {part} split, .* of 1 of the 2 classes, holds no image of 'class .' "
        r"\(\d+ in all\); every class must be in every split; add images"
    )
    with pytest.raises(ValueError, match=message):
        draw_split(made, data)


def test_an_official_test_split_without_a_class_stops_the_test_only():
    made = source(50, 50, test=lambda: pool(9))
    draw_split(made, DATA)
    with pytest.raises(ValueError, match="the test split, 9 images of 1 of the 2 classes"):
        draw_test(made, DATA, pool(9).labels)


@pytest.mark.parametrize("count, most", [(60, 10), (61, 10), (9, 10), (10, 10), (19, 10), (5, 1)])
def test_a_sample_meets_the_whole_range(count, most):
    chosen = range(count)[evenly_spaced(count, most)]
    assert len(chosen) == min(count, most)
    steps = {after - before for before, after in itertools.pairwise(chosen)}
    assert steps <= {max(1, count // most)}


def test_groups_of_one_class_each_are_drawn_so_that_no_split_lacks_a_class(tmp_path):
    """12 patients, each of one class: of every class two train, one validates, one tests."""
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 255, (60, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, groups=np.arange(60) % 12)
    for seed in range(4):
        splits = load_data(Data(files=tmp_path / "a.npz", group_by="groups", seed=seed))
        parts = (splits.train, splits.validation, splits.test())
        counts = [torch.bincount(p.labels).tolist() for p in parts if p is not None]
        assert counts == [[10] * 3, [5] * 3, [5] * 3]


@pytest.mark.parametrize("missing", [float("nan"), None, "", " NaN", "<NA>"])
def test_images_without_a_group_are_refused_in_every_format(tmp_path, missing):
    values = np.array([missing if i % 4 == 0 else f"p{i % 8}" for i in range(40)], dtype=object)
    with pytest.raises(ValueError, match="groups is empty in 10 rows, first for image 0; give"):
        named_groups(values, "groups")
    images = np.zeros((40, 6, 6), dtype=np.uint8)
    arrays = {"images": images, "labels": np.arange(40) % 2, "groups": values}
    with pytest.raises(ValueError, match="groups is empty in 10 rows"):
        store_arrays(arrays, tmp_path / "stored")
    if not missing:
        named = {**arrays, "groups": np.array(["a", "b"] * 20, dtype=object)}  # as pandas gives
        store_arrays(named, tmp_path / "named")
        assert np.load(tmp_path / "named" / "groups.npy").tolist() == ["a", "b"] * 20
    text = "path,label,patient\n" + "".join(f"{i}.png,{i % 2},{v}\n" for i, v in enumerate(values))
    for i in range(40):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match="'patient' .* is empty in 10 rows, first for 0.png"):
        load_data(Data(files=tmp_path / "a.csv", group_by="patient"))
    np.savez(tmp_path / "a.npz", **{**arrays, "groups": values.astype(str)})
    with pytest.raises(ValueError, match="groups.* is empty in 10 rows"):
        load_data(Data(files=tmp_path / "a.npz", group_by="groups"))


def test_a_group_that_leaves_few_images_to_validate_on_is_said(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (60, 6, 6), dtype=np.uint8)
    for large, said in ((44, True), (1, False)):
        groups = np.where(np.arange(60) < large, 0, np.arange(60) // 4)
        path = tmp_path / f"{large}.npz"
        np.savez(path, images=images, labels=np.arange(60) % 2, groups=groups)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            load_data(Data(files=path, group_by="groups"))
        found = [str(w.message) for w in told if "group_by" in str(w.message)]
        assert bool(found) == said, found
        assert not said or "'0', has 44 of 60 images" in found[0]
