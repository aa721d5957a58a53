"""The files of a bundle: how each format is written, and how it is loaded again and run.

A runner maps images float32 [batch, channels, height, width] in 0..1 to logits [batch, classes],
from the files alone. `runner` executes code that lies in the bundle; `careful_runner` reads nothing
but numbers and an ONNX graph, for bundles of unknown origin.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import re
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.bundles import model as standalone
from trainers.bundles.model import STATE, Model
from trainers.bundles.onnx_graph import for_onnx, refuse_external_data
from trainers.data.tasks import Outputs
from trainers.files import open_whole, read_whole
from trainers.networks import plain
from trainers.networks.fold import description, fold, mean_network, to_units
from trainers.networks.networks import Network
from trainers.settings import Corners

Runner = Callable[[Tensor], Tensor]

MANIFEST, CARD, SOURCE = "bundle.json", "README.md", "model.py"
SIGNATURE = f"{MANIFEST}.sig"
BUNDLE_FORMATS = {
    "torch": (SOURCE, STATE),
    "safetensors": ("model.safetensors",),
    "torch.export": ("model.pt2",),
    "onnx": ("model.onnx",),
}
REQUIRED = ("torch", "safetensors")  # the others may be refused, with a reason
CHECK_BATCH = 128  # images per forward; larger ones were slower on a CPU
INPUT, OUTPUT = "images", "logits"  # names in the ONNX graph
VALUES = "values"  # the output's name where it is no logits, but targets


# SHA-256 of every earlier text of model.py in a bundle. When plain.py or model.py changes, add the
# hash of the text before, so that bundles with it are still recognised; the present text is
# compared as a whole.
WRITTEN = frozenset(
    {
        "5fe0b83f01dcd1ea1760cb7a8d736e967770c761f46f2979b30915f24a33f2f1",
        "507ddfc79e498c54a3613b531fd2979c3b1f18225308afae67920392569ff169",
        "7c4a01c5aac0932e0f54be263431e876919632f9eada71d8dd0e65aa014cf61f",
        "e344c3708baae38c7abf82bf285194357d473aec5d8c7053a6e0cd033eb056c3",
        "dec5b42fb059ad6e8e064d15054bd078581672366473865440bb8bce9615a883",
    }
)


class FormatError(ValueError):
    """One format cannot hold this model; the message says why."""


class NeedsCodeError(ValueError):
    """A format cannot be loaded without executing code of the bundle; the message says which file
    holds it.
    """


def content_of(
    network: Network,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fit: str,
    classes: tuple[str, ...],
    members: int = 1,
    corners: Corners = "black",
    outputs: Outputs | None = None,
) -> dict[str, Any]:
    """The plain values that `standalone.Model` is built from, besides its state; `members` is the
    number of networks whose mean it is, `outputs` what they predict (None: classes).
    """
    content = {
        "network": description(network),
        "mean": list(mean),
        "std": list(std),
        "fit": fit,
        "classes": list(classes),
    }
    if corners in ("circle", "crop"):  # what the network does to upright images too
        content["corners"] = corners
    if outputs is not None and outputs.task != "classification":
        content["task"] = outputs.task
    if outputs is not None and outputs.task == "regression":
        content |= {"shift": list(outputs.shift), "scale": list(outputs.scale)}
    return content if members == 1 else {**content, "members": members}


def model_of(network: Network | Sequence[Network], content: dict[str, Any]) -> Model:
    """The folded network (or the mean of several) with its normalisation, on the CPU, in
    evaluation; the network stays as it is. Targets are in the user's units: the way back from
    standardised ones lies in the last layer.
    """
    networks = (network,) if isinstance(network, Network) else network
    model = Model(content)
    folded = mean_network(map(fold, networks), content.get("task", "classification"))
    if "scale" in content:
        to_units(folded, content["shift"], content["scale"])
    model.network.load_state_dict(
        {name: value.cpu() for name, value in folded.state_dict().items()}
    )
    return model.eval().requires_grad_(False)


def write_format(model: Model, content: dict[str, Any], folder: Path, name: str) -> None:
    """Writes the files of one of FORMATS into `folder`. Raises FormatError if it cannot hold this
    model.
    """
    {
        "torch": _write_torch,
        "safetensors": _write_safetensors,
        "torch.export": _write_export,
        "onnx": _write_onnx,
    }[name](model, content, folder)


def runner(folder: Path, name: str) -> Runner:
    """One format, loaded from its files, whose code is executed: the library's own errors pass
    through.
    """
    return {
        "torch": _run_torch,
        "safetensors": _run_safetensors,
        "torch.export": _run_export,
        "onnx": _run_onnx,
    }[name](folder)


def careful_runner(folder: Path, name: str, content: dict[str, Any]) -> Runner:
    """One format, loaded from its files without executing anything that lies in the bundle;
    `content` is what its model is built from.

    Plain torch and safetensors are this program's own `Model` with the numbers of the file. Raises
    NeedsCodeError for torch.export, and for plain torch with a model.py that this program does not
    write; ValueError where a file holds another model than `content`, or an ONNX graph refers to
    other files. The library's own errors pass through.
    """
    if name == "torch" and not is_written(read_whole(folder / SOURCE)):
        raise NeedsCodeError(
            f"{SOURCE} is not what this version of equisearch or an earlier one writes"
        )
    if name == "torch.export":
        raise NeedsCodeError(f"{BUNDLE_FORMATS[name][0]} holds a program that loading executes")
    return {"torch": _read_torch, "safetensors": _read_safetensors, "onnx": _read_onnx}[name](
        folder, content
    )


def is_written(text: bytes) -> bool:
    """True if these are the bytes of a model.py as this program writes it, or as an earlier one
    did.
    """
    return text == source().encode() or hashlib.sha256(text).hexdigest() in WRITTEN


@torch.no_grad()
def logits(run: Runner, images: Tensor, batch: int = CHECK_BATCH) -> Tensor:
    """The logits [image, classes] of images, uint8 or in 0..1; batch by batch."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat(
        [
            run(images[start : start + batch].float() / scale)
            for start in range(0, len(images), batch)
        ]
    )


def source() -> str:
    """The text of a bundle's `model.py`."""
    head, tail = map(inspect.getsource, (plain, standalone))
    _, _, body = tail.split('"""', 2)
    body = re.sub(r"^(import|from) .*\n", "", body, flags=re.MULTILINE).strip()
    _, docstring, head = head.split('"""', 2)
    _, start, rest = docstring.partition("The description is")
    summary = "The exported model in nothing but torch: `from model import load; model = load()`."
    layers = head.replace("import torch", "import math\nimport os\n\nimport torch", 1).rstrip()
    return f'"""{summary}\n\n{start}{rest or docstring}"""{layers}\n\n\n{body}\n'


def sha256(path: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    return hashlib.sha256(read_whole(path)).hexdigest()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences stdout, stderr, warnings and log lines below errors: what the exporters print helps
    no user.
    """
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _write_torch(model: Model, content: dict[str, Any], folder: Path) -> None:
    (folder / SOURCE).write_text(source(), encoding="utf-8")
    _write_bytes(
        folder / STATE, lambda file: torch.save({**content, "state": model.state_dict()}, file)
    )


def _write_bytes(path: Path, save: Callable[[io.BytesIO], None]) -> None:
    """Writes what `save` gives through memory: on a full disk torch's own writer ends the process,
    Python's raises OSError.
    """
    whole = io.BytesIO()
    save(whole)
    path.write_bytes(whole.getbuffer())


def _run_torch(folder: Path) -> Runner:
    # Executed without a module in sys.modules: bundles share the file's name, and no __pycache__ is
    # left among their files.
    path = folder / SOURCE
    module = types.ModuleType("model")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module.load()


def _read_torch(folder: Path, content: dict[str, Any]) -> Runner:
    saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    state = saved.pop("state") if isinstance(saved, dict) and "state" in saved else None
    return _own(content, saved, state)


def _own(content: dict[str, Any], description: Any, state: Any) -> Model:
    """The model of `content` with the weights in `state`, if the file was written for it:
    `description` is the content that lies in the file.
    """
    if description != content:
        raise ValueError("the file describes another model than the architecture in the manifest")
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError("the file holds no weights")
    model = Model(content)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _write_safetensors(model: Model, content: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    content = {"format": "pt", "content": json.dumps(content)}  # metadata are texts
    (folder / BUNDLE_FORMATS["safetensors"][0]).write_bytes(save(tensors, metadata=content))


def _regular(path: Path) -> Path:
    """The path of a regular file. Raises OSError for a pipe or a device, on which readers that open
    by name would wait.
    """
    open_whole(path).close()
    return path


def _run_safetensors(folder: Path) -> Runner:
    from safetensors import safe_open

    with safe_open(_regular(folder / BUNDLE_FORMATS["safetensors"][0]), "pt") as file:
        model = Model(json.loads(file.metadata()["content"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model.eval()


def _read_safetensors(folder: Path, content: dict[str, Any]) -> Model:
    from safetensors import safe_open

    with safe_open(_regular(folder / BUNDLE_FORMATS["safetensors"][0]), "pt") as file:
        description = (file.metadata() or {}).get("content", "null")
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _own(content, json.loads(description), state)


def _write_export(model: Model, content: dict[str, Any], folder: Path) -> None:
    with _refusing("torch.export"), silence():
        program = _program(model)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        path = folder / BUNDLE_FORMATS["torch.export"][0]
        _write_bytes(path, lambda file: torch.export.save(program, file))


def _run_export(folder: Path) -> Runner:
    with silence():
        return torch.export.load(folder / BUNDLE_FORMATS["torch.export"][0]).module()


def _write_onnx(model: Model, content: dict[str, Any], folder: Path) -> None:
    with _refusing("onnx"), silence():
        program = torch.onnx.export(
            for_onnx(model),
            (_example(model),),
            dynamo=True,
            dynamic_shapes=(_DYNAMIC,),
            input_names=[INPUT],
            output_names=[VALUES if content.get("task") == "regression" else OUTPUT],
            verbose=False,
        )
        assert program is not None, "torch.onnx.export returns a program with dynamo=True"
        proto = program.model_proto
        for part in (
            proto.graph,
            *proto.graph.node,
            *proto.graph.input,
            *proto.graph.output,
            *proto.graph.value_info,
            *proto.graph.initializer,
            *proto.functions,
            *(node for function in proto.functions for node in function.node),
        ):
            part.ClearField("metadata_props")  # stack traces with paths of this machine
        for key in ("classes", "fit", *(["task"] if "task" in content else [])):
            proto.metadata_props.add(key=key, value=json.dumps(content[key]))
        (folder / BUNDLE_FORMATS["onnx"][0]).write_bytes(proto.SerializeToString())


def _run_onnx(folder: Path) -> Runner:
    return onnx_runner(folder, BUNDLE_FORMATS["onnx"][0])


def onnx_runner(folder: Path, file: str) -> Runner:
    """The runner of an ONNX file with an input of images in 0..1. onnxruntime's errors pass
    through.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        str(folder / file), options, providers=["CPUExecutionProvider"]
    )
    result = session.get_outputs()[0].name
    return lambda images: torch.from_numpy(
        session.run([result], {INPUT: np.ascontiguousarray(images.numpy())})[0]
    )


def _read_onnx(folder: Path, content: dict[str, Any]) -> Runner:
    return careful_onnx_runner(folder, BUNDLE_FORMATS["onnx"][0])


def careful_onnx_runner(folder: Path, file: str) -> Runner:
    """`onnx_runner` of a file that refers to no other file; else ValueError."""
    import onnx

    refuse_external_data(onnx.load_model_from_string(read_whole(folder / file)))
    return onnx_runner(folder, file)


_DYNAMIC = {0: torch.export.Dim("batch", min=1)}


def _example(model: Model) -> Tensor:
    return torch.rand(2, model.channels, *model.size, generator=torch.Generator().manual_seed(0))


def _program(model: Model) -> torch.export.ExportedProgram:
    return torch.export.export(model, (_example(model),), dynamic_shapes=(_DYNAMIC,))


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # exporters raise nearly anything on what they do not know
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FormatError(
            f"{name} cannot hold this network: {type(error).__name__}: {' '.join(lines)[:300]}"
        ) from error
