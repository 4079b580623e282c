"""The store: rows wait in its writer and become parts (llmsec_tap.storage)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from llmsec_agent.alerting import status as alerting_status
from llmsec_agent.delivery_metrics import DeliveryMetrics, TelemetryMetrics
from llmsec_tap.counters import Sample
from llmsec_tap.errors import StorageError
from llmsec_tap.model import Exchange
from llmsec_tap.storage import audit
from llmsec_tap.storage.retention import Pruned, Retention, prune, write_policy
from llmsec_tap.storage.taps import BEAT_S, Beat, write_beat
from llmsec_tap.storage.writer import Row, StoreWriter

_PRUNE_EVERY_S = 60.0
# Classes of content go by days: an hour more does not matter, and looking for them opens parts.
_CLASSES_EVERY_S = 3600.0


class StoreSink:
    name = "store"
    takes_events = False

    def __init__(self, writer: StoreWriter, retention: Retention | None = None, actor: dict[str, Any] | None = None) -> None:
        """`retention`: of a store that this sink looks after, together with whoever compacts it; `actor` says so in the audit log. Raises StorageError."""
        self._actor = actor
        self._logged = Pruned()
        self.look: Callable[[], Beat] | None = None  # how the tap that writes is, where it is a live one
        self._next_beat = 0.0
        self._writer = writer
        self._retention = retention if retention is not None and retention.is_bounded else None
        self._next_prune = self._next_classes = 0.0
        self._pruned = Pruned()
        self._delivery = DeliveryMetrics(writer.store) if retention is not None else None
        self._telemetry = TelemetryMetrics(writer.store) if retention is not None else None
        if retention is not None:
            write_policy(writer.store, retention)

    def encode(self, exchange: Exchange) -> tuple[Row, int]:
        row = Row.of(exchange)
        return row, len(row.line)

    def write(self, items: Sequence[Row]) -> int:
        for row in items:
            self._writer.put(row)
        return len(items)

    def tick(self) -> None:
        self._writer.tick(time.monotonic_ns())
        if time.monotonic() >= self._next_prune:
            self._next_prune = time.monotonic() + _PRUNE_EVERY_S
            self._prune()
        if self.look is not None and time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + BEAT_S
            write_beat(self._writer.store, self.look())

    def _prune(self) -> None:
        if self._retention is not None:
            by_day = Retention(days=self._retention.days, max_bytes=self._retention.max_bytes)
            self._pruned += prune(self._writer.store, time.time_ns(), by_day, backlog=self._writer.backlog)
            if self._retention.takes_from_rows and time.monotonic() >= self._next_classes:
                self._next_classes = time.monotonic() + _CLASSES_EVERY_S
                self._writer.compact()
        if self._delivery is not None:
            with self._writer.backlog.look():
                pass  # what waits is known, with its rows, also while nobody delivers
        self._log()

    def _log(self) -> None:
        """What the bounds of the store have deleted since the last entry."""
        pruned = self._pruned + self._writer.pruned
        if pruned != self._logged and self._actor is not None:
            facts = {"state": "done", "by": "retention", **msgspec.to_builtins(pruned.since(self._logged))}
            audit.append(self._writer.store, [("deletion", facts)], self._actor)
            self._logged = pruned

    def close(self) -> None:
        try:
            self._writer.close()
        except StorageError:
            with contextlib.suppress(StorageError):
                self._end()  # a small file may still fit: it says what could not be stored
            raise
        self._end()

    def _end(self) -> None:
        if self.look is not None:
            write_beat(self._writer.store, msgspec.structs.replace(self.look(), stopped_ns=time.time_ns()))
        self._log()

    def samples(self) -> Iterable[Sample]:
        yield from self._writer.samples()
        pruned = self._pruned + self._writer.pruned
        yield Sample("llmsec_store_pruned_parts_total", pruned.parts)
        yield Sample("llmsec_store_pruned_bytes_total", pruned.bytes)
        if self._delivery is not None:
            yield from self._delivery.samples()
        if self._telemetry is not None:
            yield from self._telemetry.samples()
            yield from alerting_status.samples(self._writer.store.root)
        yield Sample("llmsec_store_undelivered_parts_total", pruned.dropped)
        yield Sample("llmsec_store_undelivered_rows_total", pruned.dropped_rows)
