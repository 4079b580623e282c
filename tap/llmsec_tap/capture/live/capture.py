"""A live capture: threads that read (TLS records, packets), one bounded queue, and the thread that decodes, which is the caller's.

Order at the end, whatever ends it: probes out first, then what was still under way is decoded, stored and summed up.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Protocol

from llmsec_tap import limits
from llmsec_tap.capture.ebpf import events
from llmsec_tap.capture.ebpf.events import Event
from llmsec_tap.capture.ebpf.loader_api import ConnectionLoss, KernelTotals
from llmsec_tap.capture.live.flows import TLSFlows
from llmsec_tap.capture.live.queue import BatchQueue
from llmsec_tap.capture.live.reader import Reader, Records
from llmsec_tap.clock import Clock
from llmsec_tap.counters import Sample
from llmsec_tap.errors import SourceError
from llmsec_tap.memory import limit_address_space, resident_bytes
from llmsec_tap.pipeline import Pipeline

_TICK_S = 0.5
# Memory is looked at this often, in time and in what was decoded since: at 100 MB/s time alone would be too seldom.
_WATCH_S = 0.1
_WATCH_BYTES = 1 << 20
# How soon the reading thread gets its turn while this one decodes: the ring fills meanwhile.
_SWITCH_S = 0.001
_WAIT_S = 0.05
_HURRY_S = 0.002
_REORDER_S = limits.REORDER_NS / 1e9
# SHED_NEW: share of the cap above which new connections are not accepted. SHED_OLD: above it, the least active ones are dropped, too,
# SHED_COUNT at a time.
# The rest is for what comes between two looks, and for a large buffer that is copied as it grows.
SHED_NEW, _SHED_OLD, _SHED_COUNT = 0.75, 0.85, 256
_BY_TIME = itemgetter(0)


class CaptureThread(Protocol):
    """Reads something on a thread of its own. A `fault` ends the capture."""

    fault: BaseException | None

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


class PacketThread(CaptureThread, Protocol):
    """A source of packets (AF_PACKET)."""

    def samples(self) -> Iterable[Sample]: ...


class LiveCapture:
    """Make it with what is to be read, `run` it, and look at its counts. `stop` may be called from a signal handler."""

    def __init__(self, pipeline: Pipeline, queue: BatchQueue, clock: Clock, *, memory_cap_bytes: int = limits.MEMORY_CAP_BYTES) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._queue = queue
        self._memory_cap = memory_cap_bytes
        self._kernel: Records | None = None
        self._reader: Reader | None = None
        self._flows: TLSFlows | None = None
        self._packets: Sequence[PacketThread] = ()
        self._others: list[CaptureThread] = []
        self._stopping = False
        self._pending: list[tuple[int, bytes, Event]] = []
        self._next_tick = 0.0
        self._next_watch = 0.0
        self._watched_bytes = 0
        self.on_tick: Callable[[], None] = lambda: None  # twice a second
        self.left_s: Callable[[], float] = lambda: math.inf  # how long decoding may go on after the end
        self.on_end: Callable[[], None] = lambda: None  # once, before anything else
        self.on_step: Callable[[], None] = lambda: None  # whenever something was decoded, or nothing came for a while
        self.is_awaited: Callable[[], bool] = lambda: False  # then `on_step` is called again within milliseconds
        self.records = 0
        self.memory_faults = 0
        self.shed_connections = 0

    def add_tls(self, kernel: Records, flows: TLSFlows) -> None:
        self._kernel = kernel
        self._flows = flows
        self._reader = Reader(kernel, self._queue, self._lost)

    def add_packets(self, sources: Sequence[PacketThread]) -> None:
        self._packets = sources

    def add_thread(self, thread: CaptureThread) -> None:
        """One that hands in calls by the queue."""
        self._others.append(thread)

    @property
    def _threads(self) -> list[CaptureThread]:
        return [*([self._reader] if self._reader is not None else []), *self._packets, *self._others]

    def stop(self) -> None:
        self._stopping = True

    def samples(self) -> Iterable[Sample]:
        """Totals of the kernel half are as of its reader's last look, half a second ago at most."""
        totals = self._reader.totals if self._reader is not None else KernelTotals()
        for name, value in totals._asdict().items():
            yield Sample(f"llmsec_kernel_{name}_total", value)
        yield Sample("llmsec_shed_connections_total", self.shed_connections)
        yield Sample("llmsec_memory_faults_total", self.memory_faults)
        yield Sample("llmsec_clock_stepped_seconds", self._clock.stepped_ns() / 1e9)
        yield from self._queue.samples()
        if self._flows is not None:
            yield from self._flows.samples()
        for source in self._packets:
            yield from source.samples()

    def run(self, duration_s: float | None = None) -> None:
        """Until stopped, or for so long. Raises SourceError where a source failed; everything before it is delivered."""
        sys.setswitchinterval(_SWITCH_S)
        deadline = None if duration_s is None else time.monotonic() + duration_s
        limit_address_space(self._memory_cap)
        threads = self._threads
        try:
            for thread in threads:
                thread.start()
            while not self._stopping and not any(thread.fault for thread in threads):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                try:
                    self._step(_HURRY_S if self.is_awaited() else _WAIT_S)
                except MemoryError:  # what was being read is lost, the rest is given up to go on
                    self.memory_faults += 1
                    self._pipeline.shed()
        finally:
            self._finish()
        for thread in threads:
            if thread.fault is not None:
                raise SourceError(
                    f"capture stopped reading: {thread.fault}", "Please report this; data captured up to that point was kept."
                ) from thread.fault

    def _step(self, wait_s: float) -> bool:
        item = self._queue.get(min(wait_s, _REORDER_S) if self._pending else wait_s)
        if isinstance(item, list):
            self._take(item)
        elif item is not None:
            item()
        self._flush(self._clock.boottime_ns() - limits.REORDER_NS)
        now = time.monotonic()
        if now >= self._next_watch or self._queue.taken_bytes - self._watched_bytes > _WATCH_BYTES:
            self._next_watch = now + _WATCH_S
            self._watched_bytes = self._queue.taken_bytes
            self._watch_memory()
        if now >= self._next_tick:
            self._tick()
        self.on_step()
        return item is not None

    # --- TLS records --------------------------------------------------------------------------------------------------

    def _take(self, records: list[bytes]) -> None:
        self.records += len(records)
        pending = self._pending
        for record in records:
            event = events.decode(record)
            pending.append((event.ts_ns, record, event))

    def _flush(self, until_ns: int) -> None:
        """Hand on what is older than the reorder time, in the order of the calls."""
        pending = self._pending
        if not pending:
            return
        pending.sort(key=_BY_TIME)
        count = bisect_right(pending, until_ns, key=_BY_TIME)
        assert self._flows is not None
        feed = self._flows.feed
        for _, record, event in pending[:count]:
            feed(record, event)
        del pending[:count]

    def _lost(self, losses: list[ConnectionLoss]) -> None:
        self._flush(1 << 63)
        if self._flows is not None:
            self._flows.lost(losses)

    # --- time and memory ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._next_tick = time.monotonic() + _TICK_S
        self._pipeline.tick(self._clock.now_ns())
        if self._flows is not None:
            self._flows.tick()
            for connection, epoch, pid in self._queue.left_out():
                self._flows.left_out(pid, connection, epoch)
        self.on_tick()

    def _watch_memory(self) -> None:
        used = resident_bytes()
        if used > self._memory_cap * SHED_NEW:  # it may be free already, but not given back
            ctypes.CDLL(None).malloc_trim(0)
            used = resident_bytes()
        if used > self._memory_cap * _SHED_OLD:
            if self._flows is not None:
                given_up = self._flows.shed(_SHED_COUNT)
                self._queue.leave_out(given_up)
                self.shed_connections += len(given_up)
            else:
                self._pipeline.shed()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            used = resident_bytes()
        self._queue.shed_all_new = used > self._memory_cap * SHED_NEW

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.on_end()
        if self._kernel is not None:
            self._kernel.detach_all()
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(min(5.0, self.left_s()))
        while self.left_s() > 0 and self._step(0.0):
            pass
        self._queue.discard()
        self._flush(1 << 63)
        self._tick()
        if self._kernel is not None:
            self._kernel.close()
        if self._flows is not None:
            self._flows.close()
