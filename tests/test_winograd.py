"""Convolutions in Winograd's form are torch's: values, gradients, whole networks; and they are used
where they should be.
"""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from searchspace.architecture import Architecture
from trainers.networks.fold import fold, scoring
from trainers.networks.kernels import compiled, fourier, winograd
from trainers.networks.networks import build

LAYOUT = torch.channels_last


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=dtype)
    return values.contiguous(memory_format=LAYOUT)


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.fixture(autouse=True)
def compiled_here():
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or compiled.compiler() is None:
        pytest.skip("needs AVX-512 and a compiler")
    assert winograd.winograd_library() is not None, winograd.winograd_status()[1]


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("into, out", [(16, 16), (17, 40), (40, 23), (56, 64), (64, 130)])
@pytest.mark.parametrize("images, size", [(1, (4, 4)), (5, (9, 6)), (3, (13, 14))])
def test_values_and_gradients_are_torchs(into, out, padding, images, size):
    maps = random(images, into, *size).requires_grad_()
    weight = random(out, into, 3, 3, seed=1).requires_grad_()
    bias = random(1, out, 1, 1, seed=2).flatten()
    found = winograd.convolve(maps, weight, padding, bias)
    expected = F.conv2d(maps.double(), weight.double(), bias.double(), padding=padding)
    assert found.is_contiguous(memory_format=LAYOUT) and relative(found, expected) < 1e-5
    direction = random(*found.shape, seed=3)
    mine = torch.autograd.grad(found, (maps, weight), direction)
    theirs = torch.autograd.grad(expected, (maps, weight), direction.double())
    assert all(relative(a, b) < 1e-5 for a, b in zip(mine, theirs))


def test_it_is_repeatable_and_an_images_maps_are_the_same_in_every_batch_and_thread():
    weight, maps = random(24, 24, 3, 3).requires_grad_(), random(9, 24, 14, 14)
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 1, 4, 4):
            torch.set_num_threads(number)
            out = winograd.convolve(maps, weight, 1)
            results.append((out.detach(), *torch.autograd.grad(out.square().sum(), weight)))
    finally:
        torch.set_num_threads(threads)
    for out, gradient in results:
        assert torch.equal(out, results[0][0]) and relative(gradient, results[0][1]) < 1e-5
    assert all(torch.equal(results[n][1], results[n - 1][1]) for n in (1, 3))
    assert torch.equal(winograd.convolve(maps[4:6], weight, 1), results[0][0][4:6])


@pytest.mark.parametrize(
    "text",
    ["12px: 24k3, 24k3 max2/2, 24k3x2r", "12px: 6k3@C4+C1, 6k3@C4|C2|C1, 6k3@C4b2, 6k3@C4~0.3"],
)
def test_a_network_trains_and_is_scored_as_in_double_precision(text, monkeypatch):
    calls, original = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *a: calls.append(a[3]) or original(*a))
    architecture, images = Architecture.parse(text), random(16, 1, 12, 12)
    errors = []
    for seed in range(3):  # of some, a value falls on the other side of ReLU by rounding
        made = build(architecture, channels=1, classes=5, seed=seed)
        true = build(architecture, channels=1, classes=5, seed=seed).double()
        found, expected = made(images), true(images.double())
        found.square().sum().backward(), expected.square().sum().backward()
        assert relative(found, expected) < 1e-5
        pairs = zip(made.parameters(), true.parameters())
        errors.append(max(float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs))
    assert min(errors) < 1e-4 and calls
    calls.clear()
    assert relative(scoring(made.eval())(images), fold(made.double())(images.double())) < 1e-5
    assert calls and all(bias is not None for bias in calls)


def used(into=24, out=24, size=(12, 12), kernel=3, dtype=torch.float32, window=(1, 1, 1)):
    maps, weight = random(2, into, *size, dtype=dtype), random(out, into, kernel, kernel).to(dtype)
    return winograd.suits(maps, weight, *window)


def test_where_it_is_used():
    assert used() and used(40, 56, (9, 9), window=(1, 0, 1))
    assert not used(16) and not used(out=16), "few channels"
    assert not used(kernel=5) and not used(window=(2, 1, 1)) and not used(window=(1, 2, 2))
    assert not used(size=(5, 5)), "36 of the pixels of its tiles for 25"
    assert not used(size=(3, 12), window=(1, 0, 1)), "a row of output"
    assert not used(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert not used()
    seen = []
    torch.func.vmap(lambda w: seen.append(used()) or w, randomness="same")(torch.zeros(2))
    assert seen == [False]


def test_weights_of_a_group_of_four_are_left_to_the_fourier_basis(monkeypatch):
    network = build(Architecture.parse("12px: 6k3@C4, 6k3"), channels=1, classes=5)
    monkeypatch.setattr(winograd, "convolve", None)
    assert network(random(2, 1, 12, 12)).isfinite().all()
    monkeypatch.setattr(fourier, "convolve", None)
    with pytest.raises(TypeError):
        network(random(2, 1, 12, 12))


def test_code_that_computes_something_else_is_not_used(monkeypatch, tmp_path):
    """A compiler's fault must not become a result."""
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))
    load, broken = compiled.load_library, tmp_path / "winograd.c"
    shutil.copy(Path(winograd.__file__).with_suffix(".c"), broken)
    broken.write_text(broken.read_text().replace("a[3][j] = -g1;", "a[3][j] = g1;"))
    monkeypatch.setattr(compiled, "load_library", lambda source: load(broken))
    winograd.winograd_status.cache_clear()
    try:
        assert "is wrong by" in winograd.winograd_status()[1]
    finally:
        winograd.winograd_status.cache_clear()


def test_lack_of_memory_is_said(monkeypatch):
    class Lacking:
        convolve = staticmethod(lambda *a: 1)

    monkeypatch.setattr(winograd, "winograd_library", lambda: Lacking)
    with pytest.raises(MemoryError, match="convolution"):
        winograd.convolve(random(2, 24, 9, 9), random(24, 24, 3, 3))
