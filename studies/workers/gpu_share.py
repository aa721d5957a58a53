"""The share of a GPU that a worker gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studies.config import Study

TRIALS_PER_GPU = 8


def gpus_of_trial(study: Study, nodes: Sequence[Mapping[str, float]]) -> float:
    """How many GPUs a trial gets: what the study says, or with `auto` the share that lets every
    core of a node with GPUs train.

    An eighth at least, since more trainings at once gain nothing on one GPU, and one GPU at most;
    0 where no node has a GPU, or the study trains on CPUs. Nodes that differ get the smallest of
    their shares.
    """
    asked = study.resources.gpus_per_trial
    if asked != "auto":
        return asked
    if study.training.device == "cpu":
        return 0.0
    wanted = study.resources.cpus_per_trial or 1 / TRIALS_PER_GPU
    shares = [
        node["GPU"] / max(1, int(node.get("CPU", 0) / wanted))
        for node in nodes
        if node.get("GPU", 0) >= 1
    ]
    # Ray counts in ten-thousandths
    return min(
        (min(1.0, max(1 / TRIALS_PER_GPU, int(10_000 * share) / 10_000)) for share in shares),
        default=0.0,
    )
