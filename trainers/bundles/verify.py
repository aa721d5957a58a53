"""Checks of a bundle that lies somewhere: its files, its formats, its symmetry. Needs no data, and
executes nothing of the bundle.

The checks show that a bundle is whole, not who made it: its hashes lie in the bundle itself.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.exactness import verdict
from searchspace.geometry import counted
from searchspace.groups import Element, Group
from trainers.bundles import manifest as manifests
from trainers.bundles.findings import (
    BundleReport,
    CheckResult,
    int8_check,
    pixel_check,
    signature_check,
)
from trainers.bundles.formats import (
    BUNDLE_FORMATS,
    MANIFEST,
    SOURCE,
    NeedsCodeError,
    Runner,
    careful_runner,
    is_written,
    logits,
    runner,
    sha256,
)
from trainers.bundles.manifest import Hashed, Manifest, shown_names
from trainers.bundles.model import Model
from trainers.bundles.pixel_graph import PIXELS_FILE
from trainers.bundles.quantised import INT8_FILE
from trainers.bundles.symmetry_check import (
    Change,
    changes,
    in_units,
    movable,
    parity_tolerance,
    random_images,
)
from trainers.bundles.weights import NotReadError, differing_weights, pickled_code
from trainers.files import as_word, read_whole
from trainers.networks.fold import description
from trainers.networks.networks import Network

TRUST = "pass --run-code if you trust where it came from"


def verify(folder: Path, *, run_code: bool = False, trusted: Path | None = None) -> BundleReport:
    """The results of all checks of the bundle in `folder`: its files are those that were written,
    its formats load and agree with each other and with the logits recorded at the export, and the
    claimed symmetries hold on random dense images.

    Nothing of the bundle is executed unless `run_code`: model.py is compared with what this program
    writes, the weights are run by this program's own network, the torch.export program is not run.
    A format whose files have changed is not loaded. `trusted` is a public key that must have signed
    the bundle; without it the hashes show that the bundle is whole, not who made it. Raises
    ValueError if there is no bundle, a damaged manifest, one of a later format, or no such key.
    """
    manifest = manifests.read_manifest(folder)
    bad_files = {
        name: problem
        for name, expected in manifest.files.items()
        if (problem := _file_problem(folder / name, expected))
    }
    results = [*_file_results(manifest, folder, bad_files), signature_check(folder, trusted)]
    results += _claims(manifest)
    given, recorded = manifest.input, torch.tensor(manifest.probe.logits)
    units = torch.tensor(manifest.units)
    probes = random_images(given.channels, (given.height, given.width), manifest.probe.images)
    outputs: dict[str, Tensor] = {}
    for name in manifest.formats:
        if not bad_files.keys() & set(BUNDLE_FORMATS[name]) and manifest.files.keys() >= set(
            BUNDLE_FORMATS[name]
        ):
            results += _check_format(
                folder, name, manifest, run_code, probes, recorded / units, outputs
            )
    results += [
        CheckResult(name, None, f"absent since the export: {shown_names([reason])}")
        for name, reason in manifest.refused.items()
    ]
    if len(outputs) > 1:
        results.append(_agreement(outputs, recorded / units))
    if manifest.predict is not None and PIXELS_FILE not in bad_files:
        results.append(pixel_check(folder, manifest, lambda: _model(folder, manifest)))
    if manifest.int8 is not None and INT8_FILE not in bad_files:
        results.append(int8_check(folder, manifest, probes, recorded))
    return BundleReport(folder, manifest.architecture, tuple(results), trusted)


def load_checked(folder: Path, *, run_code: bool = False) -> tuple[Manifest, Model]:
    """The manifest and the model of a bundle whose files are those that were written: this
    program's own network with the weights of model.safetensors; with `run_code` what the bundle's
    model.py returns. Raises ValueError for any other bundle.
    """
    manifest = manifests.read_manifest(folder)
    name = "torch" if run_code else "safetensors"
    problems = manifests.gaps(manifest)
    problems += [
        f"{file} {problem}"
        for file, expected in manifest.files.items()
        if (problem := _file_problem(folder / file, expected))
    ]
    if problems:
        raise ValueError(
            f"the bundle {folder} is damaged or was changed: {problems[0]}; export the trial "
            f"again (`equisearch verify {as_word(folder)}` names all)"
        )
    try:
        model = _runner(folder, name, manifest, run_code)
    except Exception as error:  # files fail in any way
        raise ValueError(
            f"the bundle {folder} cannot be loaded: {name}: {type(error).__name__}: "
            f"{shown_names([str(error)])}"
        ) from error
    return manifest, cast(Model, model)  # that of model.py has the same class body


def model_content(manifest: Manifest, size: int) -> dict[str, Any]:
    """What this program's `Model` is built from, derived from the architecture in the manifest, for
    a bundle whose weights take `size` bytes.

    Raises ValueError where the manifest describes another model, or one that does not fit into as
    many bytes.
    """
    architecture, content = Architecture.parse(manifest.architecture), manifest.plain_content
    channels, classes = manifest.input.channels, len(manifest.classes)
    members = content.get("members", 1)
    if not isinstance(members, int) or isinstance(members, bool) or members < 1:
        raise ValueError(f"the content in {MANIFEST} is the mean of {members!r} networks")
    if 4 * members * cost(architecture, channels, classes).expanded_params > size:
        raise ValueError("the architecture in the manifest has more weights than the file holds")
    with torch.random.fork_rng(devices=[]):
        network = description(Network(architecture, channels, classes))
    if content["network"] != network or content["classes"] != list(manifest.classes):
        raise ValueError(
            f"the content in {MANIFEST} is not what the architecture "
            f"{shown_names([manifest.architecture])} has"
        )
    if not len(content["mean"]) == len(content["std"]) == channels or content["fit"] not in (
        "resize",
        "pad",
    ):
        raise ValueError(
            f"the content in {MANIFEST} has another normalisation than images of {channels} "
            "channels take"
        )
    if content.get("task", "classification") != manifest.task or (
        tuple(content.get("scale", ())) != manifest.scale
    ):
        raise ValueError(f"the content in {MANIFEST} predicts something else than it says")
    inside = manifest.corners if manifest.corners in ("circle", "crop") else None
    if content.get("corners") != inside:
        raise ValueError(
            f"the content in {MANIFEST} has other corners than the training that it describes"
        )
    # equal is not the same: JSON's true equals 1, and torch takes it for no stride
    return {**content, "network": network}


def _file_results(
    manifest: Manifest, folder: Path, bad: Mapping[str, str]
) -> Iterator[CheckResult]:
    gaps = manifests.gaps(manifest)
    yield from (CheckResult("files", False, f"{name} {problem}") for name, problem in bad.items())
    yield from (CheckResult("files", False, gap) for gap in gaps)
    loaded, others = manifests.strangers(manifest, folder)
    if loaded:
        yield CheckResult(
            "files",
            False,
            f"not of the bundle, but Python loads it from this folder: "
            f"{shown_names(loaded)}; remove it",
        )
    if not bad and not gaps and not loaded:
        yield CheckResult(
            "files", True, f"{counted(len(manifest.files), 'file')} as they were written"
        )
    if others:
        caution = (
            "; Python runs what lies in __pycache__, remove it unless you made it"
            if "__pycache__" in others
            else ""
        )
        yield CheckResult("other files", None, f"not of the bundle: {shown_names(others)}{caution}")


def _claims(manifest: Manifest) -> Iterator[CheckResult]:
    """Where the manifest claims an element that the architecture does not keep, or the other way
    round, as its verdict decides anew without weights.
    """
    architecture, declared = Architecture.parse(manifest.architecture), manifest.declared
    ruling = verdict(architecture, Group.parse(declared))
    elements = movable(ruling.group, architecture.size)
    invariant = [element for element in elements if element in ruling.invariant]
    wrong = [
        f"{row.element}: exact {row.exact}"
        for row in manifest.elements
        if row.exact != (Element.parse(row.element) in invariant)
    ]
    exact = manifest.exactness.get("exact", ruling.exact)
    if exact != ruling.exact:
        wrong.append(f"exact {exact} under {declared}")
    if wrong:
        under = " ".join(map(str, invariant)) or "no element but the identity"
        yield CheckResult(
            "claims",
            False,
            f"{MANIFEST} says {shown_names(wrong)}; the architecture's logits stay the same under "
            f"{under}, and it is {'' if ruling.exact else 'not '}exact under {declared}",
        )


def _file_problem(path: Path, expected: Hashed) -> str | None:
    if not path.is_file():
        return "is not a file" if os.path.lexists(path) else "is missing"
    return (
        None
        if sha256(path) == expected.sha256
        else f"has changed since the export ({path.stat().st_size} bytes, {expected.bytes} written)"
    )


def _model(folder: Path, manifest: Manifest) -> Model:
    return cast(Model, _runner(folder, "safetensors", manifest, False))


def _runner(folder: Path, name: str, manifest: Manifest, run_code: bool) -> Runner:
    if name == "onnx":
        return careful_runner(folder, name, {})
    if run_code and name in ("torch", "torch.export"):
        return runner(folder, name)
    size = (folder / BUNDLE_FORMATS["safetensors"][0]).stat().st_size
    return careful_runner(folder, name, model_content(manifest, size))


def _not_run(folder: Path, name: str, reason: NeedsCodeError) -> CheckResult:
    if name == "torch":
        return CheckResult(name, False, f"not run: {reason}; {TRUST}")
    try:
        member = pickled_code(folder / BUNDLE_FORMATS[name][0])
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
        return CheckResult(
            name,
            False,
            f"does not run: it is not a whole archive ({type(error).__name__}: "
            f"{shown_names([str(error)])})",
        )
    if member is not None:
        return CheckResult(
            name,
            False,
            f"not run: {shown_names([member])} in it is a pickle that calls functions, which no "
            "export writes",
        )
    good, said = _weights(folder, name)
    text = f"not run: {reason}; {TRUST}{said}"
    return CheckResult(name, False, text) if good is False else CheckResult(name, None, text, True)


def _weights(folder: Path, name: str) -> tuple[bool | None, str]:
    """(whether the weights in a format's file are those of model.safetensors, a phrase that says
    so); None where they cannot be compared.
    """
    try:
        wrong, count = differing_weights(folder, name)
    except NotReadError as error:
        return None, f"; weights not compared: {shown_names([str(error)])}"
    if wrong:
        return False, f"; weights that are not those of model.safetensors: {shown_names(wrong)}"
    return True, f"; its {count} weights are those of model.safetensors"


def _check_format(
    folder: Path,
    name: str,
    manifest: Manifest,
    run_code: bool,
    probes: Tensor,
    recorded: Tensor,
    outputs: dict[str, Tensor],
) -> list[CheckResult]:
    """Loads and runs one format; its logits go into `outputs`."""
    try:
        run = in_units(_runner(folder, name, manifest, run_code), torch.tensor(manifest.units))
        outputs[name] = logits(run, probes)
        measured = changes(run, probes, manifest.claimed)
    except NeedsCodeError as reason:
        return [_not_run(folder, name, reason)]
    except Exception as error:  # files and runtimes fail in any way
        return [
            CheckResult(
                name, False, f"does not run: {type(error).__name__}: {shown_names([str(error)])}"
            )
        ]
    if outputs[name].shape != recorded.shape:
        return [
            CheckResult(
                name,
                False,
                f"gives logits of shape {list(outputs.pop(name).shape)}, "
                f"not {list(recorded.shape)}",
            )
        ]
    own = name != "torch" or is_written(read_whole(folder / SOURCE))
    foreign = "" if own else f"; {SOURCE} is not what an equisearch known to this one writes"
    difference = float((outputs[name] - recorded).abs().max())
    tolerance = parity_tolerance(recorded)
    other = name in ("torch.export", "onnx") and "safetensors" in manifest.formats
    same, said = _weights(folder, name) if other else (None, "")
    result = CheckResult(
        name,
        difference <= tolerance and same is not False,
        f"logits on {len(probes)} random images differ by {difference:.2g} from those at the "
        f"export (allowed {tolerance:.2g}){foreign}{said}",
    )
    return [result, *_symmetry(name, measured)]


def _symmetry(name: str, measured: Mapping[Element, Change]) -> Iterator[CheckResult]:
    """Whether the logits stay the same under the claimed elements; nothing if none is claimed."""
    if not measured:
        return
    worst = max(measured, key=lambda e: measured[e].relative)
    broken = [str(e) for e, change in measured.items() if not change.negligible]
    yield CheckResult(
        f"{name} symmetry",
        not broken,
        f"logits change by at most {measured[worst].relative:.2g} of their spread ({worst}), "
        f"over {len(measured)} exact elements"
        + (f"; claimed, but broken: {' '.join(broken)}" if broken else ""),
    )


def _agreement(outputs: Mapping[str, Tensor], recorded: Tensor) -> CheckResult:
    stacked = torch.stack(list(outputs.values()))
    difference = float((stacked.amax(0) - stacked.amin(0)).max())
    return CheckResult(
        "agreement",
        difference <= 2 * parity_tolerance(recorded),
        f"{', '.join(outputs)} differ by at most {difference:.2g} from each other",
    )
