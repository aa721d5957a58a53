"""The check of the declared symmetry before a study: `studies.workers.declaration`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from searchspace.groups import Group
from studies.config import parse
from studies.results.tables import status, status_lines
from studies.workers import declaration, launch
from studies.workers.declaration import check_declaration, judged
from trainers.data.datasets import load_data
from trainers.instruments import twosample
from trainers.instruments.probe import probe_images
from trainers.instruments.proportions import binomial, fisher, holm
from trainers.settings import Data

TEXT = """
data: {name: digits, train: 300, validation: 100}
training: {epochs: 1}
symmetry: {group: C4}
space: {backbone: "4k3, 4k3", input_size: 8}
search: {trials: 1, sampler: random}
resources: {workers: 1}
"""


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUISEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(twosample, "JOINT_STEPS", 120)
        patch.setattr(twosample, "STEPS", 40)
        yield


@pytest.fixture(scope="module")
def digits(own_cache):
    splits = load_data(Data(name="digits"))
    return splits.train.pixels[:600].float() / 255, splits.train.labels[:600]


def examined(images, labels, classes, group="C4", seed=0):
    group = Group.parse(group)
    return judged(probe_images(images, labels, classes, group, seed=seed, joint=True), group)


def sixes_and_turned_sixes(digits):
    """Class `b` is class `a` turned by half: MNIST6-180 in small."""
    images, labels = digits
    sixes = images[(labels == 6) | (labels == 2) | (labels == 4)]
    sixes = sixes[: len(sixes) // 2 * 2]
    half = len(sixes) // 2
    both = torch.cat([sixes[:half], torch.rot90(sixes[half:], 2, (2, 3))])
    return both, torch.arange(2).repeat_interleave(half)


def test_labels_that_half_a_turn_exchanges_are_named_with_what_may_be_declared(digits):
    images, labels = sixes_and_turned_sixes(digits)
    (warning,) = examined(images, labels, ("a", "b")).warnings
    assert "labels contradict the declared C4: under r180 class" in warning
    assert "Declare at most C1" in warning and "p = " in warning


def test_images_at_every_orientation_are_said_to_be_so(digits):
    images, labels = digits
    quarter = torch.randint(4, (len(labels),), generator=torch.Generator().manual_seed(0))
    turned = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(images, quarter)])
    (warning,) = examined(turned, labels, tuple("0123456789")).warnings
    assert "already show every orientation of C4" in warning


def test_upright_digits_under_quarter_turns_raise_no_warning(digits):
    assert examined(*digits, tuple("0123456789")).warnings == ()


def null_data(seed):
    """Random images of random labels; no element exchanges classes of a random labelling."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(240, 1, 8, 8, generator=generator)
    images[:, :, :4] *= 0.3 * (seed % 3)  # some show which way is up
    return images, torch.randint(3, (240,), generator=generator)


def test_random_labels_contradict_nothing():
    for seed in range(2):
        assert not any("contradict" in w for w in examined(*null_data(seed), tuple("abc")).warnings)


@pytest.mark.slow
def test_at_most_one_null_data_set_of_twenty_raises_a_false_alarm():
    alarms = sum(
        any("contradict" in w for w in examined(*null_data(seed), tuple("abc"), seed=seed).warnings)
        for seed in range(200)
    )
    print(f"{alarms} false alarms on 200 null data sets")
    assert alarms <= 10


def test_a_study_is_examined_at_its_start_once_for_each_data_set_and_shows_the_warning(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(declaration, "COST_SHARE", 1e9)  # whatever it costs
    probed, notes = [], []

    def counted(*arguments, **options):
        probed.append(1)
        images, labels = sixes_and_turned_sixes(
            (
                load_data(Data(name="digits")).train.pixels.float() / 255,
                load_data(Data(name="digits")).train.labels,
            )
        )
        return probe_images(images, labels, ("a", "b"), Group.parse("C4"), joint=True)

    monkeypatch.setattr("trainers.instruments.probe.probe", counted)
    for name in ("first", "second"):
        launch.new_driver(parse(TEXT), tmp_path / name, note=notes.append).close()
        assert "labels contradict" in status_lines(status(tmp_path / name))[-1]
    assert len(probed) == 1 and sum("labels contradict" in note for note in notes) == 2
    launch.new_driver(parse(TEXT), tmp_path / "third", probe=False, note=notes.append).close()
    assert status(tmp_path / "third")["declaration"] is None
    json.dumps(status(tmp_path / "first"))


def test_a_study_that_the_question_would_dominate_is_not_examined():
    assert check_declaration(parse(TEXT)) is None
    trivial = parse(TEXT, overrides={"symmetry.group": "C1"})
    assert check_declaration(trivial) is None


def test_a_damaged_file_counts_as_no_check(tmp_path: Path):
    (tmp_path / declaration.DECLARATION).write_text("[]")
    assert declaration.read_declaration(tmp_path) is None


def test_p_values_are_exact_and_corrected_step_by_step():
    assert binomial(9, 10) == pytest.approx(11 / 1024)
    assert binomial(0, 0) == 1.0
    # 10 of 10 against 5 of 10: C(10,5) of C(20,5) ways to place the five misses
    assert fisher(10, 5, 10) == pytest.approx(252 / 15504) and fisher(0, 0, 0) == 1.0
    # the smallest of three times 3, the next times 2, never below one before it
    assert holm([0.02, 0.01, 0.5]) == pytest.approx([0.04, 0.03, 0.5])
    assert holm([0.01, 0.01]) == pytest.approx([0.02, 0.02]) and holm([]) == []


def test_the_test_of_the_inputs_holds_its_level_where_nothing_tells_the_views_apart():
    """Hits of fair coins: p values are uniform or larger, for involutions and other elements."""
    random = np.random.default_rng(0)
    for group in ("C2", "C4"):
        low = 0
        for seed in range(200):
            logits = torch.from_numpy(random.normal(size=(2, 60, 4))).float()
            labels = torch.from_numpy(random.integers(0, 2, 60))
            element = Group.parse(group).elements[1]
            counted = twosample._count(element, *logits, labels, 2, seed)
            low += binomial(counted.hits.sum(), counted.trials.sum()) < 0.05
        assert low <= 20  # 10 expected; above 20 in one of a thousand
