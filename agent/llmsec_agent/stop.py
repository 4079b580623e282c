"""The wish that a run ends, and how long each of its parts may still take then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# From the wish to the exit, whatever a reader, a disk or a detector does.
GRACE_S = 1.8


class Stop:
    """`request` may be called from a signal handler and from any thread; the first one counts. Without one, nothing has a deadline."""

    def __init__(self) -> None:
        self._at = math.inf
        self._callbacks: list[Callable[[], None]] = []
        self.is_requested = False

    def request(self) -> None:
        if not self.is_requested:
            self._at = time.monotonic()
            self.is_requested = True
            for callback in tuple(self._callbacks):
                callback()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call it when the wish comes, on whatever thread; at once where it has come."""
        self._callbacks.append(callback)
        if self.is_requested:
            callback()

    def left_s(self, share: float = 1.0) -> float:
        """Of the first `share` of the grace; infinite until the wish comes, 0 once it is over."""
        return max(0.0, self._at + share * GRACE_S - time.monotonic())
