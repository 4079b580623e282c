"""One destination's queue and thread: no destination holds up decoding, another destination, or the application."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from llmsec_tap.errors import LLMSecError
from llmsec_tap.model import AnomalyCount, Exchange
from llmsec_trace.destinations.base import Destination, DestinationError
from llmsec_trace.suppressing import suppress

if TYPE_CHECKING:
    from llmsec_trace.recorder import Stats

log = logging.getLogger("llmsec_trace")

MAX_BYTES: Final = 64 << 20
REPORT_S: Final = 15.0  # as the agent's interval of metrics
_COST_BYTES: Final = 4096  # of a record beside its texts
_BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Lane:
    """`offer` never waits. Fields are counts. `stats` gives those of all that was recorded."""

    def __init__(
        self,
        destination: Destination,
        stats: Callable[[], Stats],
        *,
        batch_size: int,
        interval_s: float,
        max_items: int,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.destination = destination
        self._stats = stats
        self._report: Callable[[Stats], None] | None = getattr(destination, "report", None)
        self._batch_size = batch_size
        self._interval_s = interval_s
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clear()

    def _clear(self) -> None:
        self.sent = 0
        self.dropped = 0
        self.failures = 0
        self.last_error = ""
        self._report_error = ""
        self._lost = 0  # that records handed on have told of
        self._report_at = time.monotonic() + REPORT_S
        self._is_report_wanted = False
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
            with contextlib.suppress(RuntimeError):  # it waits for a thread, and is counted
                self.start()
            if len(self._items) == 1 or len(self._items) >= self._batch_size:
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return len(self._items)

    def flush(self, timeout_s: float) -> bool:
        """Send what waits, and report. False where some of what waits still does."""
        self._is_report_wanted = self._report is not None and self._thread is not None
        return self._drain(timeout_s)

    def _drain(self, timeout_s: float) -> bool:
        with self._changed:
            self._hurry, self._retry_at = True, 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._items and not self._busy and not self._is_report_wanted, timeout_s)
            self._hurry = False
            return not self._items and not self._busy

    def close(self, timeout_s: float) -> bool:
        done = self._drain(timeout_s)
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
                while not self._is_due() and not self._is_report_due() and not self._closing:
                    self._changed.wait(self._wait_s())
                if self._closing:
                    break
                is_due = self._is_due()
                batch = [item[0] for item, _ in zip(self._items, range(self._batch_size), strict=False)] if is_due else []
                self._busy = True
            taken = self._send(batch) if batch else 0
            with self._changed:
                for _ in range(taken):
                    self._bytes -= self._items.popleft()[1]
            if self._is_report_due():
                self._tell()
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        with self._changed:
            self.dropped += len(self._items)
            self._items.clear()
            self._bytes = 0
        self._tell()
        try:
            self.destination.close()
        except Exception as fault:  # noqa: BLE001 - it may be the application's own
            self.last_error = self._failed(fault, "records", self.last_error)

    def _is_due(self) -> bool:
        if not self._items or time.monotonic() < self._retry_at:
            return False
        return self._hurry or len(self._items) >= self._batch_size or time.monotonic() - self._items[0][2] >= self._interval_s

    def _is_report_due(self) -> bool:
        """A report that is wanted comes after the records that wait."""
        return self._report is not None and (time.monotonic() >= self._report_at or (self._is_report_wanted and not self._is_due()))

    def _wait_s(self) -> float | None:
        now = time.monotonic()
        report_s = max(0.001, self._report_at - now) if self._report is not None else None
        if not self._items:
            return report_s
        batch_s = max(0.001, self._items[0][2] + self._interval_s - now, self._retry_at - now)
        return batch_s if report_s is None else min(batch_s, report_s)

    def _tell(self) -> None:
        self._report_at = time.monotonic() + REPORT_S
        self._is_report_wanted = False
        if self._report is None:
            return
        try:
            self._report(self._stats())
        except Exception as fault:  # noqa: BLE001 - a destination may be the application's own
            self._report_error = self._failed(fault, "metrics", self._report_error)
        else:
            self._report_error = ""

    def _marked(self, batch: list[Exchange], lost: int) -> list[Exchange]:
        """The first record says what was lost since the last one that was taken. It is a copy: other destinations have the same record."""
        if lost <= self._lost:
            return batch
        mark = AnomalyCount(name="sdk_lost", count=lost - self._lost)
        return [replace(batch[0], anomalies=[*batch[0].anomalies, mark]), *batch[1:]]

    def _send(self, batch: list[Exchange]) -> int:
        """How many of the batch are dealt with."""
        try:
            stats = self._stats()
            lost = stats.dropped + stats.gaps
            self.destination.send(self._marked(batch, lost))
        except DestinationError as fault:
            self.last_error = self._failed(fault, "records", self.last_error)
            if not fault.is_lasting:
                self._retry_at = time.monotonic() + _BACK_OFF_S[min(self._tries, len(_BACK_OFF_S) - 1)]
                self._tries += 1
                return 0
            given_up = len(batch) if fault.lost is None else fault.lost
            self.dropped += given_up
            if given_up < len(batch):
                self._taken(len(batch) - given_up, lost)
        except Exception as fault:  # noqa: BLE001 - a destination may be the application's own
            self.last_error = self._failed(fault, "records", self.last_error)
            self.dropped += len(batch)
        else:
            self._taken(len(batch), lost)
            self.last_error = ""
        return len(batch)

    def _taken(self, count: int, lost: int) -> None:
        """`lost`: what records have told of by now."""
        self.sent += count
        self._lost = lost
        self._tries = 0

    def _failed(self, fault: Exception, what: str, before: str) -> str:
        """What is to be said of it; it is said once, as long as the same goes wrong."""
        self.failures += 1
        text = "; ".join(fault.lines()) if isinstance(fault, LLMSecError) else type(fault).__name__
        if text != before:
            log.warning("%s cannot be handed to %s: %s", what, type(self.destination).__name__, text)
        return text
