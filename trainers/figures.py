"""Figures as files: what their names may be, and how they are written. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def check_name(path: Path) -> Path:
    """The path as it is. Raises ValueError unless its suffix says png, svg or pdf."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"a figure cannot be written as '{path.name}'; end its name in .png, .svg or .pdf"
        )
    return path


def write(figure: Figure, path: Path) -> Path:
    """The path of the written figure. Raises OSError, with nothing half written left, where it
    cannot be written.
    """
    path = check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        if path.is_file():
            path.unlink()
        raise OSError(
            f"the figure cannot be written to {path}: {error.strerror or error}; give another place"
        ) from error
    return path
