"""Study files made of known keys and values that are odd, or plausible alone and odd together."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from studies.config import Study

Key = tuple[str, ...]
TINY = """
data: {name: digits, train: 40, validation: 20}
training: {epochs: 2, batch_size: 20, precision: float32}
space: {backbone: "2k3 *, 2k3", input_size: 8, group: [C4], family: [steerable], layout: [max2/2]}
search: {rungs: [1]}
resources: {workers: 1, gpus_per_trial: 0}
"""

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 360, 2**31, 2**63, 10**30, 0.5, -0.1, 1e-320, 1e308]),
    st.sampled_from(
        ["", "auto", "none", "C4", "D4", "C0", "1:30", "90m", "x" * 300, "*", "\u202e"]
    ),
    st.sampled_from(
        ["max2/2", "10k3, 10k3 *", "28px: 4k3", "resize9/1", "../x", "a\x00b", "|", "@"]
    ),
    st.sampled_from([float("inf"), float("nan")]),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=True),
    st.text(max_size=8),
)
VALUES = st.one_of(
    ODD,
    st.lists(ODD, max_size=3),
    st.dictionaries(
        st.sampled_from(["low", "high", "log", "normal", "match", "to", "x"]), ODD, max_size=3
    ),
)


def keys(model: type[BaseModel], prefix: Key = ()) -> list[Key]:
    """The paths of every key of a study file, sections included."""
    found = []
    for name, field in model.model_fields.items():
        path = (*prefix, name)
        found.append(path)
        for member in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(member, type) and issubclass(member, BaseModel):
                found += keys(member, path)
    return found


KEYS = keys(Study)


def nested(changes: Mapping[Key, object], content: dict[str, Any] | None = None) -> dict:
    """A small valid study file, or `content`, with values put in place of others."""
    if content is None:
        content = {"data": {"name": "digits"}, "space": {"backbone": "4k3, 4k3 *, 4k3"}}
    for path, value in changes.items():
        section = content
        for name in path[:-1]:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[path[-1]] = value
    return content


GROUPS = ["C1", "C2", "C4", "D1", "D2", "D4", "C8", "D8", "C16", "C3"]
COUNTS = [1, 2, 3, 5, 16, 1000]
SHARES = [0.0, 0.05, 0.3, 0.5, 0.999, 1.0]
BACKBONES = [
    "3k3 *, 3k3, 3k3",
    "3k3, 3k3",
    "2k5 * drop0.3, 2k1",
    "3k3 inv0.5, 3k3 *",
    "2r3 *, 2r3",
    "4k12p0",
    "3k3 *, 3k3 *, 3k3",
]
LAYOUTS = [
    *("max2/2", "max3/2p1", "avg3/2p1", "conv3/2p1", "blur/2", "resize5", "resize9bicubic"),
    *("max2/2 | avg2/2", "max12/12", "conv2/2", "max2/1"),
]
TEXTS = {
    "backbone": BACKBONES,
    "family": ["steerable", "plain"],
    "group": GROUPS,
    "layout": LAYOUTS,
    "head": ["group_max", "group_mean", "none"],
    "filters": ["free", "basis"],
    "relaxation": ["none", "+C1", "|C1", "b2", "~0.3", "+C2", "|C2", "~1"],
    "streams": ["none", "C4 & D1", "C4 & C1", "C2 & C2 & D1", "D4 & C1"],
    "coordinates": ["none", "radius", "x", "xy"],
    "orbit": ["C1", "C2", "C4", "D4", "D1"],
    "augment": ["none", "group", "uniform", "normal:0,30", "learned"],
}
SPACE: dict[str, list[Any]] = {
    **TEXTS,
    "invariant_share": [0.0, 0.25, 0.5, 1.0],
    "restrict.after": ["none", 1, 2],
    "restrict.to": GROUPS[:5],
    "input_size": [1, 2, 3, 4, 5, 9, 12, 13, 40, {"low": 8, "high": 14}, {"low": 5, "high": 5}],
    "dropout.kind": ["none", "values", "fields"],
    "dropout.rate": [0.1, 0.5, 0.99, {"low": 0.1, "high": 0.4}],
    "equivariance_loss.kind": [
        *("none", "layerwise", "label", "latent", "layerwise+label", "projection"),
        *("layerwise@C8", "latent+projection", "label@D4"),
    ],
    "equivariance_loss.weight": [1e-12, 0.1, 1e6, {"low": 0.1, "high": 10, "log": True}],
    "equivariance_loss.group": ["declared", *GROUPS],
    "equivariance_loss.stages": ["all", 1, "1,2", 3],
    "equivariance_loss.weighting": ["constant", "adapted"],
    "learning_rate": [1e-9, 0.01, 1, 10, {"low": 1e-4, "high": 0.1, "log": True}],
    "size_by": ["exactness", "pixels"],
}
DATA: dict[str, list[Any]] = {
    "train": [2, 3, 7, 17, 24, 500, 10**6],
    "validation": [2, 3, 10, 12, 900],
    "test": [2, 12, 2000],
    "fit": ["resize", "pad"],
    "color": [True, False],
    "seed": [0, 1, 2**62],
    "folds": [2, 3, 20],
    "fold": [0, 1, 2],
    "task": ["classification", "multilabel", "regression", "auto"],
    "group_by": ["name", "label", r"(\d+)", r"([ab])", "("],
    "classes": [["a", "b"], ["only"], ["a"] * 2, [str(n) for n in range(10)]],
    "columns.image": ["path", "image", "nothing"],
    "columns.label": ["label", ["one", "two"], "number"],
    "columns.split": ["split", "label"],
    "columns.separator": ["|", ";", ","],
}
TRAINING: dict[str, list[Any]] = {
    "epochs": [1, 2, 5, 10**6],
    "batch_size": [2, 3, 7, 24, 128, 65536],
    "optimizer": ["adam", "adamw", "sgd"],
    "learning_rate": [1e-9, 0.01, 1.0, 10.0],
    "schedule": ["onecycle", "cosine", "step", "constant"],
    "weight_decay": [0, 1e-5, 1.0, 100],
    "momentum": SHARES[:-1],
    "equivariance_batch": [1e-9, 0.2, 0.5, 1.0],
    "precision": ["auto", "float32", "bfloat16"],
    "augment.rotation": ["none", "group", "uniform", {"normal": [0, 30]}, {"normal": [360, 0]}],
    "augment.shift": [0, 1, 5, 11, 12, 100],
    "augment.mirror": [True, False],
    "augment.crop": [0.05, 0.5, 1.0],
    "augment.colour_jitter.brightness": SHARES,
    "augment.colour_jitter.contrast": SHARES,
    "augment.colour_jitter.saturation": SHARES,
    "augment.colour_jitter.hue": [0.0, 0.1, 0.5],
    "class_weights": ["none", "balanced", {"0": 2.0}, {"a": 0.0}, {"a": 1e6}],
    "device": ["auto", "cpu"],
    "cuda_graphs": [True, False],
}
OTHERS: dict[str, list[Any]] = {
    "symmetry.group": GROUPS,
    "symmetry.scored": ["others", "unseen"],
    "symmetry.angles": [1, 10, 90, 120, 180],
    "symmetry.corners": ["auto", "black", "reflect", "replicate", "circle"],
    "objectives": [
        ["accuracy"],
        ["accuracy", "params", "macs", "latency"],
        ["symmetry_accuracy", "worst_symmetry_accuracy"],
        ["balanced_accuracy", "auroc", "worst_class"],
        ["symmetry_balanced_accuracy", "symmetry_auroc", "symmetry_worst_class"],
        ["equivariance_error", "accuracy"],
        ["equivariance_error"],
    ],
    "constraints.params": [1, 100, 10**6],
    "constraints.macs": [1, 10**4, 10**12],
    "constraints.latency": [1e-9, 1e4],
    "constraints.memory": [1.0, 1e5],
    "controls": ["auto", "none"],
    "search.sampler": ["ehvi", "evolution", "tpe", "nsga2", "nsga3", "gp", "random", "grid", "qmc"],
    "search.trials": [1, 2, 10**6],
    "search.rungs": [[], [1], [1, 2, 3], [2, 6], [10**6]],
    "search.eta": [1.001, 2, 1e9],
    "search.confidence": [1e-9, 0.5, 0.95, 0.999999],
    "search.least_steps": [1, 30, 500, 10**6],
    "search.second_chances": [True, False],
    "search.seed": [0, 2**32 - 1],
    "search.first": [
        *([], ["12px: 3k3@C4, 3k3"], ["9px: 3k3"], ["40px: 3k3@D4 max2/2, 3k3 head=group_mean"]),
        *(["12px: 3k3@C8, 3k3"], ["12px: 9k3 lr=0.01 loss=label:1"], ["12px: 100000k3, 3k3"]),
    ],
    "search.startup": [0, 1, 100],
    "search.start": ["spread", "random"],
    "search.repeats": COUNTS,
    "search.inherit": [True, False],
    "search.retries": [0, 3, 10**9],
    "search.patience": COUNTS,
    "search.timeout": [1e-9, 60, "90m"],
    "resources.executor": ["auto", "in_process"],
    "resources.workers": ["auto", 1],
    "resources.cpus_per_trial": [0, 0.5, 1, 2],
    "resources.gpus_per_trial": ["auto", 0, 0.25],
    "resources.memory_per_trial": [0, 0.1, 1e6],
    "resources.custom": [{}, {"gadget": 1}],
    "resources.trial_timeout": [1, 600, "10m"],
    "loggers.mlflow": [None],
}
# keys that say something only together
TOGETHER: list[dict[str, list[Any]]] = [
    {
        "space.width.match": ["params", "macs", "fields"],
        "space.width.to": [1, 3, 30, 1000, 30000, 10**6, 10**9],
    },
    {
        "space.relaxation": ["+C1", ["+C1", "+C2"]],
        "space.gamma": ["fixed:0.5", "prior:1e-6", "dual", "resilient:1", "triangle"],
    },
    {
        "space.head": ["block_max:C2", "block_max:D4", "block_max:C16"],
        "space.equivariance_loss.kind": ["latent", ["latent", "none"]],
    },
    {"search.sampler": ["evolution"], "search.inherit": [True]},
    {"space.filters": [["free", "basis"], "basis"], "space.group": [["C8", "C4"], "D8", "C3"]},
    {"search.sampler": ["grid"], "space.learning_rate": [0.01]},
]
LISTED = {*TEXTS, "invariant_share", "kind", "rate", "stages", "weighting", "after", "to"}


def plausible() -> dict[Key, st.SearchStrategy[Any]]:
    """For each key, values that some study may have there."""
    flat = {
        **{f"space.{key}": values for key, values in SPACE.items()},
        **{f"data.{key}": values for key, values in DATA.items()},
        **{f"training.{key}": values for key, values in TRAINING.items()},
        **OTHERS,
    }
    found: dict[Key, st.SearchStrategy[Any]] = {}
    for name, values in flat.items():
        path = tuple(name.split("."))
        one = st.sampled_from(values)
        listed = path[0] == "space" and path[-1] in LISTED
        found[path] = one | st.lists(one, min_size=1, max_size=3) if listed else one
    return found


def sources(folder: Path) -> list[dict[str, Any]]:
    """`data` sections of tiny data sets, whose files are written to `folder`."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (40, 12, 12), np.uint8)
    for number, image in enumerate(images):
        place = folder / "classes" / "ab"[number % 2] / f"{number // 4}_{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(place)
    lines = [
        f"{'ab'[n % 2]}/{n // 4}_{n}.png,{'ab'[n % 2]},{n % 2},{n % 3 // 2},{n / 7:.2f},{n // 4}"
        for n in range(40)
    ]
    table = "\n".join(["path,label,one,two,number,name", *lines]) + "\n"
    (folder / "classes" / "table.csv").write_text(table)
    np.savez(folder / "labels.npz", images=images, labels=random.integers(0, 2, (40, 3)))
    np.savez(folder / "numbers.npz", images=images, labels=random.normal(size=(40, 2)))
    csv = {"files": str(folder / "classes" / "table.csv")}
    return [
        {"name": "digits", "train": 24, "validation": 12, "test": 12},
        {"folder": str(folder / "classes")},
        {**csv, "columns": {"label": "label"}},
        {**csv, "columns": {"label": ["one", "two"]}, "task": "multilabel"},
        {"files": str(folder / "labels.npz"), "task": "multilabel"},
        {"files": str(folder / "numbers.npz"), "task": "regression"},
    ]


SMALL: dict[str, Any] = {
    "training": {"epochs": 1, "batch_size": 24, "device": "cpu"},
    "symmetry": {"group": "C4", "angles": 90},
    "space": {"backbone": "3k3 *, 3k3, 3k3", "input_size": 12, "group": ["C2", "C4"]},
    "search": {"trials": 1, "rungs": []},
    "resources": {"workers": 1},
}
