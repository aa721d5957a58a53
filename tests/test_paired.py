"""Differences between networks: bits against plain loops, intervals against simulations and
scipy.
"""

import math
import random
from dataclasses import replace

import pytest
import torch
from scipy import stats

from studies.evidence import paired
from trainers.instruments import correctness

E = ("e", "r90", "r180", "r270")


def rows(seed, images, share, elements=4, base=None):
    """Correct images under each element; `base` correlates them with another network's."""
    rng = random.Random(seed)
    hard = [rng.random() for _ in range(images)]
    return torch.tensor(
        [
            [
                (base[k][i] if base is not None and rng.random() < 0.7 else hard[i] < share)
                or rng.random() < 0.05
                for i in range(images)
            ]
            for k in range(elements)
        ]
    )


def packed(matrix, labels=None, epoch=3):
    labels = torch.arange(matrix.shape[1]) % 10 if labels is None else labels
    return correctness.packed(epoch, matrix, labels, E[: len(matrix)], E[1 : len(matrix)])


def test_bits_come_back_from_the_file_and_count_as_the_tensor_does(tmp_path):
    matrix = rows(0, 203, 0.6)
    correctness.write_correctness(packed(matrix), tmp_path)
    found = correctness.read_correctness(tmp_path, epoch=3)
    assert found == packed(matrix) and correctness.read_correctness(tmp_path, epoch=2) is None
    assert [found.of(e).bit_count() for e in E] == matrix.sum(1).tolist()
    assert found.worst == E[1 + int(matrix[1:].sum(1).argmin())]


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_damaged_file_counts_as_absent(tmp_path, cut):
    correctness.write_correctness(packed(rows(0, 50, 0.6)), tmp_path)
    path = tmp_path / correctness.CORRECT
    path.write_bytes(path.read_bytes()[:cut])
    assert correctness.read_correctness(tmp_path) is None


def test_moments_are_those_of_the_images_means_over_elements():
    a, b = rows(1, 300, 0.7), rows(2, 300, 0.6)
    per_image = a[1:].double().mean(0) - b[1:].double().mean(0)
    total, square = paired.moments(packed(a).columns("symmetry_accuracy"), packed(b).bits[1:])
    assert total == pytest.approx(float(per_image.sum()))
    assert square == pytest.approx(float((per_image**2).sum()))


def test_a_difference_counts_images_and_not_images_times_elements():
    # the same errors under every element: four elements say no more than one
    one = rows(3, 400, 0.7, elements=1)
    other = rows(4, 400, 0.6, elements=1)
    a, b = packed(one.expand(4, -1)), packed(other.expand(4, -1))
    alone, mean = (paired.paired_difference(a, b, s) for s in ("accuracy", "symmetry_accuracy"))
    assert mean.half == pytest.approx(alone.half) and mean.count == 400


def test_other_images_and_scores_without_images_are_not_paired():
    a, b = packed(rows(1, 30, 0.5)), packed(rows(2, 30, 0.5), labels=torch.zeros(30))
    assert paired.paired_difference(a, b, "accuracy") is None
    assert paired.paired_difference(a, a, "equivariance_error") is None


def test_means_over_other_elements_of_the_same_images_are_paired():
    # as in studies of 0.1.0, where a network that was trained on all elements is scored on all
    a, b = packed(rows(1, 300, 0.7)), packed(rows(2, 300, 0.6))
    b = replace(b, scored=b.elements)
    found = paired.paired_difference(a, b, "symmetry_accuracy")
    mean = [sum(bits.bit_count() for bits in c.columns("symmetry_accuracy")) for c in (a, b)]
    assert found.over == "images"
    assert found.value == pytest.approx(mean[0] / 3 / 300 - mean[1] / 4 / 300)


def test_mcnemar_is_the_exact_binomial_test():
    for first, second in ((0, 0), (3, 9), (9, 3), (40, 60), (300, 340)):
        expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert paired.mcnemar(first, second) == pytest.approx(expected, rel=1e-6)


def test_student_is_scipys():
    for freedom in (1, 5, 10, 11, 30, 1000):
        expected = stats.t.ppf(0.975, freedom)
        assert paired.student(freedom) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("both", "first", "second"), [(0.9, 0.04, 0.03), (0.6, 0.1, 0.02)])
def test_intervals_cover_the_true_difference_about_95_times_in_100(both, first, second):
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([both, first, second, 1 - both - first - second])
    covered = 0
    for _ in range(400):
        cells = torch.multinomial(shares, 300, replacement=True, generator=generator)
        a, b = ((cells == 0) | (cells == k) for k in (1, 2))
        found = paired.paired_difference(
            *(packed(x[None].repeat(2, 1)) for x in (a, b)), "accuracy"
        )
        covered += found.low <= first - second <= found.high
    assert 0.92 <= covered / 400 <= 0.985


def test_where_no_image_differs_the_interval_still_has_a_width():
    a = packed(rows(1, 100, 0.5))
    found = paired.paired_difference(a, a, "accuracy")
    assert found.value == 0 and 0.01 < found.half < 0.04 and not found.distinct and found.p == 1


def test_unpaired_differences_are_wider_than_paired_ones_of_networks_that_fail_together():
    first = rows(1, 500, 0.7)
    a, b = packed(first), packed(rows(2, 500, 0.65, base=first.tolist()))
    found = paired.paired_difference(a, b, "accuracy")
    shares = [c.of("e").bit_count() / 500 for c in (a, b)]
    assert paired.unpaired(*shares, 500).half > 1.3 * found.half
    assert paired.unpaired(*shares, 500).value == pytest.approx(found.value)


def test_one_pair_alone_says_nothing_of_others():
    assert not paired.over_values([0.5], "pairs").distinct
    found = paired.over_values([0.1, 0.2, 0.3], "pairs")
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert paired.over_values([0.5], "pairs").as_dict()["low"] is None


def test_pairs_on_the_same_images_are_no_surer_than_these_images():
    from studies.evidence.pairs import _over_pairs

    one = paired.Difference(0.05, -0.05, 0.15, 84, "images")
    alike = _over_pairs([one, one, one])  # three pairs that agree, on one choice of images
    assert alike.value == pytest.approx(0.05) and alike.half == pytest.approx(0.1)
    assert not alike.distinct and alike.count == 3 and alike.over == "pairs"
    apart = _over_pairs([one, paired.Difference(0.15, 0.05, 0.25, 84, "images")])
    assert apart.half > 0.1
