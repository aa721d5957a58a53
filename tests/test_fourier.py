"""Convolutions in the Fourier basis of the group: torch's values and gradients, used where they may
be, and given up without harm.
"""

import copy
import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from searchspace.architecture import Architecture
from searchspace.groups import Group
from studies.cli import doctor
from trainers.actions import act
from trainers.networks.filters import Parametrisation, arrange, expand, restricted_order
from trainers.networks.fold import fold, scoring
from trainers.networks.kernels import compiled, fourier
from trainers.networks.networks import build
from trainers.networks.normalization import FieldNorm


@pytest.fixture(autouse=True)
def code():
    """Where the compiled code can be had, it must be right."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or compiled.compiler() is None:
        pytest.skip("this machine has no AVX-512 or no C compiler: convolutions are torch's")
    assert fourier.fourier_library() is not None, fourier.fourier_status()[1]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and nothing loaded yet."""
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))
    fourier.fourier_status.cache_clear()
    compiled.compiler.cache_clear()
    yield tmp_path / "cache" / "compiled"
    monkeypatch.undo()
    fourier.fourier_status.cache_clear()
    compiled.compiler.cache_clear()


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(
        memory_format=torch.channels_last
    )


def weight_of(parameters, group, source, kernel, fields_out):
    """An equivariant weight from fields of `source` to fields of `group`, as `Convolution.weight`
    makes it.
    """
    parametrisation = Parametrisation(
        "free" if group.on_grid else "basis", group, kernel, lifting=False
    )
    weight = arrange(expand(parameters, parametrisation, parametrisation.constants()), fields_out)
    if source == group:
        return weight
    channels = torch.arange(weight.shape[1] // source.order)[:, None] * source.order + torch.tensor(
        restricted_order(source, group)
    )
    return weight.index_select(1, torch.argsort(channels.flatten()))


# (fields in, fields out, kernel, images, height, width, stride, padding, dilation): 1 to 88
# channels
WINDOWS = [
    (3, 4, 5, 3, 23, 40, 2, 4, 2),
    (1, 1, 3, 2, 7, 5, 1, 1, 1),
    (3, 2, 5, 3, 9, 12, 1, 2, 1),
    (2, 5, 4, 2, 11, 11, 2, 1, 1),
    (7, 3, 1, 2, 6, 6, 1, 0, 1),
    (2, 3, 3, 1, 20, 20, 1, 2, 2),
    (2, 3, 3, 3, 30, 33, 2, 1, 1),
    (2, 2, 3, 2, 12, 12, 3, 0, 1),
    (1, 2, 3, 1, 5, 5, 1, 0, 2),
    (5, 11, 3, 2, 34, 19, 1, 1, 1),
    (2, 2, 3, 1, 8, 8, 1, 4, 1),
    (2, 1, 7, 2, 40, 21, 1, 3, 1),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    "groups",
    [
        "C1",
        "C2",
        "D1",
        "D2",
        "C4",
        "D4",
        "C8",
        "D8",
        "D6",
        "C3",
        "C4 of C8",
        "D4 of D8",
        "C4 of D4",
        "D2 of D4",
        "C2 of C8",
    ],
)
def test_values_and_gradients_are_those_of_torchs_convolution(groups, window):
    group, _, source = groups.partition(" of ")
    group, source = Group.parse(group), Group.parse(source or group)
    fields_in, fields_out, kernel, images, height, width, stride, padding, dilation = window
    fields_in *= source.order // group.order
    parametrisation = Parametrisation(
        "free" if group.on_grid else "basis", group, kernel, lifting=False
    )
    parameters = torch.randn(
        fields_in * fields_out,
        parametrisation.size,
        generator=torch.Generator().manual_seed(1),
        requires_grad=True,
    )
    maps = random(images, fields_in * group.order, height, width).requires_grad_()
    weight = weight_of(parameters, group, source, kernel, fields_out)
    expected = F.conv2d(maps, weight, stride=stride, padding=padding, dilation=dilation)
    direction = random(*expected.shape, seed=2)
    direction = direction if stride == 1 else direction.contiguous()  # in either layout
    shared = fourier.Transform(group, source, maps.shape[1], len(weight), kernel)
    found = fourier.convolve(maps, weight, shared, stride, padding, dilation)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected) < 5e-6
    gradients = [
        torch.autograd.grad(out, (maps, parameters), direction, retain_graph=True)
        for out in (found, expected)
    ]
    for mine, theirs in zip(*gradients):
        assert relative(mine, theirs) < 2e-5


def network(text, seed=0):
    return build(Architecture.parse(text), channels=1, classes=4, seed=seed)


NETWORKS = [
    "28px: 3k3p0@C4, 5k3p0 max2/2, 4k3, 3k3s2",
    "25px: 2k3@D4, 2k3x2r, 4k3s2x2r",
    "29px: 3k5@C8, 2k3 conv3/2p1, 4k3@C4",
    "27px: 2k3@D8 max3/2, 3k3d2@D4",
]


def gradients_and_logits(text, images, dtype=torch.float32):
    model = network(text).to(dtype)
    F.cross_entropy(model(images.to(dtype)), torch.arange(len(images)) % 4).backward()
    with torch.no_grad():
        return [p.grad for p in model.parameters()], model.eval()(images.to(dtype))


@pytest.mark.parametrize("text", NETWORKS)
def test_a_network_trains_and_evaluates_as_in_double_precision(text, monkeypatch):
    """One value in millions falls on the other side of ReLU by rounding, and moves gradients by
    1e-3; of four batches some have none.
    """
    monkeypatch.setattr(fourier, "LEAST_CHANNELS", 0)
    calls, original, code = [], fourier.convolve, fourier.fourier_library
    monkeypatch.setattr(
        fourier,
        "convolve",
        lambda maps, *a, **k: calls.append(maps.requires_grad) or original(maps, *a, **k),
    )
    errors = []
    for seed in range(4):
        images = random(24, 1, *Architecture.parse(text).size, seed=seed)
        true, logits = gradients_and_logits(text, images, torch.float64)
        errors.append([])
        for used in (True, False):
            monkeypatch.setattr(fourier, "fourier_library", code if used else lambda: None)
            found, near = gradients_and_logits(text, images)
            assert relative(near, logits) < 1e-5
            errors[-1].append(max(relative(a, b) for a, b in zip(found, true)))
    mine, torchs = map(min, zip(*errors))
    assert mine < 1e-5 + 3 * torchs < 1e-3
    assert set(calls) == {True, False}, "used in training and in evaluation"


@pytest.mark.parametrize("text", NETWORKS)
def test_a_network_is_scored_by_what_it_folds_to(text, monkeypatch):
    monkeypatch.setattr(fourier, "LEAST_CHANNELS", 0)
    model, calls, original = network(text), [], fourier.convolve
    monkeypatch.setattr(fourier, "convolve", lambda *a, **k: calls.append(k) or original(*a, **k))
    images = random(24, 1, *Architecture.parse(text).size)
    model(images)  # moves the norms
    generator = torch.Generator().manual_seed(0)  # of others a stage may be dead
    for norm in (module for module in model.modules() if isinstance(module, FieldNorm)):
        torch.nn.init.uniform_(norm.bias, -1, 1, generator)
        torch.nn.init.uniform_(norm.weight, -1, 2, generator)
    calls.clear()
    (logits, maps), (expected, expected_maps) = (
        made.forward_with_stages(images) for made in (scoring(model), fold(model))
    )
    assert calls and all(call["bias"] is not None for call in calls)
    assert relative(logits, expected) < 1e-5
    for mine, theirs in zip(maps, expected_maps):
        assert relative(mine, theirs) < 1e-5


def test_an_exact_network_stays_exact():
    model = network("33px: 4k3@D4, 4k3x2r, 8k3s2x2r").eval()
    images = random(32, 1, 33, 33)
    with torch.no_grad():
        expected = model(images)
        for element in Group.parse("D4").elements:
            assert relative(model(act(images, element)), expected) < 1e-5


def test_training_is_repeatable_and_independent_of_threads():
    shared = fourier.Transform(Group(4), Group(4), 12, 20, 3)
    weight = weight_of(
        torch.randn(15, 36, generator=torch.Generator().manual_seed(0)), Group(4), Group(4), 3, 5
    ).requires_grad_()
    maps, results, threads = random(9, 12, 14, 14), [], torch.get_num_threads()
    try:
        for number in (1, 1, 4, 4, 8):
            torch.set_num_threads(number)
            out = fourier.convolve(maps, weight, shared, 1, 1)
            results.append((out.detach(), *torch.autograd.grad(out.square().sum(), weight)))
    finally:
        torch.set_num_threads(threads)
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0]) and relative(gradient, results[0][1]) < 1e-5
    for again in (1, 3):
        assert torch.equal(results[again][1], results[again - 1][1])


def test_values_that_are_not_finite_stay_where_they_belong():
    """Padding, the ends of rows and other images lie beside them in memory."""
    shared = fourier.Transform(Group(4), Group(4), 8, 8, 3)
    weight = weight_of(torch.ones(4, 36), Group(4), Group(4), 3, 2)
    maps = random(3, 8, 17, 17)
    maps[1, :, 16, 16] = float("nan")
    maps[1, :, 0, 0] = float("inf")
    expected = F.conv2d(maps, weight, padding=1)
    assert torch.equal(fourier.convolve(maps, weight, shared, 1, 1).isfinite(), expected.isfinite())


def suits(maps, weight, **window):
    return fourier.suits(
        Group(4), maps, weight, **{"stride": 1, "padding": 1, "dilation": 1, **window}
    )


def test_what_it_is_used_for():
    maps, weight = random(32, 24, 20, 20), random(24, 24, 3, 3)
    assert suits(maps, weight) and suits(random(128, 24, 20, 20), weight, stride=2)
    assert fourier.suits(Group(2), maps, weight, 1, 1, 1), "torch computes 32 channels"
    assert not fourier.suits(Group(2), random(32, 32, 20, 20), random(32, 32, 3, 3), 1, 1, 1), (
        "too few products saved"
    )
    assert not fourier.suits(Group(3), maps, weight, 1, 1, 1), (
        "no element but the identity moves pixels to pixels"
    )
    assert not suits(maps, weight, stride=3)
    assert not suits(maps, random(24, 24, 1, 1)), "nothing to save"
    assert not suits(random(32, 16, 20, 20), random(24, 16, 3, 3)), "too few channels"
    assert suits(maps[:1], weight), "one image as many"
    assert not suits(random(512, 24, 4, 4), weight), "maps too small"
    assert not suits(maps.double(), weight.double()) and not suits(
        maps.bfloat16(), weight.bfloat16()
    )
    assert not suits(maps.to("meta"), weight.to("meta"))
    assert not suits(random(512, 24, 8, 8), random(24, 24, 9, 9), padding=0), (
        "torch says what is wrong with such a window"
    )


def test_it_is_not_used_where_something_looks_inside(monkeypatch):
    maps, weight = random(32, 24, 20, 20), random(24, 24, 3, 3)
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(maps, weight)
    with FlopCounterMode(display=False):
        assert not suits(maps, weight)
    with forward_ad.dual_level():
        assert suits(maps, weight), "another thread may take the derivative"
        assert not suits(forward_ad.make_dual(maps, maps), weight)
    torch.func.vmap(lambda image: seen.append(suits(maps, weight)) or image)(maps)
    torch.jit.trace(
        lambda image: (seen.append(suits(maps, weight)), image * 2)[1], maps, check_trace=False
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not suits(maps, weight)
    assert seen and not any(seen)
    assert suits(maps, weight)


def test_derivatives_and_exports_of_a_network_go_through_torch():
    model = network("29px: 6k3@C4, 8k3").eval()
    images = random(64, 1, 29, 29)
    _, tangent = torch.func.jvp(model, (images,), (images,))
    assert tangent.shape == (64, 4)
    program = torch.export.export(model, (images,), strict=False)
    assert not [node for node in program.graph.nodes if "_Convolution" in str(node.target)]
    assert relative(program.module()(images), model(images)) < 1e-5
    assert relative(copy.deepcopy(model)(images), model(images)) == 0


def test_a_lack_of_memory_is_an_error_of_its_own(monkeypatch):
    class Lacking:
        convolve = staticmethod(lambda *a: 1)

    monkeypatch.setattr(fourier, "fourier_library", lambda: Lacking)
    shared = fourier.Transform(Group(4), Group(4), 8, 8, 3)
    with pytest.raises(MemoryError, match="convolution"):
        fourier.convolve(
            random(2, 8, 9, 9), weight_of(torch.ones(4, 36), Group(4), Group(4), 3, 2), shared, 1, 1
        )


def reason(caplog):
    with caplog.at_level(logging.INFO, "trainers"):
        assert fourier.fourier_library() is None
    return caplog.text


def test_without_a_compiler_convolutions_are_torchs(fresh, monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(fresh))
    assert "no C compiler" in reason(caplog) and "install gcc" in caplog.text
    assert network("29px: 6k3@C4, 8k3")(random(64, 1, 29, 29)).isfinite().all()


@pytest.mark.parametrize("command", ["gcc 'half a quote", "no_such_compiler", ""])
def test_a_compiler_that_cannot_be_named_so_gives_way_to_the_usual_one(fresh, monkeypatch, command):
    monkeypatch.setenv("CC", command)
    found = compiled.compiler()
    assert found and found[0] in (shutil.which("cc"), shutil.which("gcc"), shutil.which("clang"))


@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_every_way_to_say_no_turns_it_off(fresh, monkeypatch, value):
    monkeypatch.setenv("EQUISEARCH_COMPILE", value)
    assert fourier.fourier_status() == (None, f"EQUISEARCH_COMPILE={value} turns it off")


def test_it_can_be_turned_off_and_doctor_says_so(fresh, monkeypatch, caplog):
    assert doctor._convolutions().level == "ok"
    fourier.fourier_status.cache_clear()
    shutil.rmtree(fresh)
    monkeypatch.setenv("EQUISEARCH_COMPILE", "0")
    assert "EQUISEARCH_COMPILE=0" in reason(caplog)
    assert not fresh.exists()
    found = doctor._convolutions()
    assert found.level == "note" and "EQUISEARCH_COMPILE=0" in found.found


def test_a_compiler_that_fails_is_named_with_its_message(fresh, monkeypatch, caplog, tmp_path):
    script = tmp_path / "mycc"
    script.write_text("#!/bin/sh\necho 'bad flag' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert "mycc could not compile fourier.c: bad flag" in reason(caplog)
    assert not list(fresh.glob("*.so")) and not list(fresh.glob("*.part"))


def test_code_that_computes_something_else_is_not_used(fresh, monkeypatch, caplog):
    """A compiler's fault must not become a result."""
    load, broken = compiled.load_library, fresh.parent / "broken"
    broken.mkdir(parents=True)
    for file in ("fourier.c", "fourier.h"):
        shutil.copy(Path(fourier.__file__).with_name(file), broken)
    header = broken / "fourier.h"
    header.write_text(header.read_text().replace("y[3] = -b;", "y[3] = b;"))
    monkeypatch.setattr(compiled, "load_library", lambda source: load(broken / "fourier.c"))
    assert "is wrong by" in reason(caplog)


def test_the_file_is_made_once_and_again_where_it_is_missing_or_torn(fresh):
    # a process keeps what it has opened
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:

        def made():
            assert pool.apply(_load, (str(fresh.parent),))
            (file,) = fresh.glob("*.so")
            assert not list(fresh.glob("*.part"))
            return file

        file = made()
        size, first = file.stat().st_size, file.stat().st_mtime_ns
        assert made().stat().st_mtime_ns == first
        file.unlink()
        file.write_bytes(b"half")
        assert made().stat().st_size == size
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_cache_that_cannot_be_written_costs_time_only(fresh, monkeypatch):
    fresh.parent.mkdir(parents=True)
    fresh.write_text("a file where the folder should be")
    assert fourier.fourier_library() is not None


def _load(cache):
    os.environ["EQUISEARCH_CACHE"] = cache
    return fourier.fourier_library() is not None


def test_processes_that_start_at_once_compile_once(fresh, monkeypatch, tmp_path):
    script, calls = tmp_path / "counting", tmp_path / "calls"
    script.write_text(f'#!/bin/sh\necho called >> {calls}\nexec {compiled.compiler()[0]} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert all(pool.map(_load, [str(fresh.parent)] * 3, chunksize=1))
    assert calls.read_text() == "called\n"
    assert len(list(fresh.glob("*.so"))) == 1 and not list(fresh.glob("*.part"))
