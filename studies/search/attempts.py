"""Deaths of what trains a trial, and when there were too many without another epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Died = Literal["worker", "program"]
# Deaths of the whole program during a trial, without another epoch, that end the trial. A machine
# that is taken away is not a fault of the trial, but a trial that ends the program each time must
# not block the study.
PROGRAM_DEATHS = 10
COUNTS: dict[Died, str] = {"worker": "count", "program": "programs"}


def count_death(
    attempts: Mapping[str, Any], died: Died, epoch: int, retries: int
) -> tuple[dict[str, Any], str | None]:
    """The attempts of a trial with one more death after `epoch` epochs, and why the trial has to
    end, if it has to. Another epoch since the last death starts the counts again.
    """
    if attempts.get("epoch") != epoch:
        attempts = {"epoch": epoch}
    deaths = attempts.get(COUNTS[died], 0) + 1
    limit = retries + 1 if died == "worker" else PROGRAM_DEATHS
    who = "its worker" if died == "worker" else "the program that trained it"
    reason = f"{who} died {deaths} times without getting beyond epoch {epoch}"
    return {**attempts, COUNTS[died]: deaths}, reason if deaths >= limit else None
