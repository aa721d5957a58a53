"""escnn's sampled steerable bases, baked once per machine and kept on disk.

They lie in the cache folder (`trainers.cache`) and may be deleted at any time. A file's name holds
all that its content depends on (format, escnn's version, group, kernel), and is in the file. Files
appear whole (`trainers.files`), and two workers that sample the same basis write the same bytes, so
nothing is locked. Files that another user may have written are baked again.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from searchspace.groups import Group
from trainers import cache
from trainers.actions import act, permutation
from trainers.files import system_reason, write_whole

BASES_FORMAT = 1  # of the files; raise it when baking changes what they hold
BASIS_NAMES = ("scalar", "scalar_std", "regular", "regular_std")  # of the arrays in a file
# pixels: sampled along with what is missing, since starting escnn takes longer than all of them
USUAL_KERNELS = (1, 3, 4, 5)


@dataclass(frozen=True)
class Basis:
    """The steerable kernels from one field (scalar or regular) to one regular field of a group,
    sampled on pixels.
    """

    kernels: Tensor  # [size, |G|, 1 or |G|, kernel, kernel], float32
    deviations: Tensor  # [size]: of He's initialisation of the coefficients, for one incoming field


def load_bases(wanted: Iterable[tuple[Group, int]]) -> None:
    """Reads the bases of all (group, kernel) in `wanted` into memory; those that no file holds are
    sampled in one process.

    Kernels of 2 pixels are left out: their basis is empty.
    """
    missing = []
    for group, kernel in sorted(
        {(group, kernel) for group, kernel in wanted if kernel != 2}, key=str
    ):
        key = (group, kernel, version("escnn"))
        if key not in _memory:
            arrays = _cached(group, kernel)
            if arrays is None:
                missing.append((group, kernel))
            else:
                _memory[key] = arrays
    if missing:
        usual = [
            (group, kernel)
            for group, _ in missing
            for kernel in USUAL_KERNELS
            if _cached(group, kernel) is None
        ]
        _bake(list(dict.fromkeys(missing + usual)))


@lru_cache(maxsize=256)
def basis(group: Group, kernel: int, lifting: bool) -> Basis:
    """The basis of kernels to one regular field of `group`: from a scalar field if `lifting`, else
    from a regular one.

    Coefficients have escnn's order, normalisation and band limit (R2Conv's defaults, escnn 1.0.11).
    Elements on the pixel grid act on the kernels exactly, not to the 1e-7 of escnn's float32
    sampling (`exact_on_grid`).
    """
    if kernel == 2:
        raise ValueError(
            f"the band-limited basis of {group} is empty for kernel 2; use free filters or "
            "another kernel"
        )
    load_bases([(group, kernel)])
    arrays = _memory[group, kernel, version("escnn")]
    kind = "scalar" if lifting else "regular"
    return Basis(
        exact_on_grid(torch.from_numpy(arrays[kind]), group),
        torch.from_numpy(arrays[f"{kind}_std"]),
    )


def exact_on_grid(kernels: Tensor, group: Group) -> Tensor:
    """The kernels [size, |G|, in, k, k] with rows that are exact copies of each other under quarter
    turns and flips.

    An equivariant kernel's row of element h @ c is its row of c, moved by h. escnn samples every
    row by itself, in float32; here one row per orbit of the grid's elements is kept and the others
    are computed from it by index moves.
    """
    exact, done = torch.empty_like(kernels), set()
    for source in group.elements:
        if group.index(source) in done:
            continue
        for element in group.grid.elements:
            target = group.index(element @ source)
            row = act(kernels[:, group.index(source)], element)
            if kernels.shape[2] > 1:
                row = row[:, list(permutation(group, element.inverse))]
            exact[:, target] = row
            done.add(target)
    return exact


_memory: dict[tuple[Group, int, str], dict[str, np.ndarray]] = {}


def _file(group: Group, kernel: int) -> Path:
    return (
        cache.directory()
        / f"bases-{BASES_FORMAT}-escnn-{version('escnn')}"
        / f"{group}-{kernel}.npz"
    )


def _cached(group: Group, kernel: int) -> dict[str, np.ndarray] | None:
    """The cached arrays; None without a file of them, or without a cache."""
    try:
        return _read(_file(group, kernel))
    except cache.UnusableError:
        return None


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a cached file; None if it is missing, not whole, another's, or not ours
    (`trainers.cache.open_own`).
    """
    file = cache.open_own(path)
    if file is None:
        return None
    with file:
        return _arrays(file, _label(path))


def _arrays(file: BinaryIO | Path, label: str | None) -> dict[str, np.ndarray] | None:
    """The arrays of a file that is whole and holds that label, where one is given; else None."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if label is not None and str(arrays["label"]) != label:
                return None
            return {name: arrays[name] for name in BASIS_NAMES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _label(path: Path) -> str:
    """What a file says it is, so that it is not taken for another under whose name it was put."""
    return f"{path.parent.name}/{path.name}"


def _bake(missing: list[tuple[Group, int]]) -> None:
    """Samples the missing bases with escnn in a process of its own, keeps them in memory and, where
    possible, on disk.
    """
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{group}:{kernel}" for group, kernel in missing]
        done = subprocess.run(
            [sys.executable, "-m", "trainers.networks.baking", folder, *names],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(
                f"escnn could not sample the bases {', '.join(names)}:\n{done.stderr[-2000:]}"
            )
        for group, kernel in missing:
            arrays = _arrays(Path(folder) / f"{group}-{kernel}.npz", None)
            assert arrays is not None, "the baking process ended well but left no file"
            _memory[group, kernel, version("escnn")] = arrays
            try:
                path = _file(group, kernel)
            except cache.UnusableError as error:
                cache.say_once(
                    f"steerable bases are not kept ({error}); every process will sample them again"
                )
            else:
                _keep(path, arrays)


def _keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes `arrays` to `path`, whole or not at all; a folder that cannot be written costs time,
    not the result.
    """
    try:
        cache.make_folder(path.parent)
        content = io.BytesIO()
        labelled = {**arrays, "label": np.array(_label(path))}
        np.savez(content, **labelled)  # pyright: ignore[reportArgumentType]  # stubs of numpy 2
        write_whole(path, content.getbuffer(), private=True)
    except OSError as error:
        warnings.warn(
            f"cannot keep steerable bases in {path.parent} ({system_reason(error)}); every "
            "process will sample them again. Set EQUISEARCH_CACHE to a folder that only you can "
            "write.",
            stacklevel=2,
        )
