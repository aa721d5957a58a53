"""Figures as files: what their names may be, and how they are written. Imports no torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.files import write_whole

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
        raise OSError(
            f"the figure cannot be written to {path}: {error.strerror or error}; give another place"
        ) from error
    return path
