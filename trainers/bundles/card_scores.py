"""The scores of a model card: of a trial on validation images, of a retrained network on test
images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers.bundles.markdown import code_of, text_of


def percent_of(value: Any) -> str:
    """A share as per cent; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


def scores_of(manifest: Mapping[str, Any]) -> str:
    """The section on scores and cost."""
    scores, intervals = manifest["scores"], manifest["intervals"]
    seen = ", ".join(map(code_of, manifest["training"]["seen"])) or "none"
    rows = [
        ("accuracy, as the images are", "accuracy"),
        (
            f"accuracy under {manifest['declared']}, mean over "
            + (
                "all elements but the identity"
                if manifest["training"].get("scored", "unseen") == "others"
                else "what training has not seen"
            ),
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
        if scores.get(key) is not None
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
            f"- Equivariance error of the logits {scores['equivariance_error']:.3g}, of the "
            f"features {scores['equivariance_error_features']:.3g} "
            "(0: exact, 1: as much as another image).",
            f"- Orientations seen in training: {seen} (`e` is upright).",
            f"- Cost: {cost['params']:,} trained parameters, {cost['expanded_params']:,} "
            f"weights when folded, {cost['macs']:,} multiply-accumulates an image, "
            f"{scores['latency']:.3g} ms an image on the machine of the training.",
            "",
        ]
    )


def _validated(manifest: Mapping[str, Any]) -> list[str]:
    """How the scores of a trial came about."""
    return [
        f"## Scores\n\nOn {manifest['data']['validation_images']} validation images, one training "
        f"(seed {manifest['training']['seed']}), {manifest['scores']['epoch']} epochs; 95 % "
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
        "accuracy": "accuracy, as the images are",
        "symmetry_accuracy": f"accuracy under {manifest['declared']}, mean over what training has "
        "not seen",
        "symmetry_accuracy_worst": "the lowest of these",
    }
    rows = [
        f"| {titles[name]} | {100 * s['mean']:.2f}"
        + (f" ± {100 * s['std']:.2f}" if s["n"] > 1 else "")
        + f" % | {s['n']} | {percent_of(s['low'])} to {percent_of(s['high'])} |"
        for name, s in test["scores"].items()
    ]
    members = manifest["training"]["members"]
    return [
        f"## Scores\n\nOn {test['images']} test images, which chose nothing. Retrained on the "
        f"{data['train_images']} {images} for {manifest['scores']['epoch']} epochs.",
        "",
        f"The architecture over {test['seeds']} seed{'' if test['seeds'] == 1 else 's'}: mean ± "
        "standard deviation, 95 % intervals over images and seeds.",
        "",
        "| test score | mean | n | interval |",
        "|---|---|---|---|",
        *rows,
        "",
        f"This network ({text_of(test['chosen'])})"
        + (f", which averages the probabilities of {members} networks" if members > 1 else "")
        + "; 95 % intervals over images.",
    ]
