"""What was trained beside a network, such as widths of an augmentation, in words."""

from __future__ import annotations

from collections.abc import Mapping

from studies.output import formatted

NO_DISTANCE = 1e-6  # of a weight from the constraint: rounding
# what the quantities of relaxed layers are called
LAYERS = {
    "distance": "distance of the weights from the constraint (0: exact)",
    "w spread": "spread of the weights of the banks",
    "u": "slack u",
}


def learned_lines(learned: Mapping[str, float]) -> list[str]:
    """One line for each quantity of layers, one for what belongs to no layer."""
    layers: dict[str, list[float]] = {}
    others: list[str] = []
    for name, value in learned.items():
        what, of_layer, _ = name.partition(" stage ")
        if of_layer:
            layers.setdefault(what, []).append(value)
        else:
            others.append(f"{name} {formatted(value, '.3g')}")
    lines = [f"  learned beside the network: {', '.join(others)}"] if others else []
    for what, values in layers.items():
        texts = ", ".join(formatted(value, ".3g") for value in values)
        if what == "distance" and max(values) < NO_DISTANCE:
            texts = "0 in all: as trained, the weights are those of the constraint"
        lines.append(f"  {LAYERS.get(what, what)} by layer: {texts}")
    return lines
