"""One destination's queue and thread: no destination holds up decoding, another destination, or the application."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final

from llmsec_tap.errors import LLMSecError
from llmsec_tap.model import Exchange
from llmsec_trace.destinations.base import Destination, DestinationError
from llmsec_trace.suppressing import suppress

log = logging.getLogger("llmsec_trace")

MAX_BYTES: Final = 64 << 20
_COST_BYTES: Final = 4096  # of a record beside its texts
_BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Lane:
    """`offer` never waits. Fields are counts."""

    def __init__(self, destination: Destination, *, batch_size: int, interval_s: float, max_items: int, max_bytes: int = MAX_BYTES) -> None:
        self.destination = destination
        self._batch_size = batch_size
        self._interval_s = interval_s
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.sent = 0
        self.dropped = 0
        self.failures = 0
        self.last_error = ""
        self._clear()

    def _clear(self) -> None:
        self._items: deque[tuple[Exchange, int, float]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._hurry = False
        self._closing = False
        self._busy = False
        self._tries = 0
        self._retry_at = 0.0
        self._thread: threading.Thread | None = None

    def forked(self) -> None:
        """In a child: what waits is the parent's to send."""
        self._clear()
        forked = getattr(self.destination, "forked", None)
        if forked is not None:
            forked()

    def start(self) -> None:
        """Best with the first call, before the first record: Python 3.12 starts no thread while the interpreter ends. Raises RuntimeError then."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="llmsec-send", daemon=True)
            thread.start()
            self._thread = thread

    def offer(self, exchange: Exchange) -> None:
        size = _COST_BYTES + exchange.request.body_bytes + exchange.response.body_bytes
        with self._changed:
            if len(self._items) >= self._max_items or (self._items and self._bytes + size > self._max_bytes):
                self.dropped += 1
                return
            self._items.append((exchange, size, time.monotonic()))
            self._bytes += size
            self.start()
            if len(self._items) == 1 or len(self._items) >= self._batch_size:
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return len(self._items)

    def flush(self, timeout_s: float) -> bool:
        """Send what waits. False where some of it still does."""
        until = time.monotonic() + timeout_s
        with self._changed:
            self._hurry, self._retry_at = True, 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._items and not self._busy, max(0.0, until - time.monotonic()))
            self._hurry = False
            return not self._items and not self._busy

    def close(self, timeout_s: float) -> bool:
        done = self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None:
            thread.join(max(0.1, timeout_s))
        return done

    # --- the lane's thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        suppress()
        while True:
            with self._changed:
                while not self._is_due() and not self._closing:
                    self._changed.wait(self._wait_s())
                if self._closing:
                    break
                batch = [item[0] for item, _ in zip(self._items, range(self._batch_size), strict=False)]
                self._busy = True
            taken = self._send(batch)
            with self._changed:
                for _ in range(taken):
                    self._bytes -= self._items.popleft()[1]
                self._busy = False
                self._changed.notify_all()
        with self._changed:
            self.dropped += len(self._items)
            self._items.clear()
            self._bytes = 0
        try:
            self.destination.close()
        except Exception as fault:  # noqa: BLE001 - it may be the application's own
            self._failed(fault)

    def _is_due(self) -> bool:
        if not self._items or time.monotonic() < self._retry_at:
            return False
        return self._hurry or len(self._items) >= self._batch_size or time.monotonic() - self._items[0][2] >= self._interval_s

    def _wait_s(self) -> float | None:
        if not self._items:
            return None
        return max(0.001, self._items[0][2] + self._interval_s - time.monotonic(), self._retry_at - time.monotonic())

    def _send(self, batch: list[Exchange]) -> int:
        """How many of the batch are dealt with."""
        try:
            self.destination.send(batch)
        except DestinationError as fault:
            self._failed(fault)
            if not fault.is_lasting:
                self._retry_at = time.monotonic() + _BACK_OFF_S[min(self._tries, len(_BACK_OFF_S) - 1)]
                self._tries += 1
                return 0
            self.dropped += len(batch)
        except Exception as fault:  # noqa: BLE001 - a destination may be the application's own
            self._failed(fault)
            self.dropped += len(batch)
        else:
            self.sent += len(batch)
            self._tries = 0
            self.last_error = ""
        return len(batch)

    def _failed(self, fault: Exception) -> None:
        self.failures += 1
        text = "; ".join(fault.lines()) if isinstance(fault, LLMSecError) else type(fault).__name__
        if text != self.last_error:
            log.warning("records cannot be handed to %s: %s", type(self.destination).__name__, text)
        self.last_error = text
