"""Models to audit, by name: functions that return one, and files."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from trainers.files import require_local

if TYPE_CHECKING:
    from torch import nn

PROGRAM_SUFFIXES = (".pt2", ".onnx")
# no architecture in text form is like this: those begin with a number
_FUNCTION = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def names_model(text: str) -> bool:
    """Whether `text` means a model: module:function, file.py:function, or a .pt2 or .onnx file."""
    text = text.strip()
    return text.lower().endswith(PROGRAM_SUFFIXES) or _FUNCTION.fullmatch(text) is not None


def open_model(source: str, *, run_code: bool = False) -> nn.Module:
    """The model that `source` names. Raises ValueError where there is none.

    A .pt2 file is opened only with `run_code`, since it may hold pickled objects, whose loading
    executes code. An ONNX file is read, never executed.
    """
    path = Path(source)
    if not source.lower().endswith(PROGRAM_SUFFIXES):
        from trainers.instruments.loading import load_model

        return load_model(source)
    require_local(source)
    if not path.is_file():
        raise ValueError(f"there is no file {source}; give the path of a .pt2 or .onnx file")
    if source.lower().endswith(".onnx"):
        from trainers.instruments.audit.onnx_module import from_onnx

        return from_onnx(path)
    if not run_code:
        raise ValueError(
            f"{source} may hold pickled objects, whose loading executes code; add --run-code if "
            "you trust its origin"
        )
    return _from_export(path)


def _from_export(path: Path) -> nn.Module:
    """The module in a file of `torch.export.save`."""
    import torch

    if not is_zipfile(path):  # torch would say so in its own log, too
        raise ValueError(f"{path} is not a file of torch.export.save: it is not a zip archive")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(path).module(check_guards=False)
    except Exception as error:  # of whatever the file holds
        raise ValueError(
            f"{path} is not a file of torch.export.save: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    # they refuse to be called, although evaluation is what an exported module does
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    return module
