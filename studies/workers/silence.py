"""How long a trial may be silent before its worker counts as hanging, and a clock that leaves out
the time in which this process was stopped or its machine suspended.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType

FLOOR = 600.0  # seconds: no derived limit is shorter
MULTIPLE = 20  # of the longest silence so far: trials of one study differ in size
SUSPENDED = 30.0  # seconds between two looks at a clock that is looked at twice a second


@dataclass(frozen=True)
class Silence:
    """What is known of the silences between two signs of life (an epoch, a rung) of the workers of
    a run.

    One rule: a worker may be silent for `resources.trial_timeout`; where the study leaves that
    open, for MULTIPLE times the longest silence of its own trial so far, before the trial's first
    epoch that of all trials of the run, and in both cases FLOOR at least. While no trial has
    finished an epoch there is no limit.
    """

    timeout: float | None  # seconds, resources.trial_timeout; None: derived from what was heard
    longest: float | None = None  # seconds, of all trials; None: nothing was heard yet

    def heard_after(self, seconds: float) -> Silence:
        """The same with one more silence, that ended after `seconds`."""
        return replace(self, longest=max(seconds, self.longest or 0.0))

    def limit(self, own: float | None = None) -> float | None:
        """Seconds after which a worker counts as hanging whose trial was silent for `own` seconds
        at most; None before anything was heard.
        """
        if self.timeout is not None:
            return self.timeout
        longest = self.longest if own is None else own
        return None if longest is None else max(FLOOR, MULTIPLE * longest)

    def reason(self, seconds: float, own: float | None = None) -> str:
        """Why a worker is replaced that was silent for `seconds`."""
        said = f"the worker was silent for {seconds:.0f} s"
        if self.timeout is not None:
            return f"{said} (resources.trial_timeout is {self.timeout:g} s)"
        longest = self.longest if own is None else own
        return (
            f"{said}, and the longest silence before was {longest:.0f} s; set "
            "resources.trial_timeout where that is to be expected"
        )


class AwakeClock:
    """Seconds in which this process ran: a gap of more than SUSPENDED between two ticks of its
    thread is left out. A context manager.
    """

    def __init__(self) -> None:
        self._last, self._left_out = time.monotonic(), 0.0
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> AwakeClock:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()

    def seconds(self) -> float:
        """The seconds, from some moment on."""
        with self._lock:
            now = time.monotonic()
            if now - self._last > SUSPENDED:
                self._left_out += now - self._last
            self._last = now
            return now - self._left_out

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            self.seconds()
