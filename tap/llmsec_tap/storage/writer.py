"""Exchanges in, Parquet parts out.

Rows wait as encoded lines and are written when there are enough of them or the oldest is old enough. A part is complete
before its name appears, so a reader sees all of it or nothing, whenever the writer dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from llmsec_tap.counters import Sample
from llmsec_tap.errors import StorageError
from llmsec_tap.journal import WARNINGS, Journal
from llmsec_tap.model import Exchange
from llmsec_tap.storage.backlog import Backlog
from llmsec_tap.storage.compact import MIN_PARTS, compact_apart
from llmsec_tap.storage.faults import storage_error
from llmsec_tap.storage.publish import publishing, write_all
from llmsec_tap.storage.retention import Pruned, make_room
from llmsec_tap.storage.rows import encode_row
from llmsec_tap.storage.store import NO_DAY, Store, create_store

NS_PER_DAY = 86_400_000_000_000

# One part holds this many rows or bytes of encoded rows: 2 MB keep the whole writer under 25 MB beyond its libraries,
# and more save no CPU (4 and 8 MB measured: 0.28 s and 0.36 s for 27 MB of rows).
FLUSH_ROWS = 5_000
FLUSH_BYTES = 2_000_000
# A live capture is at most this far behind for its readers.
FLUSH_AGE_NS = 5_000_000_000
# What may wait while the store cannot be written (full disk); beyond it rows are given up and counted.
MAX_WAITING_BYTES = 32_000_000
# A live capture at one part per five seconds looks after its small parts about every ten minutes.
COMPACT_EVERY_PARTS = 128
CLOSE_WAIT_S = 10.0


@dataclass
class WriterStats:
    """`stored` rows are safely on the disk. `repaired` of them had a value that its column cannot hold, now null.

    `replaced` rows waited when a later one came with their id.
    """

    added: int = 0
    stored: int = 0
    replaced: int = 0
    not_stored: int = 0
    repaired: int = 0
    parts: int = 0
    bytes_written: int = 0


class Row(NamedTuple):
    """An exchange on its way into a part: `day` is its folder, `line` what Arrow reads."""

    exchange_id: str
    day: str
    line: bytes

    @classmethod
    def of(cls, exchange: Exchange) -> Self:
        return cls(exchange.exchange_id, day_folder(exchange.started_ns), encode_row(exchange))


class StoreWriter:
    """Buffers exchanges and publishes them; one per process is usual, several processes on one store are fine.

    `add`, `tick`, `flush` and `close` raise StorageError when the store cannot be written. The rows that waited are kept
    and tried again by a later flush, within MAX_WAITING_BYTES; what is given up is in `stats.not_stored`.
    """

    def __init__(
        self,
        store: Store,
        *,
        number: int | None = None,
        flush_rows: int = FLUSH_ROWS,
        flush_bytes: int = FLUSH_BYTES,
        flush_age_ns: int = FLUSH_AGE_NS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        max_store_bytes: int | None = None,
        compact_by: Callable[[Store, int], subprocess.Popen[bytes] | None] = compact_apart,
    ) -> None:
        """`max_store_bytes`: before a part is published, the oldest ones go until it fits, and into the cap of what waits to be delivered. `compact_by` has parts merged aside; it gives the process that does it, if that is a child of this one.

        `number`, below 16: of several writers that write at the same moments, this one.
        """
        self.store = store
        self._compact_by = compact_by
        self._number = number
        self._max_store_bytes = max_store_bytes
        self.backlog = Backlog(store)
        self.pruned = Pruned()  # to make room
        self.stats = WriterStats()
        self._flush_rows = flush_rows
        self._flush_bytes = flush_bytes
        self._flush_age_ns = flush_age_ns
        self._max_waiting_bytes = max_waiting_bytes
        self._days: dict[str, dict[str, bytes]] = {}
        self._rows = 0
        self._bytes = 0
        self._retry_bytes = 0  # after a failure: do not try again before this many bytes wait
        self._oldest_ns: int | None = None
        self._last_seq = 0
        self._days_written: set[str] = set()
        self._compact_at_parts = COMPACT_EVERY_PARTS
        self._compaction: subprocess.Popen[bytes] | None = None
        self._compactions_failed = 0

    @classmethod
    def open(cls, location: str | Path, journal: Journal = WARNINGS) -> StoreWriter:
        """A writer for the store at `location`, which is made if it does not exist."""
        return cls(create_store(location, journal))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.close()
        except StorageError:
            if kind is None:
                raise

    def add(self, exchange: Exchange) -> None:
        """Take one exchange; it is on the disk after the next flush. The same id again replaces the waiting row."""
        self.put(Row.of(exchange))
        if self._is_full and self._bytes >= self._retry_bytes:
            self.flush()

    def put(self, row: Row) -> None:
        """As `add`, but never writes: `tick` does."""
        rows = self._days.setdefault(row.day, {})
        earlier = rows.pop(row.exchange_id, None)
        if earlier is not None:
            self._rows -= 1
            self._bytes -= len(earlier)
            self.stats.added -= 1
            self.stats.replaced += 1
        rows[row.exchange_id] = row.line
        self._rows += 1
        self._bytes += len(row.line)
        self.stats.added += 1

    @property
    def _is_full(self) -> bool:
        return self._rows >= self._flush_rows or self._bytes >= self._flush_bytes

    def tick(self, now_ns: int) -> None:
        """Tell the time (any clock that only grows): rows are written that are enough, that have waited for FLUSH_AGE_NS, or that a failed flush has left."""
        if not self._rows:
            self._oldest_ns = None
            return
        if self._oldest_ns is None:
            self._oldest_ns = now_ns
        if self._is_full or self._retry_bytes or now_ns - self._oldest_ns >= self._flush_age_ns:
            self._oldest_ns = now_ns
            self.flush()

    def samples(self) -> Iterable[Sample]:
        yield Sample("llmsec_store_rows_total", self.stats.stored)
        yield Sample("llmsec_store_replaced_rows_total", self.stats.replaced)
        yield Sample("llmsec_store_lost_rows_total", self.stats.not_stored)
        yield Sample("llmsec_store_repaired_rows_total", self.stats.repaired)
        yield Sample("llmsec_store_parts_total", self.stats.parts)
        yield Sample("llmsec_store_written_bytes_total", self.stats.bytes_written)
        yield Sample("llmsec_store_waiting_bytes", self._bytes)
        yield Sample("llmsec_store_failed_compactions_total", self._compactions_failed)

    def flush(self) -> None:
        """Write all that waits, one part for each day."""
        try:
            for day in list(self._days):
                self._write_day(day)
        except StorageError:
            self._retry_bytes = self._bytes + self._flush_bytes
            if self._bytes >= self._max_waiting_bytes:
                self._give_up()
            raise
        self._retry_bytes = 0
        self._oldest_ns = None
        self._compact_now_and_then()

    def compact(self) -> None:
        """Have parts merged, and what retention does not keep deleted, unless that is going on already."""
        self._look_for_compaction()
        if self._compaction is None:
            self._compaction = self._compact_by(self.store, time.time_ns())

    def _look_for_compaction(self) -> None:
        if self._compaction is not None and self._compaction.poll() is not None:
            self._compactions_failed += self._compaction.returncode != 0
            self._compaction = None

    def _compact_now_and_then(self) -> None:
        self._look_for_compaction()
        if self._compaction is None and self.stats.parts >= self._compact_at_parts:
            self._compact_at_parts = self.stats.parts + COMPACT_EVERY_PARTS
            self._compaction = self._compact_by(self.store, time.time_ns())

    def close(self) -> None:
        """Write what waits, and tidy up after a long run; what cannot be written now is lost and counted."""
        try:
            self.flush()
        except StorageError:
            self._give_up()
            raise
        if self._compaction is None and any(_entries(self.store.exchanges / day) >= MIN_PARTS for day in self._days_written):
            self._compaction = self._compact_by(self.store, time.time_ns())
        if self._compaction is not None:
            # It goes on by itself, and may be killed, so a long one does not hold up the end of a command.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._compaction.wait(CLOSE_WAIT_S)

    def _give_up(self) -> None:
        self.stats = replace(self.stats, not_stored=self.stats.not_stored + self._rows)
        self._days.clear()
        self._rows = self._bytes = self._retry_bytes = 0

    def _write_day(self, day: str) -> None:
        from llmsec_tap.storage import parquet  # noqa: PLC0415

        rows = self._days[day]
        seq = self._next_seq()
        table, dropped, repaired = parquet.to_table(list(rows.values()))
        folder = self.store.exchanges / day
        target = folder / f"part-{seq:019d}.parquet"
        written = 0
        if table.num_rows:
            data = parquet.to_parquet(table, seq)
            written = data.size
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                if folder.is_symlink():
                    raise NotADirectoryError(errno.ENOTDIR, "a link stands in the place of a day's folder")
                self.pruned += make_room(self.store, written, self._max_store_bytes, self.backlog)
                folder.mkdir(mode=0o700, exist_ok=True)  # its only part may have been the oldest
                with publishing(target) as descriptor:
                    write_all(descriptor, data)
            except OSError as fault:
                raise storage_error("cannot write", self.store.shown / "exchanges" / day, fault) from None
        del self._days[day]
        self._days_written.add(day)
        self._rows -= len(rows)
        self._bytes -= sum(map(len, rows.values()))
        self.stats = replace(
            self.stats,
            stored=self.stats.stored + table.num_rows,
            not_stored=self.stats.not_stored + dropped,
            repaired=self.stats.repaired + repaired,
            parts=self.stats.parts + bool(written),
            bytes_written=self.stats.bytes_written + written,
        )

    def _next_seq(self) -> int:
        """Grows from part to part, also across processes (wall clock), and differs between writers (their number, or random bits).

        The lowest eight bits are free: each merge of a row adds one (compact.py).
        """
        # Four milliseconds of the clock: less than two writers one after the other need, so the later one counts as newer.
        own = secrets.randbits(14) if self._number is None else self._number << 10 | secrets.randbits(10)
        seq = (time.time_ns() & ~0x3FFFFF) | own << 8
        self._last_seq = seq if seq > self._last_seq else self._last_seq + 0x100
        return self._last_seq


def _entries(folder: Path) -> int:
    try:
        return len(os.listdir(folder))  # noqa: PTH208 - counted, not walked
    except OSError:
        return 0  # retention had all of it


def day_folder(started_ns: int | None) -> str:
    """The folder for an exchange that began then (UTC)."""
    return _day_folder(started_ns // NS_PER_DAY) if started_ns is not None else NO_DAY


@lru_cache(64)
def _day_folder(day: int) -> str:
    try:
        return time.strftime("day=%Y-%m-%d", time.gmtime(day * 86_400))
    except (OverflowError, ValueError, OSError):
        return NO_DAY
