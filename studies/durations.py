"""Durations in a study file: seconds as a number, or text such as `90s`, `30m`, `2h`, `1d`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def in_seconds(text: str) -> float:
    """Seconds of text such as `90s`, `30m`, `2h`, `1d`. Raises ValueError for other text."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*", text)
    if not match:
        raise ValueError(
            f"'{text}' is not a duration; write seconds, or a number with s, m, h or d such as 90m"
        )
    return float(match[1]) * UNIT_SECONDS[match[2] or "s"]


def _seconds(value: Any) -> Any:
    """Seconds from a number or from text such as `90s`, `30m`, `2h`, `1d`."""
    if isinstance(value, str):
        return in_seconds(value)
    if isinstance(value, bool):
        raise ValueError(f"got {value}; write seconds, or a number with s, m, h or d such as 90m")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


def duration_text(seconds: float) -> str:
    """A duration for people, in its largest unit: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return (
                f"{seconds / length:.2g} {unit}"
                if seconds < 100 * length
                else (f"{seconds / length:.0f} {unit}")
            )
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
