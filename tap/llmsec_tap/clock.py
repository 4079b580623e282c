"""The one clock of a run: time that a step of the wall clock does not move and that goes on while the machine sleeps.

It is CLOCK_BOOTTIME, which the kernel half stamps its records with, plus one constant that makes epoch time of it. The constant is
taken once: a clock that is set later moves neither records nor time-outs, and `stepped_ns` says by how much the two differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """Tests give both sources; `boottime_ns` only ever grows."""

    def __init__(self, boottime_ns: Callable[[], int] = _boottime_ns, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.boottime_ns = boottime_ns
        self._wall_ns = wall_ns
        self.offset_ns = wall_ns() - boottime_ns()  # epoch time less boot time

    def now_ns(self) -> int:
        """Epoch nanoseconds."""
        return self.boottime_ns() + self.offset_ns

    def stepped_ns(self) -> int:
        """How far the wall clock is ahead of this one: what it was set by since the start."""
        return self._wall_ns() - self.now_ns()
