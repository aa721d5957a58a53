"""Stratified splits that depend on labels and a seed only, and in which no class is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from searchspace.geometry import counted
from trainers.data.grouping import group_warnings, require_apart, require_groups, take_groups
from trainers.data.pools import Source
from trainers.settings import Data


def draw_split(source: Source, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images in the training pool, and of the validation images in theirs.

    Raises ValueError where the data has fewer images than `data` asks for, or where a class would
    be missing from a part.
    """
    labels = source.train.labels
    _check_groups(source, data)
    held_out = _held_out(source, data)
    free = remaining_indices(len(labels), held_out)
    if data.folds is not None and source.validation is not None:
        raise ValueError(
            "data.folds divides the training images, and these have validation images of their "
            "own; leave folds out"
        )
    if source.validation is None:
        choose = _validation if data.folds is None else _fold
        validation = choose(source, data, free)
        left = remaining_indices(len(labels), held_out, validation)
        if (data.train or 0) > len(left):  # whole groups are in the other splits
            raise ValueError(
                f"data asks for {data.train} training images, and {len(left)} are left by the "
                "groups of the other splits; lower `train:`"
            )
        train = left[take(labels[left], data.train or len(left), (data.seed, 3))]
        drawn = labels[validation]
    else:
        official = source.validation.labels
        validation = _part(official, data.validation, (data.seed, 2), "validation")
        train = _part(labels, data.train, (data.seed, 3), "train")
        drawn = official[validation]
    check_classes(source, "train", labels[train])
    check_classes(source, "validation", drawn)
    return train, validation


def split_warnings(source: Source, data: Data, train: int, validation: int) -> list[str]:
    """What a user should know of how many images `draw_split` took."""
    groups = source.train.groups
    if groups is None or source.validation is not None or data.folds is not None:
        return []
    wanted = data.validation or source.validation_images or round((train + validation) / 5)
    return group_warnings(groups, wanted, validation)


def draw_test(source: Source, data: Data, labels: np.ndarray) -> np.ndarray:
    """Indices of the test images in the pool with these `labels`: the official test split, or the
    training pool where test images are taken from it. Raises ValueError as `draw_split`.
    """
    if source.test is None:
        return _held_out(source, data)
    index = _part(labels, data.test, (data.seed, 1), "test")
    check_classes(source, "test", labels[index])
    return index


def check_classes(source: Source, part: str, labels: np.ndarray) -> None:
    """Raises ValueError where a class that the training pool holds is missing among the `labels` of
    a part (`train`, `validation` or `test`). Other tasks are checked by their targets
    (`trainers.data.formats.targets`).
    """
    if source.task != "classification":
        return
    num_classes = len(source.classes)
    pool = np.bincount(source.train.labels, minlength=num_classes)
    drawn = np.bincount(labels, minlength=num_classes)
    missing = [
        f"'{name}' ({count} in all)"
        for name, count, here in zip(source.classes, pool, drawn)
        if count and not here
    ]
    if not missing:
        return
    official = {"validation": source.validation, "test": source.test}.get(part) is not None
    if source.train.groups is not None and not official:
        lost = source.train.labels == next(
            i for i in range(num_classes) if pool[i] and not drawn[i]
        )
        count = len(np.unique(source.train.groups[lost]))
        remedy = (
            f"whole groups (group_by) are in one split, and the first is in {count}; add groups"
        )
    else:
        remedy = _remedy(part, official)
    raise ValueError(
        f"the {part} split, {counted(len(labels), 'image')} of {np.count_nonzero(drawn)} of the "
        f"{counted(np.count_nonzero(pool), 'class')}, holds no image of "
        f"{first_names(missing)}; every class "
        f"must be in every split; {remedy}"
    )


def _remedy(part: str, official: bool) -> str:
    return (
        f"add images of these classes to it, ask for more images by `{part}:`, or remove it"
        if official
        else f"add images, raise `{part}:`, or remove these classes"
    )


def first_names(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    text = ", ".join(names[:5])
    return text if len(names) <= 5 else f"{text} and {len(names) - 5} more"


def evenly_spaced(count: int, most: int) -> slice:
    """Which of `count` items to take where `most` are enough: from the whole range at equal
    distances, so that sorted classes are all met.
    """
    step = max(1, count // most)
    return slice(0, step * most, step)


def shares(counts: np.ndarray, total: int, keep: int) -> np.ndarray:
    """How many of `total` images each class gives: in proportion to `counts`, at least one and
    leaving at least `keep`.

    Rounding is by largest remainder. A class gives one at least only if `total` reaches the number
    of classes. `total` must not exceed the sum of counts less `keep` per class (the caller has
    checked it).
    """
    most = np.maximum(counts - keep, 0)
    exact = total * counts / counts.sum()
    least = np.minimum(1 if total >= np.count_nonzero(counts) else 0, most)
    taken = np.clip(np.floor(exact).astype(np.int64), least, most)
    while taken.sum() != total:
        step = 1 if taken.sum() < total else -1
        movable = taken < most if step == 1 else taken > least
        gain = np.where(movable, step * (exact - taken), -np.inf)
        taken[np.argmax(gain)] += step
    return taken


def take(labels: np.ndarray, total: int, seed: tuple[int, ...], keep: int = 0) -> np.ndarray:
    """Indices of `total` images drawn from every class in proportion, in random order.

    `keep` images of each class at least stay behind. Of two calls with the same seed and labels the
    smaller sample is nearly (up to rounding per class) a subset of the larger one.
    """
    rng = np.random.default_rng(seed)
    _classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = rng.permutation(len(labels))
    # class by class, shuffled inside
    order = order[np.argsort(inverse[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    taken = shares(counts, total, keep)
    chosen = np.concatenate([order[start : start + count] for start, count in zip(starts, taken)])
    return rng.permutation(chosen)


def remaining_indices(length: int, *taken: np.ndarray | Sequence[int]) -> np.ndarray:
    """The indices below `length` that are in none of `taken`, ascending."""
    free = np.ones(length, dtype=bool)
    for part in taken:
        free[part] = False
    return np.flatnonzero(free)


def _check_groups(source: Source, data: Data) -> None:
    """Raises ValueError for fewer groups than splits, and for a group in two official splits."""
    pool, official = source.train, source.validation
    if pool.groups is None:
        return
    least = (data.folds or 1 + (official is None)) + source.holds_out_test
    if least > 1:
        require_groups(pool.groups, least, "images")
    if official is not None:
        require_apart(pool, official, ("training", "validation"))


def _validation(source: Source, data: Data, free: np.ndarray) -> np.ndarray:
    """Indices of the validation images among those of the training pool that are `free`."""
    num_classes = len(np.unique(source.train.labels[free]))
    most = len(free) - num_classes  # one image of each class is left for training
    fifth = max(num_classes, round(len(free) / 5))
    wanted = data.validation or min(source.validation_images or fifth, most)
    if wanted > most or (data.train or 0) > len(free) - wanted:
        raise ValueError(
            f"data asks for {data.train or 'some'} training and {wanted} validation images, but "
            f"only {len(free)} are there for both in {len(source.classes)} "
            f"classes{', after the test images' if source.holds_out_test else ''}; "
            "lower `train:` or `validation:`"
        )
    return _taken(source, free, max(1, wanted), (data.seed, 2), keep=1)


def _fold(source: Source, data: Data, free: np.ndarray) -> np.ndarray:
    """Indices of the images of the fold `data.fold` among those of the training pool that are
    `free`: by scikit-learn's StratifiedKFold, or StratifiedGroupKFold where there are groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import

    folds, labels = data.folds or 2, _with_strata(source, free, data.folds or 2)
    counts = np.bincount(source.train.labels[free], minlength=len(source.classes))
    named_classes = source.classes if source.task == "classification" else ()
    few = [f"'{n}' ({c})" for n, c in zip(named_classes, counts) if 0 < c < folds]
    if few:
        raise ValueError(
            f"data.folds is {folds}, and {first_names(few)} {'has' if len(few) == 1 else 'have'} "
            "fewer images, without those kept for the test; add images, or take fewer folds"
        )
    state = int(np.random.default_rng((data.seed, 4)).integers(2**31))
    groups = source.train.groups
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=state)
    parts = splitter.split(labels, labels, None if groups is None else groups[free])
    return free[[part for _, part in parts][data.fold]]


def _with_strata(source: Source, free: np.ndarray, least: int) -> np.ndarray:
    """What the images that are `free` are drawn by: their labels, or pairs of label and stratum
    where each pair has `least` images.
    """
    labels = source.train.labels[free]
    if source.strata is None:
        return labels
    pairs = np.stack([labels, source.strata[free]])
    both = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)
    return both if np.bincount(both).min() >= least else labels


def _held_out(source: Source, data: Data) -> np.ndarray:
    """Indices of the test images that are taken from the training pool."""
    labels = source.train.labels
    if not source.holds_out_test:
        return np.empty(0, dtype=np.int64)
    # two images of each class are left to train and validate
    counts = np.bincount(labels)
    most = int(np.maximum(counts - 2, 0).sum())
    wanted = data.test or min(max(np.count_nonzero(counts), round(len(labels) / 5)), most)
    if wanted > most:
        raise ValueError(
            f"data asks for {counted(wanted, 'test image')}, but of "
            f"{counted(len(labels), 'image')} "
            f"in {counted(len(source.classes), 'class')} at most {most} can be spared; "
            "lower `test:`"
        )
    index = _taken(source, np.arange(len(labels)), int(wanted), (data.seed, 1), keep=2)
    check_classes(source, "test", labels[index])
    return index


def _taken(
    source: Source, free: np.ndarray, wanted: int, seed: tuple[int, ...], keep: int
) -> np.ndarray:
    """Indices of about `wanted` images of the training pool among those that are `free`: whole
    groups where it has groups, else from every class (and stratum) in proportion.
    """
    labels, groups = source.train.labels[free], source.train.groups
    if groups is not None:
        spared = keep if source.task == "classification" else 0
        return free[take_groups(labels, groups[free], wanted, seed, spared)]
    drawn_by = _with_strata(source, free, keep + 1)
    if wanted > np.maximum(np.bincount(drawn_by) - keep, 0).sum():
        drawn_by = labels
    return free[take(drawn_by, wanted, seed, keep)]


def _part(labels: np.ndarray, wanted: int | None, seed: tuple[int, int], what: str) -> np.ndarray:
    """Indices of `wanted` images of an official split; None: all, shuffled."""
    if wanted is not None and wanted > len(labels):
        raise ValueError(
            f"data asks for {counted(wanted, 'image')} of the {what} split, which has "
            f"{len(labels):,}; lower "
            f"`{what}:`"
        )
    return take(labels, wanted or len(labels), seed)
