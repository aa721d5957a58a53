"""What users of scikit-learn have as X and y, as arrays of images and labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from searchspace.geometry import counted
from trainers.data.formats.pixels import Scale, axes_of, channels_second, find_scale, scaled

IMAGES_AT_ONCE = 256  # images at once


def images_last(X: Any) -> np.ndarray:
    """X as [N, height, width, channels], of its own type.

    X is a NumPy array, a torch tensor or nested lists: [N, height, width], with channels (1 or 3)
    behind or in front of height and width, or rows [N, k * k] of square grey images. Raises
    ValueError for other shapes, and for values that are not numbers.
    """
    if hasattr(X, "toarray"):
        raise ValueError("X is a sparse matrix; give images as a dense array: X.toarray()")
    is_tensor = type(X).__module__.partition(".")[0] == "torch"
    array = X.detach().cpu().numpy() if is_tensor else _joined(X)
    if array.dtype.kind == "c":
        raise ValueError("X holds complex numbers: Complex data not supported; give real pixels")
    if array.dtype.kind not in "biuf":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"X must be images of one shape as numbers, and its values are of type "
                f"{array.dtype} ({error})"
            ) from None
    if array.ndim == 1:
        raise ValueError(
            f"X has the shape {array.shape}; it must be images [N, height, width] or rows of "
            "square images. Reshape your data, X[None] for a single image"
        )
    if array.ndim == 2 and not array.shape[1]:
        raise ValueError(
            f"X has 0 feature(s) (shape={array.shape}) while a minimum of 4 is required: give "
            "images [N, height, width], or rows of square images"
        )
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        if side * side != array.shape[1] or side < 2:
            raise ValueError(
                f"X has rows of {array.shape[1]} values, which are not square images; give images "
                "as [N, height, width] or [N, height, width, channels]"
            )
        array = array.reshape(-1, side, side)
    if not len(array):
        raise ValueError(f"X has the shape {array.shape}: 0 sample(s); give at least one image")
    axes = axes_of(array.shape, "of X", channels_first=is_tensor)
    return channels_second(array, axes).transpose(0, 2, 3, 1)


def _joined(X: Any) -> np.ndarray:
    """Rows as one array. Raises ValueError for images of several shapes."""
    try:
        return np.asarray(X)
    except ValueError as error:
        shapes = list(dict.fromkeys(np.shape(np.asarray(row)) for row in X))
        if len(shapes) < 2:
            raise
        raise ValueError(
            f"X holds images of several shapes, such as {shapes[0]} and {shapes[1]}; resize them "
            "to one, or search a folder of them: `equisearch start` resizes"
        ) from error


def class_labels(y: Any) -> np.ndarray:
    """y as a vector [N] of class labels: integers, text or booleans. Raises ValueError for others,
    among them numbers that are measured (regression).
    """
    if y is None:
        raise ValueError("y is None; fit requires y to be passed, but the target y is None")
    labels = column_or_1d(y.detach().cpu().numpy() if hasattr(y, "detach") else y, warn=True)
    if not len(labels):
        raise ValueError("y holds 0 labels: found 0 sample(s); give at least two classes")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("y holds NaN or infinite values; give a class for each image")
    if labels.dtype.kind == "O":
        _require_one_type(labels)
    check_classification_targets(labels)
    return labels


def _is_missing(label: Any) -> bool:
    # a comparison with pandas' NA has no truth value
    is_pandas = type(label).__name__ in ("NAType", "NaTType")
    return label is None or is_pandas or (isinstance(label, float) and math.isnan(label))


def _require_one_type(labels: np.ndarray) -> None:
    """Raises ValueError for objects, as pandas has them, of which some are missing or which cannot
    be sorted together.
    """
    missing = [i for i, label in enumerate(labels) if _is_missing(label)]
    if missing:
        raise ValueError(
            f"y holds {counted(len(missing), 'missing label')} (None, NaN, NA), first for image "
            f"{missing[0]}; give a class for each image, or leave such images out"
        )
    kinds = sorted({type(label).__name__ for label in labels})
    if len(kinds) > 1 and "str" in kinds:
        raise ValueError(
            f"y holds values of the types {', '.join(kinds)}; give all labels as text or all as "
            "integers, such as y.astype(str)"
        )


def scale_of(images: np.ndarray) -> Scale:
    """How the values of images [N, height, width, channels] become 0..255. Raises ValueError for
    values that pixels cannot have.
    """
    return find_scale(_blocks(images), images.dtype, "of X")


def as_bytes(images: np.ndarray, scale: Scale) -> Iterator[np.ndarray]:
    """The images as uint8 [n, channels, height, width], some at a time."""
    for block in scaled(_blocks(images), scale, "of X"):
        yield np.ascontiguousarray(block.transpose(0, 3, 1, 2))


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    return (
        images[start : start + IMAGES_AT_ONCE] for start in range(0, len(images), IMAGES_AT_ONCE)
    )
