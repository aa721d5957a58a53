"""Models that a user brings: loading them by name, and checking that they fit the images."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.geometry import counted
from trainers.instruments.feature_maps import Forward, Normalise, measuring, pixels


def check_model(
    model: Forward, images: Tensor, classes: int, normalise: Normalise | None = None
) -> None:
    """Runs the model once on these images as `measure` will. Raises ValueError where it does not
    take them, or does not give `classes` logits.
    """
    shape = list(images.shape)
    with measuring(model), torch.no_grad():
        batch = pixels(images, model)
        try:
            logits = model(normalise(batch) if normalise else batch)
        except Exception as error:  # the user's code
            said = " ".join(str(error).split())[:300]
            advice = several_inputs(model) or (
                "give the study whose data it was made for (--data), or a model for these"
            )
            raise ValueError(
                f"the model does not take images of shape {shape}: {type(error).__name__}: "
                f"{said}; {advice}"
            ) from error
    logits = getattr(logits, "tensor", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        given = (
            f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        )
        wrap = "; wrap it in a module that does" if isinstance(logits, (dict, list, tuple)) else ""
        raise ValueError(
            f"the model returned {given} for {counted(len(images), 'image')}; it must "
            f"return logits [batch, classes]{wrap}"
        )
    if logits.shape[1] != classes:
        raise ValueError(
            f"the model gives {counted(logits.shape[1], 'logit')} for each image, but the data has "
            f"{counted(classes, 'class')}; give a model for these classes, or "
            "the study whose data it was made for (--data)"
        )


def several_inputs(model: Any) -> str:
    """What to do about a module that needs more than one input; empty for others."""
    try:
        parameters = inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):
        return ""
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) < 2:
        return ""
    return (
        f"it takes {len(needed)} inputs ({', '.join(needed)}): wrap it in a module that takes "
        "images alone"
    )


def load_model(source: str) -> nn.Module:
    """The module that `module:function` or `path/to/file.py:function` returns when it is called
    without arguments.

    Raises ValueError where there is no such module or function, where it fails, or where it returns
    anything but a torch.nn.Module.
    """
    place, _, name = source.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"'{source}' does not name a model; write module:function or file.py:function, where "
            "the function returns the model"
        )
    function = getattr(_imported(place), name, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {name}; name one that returns the model")
    try:
        model = function()
    except (Exception, SystemExit) as error:  # the user's code
        raise ValueError(
            f"your function failed: {type(error).__name__}: {error}; {source} is called without "
            "arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{source} returned {type(model).__name__}; it must return a torch.nn.Module, which "
            "maps images to logits"
        )
    return model


def _imported(place: str) -> Any:
    """The module that a file's path or a module's name means. Raises ValueError where it cannot be
    imported.
    """
    if place.endswith(".py") and not Path(place).is_file():
        raise ValueError(f"there is no file {place}; give the path of a Python file")
    try:
        return _from_file(Path(place)) if place.endswith(".py") else _by_name(place)
    except (Exception, SystemExit) as error:  # the user's code
        hint = (
            "; run in its folder, or write file.py:function"
            if isinstance(error, ModuleNotFoundError)
            else ""
        )
        raise ValueError(
            f"{place} cannot be imported: {type(error).__name__}: {error}{hint}"
        ) from error


def _by_name(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the folder one stands in, as `python -m` finds them
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    imported_before = path.stem in sys.modules
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if not imported_before:
            sys.modules.pop(path.stem, None)
        raise
    return module
