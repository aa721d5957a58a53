"""What checking a bundle found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.bundles.manifest import shown


@dataclass(frozen=True)
class CheckResult:
    """One check and how it ended."""

    check: str  # files | a format's name | agreement | symmetry
    good: bool | None  # None: not checked, the text says why
    text: str


@dataclass(frozen=True)
class BundleReport:
    """The results of all checks of a bundle."""

    bundle: Path
    architecture: str
    findings: tuple[CheckResult, ...]

    @property
    def good(self) -> bool:
        """True if no check failed; `not_run` are those that were left out."""
        return all(finding.good is not False for finding in self.findings)

    @property
    def not_run(self) -> tuple[str, ...]:
        """The checks that were left out, because they execute code of the bundle."""
        return tuple(finding.check for finding in self.findings if finding.good is None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "bundle": str(self.bundle),
            "architecture": self.architecture,
            "good": self.good,
            "not_run": list(self.not_run),
            "findings": [{"check": f.check, "good": f.good, "text": f.text} for f in self.findings],
        }

    def text(self) -> str:
        """The findings, a line each, and the verdict."""
        marks = {True: "ok ", False: "BAD", None: "-- "}
        lines = [
            f"{marks[finding.good]}  {finding.check}: {finding.text}" for finding in self.findings
        ]
        return "\n".join([f"{self.bundle}: {shown([self.architecture])}", *lines, self._verdict()])

    def _verdict(self) -> str:
        bad = sum(finding.good is False for finding in self.findings)
        if bad:
            return (
                f"the bundle is damaged or was changed ({bad} of {len(self.findings)} checks "
                "failed); export the trial again"
            )
        if self.not_run:
            return (
                f"nothing wrong was found; not run: {', '.join(self.not_run)} (--run-code runs it, "
                "if you trust where the bundle came from)"
            )
        return "the bundle is sound: whole and as it was exported; that does not say who made it"
