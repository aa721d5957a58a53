"""Groups of images (patients, modules, slides) that must not be in two splits."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from searchspace.geometry import counted
from trainers.data.pools import Pool

# how tables and arrays write that a value is missing, in lower case
NO_GROUP = ("", "nan", "nat", "none", "null", "<na>")


def named_groups(values: np.ndarray, where: str, names: Sequence[str] | None = None) -> np.ndarray:
    """The groups [N] as text; `names` are what messages call the images (None: by their place).

    Raises ValueError where a group is missing (empty, NaN, None, <NA>): as one group, images that
    have nothing in common would be kept together, and as groups of their own, images of one patient
    might be in two splits.
    """
    groups = np.asarray(values).reshape(-1).astype(str)
    missing = np.flatnonzero(np.isin(np.char.lower(np.char.strip(groups)), NO_GROUP))
    if len(missing):
        first = int(missing[0])
        raise ValueError(
            f"{where} is empty in {counted(len(missing), 'row')}, first for "
            f"{f'image {first}' if names is None else names[first]}; give every image a group "
            "(one of its own, where it shares nothing with another)"
        )
    return groups


def groups_in_names(pattern: str, names: Sequence[str]) -> np.ndarray:
    """The group of each file, as text [N]: what the one group of the regular expression finds in
    its name. Raises ValueError for another pattern, and for a name in which it finds nothing.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"data.group_by '{pattern}' is not a regular expression ({error}); write one with one "
            r"group in brackets, such as (patient\d+)"
        ) from None
    if compiled.groups != 1:
        raise ValueError(
            f"data.group_by '{pattern}' has {counted(compiled.groups, 'group')} in "
            "brackets; it needs one, "
            r"which finds the group of an image in its file name, such as (patient\d+)"
        )
    matches = [compiled.search(name) for name in names]
    missing = [name for name, match in zip(names, matches) if match is None or match[1] is None]
    if missing:
        raise ValueError(
            f"data.group_by '{pattern}' finds no group in {len(missing)} of {len(names)} file "
            f"names, such as {missing[0]}; change the pattern so that every image has a group"
        )
    return np.array([match[1] for match in matches if match is not None], dtype=str)


def require_groups(groups: np.ndarray, least: int, where: str) -> None:
    """Raises ValueError where there are fewer groups than splits are drawn from these images."""
    values = np.unique(groups)
    if len(values) < least:
        raise ValueError(
            f"data.group_by makes {counted(len(values), 'group')} of the {where} "
            f"({', '.join(map(str, values[:3]))}), and {least} splits need a group each; choose "
            "another column or pattern, or leave group_by out"
        )


def require_apart(one: Pool, other: Pool, names: tuple[str, str]) -> None:
    """Raises ValueError where a group is in two official splits."""
    if one.groups is None or other.groups is None:
        return
    common = np.intersect1d(one.groups, other.groups)
    if len(common):
        raise ValueError(
            f"the {names[0]} and the {names[1]} images share "
            f"{counted(len(common), 'group')} of data.group_by, such as '{common[0]}'; move "
            "the images of each group to one split"
        )


def group_warnings(groups: np.ndarray, wanted: int, drawn: int) -> list[str]:
    """What a user should know of `drawn` validation images, whole groups of a pool with `groups`
    [N], where that is far from as many as were `wanted`.
    """
    if wanted / 2 <= drawn <= 2 * wanted:
        return []
    values, counts = np.unique(groups, return_counts=True)
    largest = int(counts.argmax())
    return [
        f"groups (data.group_by) are kept whole, and so {drawn} images validate where about "
        f"{wanted} were meant: the largest of {counted(len(values), 'group')}, "
        f"'{values[largest]}', has {counts[largest]} of {len(groups)} images; divide it, if its "
        "parts are independent, or give the splits yourself (a column `split`)"
    ]


def take_groups(
    labels: np.ndarray, groups: np.ndarray, wanted: int, seed: tuple[int, ...], keep: int = 0
) -> np.ndarray:
    """Indices of whole groups with about `wanted` images, every class as nearly in proportion as
    groups allow: the fitting fold of scikit-learn's StratifiedGroupKFold.

    With `keep`, that many groups of each class stay behind and one is taken, with more images than
    `wanted` where it cannot be otherwise, and where groups allow.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    folds = int(np.clip(round(len(labels) / max(1, wanted)), 2, len(np.unique(groups))))
    state = int(np.random.default_rng(seed).integers(2**31))
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.unique(labels, return_counts=True)[1]
    folds = max(2, min(folds, int(counts.max())))
    import warnings

    def misfit(part: np.ndarray) -> tuple[int, int]:
        rest = np.unique([np.delete(labels, part), np.delete(groups, part)], axis=1)[0]
        here = len(np.unique(labels[part]))
        left = np.count_nonzero(np.unique(rest, return_counts=True)[1] >= max(1, keep))
        return 2 * len(counts) - here - left, abs(len(part) - wanted)

    best: np.ndarray | None = None
    for number in range(folds, 1, -1) if keep else (folds,):
        splitter = StratifiedGroupKFold(number, shuffle=True, random_state=state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few members: checked later
            parts = [part for _, part in splitter.split(np.zeros(len(labels)), labels, groups)]
        best = min(parts if best is None else [best, *parts], key=misfit)
        if not misfit(best)[0]:
            break
    assert best is not None, "there are two folds at least"
    return np.random.default_rng(seed).permutation(best)
