"""The answer of an audit: for each element a claim, where it is lost, and what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from searchspace.geometry import counted
from searchspace.groups import IDENTITY, Element, Group, isomorphic_name, largest_subgroup
from trainers.instruments.audit.symmetrised import THRESHOLD
from trainers.text_table import Column, table_lines

AuditClaim = Literal["exact", "broken", "not known"]
SYMMETRIC = 1e-5  # of a network's own error: what float32 weights of a symmetric network leave


@dataclass(frozen=True)
class Lost:
    """A layer behind which an element is no longer exact."""

    layer: str
    operation: str
    why: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.why}"


@dataclass(frozen=True)
class ElementAudit:
    """What an audit says of one element."""

    element: Element
    claim: AuditClaim  # of the grid, for all kernels that the element keeps
    lost: tuple[Lost, ...]  # the layers, first layer first; empty unless broken, or doubted
    # with random kernels that the element keeps; infinite: of another shape, None: not measured
    measured: float | None
    own: float | None  # with the weights that the module has
    doubted: bool = False  # whether there is no claim because the measurement said another thing

    @property
    def agrees(self) -> bool | None:
        """Whether the measurement says what the steps do; None where either is missing, and False
        never beside a claim: there is none then.
        """
        if self.doubted:
            return False
        if self.claim == "not known" or self.measured is None:
            return None
        return (self.claim == "exact") == (self.measured <= THRESHOLD)

    def settled(self) -> ElementAudit:
        """The same without its claim where the measurement says another thing."""
        if self.agrees is not False:
            return self
        return replace(self, claim="not known", doubted=True)


@dataclass(frozen=True)
class Audit:
    """Which elements of a group the sampling grid of a module keeps at one input size."""

    name: str
    size: tuple[int, int]  # (height, width), pixels
    channels: int
    group: Group
    findings: tuple[ElementAudit, ...]  # of every element, in the group's order
    unread: tuple[str, ...]  # layers that are not followed
    # nearby, nearest first: no layer breaks an element there; (height, width) if not square
    exact_sizes: tuple[int | tuple[int, int], ...]
    invariant: bool  # whether the module returns vectors; else maps

    @property
    def exact(self) -> bool:
        """True if the grid keeps every element of the group."""
        return all(f.claim == "exact" for f in self.findings)

    @property
    def surviving(self) -> tuple[Element, ...]:
        """The elements that the grid keeps."""
        return tuple(f.element for f in self.findings if f.claim == "exact")

    @property
    def surviving_group(self) -> str:
        """The name of the largest group of surviving elements, up to the direction of a mirror
        axis.
        """
        return isomorphic_name(largest_subgroup(self.surviving))

    @property
    def symmetric(self) -> tuple[Element, ...]:
        """The elements under which the module with its own weights is exact, as measured."""
        return tuple(f.element for f in self.findings if f.own is not None and f.own <= SYMMETRIC)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the keys are stable."""
        height, width = self.size
        return {
            "model": self.name,
            "size": height if height == width else [height, width],
            "channels": self.channels,
            "group": str(self.group),
            "output": "vector" if self.invariant else "map",
            "exact": self.exact,
            "surviving": self.surviving_group,
            "surviving_elements": [str(e) for e in self.surviving],
            "own_elements": [str(e) for e in self.symmetric],
            "not_known": [str(f.element) for f in self.findings if f.claim == "not known"],
            "unread": list(self.unread),
            "exact_sizes": [s if isinstance(s, int) else list(s) for s in self.exact_sizes],
            "elements": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each element."""
        return [
            {
                "element": str(f.element),
                "claim": f.claim,
                "lost_at": [lost.layer for lost in f.lost],
                "why": [lost.why for lost in f.lost],
                "grid_error": _finite(f.measured),
                "own_error": _finite(f.own),
                "agrees": f.agrees,
            }
            for f in self.findings
        ]

    def text(self) -> str:
        """The answer for people."""
        height, width = self.size
        lines = [
            f"{self.name} at {height}x{width}, {counted(self.channels, 'channel')}, under "
            f"{self.group}"
        ]
        rows = [
            [
                str(f.element),
                f.claim,
                _error(f.measured),
                _error(f.own),
                "; ".join(map(str, f.lost[:2]))
                + (f"; {len(f.lost) - 2} more" if f.lost[2:] else ""),
            ]
            for f in self.findings
        ]
        heads = [Column("element"), Column("grid"), Column("grid error", True)]
        heads += [Column("own error", True), Column("lost at")]
        lines += [*table_lines(heads, rows), "", *self._sentences()]
        return "\n".join(lines).rstrip()

    def _sentences(self) -> list[str]:
        exact = [str(f.element) for f in self.findings if f.claim == "exact"]
        what = "logits" if self.invariant else "maps"
        said = [
            f"The grid keeps {self.surviving_group} ({', '.join(exact)}): with kernels that an "
            f"element keeps, the {what} are exact under it."
        ]
        if self.unread:
            said.append("Not known, because of layers that are not followed:")
            said += [f"  {layer}" for layer in self.unread[:6]]
        doubted = [str(f.element) for f in self.findings if f.doubted]
        if doubted:
            said.append(
                f"Not known for {', '.join(doubted)}: the layers say one thing, and what was "
                "measured with random weights says another."
            )
        own = [str(e) for e in self.symmetric if e != IDENTITY]
        said.append(
            f"The module's own weights are exact under {', '.join(own)} (measured)."
            if own
            else "The module's own weights are not exact under any other element than e (measured)."
        )
        if not self.exact and self.exact_sizes:
            sizes = " and ".join(map(size_words, self.exact_sizes))
            said.append(f"Nearest input sizes at which no layer breaks an element: {sizes}.")
        elif not self.exact and not self.unread and not doubted:
            said.append("No input size nearby is exact.")
        return said


def size_words(size: int | tuple[int, int]) -> str:
    """`28`, or `28x30` for height and width."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def _finite(value: float | None) -> float | None:
    """None for infinite, which JSON has not: the shapes differ."""
    return None if value is None or math.isinf(value) else value


def _error(value: float | None) -> str:
    if value is not None and math.isinf(value):
        return "shape"
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"
