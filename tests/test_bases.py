"""The cache of escnn's sampled bases: right, rebuilt when it is gone, safe to share."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from searchspace.architecture import Architecture
from searchspace.groups import Group
from trainers.networks import baking, bases
from trainers.networks.networks import build

D8 = "28px: 10k3@D8, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder and memory."""
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(bases, "_memory", {})
    bases.basis.cache_clear()
    yield tmp_path
    bases.basis.cache_clear()


def count_processes(monkeypatch):
    started, run = [], subprocess.run
    monkeypatch.setattr(bases.subprocess, "run", lambda *a, **k: started.append(a) or run(*a, **k))
    return started


@pytest.mark.parametrize("name", ["C4", "C8", "D1", "D4", "D8"])
def test_kernels_are_escnns(name):
    """Order, normalisation, band limit and initialisation are those of an R2Conv; only rounding
    (1e-6) differs.
    """
    from escnn import nn as enn
    from escnn.nn import init

    from support.escnn_reference import block_basis

    group = Group.parse(name)
    space = baking.gspace(group)
    regular, scalar = (
        enn.FieldType(space, 2 * [r]) for r in (space.regular_repr, space.trivial_repr)
    )
    for source, lifting in ((scalar, True), (regular, False)):
        convolution = enn.R2Conv(source, regular, 3, bias=False, recompute=True)
        mine = bases.basis(group, 3, lifting)
        assert (mine.kernels - block_basis(convolution)).abs().max() < 1e-6
        variances = init._generalized_he_init_variances(convolution.basisexpansion)
        assert torch.allclose(variances.view(4, -1), (mine.deviations / 2**0.5).expand(4, -1))


def test_the_kernel_of_a_matrix_is_one_and_the_same():
    """The same subspace, presented by other rows, has the same basis; escnn's own is a
    random one.
    """
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((3, 8))
    first, second = (
        baking.canonical_null(rows),
        baking.canonical_null(generator.standard_normal((5, 3)) @ rows),
    )
    assert first.shape == (8, 5)
    assert np.allclose(rows @ first, 0, atol=1e-12) and np.allclose(
        first.T @ first, np.eye(5), atol=1e-12
    )
    assert np.allclose(first, second, atol=1e-9)


def test_bakes_once_and_again_when_deleted(fresh, monkeypatch):
    started = count_processes(monkeypatch)
    group = Group.parse("C4")
    first = bases.basis(group, 3, False).kernels
    assert len(started) == 1 and [f.suffix for f in fresh.rglob("*") if f.is_file()] == [".npz"] * 4
    for _ in range(2):  # another process: nothing in memory
        bases._memory.clear()
        bases.basis.cache_clear()
        assert torch.equal(bases.basis(group, 3, False).kernels, first)
        assert torch.equal(
            bases.basis(group, 5, True).kernels[:, 0],
            bases.basis(group, 5, True).kernels[:, 1].rot90(-1, (-2, -1)),
        )
    assert len(started) == 1


def test_a_damaged_file_is_baked_again(fresh, monkeypatch):
    group = Group.parse("C4")
    arrays = {
        "scalar": np.ones((1, 4, 1, 3, 3)),
        "scalar_std": np.ones(1),
        "regular": np.ones((1, 4, 4, 3, 3)),
        "regular_std": np.ones(1),
    }
    bases._keep(bases._file(group, 3), arrays)
    whole = bases._file(group, 3).read_bytes()
    baked = []
    monkeypatch.setattr(
        bases,
        "_bake",
        lambda missing: (
            baked.append(missing),
            bases._memory.update({(group, 3, bases.version("escnn")): arrays}),
        ),
    )
    for content in (b"", whole[:500], whole[:-30], b"no such format", whole):
        bases._file(group, 3).write_bytes(content)
        bases._memory.clear()
        bases.load_bases([(group, 3)])
    assert len(baked) == 4 and all((group, 3) in missing for missing in baked)


def test_readers_never_see_half_a_file(fresh):
    """While four threads write the same file again and again, readers find all of it or nothing."""
    path = bases._file(Group.parse("C4"), 3)
    arrays = {
        name: np.random.default_rng(0).random((50, 200))
        for name in ("scalar", "scalar_std", "regular", "regular_std")
    }
    stop = threading.Event()

    def write():
        while not stop.is_set():
            bases._keep(path, arrays)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    while not path.exists():
        time.sleep(0.001)
    try:
        for _ in range(100):
            found = bases._read(path)
            assert found is not None and np.array_equal(found["regular"], arrays["regular"])
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_costs_time_only(fresh, monkeypatch):
    blocked = fresh / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("EQUISEARCH_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="Set EQUISEARCH_CACHE"):
        kernels = bases.basis(Group.parse("C2"), 3, True).kernels
    assert kernels.shape == (6, 2, 1, 3, 3)


@pytest.mark.slow
def test_concurrent_workers_share_the_folder(fresh):
    """Four processes find it empty at once; each gets the same basis, and only whole files are
    left.
    """
    code = (
        "from searchspace.groups import Group; from trainers.networks.bases import basis; "
        "print(basis(Group.parse('C4'), 3, False).kernels.double().mul(basis(Group.parse('C4'), "
        "3, False).kernels + 1).sum().item())"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = {worker.communicate()[0] for worker in workers}
    assert all(worker.returncode == 0 for worker in workers) and len(answers) == 1
    assert sorted(f.name for f in fresh.rglob("*") if f.is_file()) == [
        f"C4-{k}.npz" for k in (1, 3, 4, 5)
    ]


def test_refuses_the_empty_basis():
    with pytest.raises(ValueError, match="empty for kernel 2"):
        bases.basis(Group.parse("C4"), 2, True)
    with pytest.raises(ValueError, match="empty"):
        Architecture.parse("28px: 4k2@C8")


def test_a_large_network_builds_at_once_from_the_cache():
    """Seven layers over D8 with the bases on disk, without importing escnn (which alone takes
    seconds).
    """
    architecture = Architecture.parse(D8)
    build(architecture, channels=1, classes=10)  # bake, if nobody has
    code = (
        "import sys; from searchspace.architecture import Architecture; from "
        "trainers.networks.networks import build; "
        f"a = Architecture.parse('{D8}'); build(a, channels=1, classes=10); "
        "print('escnn' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
