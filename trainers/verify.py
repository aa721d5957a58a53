"""Checks of a bundle that lies somewhere: its files, its formats, its symmetry. Needs no data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

from searchspace.groups import Element
from trainers.bundle import FORMATS, MANIFEST, logits, runner, sha256
from trainers.export import FORMAT_VERSION
from trainers.symmetry_check import changes, parity_tolerance, probe_images


@dataclass(frozen=True)
class Finding:
    """One check and how it ended."""

    check: str          # files | a format's name | agreement | symmetry
    good: bool
    text: str


@dataclass(frozen=True)
class Report:
    """What was found in a bundle."""

    bundle: Path
    architecture: str
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """True if every check was passed."""
        return all(finding.good for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"bundle": str(self.bundle), "architecture": self.architecture, "good": self.good,
                "findings": [{"check": f.check, "good": f.good, "text": f.text} for f in self.findings]}

    def text(self) -> str:
        """The findings, a line each, and the verdict."""
        lines = [f"{'ok ' if finding.good else 'BAD'}  {finding.check}: {finding.text}" for finding in self.findings]
        bad = sum(not finding.good for finding in self.findings)
        verdict = "the bundle is sound" if self.good else f"the bundle is damaged ({bad} of {len(lines)} checks failed); export the trial again"
        return "\n".join([f"{self.bundle}: {self.architecture}", *lines, verdict])


def verify(folder: Path) -> Report:
    """What is found in the bundle in `folder`: are the files those that were written, do all formats load and agree with each other
    and with the logits recorded at export, do the claimed symmetries hold on random dense images.

    A format whose files have changed is not loaded. Raises ValueError if there is no bundle, or one of a later format.
    """
    manifest = _manifest(folder)
    bad_files = {name: _file_problem(folder / name, expected) for name, expected in manifest["files"].items()}
    bad_files = {name: problem for name, problem in bad_files.items() if problem}
    findings = [Finding("files", False, f"{name} {problem}") for name, problem in bad_files.items()]
    if not bad_files:
        findings.append(Finding("files", True, f"{len(manifest['files'])} files as they were written"))
    given = manifest["input"]
    probes = probe_images(given["channels"], (given["height"], given["width"]), manifest["probe"]["images"])
    recorded = torch.tensor(manifest["probe"]["logits"])
    claimed = [Element.parse(row["element"]) for row in manifest["elements"] if row["exact"]]
    found: dict[str, Tensor] = {}
    for name in manifest["formats"]:
        if not bad_files.keys() & set(FORMATS[name]):
            findings += _check_format(folder, name, probes, recorded, claimed, found)
    findings += [Finding(name, True, f"absent since the export: {reason}") for name, reason in manifest["refused"].items()]
    if len(found) > 1:
        findings.append(_agreement(found, recorded))
    return Report(folder, manifest["architecture"], tuple(findings))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is no bundle: it has no {MANIFEST}; `equisearch export DIR TRIAL` writes bundles")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version <= FORMAT_VERSION:
            missing = {"files", "formats", "refused", "probe", "elements", "input", "architecture"} - manifest.keys()
            if not missing and set(manifest["formats"]) <= set(FORMATS):
                return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        version = 0
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this program knows up to {FORMAT_VERSION}; install a later equisearch")
    raise ValueError(f"{path} is damaged: it is not what an export writes; export the trial again")


def _file_problem(path: Path, expected: Mapping[str, Any]) -> "str | None":
    if not path.is_file():
        return "is missing"
    return None if sha256(path) == expected["sha256"] else f"has changed since the export ({path.stat().st_size} bytes, {expected['bytes']} written)"


def _check_format(folder: Path, name: str, probes: Tensor, recorded: Tensor, claimed: list[Element], found: dict[str, Tensor]) -> list[Finding]:
    """Loads and runs one format; its logits go into `found`."""
    try:
        run = runner(folder, name)
        found[name] = logits(run, probes)
        measured = changes(run, probes, claimed)
    except Exception as error:          # files and runtimes fail in any way
        return [Finding(name, False, f"does not run: {type(error).__name__}: {str(error)[:300]}")]
    if found[name].shape != recorded.shape:
        return [Finding(name, False, f"gives logits of shape {list(found.pop(name).shape)}, not {list(recorded.shape)}")]
    difference, tolerance = float((found[name] - recorded).abs().max()), parity_tolerance(recorded)
    findings = [Finding(name, difference <= tolerance, f"logits on {len(probes)} random images differ by {difference:.2g} from those at the export "
                                                       f"(allowed {tolerance:.2g})")]
    if claimed:
        worst = max(measured, key=lambda e: measured[e].relative)
        broken = [str(e) for e, change in measured.items() if not change.negligible]
        text = f"logits change by at most {measured[worst].relative:.2g} of their spread ({worst}), over {len(claimed)} exact elements"
        findings.append(Finding(f"{name} symmetry", not broken, text + (f"; claimed, but broken: {' '.join(broken)}" if broken else "")))
    return findings


def _agreement(found: Mapping[str, Tensor], recorded: Tensor) -> Finding:
    outputs = torch.stack(list(found.values()))
    difference = float((outputs.amax(0) - outputs.amin(0)).max())
    return Finding("agreement", difference <= 2 * parity_tolerance(recorded), f"{', '.join(found)} differ by at most {difference:.2g} from each other")
