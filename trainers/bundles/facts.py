"""What a bundle says of its network: the part of the manifest that needs no files."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from searchspace.cost import cost
from searchspace.exactness import Verdict
from searchspace.groups import Element
from searchspace.recipe import Candidate
from searchspace.training.losses import losses_text
from trainers.bundles.formats import OUTPUT, VALUES
from trainers.bundles.manifest import FORMAT_VERSION
from trainers.bundles.symmetry_check import Change
from trainers.data.augment import seen
from trainers.data.datasets import Splits
from trainers.instruments.proportions import proportion
from trainers.networks.networks import Network
from trainers.networks.projection import convolutions_of, equivariance_distance
from trainers.training.config import TrainingConfig
from trainers.training.evaluate import degrees_learned
from trainers.versions import library_versions

Z_95 = NormalDist().inv_cdf(0.975)
BUNDLE_LIBRARIES = (
    "equisearch",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "numpy",
)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to be exported, with its data, how it was trained, and its scores: on the
    validation images, or on the test images where `test` is given.
    """

    network: Network
    splits: Splits
    config: TrainingConfig
    scores: Mapping[str, Any]  # Scores.as_dict()
    # what names this training, plain values: two bundles of one origin replace each other
    origin: Mapping[str, Any]
    # the other networks, where the mean of several is exported
    others: tuple[Network, ...] = ()
    # of each network on the validation images, by which it is recognised; None: that of `scores`
    accuracies: tuple[float, ...] | None = None
    # of the architecture: `images`, `seeds`, `trained_on`, and `scores` with mean, std, n and
    # interval
    test: Mapping[str, Any] | None = None

    @property
    def members(self) -> int:
        """How many networks are exported as one."""
        return 1 + len(self.others)

    @property
    def scored_images(self) -> int:
        """The number of images behind `scores`."""
        return len(self.splits.validation) if self.test is None else self.test["images"]


def bundle_facts(trained: TrainedNetwork, network: Network, ruling: Verdict) -> dict[str, Any]:
    """The part of the manifest that needs no files: plain values."""
    splits, config, architecture = trained.splits, trained.config, network.architecture
    price, members = cost(architecture, splits.channels, len(splits.classes)), trained.members
    return {
        "format_version": FORMAT_VERSION,
        "origin": dict(trained.origin),
        "architecture": str(Candidate(architecture, config.recipe).with_learning_rate(None)),
        "family": architecture.family,
        "group": str(architecture.group),
        "declared": str(config.group),
        "classes": list(splits.classes),
        "input": {
            "name": "images",
            "dtype": "float32",
            "range": [0, 1],
            "channels": splits.channels,
            "height": architecture.size[0],
            "width": architecture.size[1],
        },
        **_of_task(trained),
        "output": {"name": VALUES if splits.task == "regression" else OUTPUT},
        "normalisation": {"mean": list(splits.mean), "std": list(splits.std), "inside": True},
        "data": _data(trained),
        "training": _training(trained),
        "scores": _numbers(trained.scores),
        "scores_on": "validation" if trained.test is None else "test",
        **({} if trained.test is None else {"test": _numbers(trained.test)}),
        "intervals": _intervals(trained),
        "exactness": {
            "exact": ruling.exact,
            "surviving": [str(e) for e in ruling.surviving],
            "surviving_group": ruling.surviving_group,
            "invariant": [str(e) for e in ruling.invariant],
            **_nearness(network, ruling),
        },
        "cost": {
            "params": members * price.params,
            "expanded_params": members * price.expanded_params,
            "macs": members * price.macs,
        },
        "versions": {"python": platform.python_version(), **library_versions(BUNDLE_LIBRARIES)},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _of_task(trained: TrainedNetwork) -> dict[str, Any]:
    """What a bundle says of a task other than classification."""
    outputs = trained.splits.outputs
    if outputs.task == "classification":
        return {}
    scores = trained.scores
    scale = {"scale": list(outputs.scale)} if outputs.task == "regression" else {}
    return {
        "task": outputs.task,
        **scale,
        "main_score": {
            "name": scores.get("score"),
            "beside": scores.get("beside") or {},
            "symmetry_beside": scores.get("symmetry_beside") or {},
        },
    }


def _intervals(trained: TrainedNetwork) -> dict[str, dict[str, float]]:
    """95 % intervals of the scores over images: Wilson's of shares of images, and by their standard
    errors of other main scores.
    """
    found = {}
    for name, value in trained.scores.items():
        if "accuracy" not in name or value is None:
            continue
        if trained.splits.task == "classification":
            found[name] = proportion(value, trained.scored_images).as_dict()
        elif (error := trained.scores.get(f"{name}_error")) is not None:
            low, high = max(0.0, value - Z_95 * error), min(1.0, value + Z_95 * error)
            found[name] = {"value": value, "low": low, "high": high}
    return found


def _nearness(network: Network, ruling: Verdict) -> dict[str, Any]:
    """Of a network with relaxed weights: the elements that are near, and ||W - P_G W|| / ||W|| of
    each layer; nothing of others, whose bundles stay what they were.
    """
    if not network.architecture.softened:
        return {}
    return {
        "near": [str(e) for e in ruling.near],
        "certain_group": str(network.architecture.certain_group),
        "weight_distances": {
            name: equivariance_distance(
                weight, convolution.source, convolution.parametrisation.group
            )
            for name, convolution, weight in convolutions_of(network)
        },
    }


def _numbers(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores without what stands elsewhere: what was trained beside the network, and what is
    said beside a main score.
    """
    elsewhere = {"learned"} | {
        name for name in ("score", "beside", "symmetry_beside") if scores.get(name) is not None
    }
    return {name: value for name, value in scores.items() if name not in elsewhere}


def _data(trained: TrainedNetwork) -> dict[str, Any]:
    splits, merged = trained.splits, trained.config.merge_validation
    data, validation = splits.data, len(splits.validation)
    return {
        "data": data.called,
        "fit": data.fit,
        # the grey value of files with more than 8 bits that became 255
        "top": splits.top,
        "train_images": len(splits.train) + (validation if merged else 0),
        "validation_images": 0 if merged else validation,
        "has_test": splits.has_test,
    }


def _training(trained: TrainedNetwork) -> dict[str, Any]:
    config = trained.config
    settings, losses = config.training, config.recipe.losses
    turned = degrees_learned(trained.scores.get("learned"))
    return {
        "epochs": trained.scores["epoch"],
        "seed": config.seed,
        "members": trained.members,
        "learning_rate": config.peak_rate,
        "optimizer": settings.optimizer,
        "batch_size": settings.batch_size,
        "augment": config.augment.model_dump(mode="json"),
        "loss": {
            "kind": "+".join(loss.kind for loss in losses) or "none",
            "weight": sum(loss.weight for loss in losses),
            "text": losses_text(losses),
            "weighting": config.recipe.weighting,
        },
        "seen": [str(e) for e in seen(config.augment, config.group, turned)],
        "scored": config.symmetry.scored,
        "corners": config.corners,
        "learned": trained.scores.get("learned"),
    }


def element_rows(
    ruling: Verdict,
    movable_: tuple[Element, ...],
    claimed: tuple[Element, ...],
    measured: Mapping[str, Mapping[Element, Change]],
) -> list[dict[str, Any]]:
    """One row per declared element but the identity: is it exact, where is it lost, what was
    measured.
    """
    rows = []
    for element, breaks in ruling.losses[1:]:
        why: str | None = None
        if element not in claimed:
            why = "; ".join(map(str, breaks)) or (
                "the head does not pool over the group"
                if element not in ruling.invariant
                else "it exchanges height and width, which the fixed input size does not allow"
            )
        rows.append(
            {
                "element": str(element),
                "exact": element in claimed,
                "lost": why,
                "relative_change": {
                    name: change[element].relative for name, change in measured.items()
                }
                if element in movable_
                else None,
            }
        )
    return rows
