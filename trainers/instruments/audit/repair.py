"""A network whose grid breaks elements, rewritten so that it keeps them."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.files import write_whole
from trainers.instruments.audit.audit import audit
from trainers.instruments.audit.verdict import Audit, size_words
from trainers.networks.orbit import orbit_average


class Resized(nn.Module):
    """A module that gets its images resized to an exact size, bilinear; maps are resized back.
    Images that are not square are resized alike when they lie on their side.
    """

    def __init__(
        self, inner: nn.Module, size: tuple[int, int], result: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.inner, self.size, self.result = inner, size, result

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.size
        aside = (images.shape[2] > images.shape[3]) != (height > width) and height != width
        lying = lambda pair: pair[::-1] if aside else pair  # noqa: E731
        found = self.inner(F.interpolate(images, lying(self.size), mode="bilinear"))
        if self.result is None:
            return found
        return F.interpolate(found, lying(self.result), mode="bilinear")


@dataclass(frozen=True)
class Repaired:
    """A repair: what was rewritten, and what is claimed and measured before and after."""

    before: Audit
    after: Audit
    changes: tuple[str, ...]
    path: str
    # of the results of the module as it was, relative to their spread, on one random image
    difference: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of the audit, and `repair_model`."""
        return {
            **self.before.as_dict(),
            "repair": {
                "file": self.path,
                "changes": list(self.changes),
                "difference": self.difference,
                "after": self.after.as_dict(),
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each element, before and after."""
        return [
            {"when": when, **row}
            for when, audited in (("before", self.before), ("after", self.after))
            for row in audited.rows()
        ]

    def text(self) -> str:
        """Both audits for people."""
        changes = "; ".join(self.changes)
        return (
            f"{self.before.text()}\n\nRepaired: {changes}. Its results differ from the former ones "
            f"by {self.difference:.1e} of their spread. Written to {self.path}.\n\n"
            f"{self.after.text()}"
        )


def repair_model(model: nn.Module, found: Audit, out: Path) -> Repaired:
    """Rewrites `model`, whose audit is `found`, so that its grid keeps every element, and writes it
    as `out`, a .pt2 or .onnx file for images of the same size.

    A linear layer behind a flattened map becomes the convolution that it is; the input is resized
    to the nearest exact size; where that does not help, vectors are averaged over the group.
    Weights stay as they are. Raises ValueError where nothing helps.
    """
    if out.suffix.lower() not in (".pt2", ".onnx"):
        raise ValueError(f"{out} is neither a .pt2 nor an .onnx file; give one of them")
    if found.exact:
        raise ValueError(f"{found.name} keeps every element of {found.group}: nothing to repair")
    image = torch.randn(
        (1, found.channels, *found.size), generator=torch.Generator().manual_seed(0)
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module, changes = _rewritten(model.eval(), found, image)
        again = audit(module, found.size, found.group, found.channels, name=str(out), sizes=False)
        if not again.exact and _may_be_averaged(found):
            module = orbit_average(model, found.group)
            price = f"each image runs {found.group.order} times"
            changes = (f"the result is the mean over the orbit of {found.group}: {price}",)
            again = audit(
                module, found.size, found.group, found.channels, name=str(out), sizes=False
            )
        difference = float((module(image) - model(image)).abs().max() / model(image).std())
        if not again.exact:
            raise ValueError(
                f"{found.name} at {found.size[0]}x{found.size[1]} has no repair that is known: no "
                "input size nearby is exact, and only vectors of images whose shape the group "
                "keeps can be averaged over its elements"
            )
        _write(module, image, out)
    return Repaired(found, again, changes, str(out), difference)


def _may_be_averaged(found: Audit) -> bool:
    """Whether results may be averaged over the group: vectors, of images whose shape it keeps."""
    square = found.size[0] == found.size[1]
    return found.invariant and (square or not any(e.swaps_axes for e in found.group.elements))


def _rewritten(model: nn.Module, found: Audit, image: Tensor) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with what helps, and that in words."""
    changes: list[str] = []
    module, audited = model, found
    if any("flattened" in lost.why for f in found.findings for lost in f.lost):
        places = (lost for f in found.findings for lost in f.lost)
        layers = {lost.layer for lost in places if "flattened" in lost.why}
        module = _as_convolution(model, image)
        changes.append(f"{', '.join(sorted(layers))} is a convolution over the whole map")
        audited = audit(module, found.size, found.group, found.channels)
    if not audited.exact:
        module, changes = _resized(model, module, found, audited, image, changes)
    return module, tuple(changes)


def _resized(
    model: nn.Module, module: nn.Module, found: Audit, audited: Audit, image: Tensor,
    changes: list[str],
) -> tuple[nn.Module, list[str]]:  # fmt: skip
    sizes = audited.exact_sizes or found.exact_sizes
    if not sizes:
        return module, changes
    height, width = found.size
    pairs = [(n, n) if isinstance(n, int) else n for n in sizes]
    size = min(pairs, key=lambda s: (abs(s[0] - height) + abs(s[1] - width), -s[0]))
    result = model(image)
    maps = (int(result.shape[2]), int(result.shape[3])) if result.ndim == 4 else None
    before, after = ((n[0] if height == width else n) for n in (found.size, size))
    words = (
        f"images are resized from {size_words(before)} to {size_words(after)} pixels inside the "
        "model"
    )
    if module is not model:  # the graph is that of one size
        larger = torch.randn((1, found.channels, *size))
        module = _as_convolution(model, larger)
    return Resized(module, size, maps), [*changes, words]


def _as_convolution(model: nn.Module, image: Tensor) -> nn.Module:
    """The module's graph for images of that size, in which linear layers behind a flattened map are
    convolutions: the same function.
    """
    module = torch.export.export(model, (image,)).module(check_guards=False)
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    assert isinstance(module, torch.fx.GraphModule)
    graph, aten = module.graph, torch.ops.aten
    for node in list(graph.nodes):
        if node.target is not aten.linear.default:
            continue
        source = node.args[0]
        while source.target in (aten.flatten.using_ints, aten.view.default, aten.reshape.default,
                                aten.dropout.default, aten.clone.default):  # fmt: skip
            source = source.args[0]
        shape = source.meta["val"].shape
        if len(shape) != 4 or source is node.args[0]:
            continue
        weight = module.get_parameter(str(node.args[1].target))
        owner, _, last = str(node.args[1].target).rpartition(".")
        kernel = nn.Parameter(weight.detach().reshape(len(weight), *shape[1:]).clone())
        setattr(module.get_submodule(owner), last, kernel)
        with graph.inserting_before(node):
            maps = graph.call_function(aten.conv2d.default, (source, *node.args[1:]))
            vector = graph.call_function(aten.flatten.using_ints, (maps, 1))
        node.replace_all_uses_with(vector)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _write(module: nn.Module, image: Tensor, out: Path) -> None:
    """Writes the module whole or not at all."""
    if out.suffix.lower() == ".onnx":
        made = torch.onnx.export(module, (image,), dynamo=True, verbose=False)
        assert made is not None
        graph = made.model_proto
        for node in graph.graph.node:  # where the code stood that was exported
            del node.metadata_props[:]
        return write_whole(out, graph.SerializeToString())
    held = io.BytesIO()
    torch.export.save(torch.export.export(module, (image,)), held)
    write_whole(out, held.getvalue())
