"""Sizes and remainders against brute force: torch's own output sizes, and windows that are listed
and mirrored.
"""

from dataclasses import asdict
from itertools import product

import pytest
import torch
import torch.nn.functional as functional

from searchspace.architecture import Architecture
from searchspace.geometry import (
    Interpolated,
    Rule,
    counted,
    nearest_remainder,
    output_size,
    remainder,
)
from searchspace.subsampling import KINDS, Subsampling, place, reads
from trainers.networks.plain import Subsample


@pytest.mark.parametrize(
    "kernel,stride,dilation", list(product((1, 2, 3, 4, 5), (1, 2, 3, 4), (1, 2)))
)
def test_remainder_is_zero_exactly_when_windows_are_symmetric(kernel, stride, dilation):
    for size, before, after in product(range(5, 24), range(3), range(3)):
        windows = output_size(size, kernel, stride, (before, after), dilation)
        if windows < 1:
            continue
        reach = dilation * (kernel - 1)
        starts = [i * stride - before for i in range(windows)]
        mirrored = sorted(size - 1 - reach - start for start in starts)
        assert (remainder(size, kernel, stride, (before, after), dilation) == 0) == (
            starts == mirrored
        ), (size, before, after)
        if before == after:
            assert (
                remainder(size, kernel, stride, (before, after), dilation)
                == (size + 2 * before - reach - 1) % stride
            )


def test_output_sizes_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for size, kernel, stride, padding in product(range(4, 15), (1, 2, 3, 4), (1, 2, 3), (0, 1)):
        if padding > kernel // 2:
            continue
        image = torch.zeros(1, 1, size, size)
        for ceil in (False, True):
            pooled = torch.nn.functional.max_pool2d(
                image, kernel, stride, padding, ceil_mode=ceil
            ).shape[-1]
            assert pooled == output_size(size, kernel, stride, (padding, padding), ceil=ceil)


def test_nearest_resize_is_exact_only_where_its_samples_are():
    assert (
        nearest_remainder(28, 56) == 0
        and nearest_remainder(28, 29) > 0
        and nearest_remainder(28, 14) > 0
    )
    for size, output in product(range(2, 12), range(2, 24)):
        samples = [i * size // output for i in range(output)]
        assert (nearest_remainder(size, output) == 0) == (
            samples == [size - 1 - s for s in reversed(samples)]
        )


@pytest.mark.parametrize(
    "text,sizes",
    [
        ("28px: 4k3 max2/2, 4k3 max3/2p1, 4k3p0", (14, 7, 5)),
        ("29px: 4k3 adaptive/2, 4k3 adaptive7, 4k3 crop9", (15, 7, 9)),
        ("28px resize33: 4k3s2, 4k3 blur/2, 4k3 blurmax/2", (17, 9, 5)),
        ("29px: 4k3 max2/2ceil, 4k3 conv3/2p1", (15, 8)),
        ("28px: 4k4, 4k5d2p0", (29, 21)),
    ],
)
def test_sizes_along_the_network(text, sizes):
    assert tuple(size[0] for size in Architecture.parse(text).sizes) == sizes


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "out"), [(12, 7), (13, 5), (9, 8)])
def test_a_shrinking_resize_reads_what_torch_reads_with_its_weights(mode, size, out):
    impulses = torch.eye(size, dtype=torch.float64)[:, None, None]  # one pixel each
    shrunk = functional.interpolate(
        impulses.expand(-1, -1, size, -1), size=(size, out), mode=mode, antialias=True
    )[:, 0, 0]
    rule = Rule(kind="resize", output=out, mode=mode)
    for index, (pixels, weights) in enumerate(Interpolated().reads(rule, size)):
        ours = torch.zeros(size, dtype=torch.float64)
        ours[list(pixels)] = torch.tensor(weights, dtype=torch.float64)
        assert torch.allclose(ours, shrunk[:, index], atol=1e-9)


def test_without_more_said_a_window_has_no_padding():
    assert output_size(12, 3) == 10 and output_size(13, 3, 2) == 6
    assert remainder(13, 3, 2) == 0 and remainder(12, 3, 2) == 1


@pytest.mark.parametrize("size, exact", [(28, True), (29, False), (30, True), (57, False)])
def test_a_crop_is_exact_where_it_takes_as_much_from_both_sides(size, exact):
    (read,) = (
        layer for layer in Architecture.parse(f"{size}px crop28: 4k3@D4").layers if not layer.stage
    )
    assert read.remainder == ((0, 0) if exact else (1, 1))


STEPS = (
    *("max3/2p1", "avg3/2p1", "avg4/3p1:2", "avg3/2ceil"),
    *("lp3/2", "blur/2", "adaptive5", "crop8"),
)


@pytest.mark.parametrize("text", STEPS)
@pytest.mark.parametrize("size", [11, 12])
def test_a_pool_reads_what_that_of_a_network_reads_with_its_weights(text, size):
    step = Subsampling.parse(text)
    impulses = torch.eye(size)[:, None, None].expand(-1, -1, size, -1)  # one column each
    pooled = Subsample({**asdict(step), "channels": 1})(impulses)
    middle = pooled[:, 0, pooled.shape[2] // 2]
    ours = torch.zeros_like(middle)
    for index, (pixels, weights) in enumerate(reads(step.rule, size)):
        ours[list(pixels), index] = torch.tensor(weights)
    # up to a factor that all share
    assert torch.allclose(ours / ours.max(), middle / middle.max(), atol=1e-6)


@pytest.mark.parametrize("text", STEPS[:-1])
@pytest.mark.parametrize("size", [11, 12])
def test_outputs_in_a_row_range_from_what_the_first_reads_to_what_the_last_reads(text, size):
    rule = Subsampling.parse(text).rule
    seen = [pixels for pixels, _ in reads(rule, size)]
    for begin, end in product(range(len(seen)), repeat=2):
        first, last = KINDS[rule.kind].windows.range_of(rule, size, begin, end)
        assert (max(first, 0), min(last, size - 1)) == (seen[begin][0], seen[end][-1])


@pytest.mark.parametrize("text", ["avg2/2ceil", "avg3/2ceil", "avg3/2p1ceil", "avg4/3p2:1ceil"])
def test_a_mean_rounded_up_has_remainder_zero_where_its_windows_are_mirrored(text):
    rule = Subsampling.parse(text).rule
    for size in range(8, 24):
        windows = reads(rule, size)
        mirrored = [(sorted(size - 1 - p for p in at), of) for at, of in reversed(windows)]
        exact = mirrored == [(list(at), of) for at, of in windows]
        assert (place(rule, size)[1] == 0) == exact, size


def test_counts_in_messages_are_singular_for_one():
    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    words = ("class", "class name", "entry", "epoch", "key", "box", "mesh")
    plurals = ["classes", "class names", "entries", "epochs", "keys", "boxes", "meshes"]
    assert [counted(3, word)[2:] for word in words] == plurals
