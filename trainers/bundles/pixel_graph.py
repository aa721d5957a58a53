"""`predict.onnx`: from uint8 pixels of any size and mode to probabilities, in one ONNX graph.

Before the graph of `model.onnx` it does what training did with its image files: what is transparent
becomes black, colour becomes grey (or grey colour), the size is reached, values become 0..1. The
anti-aliased resize is two matrix products, whose weights the graph computes from the size: ONNX
runtimes differ in their own resize, or have none that is anti-aliased.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.bundles.formats import VALUES, FormatError
from trainers.bundles.model import Model
from trainers.bundles.onnx_graph import refuse_external_data
from trainers.data.decoding import decode
from trainers.data.fitting import Fit, fit_images
from trainers.data.tasks import task_activation
from trainers.files import read_whole

PIXELS_FILE, PIXELS, PROBABILITIES = "predict.onnx", "pixels", "probabilities"
LUMA_65536 = (19595.0, 38470.0, 7471.0)  # of 65536: ITU-R BT.601 as Pillow rounds it
TOLERANCE = 1e-3  # of a probability
# (height, width) as factors of the model's own, and the modes that the graph is compared on
FACTORS = ((1.0, 1.0), (2.0, 2.0), (1.7, 2.6), (0.6, 0.45), (3.3, 0.7))
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


class _Graph:
    """Nodes and constants of a graph under construction, all names with one prefix."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: Any, kind: type = np.float32) -> str:
        """The name of a constant."""
        from onnx import numpy_helper

        name = f"prepare/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=kind), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The name of the result of one node."""
        from onnx import helper

        name = output or f"prepare/{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def part(self, values: str, start: str, end: str, axis: int) -> str:
        """A slice along one axis."""
        return self.add("Slice", values, start, end, self.constant([axis], np.int64))


def write_pixel_graph(folder: Path, content: dict[str, Any], source: str = "model.onnx") -> int:
    """Writes `predict.onnx` around the graph of `source` in the same folder; returns its opset."""
    import onnx
    from onnx import TensorProto, helper

    proto = onnx.load_model_from_string(read_whole(folder / source))
    network, graph = content["network"], _Graph()
    _prepare(graph, network["channels"], tuple(network["size"]), content["fit"])
    nodes = [*graph.nodes, *proto.graph.node]
    end, result_name = proto.graph.output[0].name, output_of(content)
    if result_name != end and content.get("task"):
        nodes.append(helper.make_node("Sigmoid", [end], [result_name]))
    elif result_name != end:  # targets are the result as it is
        nodes.append(helper.make_node("Softmax", [end], [result_name], axis=1))
    given = helper.make_tensor_value_info(
        PIXELS, TensorProto.UINT8, ["batch", "channels", "height", "width"]
    )
    result = helper.make_tensor_value_info(
        result_name, TensorProto.FLOAT, ["batch", len(content["classes"])]
    )
    constants = [*proto.graph.initializer, *graph.constants]
    whole = helper.make_graph(nodes, "predict", [given], [result], constants)
    model = helper.make_model(whole, opset_imports=proto.opset_import, functions=proto.functions)
    model.ir_version, model.producer_name = proto.ir_version, "equisearch"
    for key in ("classes", *(["task"] if "task" in content else [])):
        model.metadata_props.add(key=key, value=json.dumps(content[key]))
    onnx.checker.check_model(model)
    (folder / PIXELS_FILE).write_bytes(model.SerializeToString())
    return next(entry.version for entry in model.opset_import if not entry.domain)


def output_of(content: Mapping[str, Any]) -> str:
    """What the graph's output is called: probabilities, or the values of targets."""
    return VALUES if content.get("task") == "regression" else PROBABILITIES


def _prepare(graph: _Graph, channels: int, size: tuple[int, int], fit: str) -> None:
    """From `pixels` to `images`."""
    values = graph.add("Cast", PIXELS, to=1)  # float32
    shape = graph.add("Shape", PIXELS)
    opaque = _without_transparency(graph, values, shape)
    three = graph.add("Expand", opaque, graph.constant([1, 3, 1, 1], np.int64))
    colored = three if channels == 3 else _grey(graph, three)
    reach = _resized if fit == "resize" else _padded
    fitted = reach(graph, colored, shape, size)
    graph.add("Div", fitted, graph.constant(255.0), output="images")


def _without_transparency(graph: _Graph, values: str, shape: str) -> str:
    """Grey or colour on black: an even number of channels ends with the opacity."""
    one, two = graph.constant([1], np.int64), graph.constant([2], np.int64)
    zero, count = graph.constant([0], np.int64), _side(graph, shape, 1)
    odd = graph.add("Mod", count, two)
    colors = graph.add("Add", graph.add("Sub", count, one), odd)
    colored = graph.part(values, zero, colors, 1)
    single = graph.add("Concat", _side(graph, shape, 0), one, _sides(graph, shape), axis=0)
    full = graph.add("Expand", graph.constant(255.0), single)
    opacity = graph.part(
        graph.add("Concat", graph.part(values, colors, count, 1), full, axis=1), zero, one, 1
    )
    scaled = graph.add("Div", graph.add("Mul", colored, opacity), graph.constant(255.0))
    return graph.add("Floor", graph.add("Add", scaled, graph.constant(0.5)))


def _grey(graph: _Graph, colored: str) -> str:
    weights = graph.constant(np.reshape(LUMA_65536, (1, 3, 1, 1)))
    axis = graph.constant([1], np.int64)
    total = graph.add("ReduceSum", graph.add("Mul", colored, weights), axis, keepdims=1)
    half = graph.add("Add", total, graph.constant(32768.0))
    return graph.add("Floor", graph.add("Div", half, graph.constant(65536.0)))


def _resized(graph: _Graph, images: str, shape: str, size: tuple[int, int]) -> str:
    """Anti-aliased bilinear, as torch: a triangle as wide as the scale, rounded to whole values."""
    rows = _weights(graph, _side(graph, shape, 2), size[0])
    columns = graph.add("Transpose", _weights(graph, _side(graph, shape, 3), size[1]), perm=[1, 0])
    fitted = graph.add("MatMul", rows, graph.add("MatMul", images, columns))
    rounded = graph.add("Round", fitted)
    return graph.add("Clip", rounded, graph.constant(0.0), graph.constant(255.0))


def _weights(graph: _Graph, side: str, out: int) -> str:
    """[out, side]: what each pixel gives to each new one."""
    length = graph.add("Cast", side, to=1)
    ratio = graph.add("Div", length, graph.constant([float(out)]))
    scale = graph.add("Max", ratio, graph.constant([1.0]))
    middles = graph.constant(np.arange(out).reshape(-1, 1) + 0.5)
    centers = graph.add("Mul", middles, ratio)
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    end = graph.add("Squeeze", side, graph.constant([0], np.int64))
    pixels = graph.add("Cast", graph.add("Range", zero, end, one), to=1)
    places = graph.add("Add", pixels, graph.constant(0.5))
    distances = graph.add("Abs", graph.add("Sub", places, centers))
    slope = graph.add("Sub", graph.constant(1.0), graph.add("Div", distances, scale))
    triangle = graph.add("Max", slope, graph.constant(0.0))
    total = graph.add("ReduceSum", triangle, graph.constant([1], np.int64), keepdims=1)
    return graph.add("Div", triangle, total)


def _padded(graph: _Graph, images: str, shape: str, size: tuple[int, int]) -> str:
    """Centred padding and cropping: of an odd difference the larger half comes after."""
    missing = graph.add("Sub", graph.constant(size, np.int64), _sides(graph, shape))
    before = graph.add("Div", missing, graph.constant([2], np.int64))  # towards zero
    after = graph.add("Sub", missing, before)
    none = graph.constant([0, 0], np.int64)
    return graph.add("Pad", images, graph.add("Concat", none, before, none, after, axis=0))


def _side(graph: _Graph, shape: str, axis: int) -> str:
    return graph.part(
        shape, graph.constant([axis], np.int64), graph.constant([axis + 1], np.int64), 0
    )


def _sides(graph: _Graph, shape: str) -> str:
    return graph.part(shape, graph.constant([2], np.int64), graph.constant([4], np.int64), 0)


def pixel_runner(folder: Path) -> Callable[[Tensor], Tensor]:
    """Probabilities [batch, classes] (or values of targets) of uint8 images [batch, 1 to 4, height,
    width] by `predict.onnx`, whose graph refers to no other file (else ValueError).
    """
    import onnx
    import onnxruntime

    content = read_whole(folder / PIXELS_FILE)
    refuse_external_data(onnx.load_model_from_string(content))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    result = session.get_outputs()[0].name
    return lambda pixels: torch.from_numpy(
        session.run([result], {PIXELS: np.ascontiguousarray(pixels.numpy())})[0]
    )


def compared_images(size: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """(mode, uint8 [height, width, channels]) of several sizes, in every mode: blurred noise with
    full contrast, the same everywhere.
    """
    random = np.random.RandomState(20230816)
    images = []
    for tall, wide in FACTORS:
        height, width = max(1, round(size[0] * tall)), max(1, round(size[1] * wide))
        for mode, channels in CHANNELS.items():
            noise = random.random_sample((height, width, channels))
            smooth = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
            images.append((mode, np.rint(255 * smooth).astype(np.uint8)))
    return images


@torch.no_grad()
def largest_difference(
    run: Callable[[Tensor], Tensor],
    model: Model,
    load: Callable[[str, np.ndarray], Tensor],
    images: Sequence[tuple[str, np.ndarray]],
    content: Mapping[str, Any],
) -> float:
    """The largest difference of a probability between the graph and the model on images that
    `load` prepared, as [1, channels, height, width] in 0..1; of a target, in units of its scale.
    """
    task, units = content.get("task", "classification"), torch.tensor(content.get("scale", 1.0))
    largest = 0.0
    for mode, pixels in images:
        given = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        expected = task_activation(task, model(load(mode, pixels)))
        largest = max(largest, float(((run(given) - expected) / units).abs().max()))
    return largest


def add_pixel_graph(folder: Path, content: dict[str, Any], model: Model) -> dict[str, Any]:
    """Writes `predict.onnx` beside `model.onnx`, and returns what the manifest says of it.

    It is loaded again and compared with the model on images of several sizes and modes that went
    through a file and the reader of training. Raises FormatError where a probability differs by
    more than 1e-3, and the file is gone.
    """
    try:
        opset = write_pixel_graph(folder, content)
        images = compared_images(model.size)
        difference = largest_difference(
            pixel_runner(folder), model, image_reader(model), images, content
        )
    except OSError:
        raise
    except Exception as error:  # of any type, from onnx and onnxruntime
        (folder / PIXELS_FILE).unlink(missing_ok=True)
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise FormatError(f"the graph from pixels cannot be written: {reason}") from error
    if not difference <= TOLERANCE:
        (folder / PIXELS_FILE).unlink()
        raise FormatError(
            f"its probabilities differ by up to {difference:.3g} from those of images as training "
            f"reads them, more than {TOLERANCE:g}"
        )
    return {
        "file": PIXELS_FILE,
        "input": PIXELS,
        "output": output_of(content),
        "opset": opset,
        "max_difference": difference,
        "compared_images": len(images),
    }


def image_reader(model: Model) -> Callable[[str, np.ndarray], Tensor]:
    """How training reads an image [height, width, channels] of a mode from a file, for a model."""
    fit: Fit = "resize" if model.fit == "resize" else "pad"

    def load(mode: str, pixels: np.ndarray) -> Tensor:
        image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
        assert image.mode == mode, "PIL derives the mode from the number of channels"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            image.save(path)
            decoded = torch.from_numpy(decode(path, model.channels))
        return fit_images(decoded[None], model.size, fit).float() / 255

    return load
