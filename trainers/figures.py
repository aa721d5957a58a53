"""Figures as files: what their names may be, and how they are written. Imports no torch."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.files import require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")


def check_name(path: Path) -> Path:
    """The path as it is. Raises ValueError unless its suffix says png, svg or pdf."""
    path = Path(path)
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise ValueError(
            f"a figure cannot be written as '{path.name}'; end its name in .png, .svg or .pdf"
        )
    return path


def require_figure(path: Path) -> None:
    """Raises ValueError for another suffix than `check_name` takes, OSError where no figure can be
    written: before what takes long, to draw it.
    """
    path = check_name(path)
    try:
        require_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    except OSError as error:
        raise _unwritable(path, error) from error


def write(figure: Figure, path: Path) -> Path:
    """The path of the figure, written whole or not at all; what lay there before is replaced.
    Raises OSError where it cannot be written.
    """
    path, image = check_name(path), io.BytesIO()
    try:
        figure.savefig(image, format=path.suffix[1:].lower(), dpi=150)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, image.getbuffer())
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> OSError:
    return OSError(
        f"the figure cannot be written to {path}: {error.strerror or error}; give another place"
    )
