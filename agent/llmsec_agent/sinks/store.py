"""The store: rows wait in its writer and become parts (llmsec_tap.storage)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from llmsec_tap.counters import Sample
from llmsec_tap.model import Exchange
from llmsec_tap.storage.writer import Row, StoreWriter


class StoreSink:
    name = "store"

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer

    def encode(self, exchange: Exchange) -> tuple[Row, int]:
        row = Row.of(exchange)
        return row, len(row.line)

    def write(self, items: Sequence[Row]) -> int:
        for row in items:
            self._writer.put(row)
        return len(items)

    def tick(self) -> None:
        self._writer.tick(time.monotonic_ns())

    def close(self) -> None:
        self._writer.close()

    def samples(self) -> Iterable[Sample]:
        yield from self._writer.samples()
