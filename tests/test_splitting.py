"""Splits hold every class, or are refused in one message."""

import itertools

import numpy as np
import pytest
import torch

from trainers.data.datasets import load_data
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
