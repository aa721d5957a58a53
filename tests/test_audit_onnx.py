"""ONNX graphs that an audit reads."""

import numpy as np
import torch

from trainers import audit
from trainers.instruments.audit.opening import open_model


def test_channels_that_are_split_and_joined_are_read_from_onnx(tmp_path):
    """As ShuffleNets are written."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper, save

    node, stored = helper.make_node, {"begin": [1], "end": [9], "axis": [1], "two": [2]}
    nodes = [
        node("Conv", ["x", "weight"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Split", ["a"], ["b", "c"], axis=1),
        node("Abs", ["b"], ["d"]),
        node("Concat", ["c", "d"], ["e"], axis=1),
        node("DepthToSpace", ["e"], ["f"], blocksize=2),
        node("DepthToSpace", ["e"], ["g"], blocksize=2, mode="CRD"),
        node("Add", ["f", "g"], ["h"]),
        node("Slice", ["h", "begin", "end", "axis"], ["i"]),
        node("ReduceMax", ["i"], ["y"], axes=[2, 3], keepdims=0),
    ]
    weight = torch.randn(16, 3, 3, 3)
    constants = [numpy_helper.from_array(np.array(v), k) for k, v in stored.items()]
    constants.append(numpy_helper.from_array(weight.numpy(), "weight"))
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 9, 9]), ("y", [1, 3]))
    ]
    graph = helper.make_graph(nodes, "split", values[:1], values[1:], constants)
    opset, path = [helper.make_opsetid("", 13)], str(tmp_path / "split.onnx")
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    images, read = torch.randn(1, 3, 9, 9), open_model(path).eval()
    ran = onnxruntime.InferenceSession(path).run(None, {"x": images.numpy()})[0]
    assert torch.allclose(read(images), torch.from_numpy(ran), atol=1e-5)
    assert not any(f.agrees is False for f in audit(read, 9, sizes=False).findings)
