"""A lane: a bounded queue and a thread of its own for one sink, so that no sink holds up decoding, another sink or the end of a run.

A live run never waits for a lane: what does not fit is dropped and counted by reason. A replay's source can wait, so it does, until
somebody wants it to end. A fault of the sink is tried again with back-off, is reported once, and costs nobody but this sink.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from llmsec_agent.events import Event
from llmsec_agent.stop import Stop
from llmsec_analyzer.alerts.alert import Alert
from llmsec_tap.counters import Sample, by_label
from llmsec_tap.errors import LLMSecError
from llmsec_tap.journal import Journal
from llmsec_tap.model import Exchange

_TICK_S: Final = 0.5
_BATCH_BYTES: Final = 256 << 10
_BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_WAIT_S: Final = 0.1  # how soon a waiting source sees that the run is to end


class SinkError(LLMSecError):
    """A sink cannot take what it was given now; it is tried again."""

    exit_code = 4


class ReaderGoneError(SinkError):
    """Nobody will read this sink any more, by the reader's own wish (`| head`): that is no fault."""


class Sink(Protocol):
    """`encode` runs on the decoding thread and never blocks. The rest may block, and runs on the lane's thread only."""

    name: str
    takes_events: bool  # it is given events, and no exchanges

    def encode(self, item: Any) -> tuple[Any, int]:
        """What is kept of an exchange or event until it is written, and the bytes that takes; 0: the sink has no use for it."""

    def write(self, items: Sequence[Any]) -> int:
        """Take the first items, in their order, and say how many. Raises SinkError or StorageError where not even the first can be taken."""

    def tick(self) -> None:
        """Called after each write and about twice a second: what was held back long enough moves on. Raises as `write`."""

    def close(self) -> None:
        """Write what is still held back. Raises as `write`; what cannot be written then is lost and counted by the sink."""

    def samples(self) -> Iterable[Sample]: ...


class Lane:
    """`offer` from the decoding thread, `close` at the end. `fault` is then the last fault of the sink that was not made good."""

    def __init__(self, sink: Sink, journal: Journal, stop: Stop, *, max_bytes: int, may_wait: bool = False) -> None:
        self.sink = sink
        self.name = sink.name
        self._journal = journal
        self._stop = stop
        self._max_bytes = max_bytes
        self._may_wait = may_wait
        self._items: deque[tuple[Any, int]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._abandoned = False  # the thread may hang in the sink: what it does from now on counts no more
        self._failed_closing = False
        self._next_tick = time.monotonic() + _TICK_S
        self._retry_at = 0.0
        self._failures = 0
        self.bytes = 0
        self.peak_bytes = 0
        self.written = 0
        self.dropped: Counter[str] = Counter()
        self.fault: LLMSecError | None = None
        self._thread = threading.Thread(target=self._run, name=f"llmsec-{sink.name}", daemon=True)
        self._thread.start()

    def offer(self, item: Exchange | Event | Alert) -> bool:
        """False where it was dropped."""
        item, size = self.sink.encode(item)
        if not size:
            return True
        with self._changed:
            while self._may_wait and self.bytes and self.bytes + size > self._max_bytes and not (self._stop.is_requested or self._is_over):
                self._changed.wait(_WAIT_S)
            if self._is_over:
                return False
            if self.bytes and self.bytes + size > self._max_bytes:
                self.dropped["full"] += 1
                return False
            self._items.append((item, size))
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """Write what is left, as long as `stop` gives time; what is left then is dropped as `late`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._thread.is_alive() and self._stop.left_s() > 0:
            self._thread.join(min(_WAIT_S, self._stop.left_s()))
        with self._changed:
            if self._thread.is_alive():
                self._abandoned = True
                self.dropped["late"] += len(self._items)
                self._items.clear()

    @property
    def lost(self) -> bool:
        """The sink did not take everything, and somebody still wanted it."""
        return not self._is_over and (self.fault is not None or self.dropped.total() > 0)

    def samples(self) -> Iterable[Sample]:
        labels = (("sink", self.name),)
        yield Sample("llmsec_sink_records_total", self.written, labels)
        yield Sample("llmsec_sink_queue_bytes", self.bytes, labels)
        yield Sample("llmsec_sink_up", float(self.fault is None), labels)
        for sample in by_label("llmsec_sink_dropped_records_total", "reason", self.dropped):
            yield Sample(sample.name, sample.value, (*labels, *sample.labels))
        yield from self.sink.samples()

    # --- the lane's thread --------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return isinstance(self.fault, ReaderGoneError)

    def _run(self) -> None:
        while self._step():
            pass
        with self._changed:
            if not self._abandoned and not self._is_over:
                self.dropped["failed"] += len(self._items)
                self._items.clear()
                self.bytes = 0
        self._guarded(self.sink.close)

    def _step(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._has_work or self._closing, max(0.0, self._next_tick - time.monotonic()))
            if self._closing and (not self._items or self._is_over or self._abandoned or self._failed_closing):
                return False
            batch = self._batch() if self._has_work or self._closing else []
        if batch:
            self._guarded(lambda: self._write(batch))
        if time.monotonic() >= max(self._next_tick, self._retry_at):
            self._next_tick = time.monotonic() + _TICK_S
            self._guarded(self.sink.tick)
        return True

    @property
    def _has_work(self) -> bool:
        return bool(self._items) and not self._is_over and time.monotonic() >= self._retry_at

    def _batch(self) -> list[Any]:
        batch: list[Any] = []
        total = 0
        for item, size in self._items:
            batch.append(item)
            total += size
            if total >= _BATCH_BYTES:
                break
        return batch

    def _write(self, batch: Sequence[Any]) -> None:
        taken = self.sink.write(batch)
        with self._changed:
            if self._abandoned:
                return
            for _ in range(taken):
                self.bytes -= self._items.popleft()[1]
            self.written += taken
            self._changed.notify_all()
        self.sink.tick()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except LLMSecError as fault:
            self._failed(fault)
            return
        if self.fault is not None and not self._items and not self._closing:
            self._journal.info("sink_recovered", f"{self.name}: writing again", sink=self.name)
            self.fault, self._failures = None, 0

    def _failed(self, fault: LLMSecError) -> None:
        if not isinstance(fault, ReaderGoneError) and str(self.fault) != str(fault):
            self._journal.error("sink_failed", "; ".join(fault.lines()), sink=self.name)
        self.fault = fault
        self._failed_closing = self._closing
        self._retry_at = time.monotonic() + _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
        self._failures += 1
