"""Keys of a study file that change nothing, because of others."""

from __future__ import annotations

from collections.abc import Iterator

from studies.config import Study
from trainers.catalogue import CATALOGUE


def unused_keys(study: Study, *, on_ray: bool) -> list[str]:
    """A sentence without a full stop for each key that the study file gives and that has no effect;
    `on_ray`: whether trials run on Ray.
    """
    return [
        f"{key} has no effect: {why}"
        for keys in (
            _of_space(study),
            _of_training(study),
            _of_search(study),
            _others(study, on_ray),
        )
        for key, why in keys
    ]


def _of_space(study: Study) -> Iterator[tuple[str, str]]:
    space = study.space
    if "rate" in space.dropout.model_fields_set and set(space.dropout.kind) == {"none"}:
        yield "space.dropout.rate", "space.dropout.kind is none; name values or fields"
    if set(space.equivariance_loss.kind) == {"none"}:
        for key in ("weight", "group", "stages", "weighting"):
            if key in space.equivariance_loss.model_fields_set:
                yield (
                    f"space.equivariance_loss.{key}",
                    "space.equivariance_loss.kind is none; name a loss, such as layerwise",
                )
    if "none" not in space.streams:
        for key in ("family", "group", "restrict"):
            if key in space.model_fields_set:
                yield f"space.{key}", "space.streams names the groups of every network; add none"
    if "to" in space.restrict.model_fields_set and set(space.restrict.after) == {"none"}:
        yield "space.restrict.to", "space.restrict.after is none; name a stage"


def _of_training(study: Study) -> Iterator[tuple[str, str]]:
    training, given = study.training, study.training.model_fields_set
    if "momentum" in given and training.optimizer != "sgd":
        yield "training.momentum", f"training.optimizer is {training.optimizer}, and sgd has it"
    losses = any(kind != "none" for kind in study.space.equivariance_loss.kind)
    if "equivariance_batch" in given and not (losses or study.search.first):
        yield "training.equivariance_batch", "space.equivariance_loss.kind is none"
    if training.cuda_graphs and "cuda_graphs" in given and training.device == "cpu":
        yield "training.cuda_graphs", "training.device is cpu"


def _of_search(study: Study) -> Iterator[tuple[str, str]]:
    search, given = study.search, study.search.model_fields_set
    if not search.rungs:
        for key in ("eta", "confidence", "second_chances"):
            if key in given and getattr(search, key) is not None:
                yield f"search.{key}", "search.rungs is empty, so that no trial stops early"
    if search.patience is not None and search.patience >= search.trials:
        yield "search.patience", f"it is {search.patience}, and search.trials {search.trials}"
    if search.startup is not None and search.startup > search.trials:
        yield "search.startup above search.trials", "the sampler never learns"


def _others(study: Study, on_ray: bool) -> Iterator[tuple[str, str]]:
    if not on_ray:
        for key in ("custom", "runtime_env"):
            if getattr(study.resources, key):
                yield (
                    f"resources.{key}",
                    "trials run in this process; say `resources: {executor: ray}`",
                )
    named = None if study.data.name is None else CATALOGUE[study.data.name]
    if named is not None and (not named.places or named.package):
        for key in ("root", "download"):
            if key in study.data.model_fields_set:
                yield f"data.{key}", f"{study.data.name} comes with a package"
