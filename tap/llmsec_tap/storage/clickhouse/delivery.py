"""From the parts of a folder into a ClickHouse database: in batches, acknowledged, again and again until they are there.

Nothing is lost while the database is away: parts wait in the folder, up to a cap that whoever writes or prunes the folder keeps
(retention.py), and what goes beyond it is counted and named. What is sent twice is stored once (tables.py).
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.journal import Journal
from llmsec_tap.storage.backlog import Backlog
from llmsec_tap.storage.clickhouse.address import Address
from llmsec_tap.storage.clickhouse.client import DEFAULT_LIMITS, Limits, code_of, connect, server_error
from llmsec_tap.storage.clickhouse.migrations import check_version
from llmsec_tap.storage.clickhouse.tables import EXCHANGE_TABLE, TAP_TABLE, Layout
from llmsec_tap.storage.clickhouse.verify import CHUNK, present
from llmsec_tap.storage.cursor import DAMAGED, Cursor, path_of
from llmsec_tap.storage.damage import TAP_FILES
from llmsec_tap.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from clickhouse_connect.driver.client import Client

# The design's values: three attempts 100 ms to 5 s apart; after ten failures a pause of 30 s, then three tries that must all do.
ATTEMPTS: Final = 3
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
FAILURES: Final = 10
PAUSE_S: Final = 30.0
TRIES: Final = 3
# Arrow's memory of one insert; a row beyond it goes alone.
BATCH_BYTES: Final = 32_000_000
# Refusals of one part after which the rest of it is not tried.
MAX_REFUSALS: Final = 40
# Rows that are decoded at once on the way into a batch.
_READ_ROWS: Final = 500
_SETTINGS: Final = {
    # Small inserts of many hosts are joined by the server, which answers once they are on its disk.
    "async_insert": 1,
    "wait_for_async_insert": 1,
    # A capture may hold a packet of any day.
    "max_partitions_per_insert_block": 0,
}
# What no later try mends: the server cannot read these rows (src/Common/ErrorCodes.cpp).
_ROWS_REFUSED: Final = frozenset({6, 8, 26, 27, 33, 53, 70, 72, 117, 349, 636})


@dataclass(frozen=True)
class Batching:
    """A batch is sent at so many rows, or when the first part of it has waited for so long."""

    rows: int = 10_000
    age_s: float = 5.0


class _RowsRefusedError(Exception):
    pass


@dataclass
class _Refusal:
    """Of one part: rows that the server cannot read, how often it said so, and what."""

    rows: int = 0
    times: int = 0
    why: str = ""


class Delivery:
    """One folder to one database. `step` is called again and again, by one thread."""

    def __init__(
        self,
        store: Store,
        address: Address,
        journal: Journal,
        *,
        limits: Limits = DEFAULT_LIMITS,
        batching: Batching = Batching(),
        max_bytes: int | None = None,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_bytes`: cap of what waits. Raises ConfigError where the libraries are missing, StorageError where the cursor cannot be read."""
        try:
            import pybreaker  # noqa: PLC0415
        except ImportError:
            raise ConfigError("delivery to ClickHouse needs its libraries", "pip install 'llmsec-trace[clickhouse]'") from None
        self.store = store
        self._address = address
        self._journal = journal
        self._limits = limits
        self._batching = batching
        self._clock = clock
        self.cursor = Cursor(store, str(address))
        self._max_bytes = max_bytes
        self._breaker = pybreaker.CircuitBreaker(fail_max=FAILURES, reset_timeout=pause_s, success_threshold=TRIES)
        self._client: Client | None = None
        self._waiting_since: float | None = None
        self._taps: dict[str, int] = {}
        self.fault = ""  # why the last step failed, where it did
        self.failures = 0
        self._is_full = False  # the folder takes no cursor
        for state in Backlog(store).states():
            if state.target != self.cursor.target:
                path = path_of(store, state.target)
                text = f"{store.shown} also waits for {state.target}: delete {path.name} there if nothing is delivered to it any more"
                journal.warning("another_database", text, target=state.target, file=path.name)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def step(self, *, at_once: bool = False) -> bool:
        """Send what is due; `at_once`: all that waits. False where it failed, which the journal has heard of."""
        try:
            waiting = self._look()
            if self.cursor.state.doubtful:
                self._unless_left_alone(self._settle)
            if not waiting:
                self._waiting_since = None
            elif self._waiting_since is None:
                self._waiting_since = self._clock()
            is_old = self._waiting_since is not None and self._clock() - self._waiting_since >= self._batching.age_s
            if waiting and (at_once or is_old or sum(waiting.values()) >= self._batching.rows):
                self._send(list(waiting))
                self._waiting_since = None
            self._send_taps()
        except LLMSecError as fault:
            self.failures += 1
            self._say(fault)
            return False
        if self.fault:
            self._journal.info("delivery_resumed", f"{self._address} takes rows again")
            self.fault = ""
        return True

    def _look(self) -> dict[str, int]:
        """Rows of each part that waits, the oldest first. Raises StorageError where the folder cannot be read."""
        with self._noting() as cursor:
            cursor.bound(self._max_bytes)
            waiting = cursor.look()
            for name, lost in cursor.tell().items():
                self._journal.error("part_not_delivered", f"{name} was not delivered: {lost.why}; {lost.rows} rows", part=name)
        return waiting

    @contextlib.contextmanager
    def _noting(self) -> Iterator[Cursor]:
        """The cursor, to be changed. A folder that takes no file, on a full disk, stops no delivery: what is not noted is sent again by the next run."""
        noted = False
        try:
            with self.cursor.changing():
                yield self.cursor
                noted = True
        except StorageError as fault:
            if not noted:
                raise
            if not self._is_full:
                self._journal.warning("delivery_not_noted", f"{fault}; what was delivered is remembered until this process ends")
            self._is_full = True
        else:
            self._is_full = False

    def _say(self, fault: LLMSecError) -> None:
        """Once for each reason, not once for each try."""
        if str(fault) != self.fault:
            self.fault = str(fault)
            rows = sum(self.cursor.state.waiting.values())
            self._journal.warning("delivery_failed", f"{fault}; {rows} rows wait in {self.store.shown}", rows=rows)

    # --- batches --------------------------------------------------------------------------------------------------------------

    def _send(self, names: list[str]) -> None:
        import pyarrow as pa  # noqa: PLC0415

        batch: list[pa.RecordBatch] = []
        rows = size = 0
        whole: dict[str, int] = {}  # parts whose last row is in this batch or in one before
        for name in names:
            count = 0
            try:
                for piece in self._pieces(name):
                    batch.append(piece)
                    count += piece.num_rows
                    rows += piece.num_rows
                    size += piece.nbytes
                    if rows >= self._batching.rows or size >= BATCH_BYTES:
                        self._insert(batch, [*whole, name])
                        self._done(whole)
                        batch, rows, size, whole = [], 0, 0, {}
            except (OSError, ValueError, pa.ArrowException):
                # Removed since it was listed, or damaged: the next look says which. What was read of it does no harm.
                if (self.store.exchanges / name).exists():
                    self._lose(name, DAMAGED)
                continue
            except _RowsRefusedError:
                return  # they were sent one by one
            whole[name] = count
        if whole:
            try:
                if batch:  # else their rows have gone with a batch before
                    self._insert(batch, list(whole))
            except _RowsRefusedError:
                return
            self._done(whole)

    def _done(self, parts: dict[str, int]) -> None:
        with self._noting() as cursor:
            cursor.deliver(parts)

    def _lose(self, name: str, why: str, rows: int | None = None) -> None:
        with self._noting() as cursor:
            cursor.lose(name, why, rows)

    def _pieces(self, name: str) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

        with pq.ParquetFile(self.store.exchanges / name, memory_map=False) as file:
            for piece in file.iter_batches(batch_size=_READ_ROWS):
                yield pa.RecordBatch.from_arrays(piece.columns, schema=piece.schema.remove_metadata())

    def _insert(self, batch: list[pa.RecordBatch], parts: list[str]) -> None:
        """Acknowledged when it returns. Rows that the server cannot read cost only themselves: each part is tried alone, then."""
        try:
            self._insert_parquet(EXCHANGE_TABLE, _parquet(batch), parts)
        except _RowsRefusedError:
            for name in parts:
                self._alone(name)
            raise

    def _alone(self, name: str) -> None:
        rows, refusal = 0, _Refusal()
        for piece in self._pieces(name):
            self._halve(piece, name, refusal)
            rows += piece.num_rows
        if refusal.rows:
            self._lose(name, f"the server refuses its rows: {refusal.why}", refusal.rows)
        else:
            self._done({name: rows})

    def _halve(self, piece: pa.RecordBatch, name: str, refusal: _Refusal) -> None:
        """Find the rows that are refused, and send the others; a server that refuses all is not asked about each."""
        if refusal.times >= MAX_REFUSALS:
            refusal.rows += piece.num_rows
            return
        try:
            self._insert_parquet(EXCHANGE_TABLE, _parquet([piece]), [name])
        except _RowsRefusedError as fault:
            refusal.times, refusal.why = refusal.times + 1, str(fault)
            if piece.num_rows == 1:
                refusal.rows += 1
                return
            middle = piece.num_rows // 2
            self._halve(piece.slice(0, middle), name, refusal)
            self._halve(piece.slice(middle), name, refusal)

    def _send_taps(self) -> None:
        """Runs of taps, those that changed."""
        for path in self.store.exchanges.glob(f"taps/{TAP_FILES}"):
            try:
                changed, data = path.stat().st_mtime_ns, path.read_bytes()
            except OSError:
                continue
            if self._taps.get(path.name) != changed:
                self._insert_parquet(TAP_TABLE, data, [])
                self._taps[path.name] = changed

    # --- the server -----------------------------------------------------------------------------------------------------------

    def _insert_parquet(self, table: str, data: bytes, parts: list[str]) -> None:
        """Raises StorageError or ConfigError where it is to be tried later, _RowsRefusedError where that would not help."""
        import stamina  # noqa: PLC0415

        stamina.instrumentation.set_on_retry_hooks([])
        for attempt in stamina.retry_context(on=_is_retryable, attempts=ATTEMPTS, wait_initial=FIRST_WAIT_S, wait_max=LONGEST_WAIT_S):
            with attempt:
                self._unless_left_alone(lambda: self._insert_once(table, data, parts))

    def _unless_left_alone(self, call: Callable[[], None]) -> None:
        import pybreaker  # noqa: PLC0415

        try:
            self._breaker.call(call)
        except pybreaker.CircuitBreakerError:
            raise StorageError(f"{self._address}: {FAILURES} failures, so it is left alone for a while") from None

    def _settle(self) -> None:
        """Ask for the rows of parts that were lost while nobody knew whether an insert had reached the server."""
        client, layout = self._connected(), Layout(self._address.database)
        for name, packed in list(self.cursor.state.doubtful.items()):
            keys = array("q", packed)
            found = sum(len(present(keys[begin : begin + CHUNK], client, layout)) for begin in range(0, len(keys), CHUNK))
            with self._noting() as cursor:
                cursor.settle(name, found)

    def _insert_once(self, table: str, data: bytes, parts: list[str]) -> None:
        try:
            client = self._connected()
            if not self.cursor.state.sending.issuperset(parts):
                with self._noting() as cursor:
                    cursor.send(parts)
            client.raw_insert(table, insert_block=data, fmt="Parquet", settings=_SETTINGS)
        except Exception as fault:  # noqa: BLE001 - as `translated`
            self.close()  # the next try may find another node
            if code_of(fault) in _ROWS_REFUSED and not isinstance(fault, LLMSecError):
                raise _RowsRefusedError(f"error {code_of(fault)}") from None
            raise server_error(fault, str(self._address)) from None

    def _connected(self) -> Client:
        if self._client is None:
            client, node = connect(self._address, self._limits)
            try:
                check_version(client, Layout(self._address.database))
            except BaseException:
                client.close()
                raise
            self._client = client
            self._journal.info("delivery_connected", node.note or f"rows go to {node}", node=str(node))
        return self._client


def _is_retryable(fault: Exception) -> bool:
    return isinstance(fault, StorageError) and fault.retryable


def _parquet(batch: list[pa.RecordBatch]) -> Any:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    sink = pa.BufferOutputStream()
    table = pa.concat_tables([pa.Table.from_batches([piece]) for piece in batch], promote_options="permissive")
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue().to_pybytes()
