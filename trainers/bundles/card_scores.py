"""The scores of a model card: of a trial on validation images, of a retrained network on test
images; and texts that become no markup.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import yaml

from searchspace.geometry import counted
from searchspace.groups import Group

# as model hubs call tasks
HUB_TASKS = {
    "classification": "image-classification",
    "multilabel": "image-classification",
    "regression": "other",
}
BESIDE = {
    "label_accuracy": "share of labels that are right at a probability of 0.5",
    "f1": "F1 score, mean over labels",
    "r2": "R2 without a lower bound",
    "mae": "mean absolute error, in the target's unit",
}


def text_of(value: Any) -> str:
    """The value as Markdown that shows it as it is, in one line: no markup, HTML or end of a
    table's cell is taken from it.
    """
    return re.sub(r"([\\`*\[\]<>|&!#])", r"\\\1", card_line(value))


def code_of(value: Any) -> str:
    """The value as a code span, outside of tables; in it backslashes escape nothing, so it gets a
    fence that it does not hold.
    """
    line = card_line(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def card_line(value: Any) -> str:
    """Without control characters, and without breaks of lines."""
    return "".join(
        " " if c.isspace() else c
        for c in str(value)
        if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )


def percent_of(value: Any) -> str:
    """A share as per cent; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


def score_of(manifest: Mapping[str, Any]) -> str:
    """What the main score is called: accuracy, or that of another task."""
    return text_of(manifest.get("main_score", {}).get("name") or "accuracy")


def _beside(manifest: Mapping[str, Any]) -> list[str]:
    """What stands beside a main score that is no accuracy, upright and under the elements."""
    about = manifest.get("main_score", {})
    moved = about.get("symmetry_beside", {})
    return [
        f"- {text_of(BESIDE.get(name, name.replace('mae', BESIDE['mae'])))}: {value:.4g}, under "
        f"{manifest['declared']} {moved.get(name, value):.4g}."
        for name, value in about.get("beside", {}).items()
    ]


def scores_of(manifest: Mapping[str, Any]) -> str:
    """The section on scores and cost."""
    scores, intervals = manifest["scores"], manifest["intervals"]
    seen = ", ".join(map(code_of, manifest["training"]["seen"])) or "none"
    rows = [
        (f"{score_of(manifest)}, as the images are", "accuracy"),
        (
            _under(manifest),
            "symmetry_accuracy",
        ),
        ("the lowest of these", "symmetry_accuracy_worst"),
        ("of these, quarter turns and flips", "symmetry_accuracy_exact"),
        ("of these, other angles", "symmetry_accuracy_interpolated"),
        ("mean over what training has not seen", "unseen_symmetry_accuracy"),
    ]
    table = [
        f"| {what} | {percent_of(scores[key])} | {percent_of(intervals[key]['low'])} to "
        f"{percent_of(intervals[key]['high'])} |"
        for what, key in rows
        if scores.get(key) is not None and key in intervals
    ]
    cost = manifest["cost"]
    return "\n".join(
        [
            *(_tested(manifest) if manifest.get("test") else _validated(manifest)),
            "",
            "| score | value | interval |",
            "|---|---|---|",
            *table,
            "",
            *_beside(manifest),
            f"- Equivariance error of the logits {scores['equivariance_error']:.3g}, of the "
            f"features {scores['equivariance_error_features']:.3g} "
            "(0: exact, 1: as much as another image).",
            f"- Orientations seen in training: {seen} (`e` is upright).",
            *_corners(manifest),
            f"- Cost: {cost['params']:,} trained parameters, {cost['expanded_params']:,} "
            f"weights when folded, {cost['macs']:,} multiply-accumulates an image, "
            f"{scores['latency']:.3g} ms an image on the machine of the training.",
            "",
        ]
    )


def _corners(manifest: Mapping[str, Any]) -> list[str]:
    """What fills the corners of turned images; nothing where all turns are quarter turns and the
    corners black, and for bundles that do not say.
    """
    corners = manifest["training"].get("corners")
    if corners is None or (corners == "black" and Group.parse(manifest["declared"]).on_grid):
        return []
    if corners == "circle":
        return [
            "- All images are black outside their inscribed circle; the network does it itself."
        ]
    if corners == "crop":
        return [
            "- The network sees the centre of every image, which no corner of a turned one "
            "reaches, enlarged to its input size; it cuts images itself."
        ]
    return [f"- Corners of images turned by other angles than quarter turns: {code_of(corners)}."]


def _under(manifest: Mapping[str, Any]) -> str:
    """What the symmetry accuracy is the mean over."""
    others = manifest["training"].get("scored", "unseen") == "others"
    what = "all elements but the identity" if others else "what training has not seen"
    return f"{score_of(manifest)} under {manifest['declared']}, mean over {what}"


def _validated(manifest: Mapping[str, Any]) -> list[str]:
    """How the scores of a trial came about."""
    return [
        f"## Scores\n\nOn {manifest['data']['validation_images']} validation images, one training "
        f"(seed {manifest['training']['seed']}), "
        f"{counted(manifest['scores']['epoch'], 'epoch')}; 95 % "
        "intervals over images.",
        "A search that chose this network by these images makes the figures optimistic; "
        + (
            "the test images were not used."
            if manifest["data"]["has_test"]
            else "there are no test images."
        ),
    ]


def _tested(manifest: Mapping[str, Any]) -> list[str]:
    """The test scores of a retrained network: of its architecture over seeds, then its own."""
    test, data = manifest["test"], manifest["data"]
    images = "training and validation images" if "+" in test["trained_on"] else "training images"
    titles = {
        "accuracy": f"{score_of(manifest)}, as the images are",
        "symmetry_accuracy": _under(manifest),
        "symmetry_accuracy_worst": "the lowest of these",
    }
    rows = [
        f"| {titles[name]} | {100 * s['mean']:.2f}"
        + (f" ± {100 * s['std']:.2f}" if s["n"] > 1 else "")
        + f" % | {s['n']} | {percent_of(s['low'])} to {percent_of(s['high'])} |"
        for name, s in test["scores"].items()
    ]
    members = manifest["training"]["members"]
    averaged = "values" if manifest.get("task") == "regression" else "probabilities"
    return [
        f"## Scores\n\nOn {test['images']} test images, which chose nothing. Retrained on the "
        f"{data['train_images']} {images} for {counted(manifest['scores']['epoch'], 'epoch')}.",
        "",
        f"The architecture over {counted(test['seeds'], 'seed')}: mean ± "
        "standard deviation, 95 % intervals over images and seeds.",
        "",
        "| test score | mean | n | interval |",
        "|---|---|---|---|",
        *rows,
        "",
        f"This network ({text_of(test['chosen'])})"
        + (f", which averages the {averaged} of {members} networks" if members > 1 else "")
        + "; 95 % intervals over images.",
    ]


def integers_of(manifest: Mapping[str, Any]) -> str:
    """The section on the network in 8-bit integers: what it costs, what it gains, what stays
    exact.
    """
    entry = manifest["int8"]
    if entry.get("refused"):
        return f"## In 8-bit integers\n\nNot written: {text_of(entry['refused'])}.\n"
    times, equal = entry["latency"], entry["integer_equal"]
    kind = "validation" if manifest["data"]["validation_images"] else "training"
    titles = {
        "accuracy": f"{score_of(manifest)}, as the images are",
        "symmetry_accuracy": f"{score_of(manifest)} under {manifest['declared']}",
    }
    rows = [
        f"| {titles[name]} | {percent_of(score['float'])} | {percent_of(score['int8'])} | "
        f"{100 * (score['int8'] - score['float']):+.2f} |"
        for name, score in entry["scores"].items()
    ]
    same = ", ".join(code_of(name) for name, holds in equal.items() if holds)
    lost = ", ".join(code_of(name) for name, holds in equal.items() if not holds)
    return "\n".join(
        [
            "## In 8-bit integers",
            "",
            f"`{entry['file']}` runs in onnxruntime as `model.onnx` does. Its ranges come from "
            f"{entry['calibration_images']} training images; the scores are on "
            f"{entry['images']} {kind} images.",
            "",
            "| | float32 | int8 | difference |",
            "|---|---|---|---|",
            *rows,
            f"| milliseconds an image, onnxruntime on the exporting machine | "
            f"{times['float']:.3g} | {times['int8']:.3g} | "
            f"{times['int8'] / times['float'] - 1:+.0%} |",
            f"| bytes | {entry['float_bytes']:,} | {entry['bytes']:,} | "
            f"{entry['bytes'] / entry['float_bytes'] - 1:+.0%} |",
            "",
            f"Integer outputs are equal to the last bit under: {same or 'no element'}."
            + (f" Exact in floating point, but not in integers: {lost}." if lost else ""),
            "",
        ]
    )


def front_matter(manifest: Mapping[str, Any]) -> str:
    """The YAML block that model hubs read: task, libraries, tags and scores."""
    name = _line_of_data(manifest)
    on_test = manifest.get("scores_on") == "test"
    score = score_of(manifest)
    kind = {"AUROC": "roc_auc", "R2": "r_squared"}.get(score, score)
    metrics = [
        {"type": kind, "name": title, "value": round(manifest["scores"][key], 6)}
        for key, title in (
            ("accuracy", score),
            ("symmetry_accuracy", f"{score} under {manifest['declared']}"),
        )
        if manifest["scores"].get(key) is not None
    ]
    hub = HUB_TASKS[manifest.get("task", "classification")]
    task = {"type": hub}
    dataset = {"name": name, "type": name, "split": "test" if on_test else "validation"}
    block = {
        "library_name": "pytorch",
        **({} if hub == "other" else {"pipeline_tag": hub}),
        "tags": ["equisearch", "equivariance", "onnx", "safetensors", manifest["group"]],
        "metrics": [kind],
        "model-index": [
            {
                "name": f"{name} {manifest['group']}",
                "results": [{"task": task, "dataset": dataset, "metrics": metrics}],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(block, sort_keys=False, allow_unicode=True)}---\n"


def _line_of_data(manifest: Mapping[str, Any]) -> str:
    return re.sub(r"[^\w .+-]", "", card_line(manifest["data"]["data"]))
