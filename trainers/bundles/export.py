"""Export of one trained network as a bundle: a folder that runs without this program, compared with
the network before it takes its place.

Nothing half-written ever lies at the bundle's place: files are written to a folder beside it,
loaded again from there, compared with the trained network on validation images, measured, and only
then moved.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from searchspace.exactness import verdict
from searchspace.groups import Element
from trainers.bundles.facts import TrainedNetwork, bundle_facts, element_rows
from trainers.bundles.formats import (
    BUNDLE_FORMATS,
    CARD,
    MANIFEST,
    REQUIRED,
    SIGNATURE,
    FormatError,
    content_of,
    logits,
    model_of,
    runner,
    sha256,
    write_format,
)
from trainers.bundles.model import Model
from trainers.bundles.model_card import card
from trainers.bundles.pixel_graph import add_pixel_graph
from trainers.bundles.quantised import add_int8
from trainers.bundles.signing import private_key, sign_bundle
from trainers.bundles.symmetry_check import (
    Change,
    changes,
    in_units,
    movable,
    parity_tolerance,
    random_images,
)
from trainers.data.datasets import Splits, normalise
from trainers.data.tasks import Outputs
from trainers.files import read_whole, system_reason
from trainers.instruments.tasks.scoring import main_score
from trainers.networks.fold import fold
from trainers.networks.networks import Network
from trainers.networks.plain import mean_logits
from trainers.scores import MAIN_SCORES
from trainers.settings import Corners

COMPARED = 2000  # validation images that every format is compared on
MOVED = 64  # validation images that every format's symmetry is measured on
# by which the accuracy of the checkpoint may differ from the reported one (another machine's
# rounding)
SLACK = 0.0015


def export(
    trained: TrainedNetwork,
    folder: Path,
    *,
    force: bool = False,
    quantize: bool = False,
    key: Path | None = None,
) -> Path:
    """The absolute path of the bundle, written to `folder`.

    A format that cannot hold the network is left out, and the bundle says so; plain torch and
    safetensors always can. `quantize` adds the network in 8-bit integers; `key` is a private key
    that signs the bundle. Raises ValueError, with nothing written, where the folder holds anything
    but a bundle of the same origin (`force`: any bundle), the checkpoint does not give the reported
    accuracy, plain torch differs from the network, a claimed symmetry does not hold, or the key
    cannot sign. OSError if it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_place(folder, trained.origin, force)
    if key is not None:
        private_key(key)  # before anything is written
    part = _beside(folder, "part")
    _remove_left(folder, "part")
    try:
        part.mkdir(parents=True)
        manifest = _fill(trained, part, quantize)
        (part / CARD).write_text(card(manifest), encoding="utf-8")
        manifest["files"] = {
            path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in sorted(part.iterdir())
        }
        (part / MANIFEST).write_text(
            json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        if key is not None:
            sign_bundle(part, key)
        check_place(folder, trained.origin, force)  # another process may have written there
        _move(part, folder)
    except OSError as error:
        raise OSError(
            f"the bundle could not be written to {folder}: {system_reason(error)}; what lay there "
            "before is still there; make room, or give another folder with --out"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def check_place(folder: Path, origin: Mapping[str, Any], force: bool = False) -> None:
    """Raises ValueError where a bundle of `origin` must not be written: nothing but a bundle is
    ever replaced.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder that is new or holds a bundle")
    present = {path.name for path in folder.iterdir()} - {"__pycache__"}
    if not present:
        return
    try:
        manifest = json.loads(read_whole(folder / MANIFEST))
        files, before = set(manifest["files"]), {**manifest["origin"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"{folder} holds files, but no bundle; give a folder that is new or empty"
        ) from None
    if foreign := sorted(present - files - {MANIFEST, SIGNATURE}):
        raise ValueError(
            f"{folder} holds files that are not the bundle's: {', '.join(foreign[:3])}; move "
            "them away, or give another folder"
        )
    if before != dict(origin) and not force:
        raise ValueError(
            f"{folder} holds another bundle ({_named(before)}); give another folder, or --force "
            "to replace it"
        )


def _named(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in origin.items()) or "of unknown origin"


def _move(part: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(part, folder)
        return
    old = _beside(folder, "old")
    os.replace(folder, old)  # a folder that is not empty cannot be replaced at once
    try:
        os.replace(part, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _remove_left(folder, "old")


def _beside(folder: Path, ending: str, process: str | None = None) -> Path:
    """Where a process of this machine, this one unless named, keeps what it has not moved yet."""
    number = os.getpid() if process is None else process
    return folder.with_name(f".{folder.name}.{socket.gethostname()}.{number}.{ending}")


def _remove_left(folder: Path, ending: str) -> None:
    """Removes what exports of this machine to the same folder left that were killed."""
    for left in folder.parent.glob(f".*.{ending}"):
        number = left.name.split(".")[-2]
        if left == _beside(folder, ending, number) and number.isdigit() and not _lives(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether another process of that number runs here."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return process != os.getpid()


def _reference(
    networks: Sequence[Network], splits: Splits, corners: Corners, images: Tensor
) -> Tensor:
    """The logits of the trained networks, which every format has to reach."""

    def mean_of_all(pixels: Tensor) -> Tensor:
        values = normalise(pixels, splits.mean, splits.std, corners)
        return mean_logits([network(values) for network in networks], splits.task)

    return splits.outputs.given(logits(mean_of_all, images))


def _content(trained: TrainedNetwork, networks: Sequence[Network]) -> dict[str, Any]:
    """What the exported model is built from."""
    splits = trained.splits
    return content_of(
        networks[0],
        splits.mean,
        splits.std,
        splits.data.fit,
        splits.classes,
        len(networks),
        trained.config.corners,
        splits.outputs,
    )


def _fill(trained: TrainedNetwork, folder: Path, quantize: bool) -> dict[str, Any]:
    """Writes and examines every format; returns the manifest without the hashes."""
    networks = [copy.deepcopy(n).cpu().eval() for n in (trained.network, *trained.others)]
    splits, config, architecture = trained.splits, trained.config, networks[0].architecture
    content = _content(trained, networks)
    model = model_of(networks, content)
    ruling = verdict(architecture, config.group)
    elements = movable(config.group, architecture.size)
    claimed = tuple(e for e in ruling.invariant if e in elements)
    images = splits.validation.pixels.cpu()
    chosen = _spaced(len(images), COMPARED)
    reference = _reference(networks, splits, config.corners, images[chosen])
    _check_accuracy(trained, networks, images)
    formats, refused, measured = {}, {}, {}
    probes = random_images(splits.channels, architecture.size)
    for name in BUNDLE_FORMATS:
        try:
            write_format(model, content, folder, name)
            formats[name], measured[name] = _examine(
                folder,
                name,
                reference,
                images[chosen],
                splits.validation.labels.cpu()[chosen],
                splits.outputs,
                elements,
                claimed,
                probes,
            )
        except FormatError as error:
            if name in REQUIRED:
                raise ValueError(f"nothing was exported: {error}") from error
            for file in BUNDLE_FORMATS[name]:
                (folder / file).unlink(missing_ok=True)
            refused[name] = str(error)
    return {
        **_from_pixels(folder, content, model, formats),
        **(_int8(folder, trained, chosen, claimed, probes, formats) if quantize else {}),
        **bundle_facts(trained, networks[0], ruling),
        "compared_images": len(chosen),
        "moved_images": min(MOVED, len(images)),
        "formats": formats,
        "refused": refused,
        "elements": element_rows(ruling, elements, claimed, measured),
        "probe": {"images": len(probes), "logits": logits(model, probes).tolist()},
        "content": content,
    }


def _from_pixels(
    folder: Path, content: dict[str, Any], model: Model, formats: Mapping[str, Any]
) -> dict[str, Any]:
    """What the manifest says of the graph from pixels; nothing where there is no ONNX file."""
    if "onnx" not in formats:
        return {}
    try:
        return {"predict": add_pixel_graph(folder, content, model)}
    except FormatError as error:
        return {"predict": {"refused": str(error)}}


def _int8(
    folder: Path,
    trained: TrainedNetwork,
    chosen: Tensor,
    claimed: tuple[Element, ...],
    probes: Tensor,
    formats: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest says of the network in integers."""
    if "onnx" not in formats:
        return {"int8": {"refused": "it is made from the ONNX file, which is not there"}}
    try:
        return {"int8": add_int8(folder, trained, chosen, claimed, probes)}
    except FormatError as error:
        return {"int8": {"refused": str(error)}}


def _spaced(total: int, most: int) -> Tensor:
    """At most `most` indices below `total`, evenly spaced."""
    return (
        torch.arange(total) if total <= most else torch.linspace(0, total - 1, most).round().long()
    )


def _check_accuracy(trained: TrainedNetwork, networks: Sequence[Network], images: Tensor) -> None:
    normal = partial(
        normalise,
        mean=trained.splits.mean,
        std=trained.splits.std,
        corners=trained.config.corners,
    )
    labels = trained.splits.validation.labels.cpu()
    called = MAIN_SCORES[trained.splits.task] or "accuracy"
    expected = trained.accuracies or (trained.scores["accuracy"],)
    for network, reported in zip(networks, expected, strict=True):
        folded = fold(network)
        folded_logits = logits(lambda values, n=folded: n(normal(values)), images)
        accuracy = main_score(trained.splits.task, folded_logits, labels)
        if abs(accuracy - reported) > SLACK + 1 / len(labels):
            raise ValueError(
                f"nothing was exported: the checkpoint has {called} {accuracy:.4f} on the "
                f"{len(labels)} validation images, but "
                f"{reported:.4f} was reported; the images or the program have changed since, so "
                "train it again"
            )


def _examine(
    folder: Path,
    name: str,
    reference: Tensor,
    images: Tensor,
    labels: Tensor,
    given: Outputs,
    elements: tuple[Element, ...],
    claimed: tuple[Element, ...],
    probes: Tensor,
) -> tuple[dict[str, Any], dict[Element, Change]]:
    """(the manifest's entry of a written format, the change of its logits by each of `elements`),
    measured after it is loaded from its files. Raises FormatError where it is not the
    network, or not as symmetric as claimed.
    """
    try:
        run = in_units(runner(folder, name), given.units)
        reference = reference / given.units
        outputs, alone = logits(run, images), logits(run, images[:1])
    except Exception as error:
        raise FormatError(
            f"{name} was written, but does not run: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    difference = max(
        float((outputs - reference).abs().max()), float((alone - reference[:1]).abs().max())
    )
    tolerance = parity_tolerance(reference)
    if not difference <= tolerance:
        raise FormatError(
            f"{name} differs from the trained network: its logits by up to {difference:.3g} on "
            f"{len(images)} validation images, "
            f"more than {tolerance:.3g}"
        )
    few = images[_spaced(len(images), MOVED)]
    measured = changes(run, few, elements)
    for what, change in (("validation", measured), ("random", changes(run, probes, claimed))):
        if broken := [e for e in claimed if not change[e].negligible]:
            worst = change[broken[0]]
            raise FormatError(
                f"{name} is less symmetric than the architecture: {broken[0]} changes its "
                f"logits by {worst.largest:.3g} on {what} images, "
                f"{worst.relative:.3g} of their spread"
            )
    accuracy = main_score(given.task, given.learned(outputs * given.units), labels)
    return {
        "files": list(BUNDLE_FORMATS[name]),
        "max_difference": difference,
        "tolerance": tolerance,
        "accuracy": accuracy,
    }, measured
