"""Labels as files and arrays hold them, as class numbers and names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from searchspace.geometry import counted

ALL_DIFFERENT = 10  # labels, as many classes, that cannot be meant as classes
LONGEST = 1000  # characters of a class name
# what programs write in place of a label that is missing
PERHAPS_MISSING = ("nan", "null", "nat", "<na>", "n/a", "#n/a")
JOINING = ("|", ";", ",", "+", "&", "/")  # what joins the names of several labels
LABEL_RULE = "a label is a class: an integer, or text"


def class_numbers(values: Any, where: str) -> np.ndarray:
    """The labels [N] or [N, 1] as an array [N] of integers or of text. `where` says in messages
    what they are the labels of.

    Raises ValueError for labels of another shape, of fractions, of objects, or that are missing.
    """
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        more = (
            "; for several labels per image say `data: {task: multilabel}`, for numbers "
            "`data: {task: regression}`; of one-hot labels give their argmax"
            if labels.ndim == 2
            else ""
        )
        raise ValueError(
            f"the labels of {where} have the shape {labels.shape}; they must be [images] or "
            f"[images, 1]{more}"
        )
    if labels.dtype.kind == "b":
        return labels.astype(np.int64)
    if labels.dtype.kind in "iu" and labels.max(initial=0) <= np.iinfo(np.int64).max:
        return labels.astype(np.int64)
    if labels.dtype.kind == "O" and all(isinstance(value, str) for value in labels):
        labels = labels.astype(str)
    if labels.dtype.kind == "U":
        empty = np.flatnonzero(np.char.strip(labels) == "")
        if len(empty):
            raise ValueError(
                f"{where} has {counted(len(empty), 'empty label')}, the first is that of image "
                f"{int(empty[0])}; give every image a label, or leave it out"
            )
        return labels
    example = f", such as {labels[0]}" if len(labels) else ""
    remedy = (
        "round or threshold them, or give them as integers (labels.astype(int)); to predict "
        "numbers say `data: {task: regression}`"
        if labels.dtype.kind == "f"
        else "give integers or text"
    )
    raise ValueError(
        f"the labels of {where} are of type {labels.dtype}{example}; {LABEL_RULE}: {remedy}"
    )


def class_names(labels: np.ndarray, where: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes of the training labels [N], in the order of their numbers: `names`
    where the files give them, else the labels themselves, sorted.

    Raises ValueError for fewer than two classes, for labels that `names` does not have, and for two
    classes of one name.
    """
    require_distinct(names or (), where)
    if names is not None and labels.dtype.kind == "i":
        highest = int(labels.max(initial=0))
        if labels.min(initial=0) < 0 or highest >= len(names):
            wrong = highest if highest >= len(names) else int(labels.min())
            raise ValueError(
                f"a label of {where} is {wrong}, beside "
                f"{counted(len(names), 'class name')}; labels "
                f"must be 0 to {len(names) - 1}"
            )
        return tuple(names)
    present = sorted_classes(labels)
    if len(present) < 2:
        raise ValueError(
            f"{where} {'has the one class ' + repr(present[0]) if present else 'has no label'}; a "
            "classifier needs images of two classes at least"
        )
    if len(present) == len(labels) >= ALL_DIFFERENT:
        raise ValueError(
            f"every one of the {counted(len(labels), 'image')} of {where} has a label of its own, "
            f"such as {present[0]!r}; a class needs several images: name the column that holds "
            "classes (columns.label), or, to predict numbers, say `data: {task: regression}`"
        )
    longest = max(present, key=len)
    if len(longest) > LONGEST:
        raise ValueError(
            f"a label of {where} has {counted(len(longest), 'character')} ({longest[:30]!r}...); a "
            f"label is the name of a class, of {LONGEST:,} at most"
        )
    return tuple(present)


def require_distinct(names: Sequence[str], where: str) -> None:
    """Raises ValueError where two classes, labels or targets have one name: predictions by name
    would be one.
    """
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"the names for {where} hold {twice!r} twice; give every class, label or target a name "
            "of its own"
        )


def doubtful_classes(names: Sequence[str], labels: np.ndarray) -> list[str]:
    """What a user should know of classes: names that differ by spaces and capitals alone, and
    classes without an image among `labels` [N].
    """
    unused = [repr(names[i]) for i in sorted({*range(len(names))} - {*np.unique(labels).tolist()})]
    said = [
        f"no image has the class {', '.join(unused[:5])}{', ...' if len(unused) > 5 else ''}; "
        "remove the name, or add images"
    ]
    missing = [repr(name) for name in names if name.strip().casefold() in PERHAPS_MISSING]
    if missing:
        said = [
            *(said if unused else ()),
            f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} taken for a class, "
            "though labels that are missing are often written so; if they are, leave these images "
            "out",
        ]
    return [*_alike(names), *_joined(names), *(said if unused or missing else ())]


def _joined(names: Sequence[str]) -> list[str]:
    """A doubt where a class is named by several others, as images of several labels are."""
    for mark in JOINING:
        for name in names:
            parts = [part.strip() for part in name.split(mark)]
            if len(parts) > 1 and set(parts) <= {*names}:
                return [
                    f"the class {name!r} is named by {' and '.join(map(repr, parts[:3]))}, which "
                    "are classes too; if images have several labels, say `data: {task: "
                    "multilabel}` (columns.separator is what joins them)"
                ]
    return []


def _alike(names: Sequence[str]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(plain_name(name), []).append(name)
    same = [group for group in kinds.values() if len(group) > 1]
    return [
        f"{', '.join(map(ascii, group))} are different classes, though they differ by spaces, "
        "capitals, zeros (01, 1.0) or the encoding of characters alone; if they are one, give them "
        "one name"
        for group in same[:3]
    ]


def plain_name(name: str) -> str:
    """A class name without what people do not mean to tell classes apart by: spaces at the ends and
    repeated ones, capitals, invisible characters, how characters are encoded (Unicode forms),
    zeros before a whole number and behind its point.
    """
    text = unicodedata.normalize("NFKC", name)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = " ".join(text.split()).casefold()
    number = re.fullmatch(r"0*([0-9]+)(\.0+)?", text)
    return number[1] if number else text


def fault_of_test(
    labels: np.ndarray, trained: np.ndarray, classes: Sequence[str], where: str, named: bool
) -> str | None:
    """Why images with these labels cannot be the test images of a network that is `trained` on
    those; None where they can. `named` as for `numbered`.
    """
    try:
        numbers = numbered(labels, classes, where, named=named)
    except ValueError as error:
        return str(error)
    present = np.unique(numbered(trained, classes, where, named=named))
    missing = [classes[number] for number in present if number not in numbers]
    if not missing:
        return None
    more = f" and {len(missing) - 3} more" * (len(missing) > 3)
    return f"{where} has no image of the class {', '.join(map(repr, missing[:3]))}{more}; add some"


def without_test(fault: str | None) -> tuple[str, ...]:
    """What a user should know of test images with a fault; () for none."""
    if fault is None:
        return ()
    return (f"the test images cannot be used, though a search goes on without them: {fault}",)


def sorted_classes(labels: np.ndarray) -> list[str]:
    """The classes among the labels [N] as text, integers (also as text) by their value."""
    present = [str(value) for value in np.unique(labels)]
    try:
        return sorted(present, key=int)
    except ValueError:
        return present


def numbered(
    labels: np.ndarray, classes: Sequence[str], where: str, named: bool = False
) -> np.ndarray:
    """The labels [N] as numbers int64 [N] of `classes`; `named`: integers are these numbers
    already. Raises ValueError for a label that is not among the classes.
    """
    if named and labels.dtype.kind == "i":
        number = {value: value for value in range(len(classes))}
    else:
        number = {name: i for i, name in enumerate(classes)}
        labels = labels.astype(str)
    values, inverse = np.unique(labels, return_inverse=True)
    unknown = [str(value) for value in values if value not in number]
    if unknown:
        raise ValueError(
            f"{where} has the label {unknown[0]!r}, which the training images do not have (their "
            f"classes are {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}); correct "
            "it, or remove these images"
        )
    return np.array([number[value] for value in values.tolist()], dtype=np.int64)[inverse]
