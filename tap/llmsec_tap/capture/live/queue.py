"""Between the threads that read and the one that decodes: bounded by bytes, never waited for by the observed processes.

When decoding falls behind, whole connections are left out first: above QUEUE_SHED_BYTES those that have not begun, at
MAX_QUEUE_BYTES any connection whose record arrives (both lower under a small memory cap). A connection once left out stays out until it ends: half an exchange helps nobody.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from llmsec_tap import limits
from llmsec_tap.capture.ebpf import events
from llmsec_tap.counters import Sample

Item = Callable[[], None] | list[bytes]
_Key = tuple[int, int, int]  # connection, epoch, process
_MAX_KEYS = 4 * limits.MAX_TLS_CONNECTIONS


class BatchQueue:
    """Items are lists of TLS records, or functions that the decoding thread calls (a block of packets)."""

    def __init__(self, max_bytes: int = limits.MAX_QUEUE_BYTES, shed_bytes: int = limits.QUEUE_SHED_BYTES) -> None:
        self._max = max_bytes
        self.shed_above = shed_bytes
        self._items: deque[tuple[Item, int]] = deque()
        self._ready = threading.Condition()
        self._begun: set[_Key] = set()
        self._left_out: set[_Key] = set()
        self._news: list[_Key] = []
        self.bytes = 0
        self.taken_bytes = 0
        self.peak_bytes = 0
        self.shed_all_new = False  # set by the memory watch
        self.left_out_connections = 0
        self.left_out_records = 0
        self.left_out_bytes = 0
        self.discarded_blocks = 0  # of packets

    def put(self, records: list[bytes]) -> None:
        """Never waits."""
        kept, size = self._filter(records)
        if kept:
            self._append(kept, size)

    def put_control(self, call: Callable[[], None]) -> None:
        """A call that must not be refused: a report of loss comes just when the queue is full."""
        self._append(call, 0)

    def put_call(self, call: Callable[[], None], size: int) -> bool:
        """False where it does not fit: the caller keeps it and comes again."""
        if self.bytes + size > self._max:
            return False
        self._append(call, size)
        return True

    def _append(self, item: Item, size: int) -> None:
        with self._ready:
            self._items.append((item, size))
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            self._ready.notify()

    def get(self, timeout_s: float) -> Item | None:
        with self._ready:
            if not self._items and not self._ready.wait_for(lambda: bool(self._items), timeout_s):
                return None
            item, size = self._items.popleft()
            self.bytes -= size
            self.taken_bytes += size
            return item

    def discard(self) -> None:
        """Nobody has the time to decode what waits: it counts as left out. Calls that cost nothing are still made."""
        with self._ready:
            items, self._items = list(self._items), deque()
            self.bytes = 0
        for item, size in items:
            if isinstance(item, list):
                for record in item:
                    if record[events.TYPE_AT] == events.DATA:
                        self._leave_out(events.KEY.unpack_from(record), record)
            elif not size:
                item()
            else:
                self.discarded_blocks += 1

    def leave_out(self, keys: list[_Key]) -> None:
        """Take no more of these connections; what is given up half way is not begun again in its middle."""
        self._left_out.update(keys)

    def left_out(self) -> list[_Key]:
        """Connections that were left out since the last call."""
        news, self._news = self._news, []
        return news

    def _filter(self, records: list[bytes]) -> tuple[list[bytes], int]:
        kept: list[bytes] = []
        size = 0
        for record in records:
            kind = record[events.TYPE_AT]
            if kind == events.DATA:
                key = events.KEY.unpack_from(record)
                filled = self.bytes + size
                if key in self._left_out or (
                    (filled > self.shed_above or self.shed_all_new) and (key not in self._begun or filled > self._max)
                ):
                    self._leave_out(key, record)
                    continue
                if key not in self._begun:
                    if len(self._begun) > _MAX_KEYS:
                        self._begun.clear()
                    self._begun.add(key)
            elif kind == events.CLOSE:
                key = events.KEY.unpack_from(record)
                self._begun.discard(key)
                self._left_out.discard(key)
            kept.append(record)
            size += len(record)
        return kept, size

    def _leave_out(self, key: _Key, record: bytes) -> None:
        self.left_out_records += 1
        self.left_out_bytes += events.LENGTH.unpack_from(record)[0]
        if key not in self._left_out:
            if len(self._left_out) > _MAX_KEYS:
                self._left_out.clear()
            self._left_out.add(key)
            self.left_out_connections += 1
            self._news.append(key)

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_queue_bytes", self.bytes)
        yield Sample("llmsec_queue_peak_bytes", self.peak_bytes)
        yield Sample("llmsec_queue_left_out_connections_total", self.left_out_connections)
        yield Sample("llmsec_queue_left_out_records_total", self.left_out_records)
        yield Sample("llmsec_queue_left_out_bytes_total", self.left_out_bytes)
        yield Sample("llmsec_queue_discarded_packet_blocks_total", self.discarded_blocks)
