"""What ONNX needs besides its exporter: operations that it can translate, and a graph that refers
to no other file.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trainers.bundles.model import Model
from trainers.networks import plain


class WindowMax(nn.Module):
    """Adaptive max pooling as maxima of slices, for ONNX (onnxscript 0.7.2 has no translation of
    it).
    """

    def __init__(self, step: dict[str, Any]) -> None:
        super().__init__()
        self.output, self.stride = step["output"], step["stride"]

    def forward(self, maps: Tensor) -> Tensor:
        """The maps in their new resolution."""
        for axis in (-2, -1):
            pixels = maps.shape[axis]
            output = self.output or -(-pixels // self.stride)
            windows = [
                (n * pixels // output, -(-(n + 1) * pixels // output)) for n in range(output)
            ]
            maps = torch.cat(
                [
                    maps.narrow(axis, start, end - start).amax(axis, keepdim=True)
                    for start, end in windows
                ],
                axis,
            )
        return maps


def for_onnx(model: Model) -> Model:
    """A copy of the model in operations that the ONNX exporter knows."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, plain.Subsample) and module.step["kind"] == "adaptivemax":
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, WindowMax(module.step))
    return copied


def refuse_external_data(part: Any) -> None:
    """Raises ValueError if a tensor anywhere in a part of an ONNX model lies in another file; an
    export writes all weights inside.
    """
    pending = [part]
    while pending:
        message = pending.pop()
        if message.DESCRIPTOR.name == "TensorProto" and (
            message.data_location or message.external_data
        ):
            where = ", ".join(
                entry.value for entry in message.external_data if entry.key == "location"
            )
            raise ValueError(
                f"it takes weights from another file ({where[:200]!r}); an export writes them "
                "inside"
            )
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += [value] if hasattr(value, "DESCRIPTOR") else value
