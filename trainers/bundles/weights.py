"""What the files of a bundle hold, seen without executing anything of them: their weights as
numbers, and pickles that would call functions.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.bundles.formats import BUNDLE_FORMATS
from trainers.files import open_whole, read_whole

# torch.export's numbers of the types that weights have
DTYPES = {7: torch.float32, 8: torch.float64}
CONFIG = "data/weights/model_weights_config.json"
MOST_CONFIG = 2**26  # bytes
# bytes of a member of a .pt2 archive that are looked through for pickles
LARGEST_MEMBER = 2**28


class NotReadError(ValueError):
    """The weights of a file cannot be read as numbers; the message says why."""


def differing_weights(folder: Path, name: str) -> tuple[list[str], int]:
    """(names of the weights in the format's file that are not those of model.safetensors, how many
    were compared).

    Every weight of a torch.export archive counts, and one that it lacks; of an ONNX graph those
    that kept their names. Raises NotReadError where the file does not show its weights.
    """
    from safetensors.torch import load

    try:
        expected = load(read_whole(folder / BUNDLE_FORMATS["safetensors"][0]))
    except Exception as error:  # the file's own check says how
        raise NotReadError("model.safetensors cannot be read") from error
    path = folder / BUNDLE_FORMATS[name][0]
    weights = _of_archive(path) if name == "torch.export" else _of_graph(path)
    if name == "torch.export":
        lacking = expected.keys() ^ weights.keys()
    else:
        weights = {key: value for key, value in weights.items() if key in expected}
        lacking = set()
    wrong = [
        key
        for key in weights.keys() & expected.keys()
        if weights[key].shape != expected[key].shape or not torch.equal(weights[key], expected[key])
    ]
    return sorted({*wrong, *lacking}), len(weights)


def _of_archive(path: Path) -> dict[str, Tensor]:
    try:
        with open_whole(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            twice = [member for member, count in Counter(names).items() if count > 1]
            if twice:
                raise NotReadError(f"it holds {twice[0]} twice")
            (config,) = [member for member in names if member.endswith(CONFIG)]
            if archive.getinfo(config).file_size > MOST_CONFIG:
                raise NotReadError(f"{config} is too large")
            folder = config.removesuffix(CONFIG.rpartition("/")[2])
            entries = json.loads(archive.read(config))["config"]
            return {
                key: _tensor(archive.read(folder + entry["path_name"]), entry)
                for key, entry in entries.items()
            }
    except NotReadError:
        raise
    except Exception as error:  # another version's archive, or a forged one, differs in any way
        raise NotReadError(f"it lists no weights ({type(error).__name__})") from error


def _tensor(data: bytes, entry: Mapping[str, Any]) -> Tensor:
    meta = entry["tensor_meta"]
    if entry["use_pickle"] or meta["dtype"] not in DTYPES:
        raise NotReadError("its weights are not plain numbers")
    sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
    values = torch.frombuffer(bytearray(data), dtype=DTYPES[meta["dtype"]])
    return values.as_strided(sizes, strides, meta["storage_offset"]["as_int"])


def _of_graph(path: Path) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load_model_from_string(read_whole(path)).graph
        return {
            entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
            for entry in graph.initializer
        }
    except Exception as error:  # weights in other files, or no graph
        raise NotReadError(f"its weights cannot be read ({type(error).__name__})") from error


def pickled_code(path: Path) -> str | None:
    """The name of a member of a .pt2 file that is a pickle which calls anything but torch's own
    builders of tensors; None if none is detected.

    It detects clumsy attacks only: a file without one is not run either. Raises ValueError or
    zipfile.BadZipFile if the archive is not whole.
    """
    with open_whole(path) as file, zipfile.ZipFile(file) as archive:
        if not any(name.endswith("archive_format") for name in archive.namelist()):
            # cut off, zipfile finds an archive inside
            raise ValueError("it lacks archive_format")
        for member in archive.infolist():
            if member.file_size <= LARGEST_MEMBER and _calls(archive.read(member)):
                return member.filename
    return None


def _calls(data: bytes) -> bool:
    if data.startswith(b"PK"):
        try:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception:  # refused, or torn
            return True
        return False
    names = set()
    try:
        names = {code.name for code, _, _ in pickletools.genops(data)}
    except Exception:  # numbers and texts are not pickles
        return False
    return bool(names & {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})
