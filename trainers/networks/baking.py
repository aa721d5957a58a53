"""Sampling escnn's steerable bases: run in a process of its own, because it needs escnn and a
change to its linear algebra.

    python -m trainers.networks.baking FOLDER GROUP:KERNEL ...

writes FOLDER/GROUP-KERNEL.npz with, for kernels from a `scalar` and from a `regular` field to a
regular one, the sampled basis [size, |G|, 1 or |G|, kernel, kernel] and the standard deviation of
He's initialisation for each coefficient [size].

Only the sampled arrays leave this process: a training process then needs neither escnn's second of
import nor its memory.
"""

from __future__ import annotations

import sys
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np

from searchspace.groups import Group

FIELD_KINDS = ("scalar", "regular")


def canonical_null(matrix, use_sparse: bool = False, eps: float = 1e-12) -> np.ndarray:
    """An orthonormal basis of the kernel of `matrix`, as columns: the same on every machine and in
    every run.

    Replaces `escnn.group._numerical.null` (escnn 1.0.11), which passes a numpy.matrix to
    scikit-learn (a TypeError with scikit-learn 1.9.1: no D_N network can be built until the result
    is in escnn's cache) and takes the randomised decomposition's arbitrary basis, so that saved
    coefficients would mean other filters elsewhere. Here the projector, which is unique, is
    orthonormalised column by column. `eps` bounds the singular values that count as zero.
    """
    matrix = np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix, dtype=float)
    _, values, rows = np.linalg.svd(matrix, full_matrices=True)
    rank = int((values > max(eps, 1e-9)).sum())
    projector = rows[rank:].T @ rows[rank:]
    columns: list[np.ndarray] = []
    for candidate in projector.T:
        rest = candidate - sum((c * (c @ candidate) for c in columns), np.zeros(len(candidate)))
        if np.linalg.norm(rest) > 1e-3 and len(columns) < matrix.shape[1] - rank:
            columns.append(rest / np.linalg.norm(rest))
    return np.stack(columns, axis=1) if columns else np.zeros((matrix.shape[1], 0))


def repair_escnn() -> None:
    """Let escnn in this process build dihedral groups with any scikit-learn, and always the same
    bases.
    """
    from escnn.group import _numerical

    _numerical.null = canonical_null


class _Dense(np.ndarray):
    """An array that escnn may take for one of scipy's sparse matrices."""

    def todense(self) -> np.ndarray:
        return np.asarray(self)


def _dense_sylvester(rho_1: list[np.ndarray], rho_2: list[np.ndarray]) -> _Dense:
    """escnn's `build_sylvester_constraint` without sparse matrices, which at these sizes (2 to 8)
    are 10 times slower.
    """
    eye_1, eye_2 = np.eye(len(rho_1[0])), np.eye(len(rho_2[0]))
    return np.vstack([np.kron(eye_2, a) - np.kron(b.T, eye_1) for a, b in zip(rho_1, rho_2)]).view(
        _Dense
    )


def isolate_escnn() -> None:
    """Let escnn in this process neither read nor write its folder, where unrepaired processes leave
    other bases; and hurry.
    """
    from escnn.group import _clebsh_gordan, _numerical

    _numerical.build_sylvester_constraint = _clebsh_gordan.build_sylvester_constraint = (
        _dense_sylvester
    )
    for name in ("_clebsh_gordan_tensor", "_find_tensor_decomposition"):
        setattr(_clebsh_gordan, name, lru_cache(maxsize=None)(getattr(_clebsh_gordan, name).func))


def gspace(group: Group):
    """escnn's space of the plane under `group`."""
    from escnn import gspaces

    if group.mirror:
        return (
            gspaces.flip2dOnR2() if group.rotations == 1 else gspaces.flipRot2dOnR2(group.rotations)
        )
    return gspaces.trivialOnR2() if group.rotations == 1 else gspaces.rot2dOnR2(group.rotations)


def sample(group: Group, kernel: int) -> dict[str, np.ndarray]:
    """The arrays of one file, as escnn's R2Conv has them (float32). Raises ValueError where escnn's
    basis is empty.
    """
    from escnn import nn
    from escnn.nn import init

    space = gspace(group)
    regular = nn.FieldType(space, [space.regular_repr])
    sources = {"scalar": nn.FieldType(space, [space.trivial_repr]), "regular": regular}
    arrays = {}
    for kind, source in sources.items():
        convolution = nn.R2Conv(source, regular, kernel, bias=False, initialize=False)
        expansion = convolution.basisexpansion
        (block,) = (
            m for name, m in expansion.named_children() if name.startswith("block_expansion")
        )
        sampled = np.asarray(block.sampled_basis)
        arrays[kind] = sampled.reshape(*sampled.shape[:3], kernel, kernel)
        arrays[f"{kind}_std"] = init._generalized_he_init_variances(expansion).numpy()
    return arrays


def main(arguments: list[str]) -> None:
    """Sample every GROUP:KERNEL of the command line into its file."""
    warnings.filterwarnings("ignore")
    folder = Path(arguments[0])
    repair_escnn()
    isolate_escnn()
    for name in arguments[1:]:
        group, kernel = name.split(":")
        arrays = sample(Group.parse(group), int(kernel))
        path = folder / f"{group}-{kernel}.npz"
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]  # stubs of numpy 2


if __name__ == "__main__":
    main(sys.argv[1:])
