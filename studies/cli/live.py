"""Progress of a running study on stderr: a live table with bars on a terminal, one plain line an
event otherwise.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from studies.journal.trial import state_word
from studies.output import note, percent
from studies.search.driver import SearchDriver
from studies.tasks import task_score
from studies.terminal import is_terminal, lasting, one_line, plain_text, styled
from studies.workers.executors import Event

RECENT = 6  # trials shown after they ended
PROGRESS_BAR = 18  # characters


class LiveView:
    """Listens to an executor and shows what happens; a context manager. `quiet` shows nothing."""

    def __init__(self, driver: SearchDriver, *, quiet: bool = False) -> None:
        self._driver, self._study, self._quiet = driver, driver.study, quiet
        self._began = time.monotonic()
        self._running: dict[int, dict[str, Any]] = {}
        self._ended: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._live = None

    def __enter__(self) -> LiveView:
        if not self._quiet and is_terminal(sys.stderr):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=styled(sys.stderr, forgiving=True)),
                refresh_per_second=4,
                get_renderable=self._table,
            )
            # puts streams of its own in place of stdout and stderr until it stops; what is printed
            # meanwhile is plain too
            self._live.start()
            sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            return self._warn(event.reason or "")
        row = self._running.setdefault(
            event.number, {"number": event.number, "epoch": 0, "scores": None, "outcome": ""}
        )
        row["epoch"] = max(row["epoch"], event.epoch)
        if event.kind == "started":
            row["beside"] = self._purpose(event.number)
        if event.kind == "rung":
            row["scores"] = event.scores
        if event.kind == "ended":
            row["outcome"], row["reason"] = event.outcome, event.reason
            self._counts[event.outcome or ""] += 1
            self._ended = [*self._ended, self._running.pop(event.number)][-RECENT:]
        if self._live is None and not self._quiet:
            line = self._line(event, row)
            if line:
                note(f"[{time.monotonic() - self._began:6.1f} s] {one_line(line)}")

    def _warn(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(
                plain_text(f"warning: {text}"), markup=False, highlight=False, soft_wrap=True
            )
        else:
            note(f"warning: {text}")

    def _line(self, event: Event, row: dict[str, Any]) -> str:
        """One event in words; epochs between rungs are passed over."""
        if event.kind == "rung" and event.scores is not None:
            return (
                f"trial {event.number}: epoch {event.epoch} of {self._study.training.epochs}, "
                f"{self._score} {percent(event.scores.get('accuracy'))} %, "
                f"symmetry {self._score} {percent(event.scores.get('symmetry_accuracy'))} %: "
                f"{self._decision(event)}"
            )
        if event.kind == "ended":
            done = f"{self._driver.finished} of {self._study.search.trials} done"
            word = state_word(str(event.outcome))
            reason = f" ({event.reason})" if event.reason else ""
            if row.get("beside"):
                left = self._driver.left
                return f"trial {event.number}: {word}{reason}; {left} left beside the search"
            return (
                f"trial {event.number}: {word}{reason}; {done}, "
                f"hypervolume {self._driver.volume:.4f}"
            )
        if event.kind != "started":
            return ""
        return f"trial {event.number}: started{row['beside']}"

    def _decision(self, event: Event) -> str:
        """What follows a rung; nothing does after the last epoch."""
        return "scored" if event.epoch == self._study.training.epochs else str(event.outcome)

    @property
    def _score(self) -> str:
        """What the main score is called."""
        return task_score(self._study.data.task)

    def _purpose(self, number: int) -> str:
        """What a trial beside the search is trained for, in brackets; empty for others."""
        if number not in self._driver.running:
            return ""
        record = self._driver.trial(number)
        if record.kind == "search":
            return ""
        return f" ({record.kind} of trial {record.attributes['of']}: {record.attributes['role']})"

    def _table(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        done, asked = self._driver.finished, self._study.search.trials
        title = (
            f"{bar(done, asked)} {done} of {asked} trials, {time.monotonic() - self._began:.0f} "
            f"s, hypervolume {self._driver.volume:.4f}; "
            + ", ".join(f"{count} {state_word(name)}" for name, count in self._counts.items())
        )
        table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("trial", "epochs", f"{self._score} %", "symmetry %", "state"):
            table.add_column(
                name, justify="right" if name.endswith("%") or name == "trial" else "left"
            )
        for row in [*self._ended, *self._running.values()]:
            scores, epochs = row["scores"] or {}, self._study.training.epochs
            table.add_row(
                str(row["number"]),
                f"{bar(row['epoch'], epochs)} {row['epoch']}/{epochs}",
                percent(scores.get("accuracy")),
                percent(scores.get("symmetry_accuracy")),
                Text(one_line(state_word(row["outcome"] or "running"))),
            )
        return table


def bar(done: int, total: int) -> str:
    """A progress bar of a fixed width."""
    full = min(PROGRESS_BAR, PROGRESS_BAR * done // max(1, total))
    return "█" * full + "░" * (PROGRESS_BAR - full)
