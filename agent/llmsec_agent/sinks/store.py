"""The store: rows wait in its writer and become parts (llmsec_tap.storage)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmsec_tap.counters import Sample
from llmsec_tap.model import Exchange
from llmsec_tap.storage.retention import Retention, prune
from llmsec_tap.storage.taps import BEAT_S, Beat, write_beat
from llmsec_tap.storage.writer import Row, StoreWriter

# A store grows by megabytes a minute; its bound need not hold to the byte.
_PRUNE_EVERY_S = 60.0


class StoreSink:
    name = "store"
    takes_events = False

    def __init__(self, writer: StoreWriter, retention: Retention | None = None) -> None:
        self.look: Callable[[], Beat] | None = None  # how the tap that writes is, where it is a live one
        self._next_beat = 0.0
        self._writer = writer
        self._retention = retention if retention is not None and retention.is_bounded else None
        self._next_prune = 0.0
        self._pruned_parts = self._pruned_bytes = 0

    def encode(self, exchange: Exchange) -> tuple[Row, int]:
        row = Row.of(exchange)
        return row, len(row.line)

    def write(self, items: Sequence[Row]) -> int:
        for row in items:
            self._writer.put(row)
        return len(items)

    def tick(self) -> None:
        self._writer.tick(time.monotonic_ns())
        if self._retention is not None and time.monotonic() >= self._next_prune:
            self._next_prune = time.monotonic() + _PRUNE_EVERY_S
            pruned = prune(self._writer.store, time.time_ns(), self._retention)
            self._pruned_parts += pruned.parts
            self._pruned_bytes += pruned.bytes

        if self.look is not None and time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + BEAT_S
            write_beat(self._writer.store, self.look())

    def close(self) -> None:
        self._writer.close()
        if self.look is not None:
            write_beat(self._writer.store, msgspec.structs.replace(self.look(), stopped_ns=time.time_ns()))

    def samples(self) -> Iterable[Sample]:
        yield from self._writer.samples()
        yield Sample("llmsec_store_pruned_parts_total", self._pruned_parts)
        yield Sample("llmsec_store_pruned_bytes_total", self._pruned_bytes)
