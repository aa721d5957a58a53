"""Files of models that are torn or hold odd graphs: an audit says so in one sentence, without
running anything of them; the files of a bundle are audited as what they are.
"""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from searchspace.architecture import Architecture
from trainers import audit
from trainers.bundles.formats import content_of, model_of, write_format
from trainers.instruments.audit.opening import open_model
from trainers.networks.networks import build

ONES = np.ones((4, 3, 3, 3), np.float32)


def graph(path, nodes, weights=(), inputs=("x",), outputs=("y",)):
    """An ONNX file of (operation, inputs, outputs, attributes)."""
    made = helper.make_graph(
        [helper.make_node(kind, given, out, **more) for kind, given, out, more in nodes],
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 8, 8]) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [value if hasattr(value, "dims") else numpy_helper.from_array(value, name)
         for name, value in weights],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(made, opset_imports=opset).SerializeToString())
    return str(path)


def stored_elsewhere(place):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3, 3, 3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


TORN = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2**20], raw_data=b"1234")


@pytest.mark.parametrize(
    "nodes, weights, said",
    [
        ([("Cosh", ["x"], ["y"], {})], [], "does not read from ONNX: Cosh"),
        ([("Conv", ["x", "w"], ["y"], {})], [], "Conv reads 'w', which nothing before it gives"),
        ([("Relu", ["z"], ["y"], {}), ("Relu", ["y"], ["z"], {})], [], "Relu reads 'z', which"),
        ([("Conv", ["x", "w"], ["y"], {})], [("w", TORN)], "is damaged: .*cannot reshape"),
        ([("Conv", ["x", "w"], ["y"], {})], [("w", stored_elsewhere("/etc/passwd"))], "not an ON"),
        ([("Conv", ["x", "w"], ["y"], {})], [("w", stored_elsewhere("../a"))], "is not an ONNX"),
        ([("Conv", ["x", "w"], ["y"], {"strides": [0, 0]})], [("w", ONES)], "does not take images"),
        ([("Conv", ["x", "w"], ["y"], {"group": 0})], [("w", ONES)], "does not take images"),
        ([("Reshape", ["x", "s"], ["y"], {})], [("s", np.array([-5]))], "does not take images"),
    ],
)
def test_graphs_that_cannot_be_are_refused(tmp_path, nodes, weights, said):
    with pytest.raises(ValueError, match=said) as caught:
        audit(open_model(graph(tmp_path / "a.onnx", nodes, weights)), 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs, outputs", [((), ("y",)), (("x", "z"), ("y",)), (("x",), ())])
def test_graphs_of_other_inputs_and_outputs_are_refused(tmp_path, inputs, outputs):
    path = graph(tmp_path / "a.onnx", [("Relu", ["x"], ["y"], {})], (), inputs, outputs)
    with pytest.raises(ValueError, match="an audit needs one image and one result"):
        open_model(path)


@pytest.mark.parametrize("name", ["forward", "training", "nodes", "a/b", "a.b"])
def test_a_weight_may_have_any_name(tmp_path, name):
    weights = [("a.b", ONES), ("a/b", 2 * ONES[:, :, 1:, 1:]), (name, 3 * ONES)]
    path = graph(tmp_path / "a.onnx", [("Conv", ["x", name], ["y"], {})], dict(weights).items())
    images = torch.rand(1, 3, 8, 8)
    assert torch.allclose(open_model(path)(images)[0, 0, 0, 0], 3 * images[..., :3, :3].sum())


@pytest.mark.parametrize("content", [b"", b"text" * 99, bytes(999), b"\xff" * 999, b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_torn_files_are_refused_and_nothing_else_is_said(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="is not a|has 0 inputs") as caught:
        open_model(str(tmp_path / name), run_code=True)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size, channels", [(0, 3), (10**9, 3), (8, 10**9)])
def test_images_that_no_memory_holds_are_refused(size, channels):
    with pytest.raises(ValueError, match="each must be 1 to 16384"):
        audit(torch.nn.ReLU(), size, channels=channels)


def test_the_files_of_a_bundle_are_audited(tmp_path):
    network = build(Architecture.parse("9px: 2k3@C4, 2k3"), channels=1, classes=3).eval()
    content = content_of(network, (0.4,), (0.2,), "resize", tuple("abc"))
    for name, file in (("onnx", "model.onnx"), ("torch.export", "model.pt2")):
        write_format(model_of(network, content), content, tmp_path, name)
        model = open_model(str(tmp_path / file), run_code=True)
        found = audit(model, 9, "C4", channels=1, sizes=False)
        assert found.exact and all((e.own or 0) < 1e-4 for e in found.findings), file
